"""What the extras of the package bring, and the line that says which one is missing."""

import shlex
import sys
from importlib.util import find_spec

from worker.errors import MisconfiguredError

MODULES = {
    "api": ("starlette", "uvicorn"),
    "demo": ("confluent_kafka",),
    "elasticsearch": ("elasticsearch", "aiohttp"),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
    "postgresql": ("asyncpg",),
}


def require(extra: str, what: str) -> None:
    """Raise MisconfiguredError, with the command that helps, unless the extra is installed."""
    missing = [name for name in MODULES[extra] if not _found(name)]
    if missing:
        raise MisconfiguredError(
            # This Python's, which `pip` on the path need not be: with pipx it is another's.
            f"{what} needs {' and '.join(missing)}, not installed here: "
            f"{shlex.quote(sys.executable)} -m pip install 'last-sync-worker[{extra}]'"
        )


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in is missing
        return False
