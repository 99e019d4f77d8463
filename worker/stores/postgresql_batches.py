"""Batches of updates merged into PostgreSQL through asyncpg alone.

What SQLAlchemy adds to each statement is two thirds of the work for a batch of a few updates.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import asyncpg
from pydantic_core import PydanticSerializationError, to_json

from schemas.last_sync import LAST_SYNC_TIMES
from schemas.updates import Update
from worker.merge import Outcome
from worker.stores.rows import (
    CONNECTORS,
    COUNTS,
    Merging,
    Row,
    assignment,
    one_shape,
)

PART = 2_500  # connectors whose rows are in memory at once

# Locked in one order everywhere: two writers would else wait for each other, each with one row.
_SELECT = (
    f"SELECT id, stamps, deleted_at IS NOT NULL FROM {CONNECTORS.name}"  # noqa: S608  # nosec B608
    " WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE"
)

# What is no text, by its column.
_KINDS = {
    **dict.fromkeys(LAST_SYNC_TIMES, "timestamptz"),
    **dict.fromkeys(COUNTS, "bigint"),
    "sync_cursor": "json",
}


_REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    PydanticSerializationError,
)

Connect = Callable[[], Awaitable[asyncpg.Connection]]


class PostgresqlBatches:
    """Merges on a connection of its own, which is made when it is needed."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    async def merge(self, updates: Sequence[Update]) -> list[Outcome]:
        """Merge the updates in one transaction; the driver's errors come as they are."""
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            try:
                return await self._merged(self._connection, updates)
            except _REFUSED:  # the connection is well
                raise
            except BaseException:  # a server that is frozen would not answer a farewell either
                self._connection.terminate()
                raise

    async def _merged(
        self, connection: asyncpg.Connection, updates: Sequence[Update]
    ) -> list[Outcome]:
        # Not as a context manager, which would ask for a rollback whatever happened.
        transaction = connection.transaction()
        await transaction.start()
        try:
            merging = Merging(updates)
            for ids in merging.parts(PART):
                changes = merging.changes(ids, await self._load(connection, ids))
                if changes:
                    statement, values = _update(*one_shape(changes))
                    await connection.execute(statement, *values)
        except _REFUSED:
            await transaction.rollback()
            raise
        await transaction.commit()
        return merging.outcomes()

    @staticmethod
    async def _load(connection: asyncpg.Connection, ids: Sequence[str]) -> Sequence[Row]:
        rows: Sequence[Row] = await connection.fetch(_SELECT, ids)
        return rows

    async def close(self, patience: float) -> None:
        if self._connection is not None:
            with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._connection.close(timeout=patience)  # or it is terminated


def _update(
    columns: Sequence[str],
    rows: Sequence[Row],
    mixed: bool,  # noqa: FBT001
) -> tuple[str, list[str]]:
    """Send a JSON array a column: asyncpg would ask of each element whether it is a container."""
    bits = "merged.bits::bigint" if mixed else None
    settings = ", ".join(
        assignment(column, f"merged.{column}::{_KINDS.get(column, 'text')}", bits)
        for column in columns
    )
    names = [*columns, *(["bits"] if mixed else []), "stamps", "id"]
    lists = ", ".join(f"json_array_elements_text(${n}::json)" for n, _ in enumerate(names, 1))
    statement = (
        f"UPDATE {CONNECTORS.name} SET {settings}, stamps = merged.stamps::json"  # noqa: S608  # nosec B608
        f" FROM ROWS FROM ({lists}) AS merged ({', '.join(names)})"
        f" WHERE {CONNECTORS.name}.id = merged.id"
    )
    return statement, [to_json(column).decode() for column in zip(*rows, strict=True)]
