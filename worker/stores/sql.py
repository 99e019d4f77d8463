"""Connectors in a SQL database: one row each, read and written a batch at a time.

What differs between databases is in a `Dialect`; the statements are SQLAlchemy Core.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic_core import PydanticSerializationError
from sqlalchemy import ColumnElement, Select, Table, bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.merge import Outcome, State, Update, delete_batch, fold_batch, register_batch
from worker.stores.base import Connector, Difference
from worker.stores.rows import CONNECTORS, Row, row_of, state_of

PAGE = 500  # connectors read at once by a listing
TRANSACTION_TIMEOUT = 20.0  # seconds; a server may be frozen, its connections open


class RejectedError(Exception):
    """The database refuses this very content; `apply` makes an outcome of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What one database does in its own way."""

    name: str
    version: str  # the statement that asks for it
    begin_read: str | None  # None: the driver begins by itself
    begin_write: str | None
    begin_add: str | None  # no row can be locked before it is there
    turn: AbstractAsyncContextManager[Any]  # entered by this process's writers
    insert: Callable[[Table], Any]  # with `on_conflict_do_update`
    has_id: ColumnElement[bool]  # is the row's id among `:ids`?
    ids: Callable[[Iterable[str]], Any]  # the value of `:ids`
    sent: Callable[[Row], Row]  # a row of `rows.row_of`, as the driver takes it
    received: Callable[[Row], Row]  # and back
    errors: Callable[[], AbstractContextManager[None]]  # the driver's errors become ours
    refusals: tuple[type[Exception], ...]  # that the driver raises for content it cannot send


class SqlStore:
    """A `ConnectorStore` in a SQL database whose schema is up to date."""

    def __init__(
        self, engine: AsyncEngine, dialect: Dialect, *, store_id: str, revision: str
    ) -> None:
        self._engine = engine
        self._dialect = dialect
        self._store_id = store_id
        self._revision = revision
        self._refusals: tuple[type[Exception], ...] = (
            PydanticSerializationError,
            *dialect.refusals,
        )
        self._upsert = _upsert(dialect).compile(dialect=engine.dialect).string
        self._select = select(CONNECTORS).where(dialect.has_id)
        # In one order everywhere: two writers would else wait for each other, each with one row.
        self._lock = self._select.order_by(CONNECTORS.c.id).with_for_update()

    @property
    def store_id(self) -> str:
        return self._store_id

    async def apply(self, updates: Sequence[Update]) -> list[Outcome]:
        if not updates:
            return []
        try:
            async with self._writing() as connection:
                states = await self._load(connection, {u.connector_id for u in updates})
                changed, outcomes = fold_batch(states, updates)
                await self._write(connection, changed)
                return outcomes
        except RejectedError:
            return await self._apply_bisecting(updates)

    async def preview(self, updates: Sequence[Update]) -> list[Outcome]:
        async with self._reading() as connection:
            states = await self._read(connection, {u.connector_id for u in updates})
        return fold_batch(states, updates)[1]

    async def add(self, connector_ids: Sequence[str]) -> list[bool]:
        async with self._writing(self._dialect.begin_add) as connection:
            states = await self._load(connection, connector_ids)
            changed, answers = register_batch(states, connector_ids)
            await self._write(connection, changed)
            return answers

    async def delete(self, connector_ids: Sequence[str]) -> list[bool]:
        now = time.time_ns() // 1000
        async with self._writing() as connection:
            states = await self._load(connection, connector_ids)
            changed, answers = delete_batch(states, connector_ids, now)
            await self._write(connection, changed, deleted_at=_text_of(now))
            return answers

    async def get(self, connector_id: str) -> Connector | None:
        async with self._reading() as connection:
            states = await self._read(connection, [connector_id])
        state = states.get(connector_id)
        if state is None or state.deleted:
            return None
        return Connector(id=connector_id, fields=state.fields)

    async def connectors(self) -> AsyncIterator[Connector]:
        page = (
            select(CONNECTORS)
            .where(CONNECTORS.c.deleted_at.is_(None), CONNECTORS.c.id > bindparam("after"))
            .order_by(CONNECTORS.c.id)
            .limit(PAGE)
        )
        after: str | None = ""
        while after is not None:
            async with self._reading() as connection:
                rows = (await connection.execute(page, {"after": after})).all()
            for row in rows:
                yield Connector(id=row[0], fields=self._state_of(row).fields)
            after = rows[-1][0] if len(rows) == PAGE else None

    async def verify(self, *, repair: bool) -> AsyncIterator[Difference]:  # noqa: ARG002
        return  # values and stamps stand in one row
        yield

    async def describe(self) -> str:
        async with self._reading() as connection:
            version = (await connection.exec_driver_sql(self._dialect.version)).scalar_one()
        name = self._dialect.name
        return f"{name} {version}, schema {self._revision}, store {self._store_id}"

    async def _apply_bisecting(self, updates: Sequence[Update]) -> list[Outcome]:
        async with self._writing() as connection:
            states = await self._load(connection, {u.connector_id for u in updates})
            return await self._bisect(connection, states, updates)

    async def _bisect(
        self, connection: AsyncConnection, states: dict[str, State], updates: Sequence[Update]
    ) -> list[Outcome]:
        changed, outcomes = fold_batch(states, updates)
        try:
            async with connection.begin_nested():  # PostgreSQL goes on after an error only so
                await self._write(connection, changed)
        except RejectedError as error:
            if len(updates) == 1:
                return [Outcome("rejected", str(error))]
            half = len(updates) // 2
            first = await self._bisect(connection, states, updates[:half])
            return first + await self._bisect(connection, states, updates[half:])
        states.update(changed)
        return outcomes

    async def _load(
        self, connection: AsyncConnection, connector_ids: Iterable[str]
    ) -> dict[str, State]:
        """Read what is about to be written, and keep other writers out until the end."""
        return await self._states(connection, self._lock, connector_ids)

    async def _read(
        self, connection: AsyncConnection, connector_ids: Iterable[str]
    ) -> dict[str, State]:
        return await self._states(connection, self._select, connector_ids)

    async def _states(
        self, connection: AsyncConnection, query: Select[Any], connector_ids: Iterable[str]
    ) -> dict[str, State]:
        rows = await connection.execute(query, {"ids": self._dialect.ids(connector_ids)})
        return {row[0]: self._state_of(row) for row in rows}

    def _state_of(self, row: Row) -> State:
        return state_of(self._dialect.received(row))

    async def _write(
        self,
        connection: AsyncConnection,
        states: Mapping[str, State],
        deleted_at: str | None = None,
    ) -> None:
        if not states:
            return
        with self._dialect.errors():
            try:
                sent = self._dialect.sent
                rows = [sent(row_of(id_, state, deleted_at)) for id_, state in states.items()]
                await connection.exec_driver_sql(self._upsert, rows)
            except self._refusals as error:
                raise RejectedError(str(error)) from error

    def _reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._transaction(self._dialect.begin_read)

    @asynccontextmanager
    async def _writing(self, begin: str | None = None) -> AsyncIterator[AsyncConnection]:
        begin = begin or self._dialect.begin_write
        async with self._dialect.turn, self._transaction(begin) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, begin: str | None) -> AsyncIterator[AsyncConnection]:
        with self._dialect.errors():
            async with asyncio.timeout(TRANSACTION_TIMEOUT), self._engine.begin() as connection:
                if begin is not None:
                    await connection.exec_driver_sql(begin)
                yield connection


def _upsert(dialect: Dialect) -> Any:
    statement = dialect.insert(CONNECTORS)
    columns = {column.name: statement.excluded[column.name] for column in CONNECTORS.c}
    del columns["id"]
    return statement.on_conflict_do_update(index_elements=["id"], set_=columns)


def _text_of(microseconds: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
