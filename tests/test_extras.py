"""What is installed without extras, and what commands say that need one."""

import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.programs import Cli, Finished
from worker.extras import MODULES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What each command needs, with how it is called, and why.
NEEDS: dict[str, list[tuple[str, ...]]] = {
    "api": [("api", "--store", "sqlite:///a.db")],
    "demo": [("demo",)],
    "elasticsearch": [
        ("connectors", "list", "--store", "elasticsearch+http://localhost"),
        ("store", "verify", "--store", "elasticsearch+http://localhost"),
    ],
    "postgresql": [
        ("run", "--store", "postgresql://localhost/last_sync"),
        ("connectors", "add", "a", "--store", "postgresql://localhost/last_sync"),
        ("store", "upgrade", "--store", "postgres://localhost/last_sync"),
        ("check", "--store", "postgresql://localhost/last_sync"),
    ],
}
CALLS = [(extra, call) for extra, calls in NEEDS.items() for call in calls]


@pytest.fixture
def bare(tmp_path: Path, clean_env: dict[str, str]) -> Cli:
    """Run the program where nothing that an extra brings can be imported."""
    hidden = [module for modules in MODULES.values() for module in modules]
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({hidden!r}))\n"
    )
    return Cli(folder=tmp_path, environ={**clean_env, "PYTHONPATH": str(tmp_path)})


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=60, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def requirements(lines: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;, ]", line)[0].lower() for line in lines}


@pytest.mark.parametrize(("extra", "call"), CALLS, ids=lambda value: " ".join(value[:2]))
async def test_a_missing_extra_is_one_line_with_the_command(
    bare: Cli, extra: str, call: tuple[str, ...]
) -> None:
    assert_names_the_extra(await bare(*call), extra)


def assert_names_the_extra(done: Finished, extra: str, python: str = sys.executable) -> None:
    assert not done.stdout.startswith("CONNECTOR")  # no heading of what there is not
    (line,) = [text for text in (done.stdout + done.stderr).splitlines() if " needs " in text]
    assert line.endswith(f": {python} -m pip install 'last-sync-worker[{extra}]'"), line
    assert done.exit_code == 3
    assert "Traceback" not in done.stderr


async def test_without_extras_sqlite_works(bare: Cli) -> None:
    added = await bare("connectors", "add", "a", "--store", "sqlite:///a.db")
    assert (added.exit_code, added.stdout) == (0, "a: registered\n")


def test_no_driver_is_imported_before_a_store_is_opened() -> None:
    show = [sys.executable, "-c", "import sys, worker.cli; print(*sys.modules)"]
    shown = subprocess.run(show, check=True, timeout=30, capture_output=True, text=True)
    drivers = {
        "aiosqlite",
        "alembic",
        "sqlalchemy",
        *(name for each in MODULES.values() for name in each),
    }
    assert not drivers & set(shown.stdout.split())


def test_every_extra_is_known_by_the_modules_that_it_brings() -> None:
    assert set(MODULES) == set(PROJECT["optional-dependencies"])


def test_the_wheel_asks_for_drivers_and_servers_only_in_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        asked = re.findall(r"^Requires-Dist: (.*)$", archive.read(name).decode(), re.MULTILINE)
    base = requirements([line for line in asked if "extra ==" not in line])
    extras = requirements([line for line in asked if "extra ==" in line])
    assert base == requirements(PROJECT["dependencies"])
    assert extras >= {"asyncpg", "confluent-kafka", "elasticsearch", "starlette", "uvicorn"}
    assert not base & extras


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"schemas", "worker"}
    assert {"worker/py.typed", "worker/stores/migrations/env.py"} <= set(names)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_an_install_pulls_what_its_store_needs_and_no_more(
    wheel: Path, tmp_path: Path, clean_env: dict[str, str]
) -> None:
    """Install for good, into an empty environment, from the package index."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    program = home / "bin" / "last-sync"

    def installed(what: str) -> set[str]:
        pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", what], check=True, timeout=500)
        listed = subprocess.run(
            [*pip, "list", "--format=freeze"], check=True, timeout=60, capture_output=True
        )
        return requirements(listed.stdout.decode().splitlines())

    foreign = {"aiohttp", "asyncpg", "confluent-kafka", "elasticsearch", "starlette", "uvicorn"}
    assert not installed(str(wheel)) & foreign
    cli = Cli(folder=tmp_path, environ=clean_env, program=str(program))
    assert (await cli("connectors", "add", "a", "--store", "sqlite:///a.db")).exit_code == 0
    for extra, call in CALLS:
        assert_names_the_extra(await cli(*call), extra, python=str(home / "bin" / "python"))
    assert installed(f"{wheel}[postgresql]") & foreign == {"asyncpg"}
    reached = await cli("connectors", "list", "--store", "postgresql://localhost:1/last_sync")
    assert "Connect call failed" in reached.stderr
