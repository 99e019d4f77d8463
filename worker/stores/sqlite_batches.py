"""Batches of updates merged into SQLite in one step of a thread.

Through SQLAlchemy and aiosqlite a batch is a dozen errands to a thread and back: more than all the
other work for one of a few updates.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic_core import to_json

from schemas.updates import Update
from worker.merge import Outcome
from worker.stores.rows import (
    CONNECTORS,
    Merging,
    Row,
    assignment,
    one_shape,
)

PART = 250  # connectors at once: when their rows are written, the pages are still in the cache

_SELECT = (
    "SELECT mine.id, stamps, deleted_at IS NOT NULL"  # noqa: S608  # nosec B608
    f" FROM json_each(?) CROSS JOIN {CONNECTORS.name} AS mine ON mine.id = json_each.value"
)


class SqliteBatches:
    """Merges on a connection and a thread of its own."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "sqlite")

    async def merge(self, updates: Sequence[Update]) -> list[Outcome]:
        """Merge the updates in one transaction, which a cancelled call gives up."""
        given_up = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(
            self._thread, self._merge, updates, given_up
        )
        try:
            return await work
        finally:
            given_up.set()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _merge(self, updates: Sequence[Update], given_up: threading.Event) -> list[Outcome]:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection as connection:  # which commits, or rolls back
            merging = Merging(updates)
            for ids in merging.parts(PART):
                changes = merging.changes(ids, self._load(connection, ids))
                if changes:
                    connection.executemany(*_update(*one_shape(changes)))
            if given_up.is_set():
                connection.rollback()
        return merging.outcomes()

    @staticmethod
    def _load(connection: sqlite3.Connection, ids: Sequence[str]) -> Sequence[Row]:
        return connection.execute(_SELECT, [to_json(ids).decode()]).fetchall()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _update(columns: Sequence[str], rows: Sequence[Row], mixed: bool) -> tuple[str, Sequence[Row]]:  # noqa: FBT001
    last = len(columns) + mixed
    bits = f"?{last}" if mixed else None
    settings = [assignment(column, f"?{n}", bits) for n, column in enumerate(columns, 1)]
    settings.append(f"stamps = ?{last + 1}")
    statement = f"UPDATE {CONNECTORS.name} SET {', '.join(settings)} WHERE id = ?{last + 2}"  # noqa: S608  # nosec B608
    return statement, rows
