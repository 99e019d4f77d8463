"""SQLite by its driver: each thing that is done is one step of a thread.

Through SQLAlchemy and aiosqlite a batch is a dozen errands to a thread and back: more than all the
other work for one of a few updates.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, closing
from functools import partial
from typing import Any, TypeVar

from pydantic_core import to_json

from schemas.updates import Update
from worker.merge import Outcome
from worker.stores.rows import MERGING, STATE, TABLE, Merging, Row, assignment, one_shape

Done = TypeVar("Done")

PART = 250  # connectors at once: when their rows are written, the pages are still in the cache

_STAMPS = f"SELECT {MERGING} FROM json_each(?) CROSS JOIN {TABLE} ON {TABLE}.id = json_each.value"  # noqa: S608  # nosec B608
_ROW = f"SELECT {', '.join(STATE)} FROM {TABLE} WHERE id = ?"  # noqa: S608  # nosec B608


class Line:
    """A connection that is made when it is needed, and the thread that alone uses it."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "sqlite")

    async def do(self, work: Callable[..., Done], *given: Any) -> Done:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._do, work, *given)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _do(self, work: Callable[..., Done], *given: Any) -> Done:
        if self._connection is None:
            self._connection = self._connect()
        return work(self._connection, *given)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class SqliteDriver:
    """Merges on one line and reads on another."""

    name = "SQLite"
    remote = False
    most = 22_000
    refusals: tuple[type[Exception], ...] = (OverflowError, UnicodeEncodeError)

    def __init__(self, *, merging: Line, reading: Line) -> None:
        # Waiting for each other inside SQLite would be by polling.
        self.turn: AbstractAsyncContextManager[Any] = asyncio.Lock()
        self.leaves_time = asyncio.Event()
        self._merging, self._reading = merging, reading

    async def merge(self, updates: Sequence[Update]) -> list[Outcome]:
        given_up = threading.Event()
        on_commit = partial(asyncio.get_running_loop().call_soon_threadsafe, self.leaves_time.set)
        try:
            return await self._merging.do(self._merge, updates, given_up, on_commit)
        finally:
            given_up.set()
            self.leaves_time.clear()

    async def stamps(self, connector_ids: Collection[str]) -> Sequence[Row]:
        return await self._reading.do(self._load, list(connector_ids))

    async def row(self, connector_id: str) -> Row | None:
        rows = await self._reading.do(_fetched, _ROW, connector_id)
        return rows[0] if rows else None

    async def version(self) -> str:
        ((version,),) = await self._reading.do(_fetched, "SELECT sqlite_version()")
        return str(version)

    def _merge(
        self,
        connection: sqlite3.Connection,
        updates: Sequence[Update],
        given_up: threading.Event,
        on_commit: Callable[[], object],
    ) -> list[Outcome]:
        connection.execute("BEGIN IMMEDIATE")
        with connection:  # which commits, or rolls back
            merging = Merging(updates)
            for ids in merging.parts(PART):
                changes = merging.changes(ids, self._load(connection, ids))
                if changes:
                    connection.executemany(*_update(*one_shape(changes)))
            if given_up.is_set():
                connection.rollback()
            else:
                on_commit()
        return merging.outcomes()

    @staticmethod
    def _load(connection: sqlite3.Connection, ids: Sequence[str]) -> Sequence[Row]:
        return _fetched(connection, _STAMPS, to_json(ids).decode())


def _fetched(connection: sqlite3.Connection, statement: str, *values: str) -> Sequence[Row]:
    with closing(connection.execute(statement, values)) as cursor:
        return cursor.fetchall()


def _update(columns: Sequence[str], rows: Sequence[Row], mixed: bool) -> tuple[str, Sequence[Row]]:  # noqa: FBT001
    last = len(columns) + mixed
    bits = f"?{last}" if mixed else None
    settings = [assignment(column, f"?{n}", bits) for n, column in enumerate(columns, 1)]
    settings.append(f"stamps = ?{last + 1}")
    statement = f"UPDATE {TABLE} SET {', '.join(settings)} WHERE id = ?{last + 2}"  # noqa: S608  # nosec B608
    return statement, rows
