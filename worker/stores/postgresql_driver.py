"""PostgreSQL by asyncpg alone.

What SQLAlchemy adds to each statement is two thirds of the work for a batch of a few updates.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any

import asyncpg
from pydantic_core import PydanticSerializationError, to_json

from schemas.last_sync import LAST_SYNC_TIMES
from schemas.updates import Update
from worker.merge import Outcome
from worker.stores.rows import COUNTS, MERGING, STATE, TABLE, Merging, Row, assignment, one_shape

PART = 500  # connectors at once: asyncpg never frees its first 2,000 records, wherever they lie

_STAMPS = f"SELECT {MERGING} FROM {TABLE} WHERE id = ANY($1::text[])"  # noqa: S608  # nosec B608
# No row is locked for as long as this process thinks: xmin is another one once a row was written.
_SELECT = f"SELECT {MERGING}, xmin FROM {TABLE} WHERE id = ANY($1::text[]) ORDER BY id"  # noqa: S608  # nosec B608
_UNCHANGED = f"{TABLE}.xmin = merged.version::xid"
_ROW = f"SELECT {', '.join(STATE)} FROM {TABLE} WHERE id = $1"  # noqa: S608  # nosec B608

# What is no text, by its column.
_KINDS = {
    **dict.fromkeys(LAST_SYNC_TIMES, "timestamptz"),
    **dict.fromkeys(COUNTS, "bigint"),
    "sync_cursor": "json",
}
TIMES = [place for place, name in enumerate(STATE) if name in {*LAST_SYNC_TIMES, "deleted_at"}]

_REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    PydanticSerializationError,
)


class Line:
    """A connection that is made when it is needed, for one at a time."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self._connect = connect
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            try:
                yield self._connection
            except _REFUSED:  # the connection is well
                raise
            except BaseException:  # a server that is frozen would not answer a farewell either
                self._connection.terminate()
                raise

    async def close(self, patience: float) -> None:
        if self._connection is not None:
            with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._connection.close(timeout=patience)  # or it is terminated


class PostgresqlDriver:
    """Merges on one line and reads on another."""

    name = "PostgreSQL"
    remote = True
    most = 12_500
    refusals: tuple[type[Exception], ...] = ()

    def __init__(self, *, merging: Line, reading: Line) -> None:
        self.turn: AbstractAsyncContextManager[Any] = nullcontext()
        self.leaves_time = asyncio.Event()
        self.leaves_time.set()
        self._merging, self._reading = merging, reading

    async def merge(self, updates: Sequence[Update]) -> list[Outcome]:
        merging = Merging(updates)
        parts = list(merging.parts(PART))
        async with (
            self._merging.taken() as connection,
            # A statement is one by itself; to begin and end another takes two round trips.
            _transaction(connection) if len(parts) > 1 else nullcontext(),
        ):
            for ids in parts:
                await self._merge(connection, merging, ids)
        return merging.outcomes()

    async def _merge(
        self, connection: asyncpg.Connection, merging: Merging, ids: Sequence[str]
    ) -> None:
        """Read, merge and write, and again what others wrote in between."""
        while ids:
            rows = await self._load(connection, ids)
            changes = merging.changes(ids, rows)
            if not changes:
                return
            versions = {row[0]: row[3] for row in rows}
            written = await connection.fetch(*_update(*one_shape(changes), versions))
            if len(written) == len(changes):
                return
            ids = sorted({row[-1] for _, row in changes}.difference(*written))

    async def stamps(self, connector_ids: Collection[str]) -> Sequence[Row]:
        return await self._fetched(_STAMPS, list(connector_ids))

    async def row(self, connector_id: str) -> Row | None:
        rows = await self._fetched(_ROW, connector_id)
        return received(rows[0]) if rows else None

    async def version(self) -> str:
        ((version,),) = await self._fetched("SHOW server_version")
        return str(version)

    @staticmethod
    async def _load(connection: asyncpg.Connection, ids: Sequence[str]) -> Sequence[Row]:
        rows: Sequence[Row] = await connection.fetch(_SELECT, ids)
        return rows

    async def _fetched(self, statement: str, *values: Any) -> Sequence[Row]:
        async with self._reading.taken() as connection:
            rows: Sequence[Row] = await connection.fetch(statement, *values)
            return rows


def received(row: Row) -> Row:
    """Give a row of `rows.STATE` with its times as text."""
    values = list(row)
    for place in TIMES:
        if values[place] is not None:
            text = values[place].isoformat(timespec="microseconds")
            values[place] = text.removesuffix("+00:00") + "Z"
    return values


@asynccontextmanager
async def _transaction(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Not asyncpg's own block, which would ask for a rollback whatever happened."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    except _REFUSED:
        await transaction.rollback()
        raise
    await transaction.commit()


def _update(
    columns: Sequence[str],
    rows: Sequence[Row],
    mixed: bool,  # noqa: FBT001
    versions: Mapping[str, int],
) -> tuple[str, ...]:
    """Give the statement, which returns the ids of what it wrote, and its values.

    They are a JSON array a column: asyncpg would ask of each element whether it is a container.
    They are in the order of the ids, as those of every writer: two would else wait for each other.
    """
    bits = "merged.bits::bigint" if mixed else None
    settings = ", ".join(
        assignment(column, f"merged.{column}::{_KINDS.get(column, 'text')}", bits)
        for column in columns
    )
    names = [*columns, *(["bits"] if mixed else []), "stamps", "id", "version"]
    lists = ", ".join(f"json_array_elements_text(${n}::json)" for n, _ in enumerate(names, 1))
    statement = (
        f"UPDATE {TABLE} SET {settings}, stamps = merged.stamps::json"  # noqa: S608  # nosec B608
        f" FROM ROWS FROM ({lists}) AS merged ({', '.join(names)})"
        f" WHERE {TABLE}.id = merged.id AND {_UNCHANGED} RETURNING merged.id"
    )
    values = [*zip(*rows, strict=True), [versions[row[-1]] for row in rows]]
    return statement, *(to_json(column).decode() for column in values)
