"""Connector stores, chosen by the scheme of their URL.

What a scheme takes is imported when a store is opened: commands without one should not pay for it.
"""

from contextlib import AbstractAsyncContextManager

from worker import extras
from worker.errors import MisconfiguredError
from worker.stores.base import (
    Connector,
    ConnectorStore,
    Difference,
    ElasticsearchAccess,
    MergingStore,
)
from worker.stores.memory import open_memory

__all__ = [
    "Connector",
    "ConnectorStore",
    "Difference",
    "ElasticsearchAccess",
    "MergingStore",
    "masked",
    "open_merging_store",
    "open_store",
    "upgrade_store",
]

KINDS = {
    "memory": "memory",
    "sqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "elasticsearch+http": "elasticsearch",
    "elasticsearch+https": "elasticsearch",
}


def open_store(
    url: str, access: ElasticsearchAccess | None = None
) -> AbstractAsyncContextManager[ConnectorStore]:
    """Open the store that the URL names, for an `async with`.

    A SQLite file that is not there is made; other stores are there, or not.

    Raises `MisconfiguredError`, here or on entering, where a person has to change something, and
    `TransientError` where waiting can help.
    """
    match _kind(url):
        case "sqlite":
            from worker.stores.sqlite import open_sqlite  # noqa: PLC0415

            return open_sqlite(url)
        case "postgresql":
            from worker.stores.postgresql import open_postgresql  # noqa: PLC0415

            return open_postgresql(url)
        case "elasticsearch":
            from worker.stores.elasticsearch import open_elasticsearch  # noqa: PLC0415

            return open_elasticsearch(url, access or ElasticsearchAccess())
        case _:
            return open_memory()


def open_merging_store(
    url: str, access: ElasticsearchAccess | None = None, *, make: bool = True
) -> AbstractAsyncContextManager[MergingStore]:
    """Open the store as `open_store` does, without SQLAlchemy: 20 MB and a fifth of a second.

    A SQLite file that is not there is made, unless `make` is false.
    """
    match _kind(url):
        case "sqlite":
            from worker.stores.sqlite_database import open_sqlite_merging  # noqa: PLC0415

            return open_sqlite_merging(url, make=make)
        case "postgresql":
            from worker.stores.postgresql_database import open_postgresql_merging  # noqa: PLC0415

            return open_postgresql_merging(url)
        case _:
            return open_store(url, access)


async def upgrade_store(url: str) -> None:
    """Bring the store's schema up to date, unless opening does so by itself."""
    if _kind(url) == "postgresql":
        from worker.stores.postgresql import upgrade_postgresql  # noqa: PLC0415

        await upgrade_postgresql(url)


def masked(url: str) -> str:
    """Hide user and password, which stand before the last `@`, and parameters, which may be one."""
    scheme, separator, rest = url.partition("://")
    _, at, place = rest.rpartition("@")
    place, question, _ = place.partition("?")
    return f"{scheme}{separator}{'***@' if at else ''}{place}{'?***' if question else ''}"


def _kind(url: str) -> str:
    """Say which store it is, whose extra is installed."""
    scheme, separator, _ = url.partition("://")
    kind = KINDS.get(scheme) if separator else None
    if kind is None or (kind == "memory" and url != "memory://"):
        raise MisconfiguredError(
            f"store {masked(url)!r}: not a URL that this release knows; use sqlite:///path,"
            " postgresql://user@host/database, elasticsearch+https://host:9200, or memory:// for a"
            " trial"
        )
    if kind in extras.MODULES:
        extras.require(kind, f"the store {masked(url)}")
    return kind
