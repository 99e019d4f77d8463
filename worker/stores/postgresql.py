"""PostgreSQL in whole, through SQLAlchemy."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, ExceptionContext, any_, bindparam, event
from sqlalchemy.dialects.postgresql import TEXT, insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from worker.errors import MisconfiguredError
from worker.stores.postgresql_database import (
    CLOSE_TIMEOUT,
    READ_ONLY,
    connected,
    open_postgresql_database,
    sqlstate,
    translated,
    unknown_schema,
)
from worker.stores.postgresql_driver import TIMES, received
from worker.stores.rows import Row
from worker.stores.sql import Dialect, SqlStore, driver_errors
from worker.stores.tables import CONNECTORS

ADVISORY_LOCK = int.from_bytes(b"lastsync")  # what migrations and registrations queue for


@asynccontextmanager
async def open_postgresql(url: str) -> AsyncIterator[SqlStore]:
    """Connect, refuse a schema that is not this release's, and disconnect at the end."""
    async with open_postgresql_database(url) as database, _engine(url) as engine:
        yield SqlStore(database, engine, _dialect())


async def upgrade_postgresql(url: str) -> None:
    """Bring the schema up to date; of many who try at once one does it, and the others wait."""
    # A third of a second to import.
    from worker.stores.migrations.upgrade import UnknownRevisionError, upgrade  # noqa: PLC0415

    async with _engine(url) as engine:
        with translated(url), driver_errors():
            async with engine.begin() as connection:
                await connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
                await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
                try:
                    await connection.run_sync(upgrade)
                except UnknownRevisionError as error:
                    raise MisconfiguredError(unknown_schema(url)) from error


def _dialect() -> Dialect:
    return Dialect(
        begin_read=None,
        begin_write=None,
        begin_add=f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})",
        insert=insert,
        has_id=CONNECTORS.c.id == any_(bindparam("ids", type_=ARRAY(TEXT()))),
        ids=list,
        then=".*{}",
        sent=_sent,
        received=received,
    )


def _sent(row: Row) -> Row:
    values = list(row)
    for place in TIMES:
        if values[place] is not None:
            values[place] = datetime.fromisoformat(values[place])
    return tuple(values)


@asynccontextmanager
async def _engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda *_, **__: connected(url),
        pool_pre_ping=True,  # merging and looks find out by themselves of a restarted server
        json_serializer=str,  # it is text already
        json_deserializer=str,
    )
    event.listen(engine.sync_engine, "handle_error", _forget_standbys)
    event.listen(engine.sync_engine, "invalidate", _terminate)
    try:
        yield engine
    finally:
        await _close(engine)


def _forget_standbys(context: ExceptionContext) -> None:
    """Connect anew after a failover: the old primary's connections stay open."""
    if sqlstate(context.original_exception) == READ_ONLY:
        context.is_disconnect = True


def _terminate(connection: Any, *_: Any) -> None:
    # A server that is frozen would never answer a farewell.
    connection.driver_connection.terminate()


async def _close(engine: AsyncEngine) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await engine.dispose()
    except TimeoutError:
        await engine.dispose(close=False)
