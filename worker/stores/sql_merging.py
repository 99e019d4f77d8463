"""A SQL database as the worker needs it, through its driver alone.

Through SQLAlchemy a batch of a few updates would take twice as long, and every worker 20 MB.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic_core import PydanticSerializationError

from schemas.updates import Update
from worker.merge import Outcome, fold_batch
from worker.stores.base import Connector
from worker.stores.migrations import HEAD
from worker.stores.rows import Row, merging_state_of, state_of

Answer = TypeVar("Answer")

TRANSACTION_TIMEOUT = 20.0  # seconds; a server may be frozen, its connections open


class RejectedError(Exception):
    """The database refuses this very content; `apply` makes an outcome of it."""


class Driver(Protocol):
    """One database's driver; its errors come as they are.

    A call that is cancelled while it merges has stored all or nothing, but for rows that others
    wrote at the same time.
    """

    name: str
    remote: bool
    leaves_time: asyncio.Event
    most: int  # updates at once: a batch, and of a remote one's there are two in memory
    refusals: tuple[type[Exception], ...]  # raised for content that cannot be sent
    turn: AbstractAsyncContextManager[Any]  # entered by this process's writers

    async def merge(self, updates: Sequence[Update]) -> list[Outcome]:
        """Merge in one transaction; what others write meanwhile is neither lost nor overwritten."""

    async def stamps(self, connector_ids: Collection[str]) -> Sequence[Row]:
        """Read rows of `rows.MERGING`, and wait for no writer."""

    async def row(self, connector_id: str) -> Row | None:
        """Read a row of `rows.STATE`, and wait for no writer."""

    async def version(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database that is open, its schema up to date."""

    driver: Driver
    store_id: str
    errors: Callable[[], AbstractContextManager[None]]  # the driver's become this package's


class SqlMergingStore:
    """A `MergingStore` in a SQL database."""

    def __init__(self, database: Database) -> None:
        self._driver = database.driver
        self._store_id = database.store_id
        self._errors = database.errors
        self._refusals: tuple[type[Exception], ...] = (
            PydanticSerializationError,
            *database.driver.refusals,
        )

    @property
    def remote(self) -> bool:
        return self._driver.remote

    @property
    def leaves_time(self) -> asyncio.Event:
        return self._driver.leaves_time

    @property
    def most(self) -> int:
        return self._driver.most

    @property
    def store_id(self) -> str:
        return self._store_id

    async def apply(self, updates: Sequence[Update]) -> list[Outcome]:
        if not updates:
            return []
        try:
            return await self._merged(updates)
        except RejectedError as error:
            if len(updates) == 1:
                return [Outcome("rejected", str(error))]
        half = len(updates) // 2
        return await self.apply(updates[:half]) + await self.apply(updates[half:])

    async def _merged(self, updates: Sequence[Update]) -> list[Outcome]:
        with self._errors():
            try:
                async with self._driver.turn, asyncio.timeout(TRANSACTION_TIMEOUT):
                    return await self._driver.merge(updates)
            except self._refusals as error:
                raise RejectedError(str(error)) from error

    async def preview(self, updates: Sequence[Update]) -> list[Outcome]:
        connector_ids = {update.connector_id for update in updates}
        rows = await self._asked(self._driver.stamps(connector_ids))
        return fold_batch({row[0]: merging_state_of(row) for row in rows}, updates)[1]

    async def get(self, connector_id: str) -> Connector | None:
        row = await self._asked(self._driver.row(connector_id))
        state = None if row is None else state_of(row)
        if state is None or state.deleted:
            return None
        return Connector(id=connector_id, fields=state.fields)

    async def describe(self) -> str:
        version = await self._asked(self._driver.version())
        return f"{self._driver.name} {version}, schema {HEAD}, store {self._store_id}"

    async def _asked(self, question: Awaitable[Answer]) -> Answer:
        with self._errors():
            async with asyncio.timeout(TRANSACTION_TIMEOUT):
                return await question
