"""Connector stores, chosen by the scheme of their URL."""

from contextlib import AbstractAsyncContextManager

from worker import extras
from worker.errors import MisconfiguredError
from worker.stores.base import Connector, ConnectorStore, Difference, ElasticsearchAccess
from worker.stores.memory import open_memory

__all__ = [
    "Connector",
    "ConnectorStore",
    "Difference",
    "ElasticsearchAccess",
    "masked",
    "open_store",
    "upgrade_store",
]


def open_store(
    url: str, access: ElasticsearchAccess | None = None, *, make: bool = True
) -> AbstractAsyncContextManager[ConnectorStore]:
    """Open the store that the URL names, for an `async with`.

    A SQLite file that is not there is made, unless `make` is false; other stores are there, or not.

    Raises `MisconfiguredError`, here or on entering, where a person has to change something, and
    `TransientError` where waiting can help.
    """
    scheme, separator, _ = url.partition("://")
    if url == "memory://":
        return open_memory()
    if scheme == "sqlite" and separator:
        # Half a second of imports that commands without a store should not pay.
        from worker.stores.sqlite import open_sqlite  # noqa: PLC0415

        return open_sqlite(url, make=make)
    if scheme in {"postgresql", "postgres"} and separator:
        extras.require("postgresql", f"the store {masked(url)}")
        from worker.stores.postgresql import open_postgresql  # noqa: PLC0415

        return open_postgresql(url)
    if scheme in {"elasticsearch+http", "elasticsearch+https"} and separator:
        extras.require("elasticsearch", f"the store {masked(url)}")
        from worker.stores.elasticsearch import open_elasticsearch  # noqa: PLC0415

        return open_elasticsearch(url, access or ElasticsearchAccess())
    raise MisconfiguredError(
        f"store {masked(url)!r}: not a URL that this release knows; use sqlite:///path,"
        " postgresql://user@host/database, elasticsearch+https://host:9200, or memory:// for a"
        " trial"
    )


async def upgrade_store(url: str) -> None:
    """Bring the store's schema up to date, unless opening does so by itself."""
    if url.startswith(("postgresql://", "postgres://")):
        extras.require("postgresql", f"the store {masked(url)}")
        from worker.stores.postgresql import upgrade_postgresql  # noqa: PLC0415

        await upgrade_postgresql(url)


def masked(url: str) -> str:
    """Hide user and password, which stand before the last `@`, and parameters, which may be one."""
    scheme, separator, rest = url.partition("://")
    _, at, place = rest.rpartition("@")
    place, question, _ = place.partition("?")
    return f"{scheme}{separator}{'***@' if at else ''}{place}{'?***' if question else ''}"
