"""Connectors in a SQL database: one row each, read and written a batch at a time.

What differs between databases is in a `Dialect`; the statements are SQLAlchemy Core.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic_core import PydanticSerializationError
from sqlalchemy import ColumnElement, Table, bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.merge import Outcome, State, Update, delete_batch, fold_batch, register_batch
from worker.stores.base import Connector
from worker.stores.rows import CONNECTORS, row_of, state_of

PAGE = 500  # connectors read at once by a listing


class RejectedError(Exception):
    """The database refuses this very content; `apply` makes an outcome of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What one database does in its own way."""

    name: str
    version: str  # the statement that asks for it
    begin_read: str
    begin_write: str
    turn: AbstractAsyncContextManager[Any]  # entered by this process's writers
    insert: Callable[[Table], Any]  # with `on_conflict_do_update`
    has_id: ColumnElement[bool]  # is the row's id among `:ids`?
    ids: Callable[[Iterable[str]], Any]  # the value of `:ids`
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
            states = await self._load(connection, {u.connector_id for u in updates})
        return fold_batch(states, updates)[1]

    async def add(self, connector_ids: Sequence[str]) -> list[bool]:
        async with self._writing() as connection:
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
            states = await self._load(connection, [connector_id])
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
                yield Connector(id=row[0], fields=state_of(row).fields)
            after = rows[-1][0] if len(rows) == PAGE else None

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
        query = select(CONNECTORS).where(self._dialect.has_id)
        rows = await connection.execute(query, {"ids": self._dialect.ids(connector_ids)})
        return {row[0]: state_of(row) for row in rows}

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
                rows = [row_of(id_, state, deleted_at) for id_, state in states.items()]
                await connection.exec_driver_sql(self._upsert, rows)
            except self._refusals as error:
                raise RejectedError(str(error)) from error

    def _reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._transaction(self._dialect.begin_read)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        async with self._dialect.turn, self._transaction(self._dialect.begin_write) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, begin: str) -> AsyncIterator[AsyncConnection]:
        with self._dialect.errors():
            async with self._engine.begin() as connection:
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
