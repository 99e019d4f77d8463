"""Connectors in a SQL database: one row each; all that is done beside merging.

What differs between databases is in a `Dialect`; the statements are SQLAlchemy Core.
"""

import asyncio
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import JsonValue
from sqlalchemy import (
    ColumnElement,
    Table,
    and_,
    bindparam,
    func,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.merge import State, delete_batch, deleted, put, register_batch, registered
from worker.stores import sql_merging
from worker.stores.base import Connector, Difference, Registration, Wanted
from worker.stores.rows import Row, row_of, state_of
from worker.stores.sql_merging import Database, RejectedError, SqlMergingStore
from worker.stores.tables import CONNECTORS, REGISTRATION, STATE

PAGE = 500  # connectors read at once by a listing


class IndexNameTakenError(Exception):
    """Another connector fills the index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What one database does in its own way."""

    begin_read: str | None  # None: the driver begins by itself
    begin_write: str | None
    begin_add: str | None  # no row can be locked before it is there
    insert: Callable[[Table], Any]  # with `on_conflict_do_update`
    has_id: ColumnElement[bool]  # is the row's id among `:ids`?
    ids: Callable[[Iterable[str]], Any]  # the value of `:ids`
    then: str  # the regular expression for "any text, and then {}"
    sent: Callable[[Row], Row]  # a row of `rows.row_of`, as the driver takes it
    received: Callable[[Row], Row]  # and back


class SqlStore(SqlMergingStore):
    """A `ConnectorStore` in a SQL database."""

    def __init__(self, database: Database, engine: AsyncEngine, dialect: Dialect) -> None:
        super().__init__(database)
        self._engine = engine
        self._dialect = dialect
        names = [column.name for column in STATE]
        upsert = _upsert(dialect).compile(dialect=engine.dialect, column_keys=names)
        self._upsert = upsert.string
        found = select(*STATE).where(dialect.has_id)
        # In one order everywhere: two writers would else wait for each other, each with one row.
        self._lock = found.order_by(CONNECTORS.c.id).with_for_update()

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
            await self._describe(connection, changed, Registration())
            return answers

    async def connectors(self) -> AsyncIterator[Connector]:
        page = (
            select(*STATE)
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

    async def put_last_sync(
        self, connector_id: str, fields: Mapping[str, JsonValue]
    ) -> bool | None:
        """Set the fields as `merge.put` does; true where a value changed, None where no one is."""
        async with self._writing() as connection:
            state = (await self._load(connection, [connector_id])).get(connector_id)
            if state is None or state.deleted:
                return None
            after, changed = put(state, connector_id, fields, time.time_ns() // 1000)
            if after is not state:
                await self._write(connection, {connector_id: after})
            return changed

    async def register(self, connector_id: str, registration: Registration) -> bool:
        """Make the connector; one that is live is replaced, which is a reset.

        True where its id was never known. Raises `IndexNameTakenError`.
        """
        async with self._writing(self._dialect.begin_add) as connection:
            await self._refuse_taken(connection, connector_id, registration.index_name)
            state = (await self._load(connection, [connector_id])).get(connector_id)
            new = state is None
            if state is not None and not state.deleted:
                state = deleted(state, time.time_ns() // 1000)
            await self._write(connection, {connector_id: registered(state)})
            await self._describe(connection, [connector_id], registration)
            return new

    async def registration(self, connector_id: str) -> tuple[Connector, Registration] | None:
        """Read one connector with what is said of it; None when it is unknown or deleted."""
        _, found = await self._registrations(CONNECTORS.c.id == connector_id, 0, 1)
        return found[0] if found else None

    async def registrations(
        self, wanted: Wanted, start: int, size: int
    ) -> tuple[int, list[tuple[Connector, Registration]]]:
        """How many live connectors are wanted, and a page of them, sorted by index name."""
        columns = CONNECTORS.c
        among = {
            columns.index_name: wanted.index_names,
            columns.name: wanted.names,
            columns.service_type: wanted.service_types,
        }
        asked: list[ColumnElement[bool]] = [
            column.in_(values) for column, values in among.items() if values
        ]
        if wanted.text:
            texts = (columns.index_name, columns.name, columns.description)
            expression = _expression(wanted.text, self._dialect.then)
            asked.append(or_(*(text.regexp_match(expression) for text in texts)))
        return await self._registrations(and_(true(), *asked), start, size)

    async def _registrations(
        self, wanted: ColumnElement[bool], start: int, size: int
    ) -> tuple[int, list[tuple[Connector, Registration]]]:
        live = and_(CONNECTORS.c.deleted_at.is_(None), wanted)
        page = (
            select(*STATE, *REGISTRATION)
            .where(live)
            .order_by(CONNECTORS.c.index_name.nulls_last(), CONNECTORS.c.id)
            .offset(start)
            .limit(size)
        )
        counted = select(func.count()).select_from(CONNECTORS).where(live)
        async with self._reading() as connection:
            count = await connection.scalar(counted)
            rows = (await connection.execute(page)).all()
        return count or 0, [
            (
                Connector(id=row[0], fields=self._state_of(row[: len(STATE)]).fields),
                _registration(row[len(STATE) :]),
            )
            for row in rows
        ]

    async def _refuse_taken(
        self, connection: AsyncConnection, connector_id: str, index_name: str | None
    ) -> None:
        if index_name is None:
            return
        columns = CONNECTORS.c
        others = select(columns.id).where(
            columns.index_name == index_name,
            columns.id != connector_id,
            columns.deleted_at.is_(None),
        )
        if (await connection.execute(others.limit(1))).first():
            raise IndexNameTakenError

    async def _describe(
        self, connection: AsyncConnection, ids: Iterable[str], registration: Registration
    ) -> None:
        statement = update(CONNECTORS).where(self._dialect.has_id).values(asdict(registration))
        await connection.execute(statement, {"ids": self._dialect.ids(ids)})

    async def verify(self, *, repair: bool) -> AsyncIterator[Difference]:  # noqa: ARG002
        return  # values and stamps stand in one row
        yield

    async def _load(
        self, connection: AsyncConnection, connector_ids: Iterable[str]
    ) -> dict[str, State]:
        """Read what is about to be written, and keep other writers out until the end."""
        found = await connection.execute(self._lock, {"ids": self._dialect.ids(connector_ids)})
        return {row[0]: self._state_of(row) for row in found}

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
        with self._errors(), driver_errors():
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
        async with self._driver.turn, self._transaction(begin) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, begin: str | None) -> AsyncIterator[AsyncConnection]:
        with self._errors(), driver_errors():
            async with (
                asyncio.timeout(sql_merging.TRANSACTION_TIMEOUT),
                self._engine.begin() as connection,
            ):
                if begin is not None:
                    await connection.exec_driver_sql(begin)
                yield connection


@contextmanager
def driver_errors() -> Iterator[None]:
    """Raise the driver's errors in place of SQLAlchemy's, which wrap them."""
    try:
        yield
    except DBAPIError as error:
        found: BaseException | None = error.orig
        if found is None:
            raise
        if not isinstance(found, (sqlite3.Error, sqlite3.Warning)) and found.__cause__:
            found = found.__cause__  # asyncpg's are wrapped twice
        raise found from None  # they already have each other for a cause


def _registration(values: Row) -> Registration:
    names = [column.name for column in REGISTRATION]
    return Registration(**dict(zip(names, values, strict=True)))


def _upsert(dialect: Dialect) -> Any:
    statement = dialect.insert(CONNECTORS)
    columns = {column.name: statement.excluded[column.name] for column in STATE[1:]}
    return statement.on_conflict_do_update(index_elements=["id"], set_=columns)


def _expression(text: str, then: str) -> str:
    r"""Give the regular expression for a text with Lucene's `*`, `?` and `\`."""
    parts = [""]
    for escaped, sign in re.findall(r"\\(.)|(.)", text, flags=re.DOTALL):
        if sign == "*":
            parts.append("")
        else:
            parts[-1] += "." if sign == "?" else re.escape(escaped or sign)
    first, *rest = parts
    return f"(?s){first}{''.join(then.format(part) for part in rest)}"


def _text_of(microseconds: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
