"""Connector stores, chosen by the scheme of their URL."""

from contextlib import AbstractAsyncContextManager

from worker.errors import MisconfiguredError
from worker.stores.base import Connector, ConnectorStore
from worker.stores.memory import open_memory

__all__ = ["Connector", "ConnectorStore", "open_store"]


def open_store(url: str) -> AbstractAsyncContextManager[ConnectorStore]:
    """Open the store that the URL names, for an `async with`.

    Raises `MisconfiguredError`, here or on entering, where a person has to change something, and
    `TransientError` where waiting can help.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "memory":
        return open_memory()
    raise MisconfiguredError(f"store URL {masked(url)!r}: unknown scheme; use sqlite:///path")


def masked(url: str) -> str:
    """Hide what stands between `://` and the last `@`: user and password."""
    scheme, separator, rest = url.partition("://")
    if "@" not in rest:
        return url
    return f"{scheme}{separator}***@{rest.rpartition('@')[2]}"
