"""What the extras of the package bring, and the line that says which one is missing."""

from importlib.util import find_spec

from worker.errors import MisconfiguredError

MODULES = {
    "api": ("starlette", "uvicorn"),
    "demo": ("confluent_kafka",),
    "elasticsearch": ("elasticsearch", "aiohttp"),
    "postgresql": ("asyncpg",),
}


def require(extra: str, what: str) -> None:
    """Raise MisconfiguredError, with the command that helps, unless the extra is installed."""
    missing = [name for name in MODULES[extra] if find_spec(name) is None]
    if missing:
        raise MisconfiguredError(
            f"{what} needs {' and '.join(missing)}, not installed here: "
            f"pip install 'last-sync-worker[{extra}]'"
        )
