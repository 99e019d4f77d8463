"""The tools that deployments are checked with; where one is missing, the tests say so and fail."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"

Run = Callable[..., str]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Give what the command printed; its end with an error is a failure that shows all of it."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def promtool() -> Run:
    """Run Prometheus' own checker."""
    if shutil.which("promtool") is None:
        pytest.fail("no promtool: install Debian's package prometheus", pytrace=False)
    return lambda *arguments, **options: run("promtool", *arguments, **options)


@pytest.fixture(scope="session")
def kustomize() -> Run:
    """Give the manifests that a folder with a kustomization makes."""
    if shutil.which("kustomize"):
        return lambda folder: run("kustomize", "build", folder)
    if shutil.which("kubectl"):
        return lambda folder: run("kubectl", "kustomize", folder)
    pytest.fail(
        "no kustomize: install it (Debian 13: kustomize), or a kubectl of 1.27 or newer",
        pytrace=False,
    )
