"""The embedded store in whole, through SQLAlchemy and aiosqlite."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import URL, bindparam, event, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import create_async_engine

from worker.stores.sql import Dialect, SqlStore
from worker.stores.sqlite_database import BUSY_TIMEOUT, open_sqlite_database, set_up, sqlite_path
from worker.stores.tables import CONNECTORS


@asynccontextmanager
async def open_sqlite(url: str) -> AsyncIterator[SqlStore]:
    """Open the file, make or migrate its schema, and close it at the end."""
    async with open_sqlite_database(url, make=True) as database:
        engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=str(sqlite_path(url))),
            # The driver would begin a transaction by itself, but only before the first write.
            connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT},
        )
        event.listen(engine.sync_engine, "connect", set_up)
        event.listen(engine.sync_engine, "invalidate", _roll_back)
        try:
            yield SqlStore(database, engine, _dialect())
        finally:
            await engine.dispose()


def _dialect() -> Dialect:
    among = func.json_each(bindparam("ids")).table_valued("value")
    return Dialect(
        begin_read="BEGIN",
        begin_write="BEGIN IMMEDIATE",
        begin_add="BEGIN IMMEDIATE",
        insert=insert,
        has_id=CONNECTORS.c.id.in_(select(among.c.value)),
        ids=lambda connector_ids: json.dumps(list(connector_ids)),
        then="(?>.*?{})",  # never tried twice: Python's engine would take exponential time
        sent=lambda row: row,
        received=lambda row: row,
    )


def _roll_back(connection: Any, *_: Any) -> None:
    # After a cancelled call: a connection closed with a statement not yet collected as garbage
    # lives on as a zombie, and would keep the lock.
    connection.rollback()
