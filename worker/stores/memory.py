"""`memory://`: a store that ends with the process, for tests and trials."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import uuid4

from schemas.updates import Update
from worker.merge import Outcome, State, delete_batch, fold_batch, merge, register_batch
from worker.stores.base import Connector, Difference


@asynccontextmanager
async def open_memory() -> AsyncIterator["MemoryStore"]:
    """Open a store of its own: nothing is shared between two openings."""
    yield MemoryStore()


MOST = 22_000


class MemoryStore:
    """Keeps the states in a dict, under the contract of `ConnectorStore`."""

    def __init__(self) -> None:
        self._store_id = str(uuid4())
        self._states: dict[str, State] = {}
        self._lock = asyncio.Lock()
        self._leaves_time = asyncio.Event()

    @property
    def remote(self) -> bool:
        return False

    @property
    def leaves_time(self) -> asyncio.Event:
        return self._leaves_time

    @property
    def most(self) -> int:
        return MOST

    @property
    def store_id(self) -> str:
        return self._store_id

    async def apply(self, updates: Sequence[Update]) -> list[Outcome]:
        async with self._lock:
            states = await self._load({update.connector_id for update in updates})
            outcomes = [_merge(states, update) for update in updates]
            self._states.update(states)
            return outcomes

    async def preview(self, updates: Sequence[Update]) -> list[Outcome]:
        states = await self._load({update.connector_id for update in updates})
        return fold_batch(states, updates)[1]

    async def add(self, connector_ids: Sequence[str]) -> list[bool]:
        async with self._lock:
            states = await self._load(connector_ids)
            changed, answers = register_batch(states, connector_ids)
            self._states.update(changed)
            return answers

    async def delete(self, connector_ids: Sequence[str]) -> list[bool]:
        async with self._lock:
            states = await self._load(connector_ids)
            changed, answers = delete_batch(states, connector_ids, time.time_ns() // 1000)
            self._states.update(changed)
            return answers

    async def get(self, connector_id: str) -> Connector | None:
        state = (await self._load([connector_id])).get(connector_id)
        if state is None or state.deleted:
            return None
        return _connector(connector_id, state)

    async def connectors(self) -> AsyncIterator[Connector]:
        for connector_id in sorted(self._states):
            connector = await self.get(connector_id)
            if connector is not None:
                yield connector

    async def verify(self, *, repair: bool) -> AsyncIterator[Difference]:  # noqa: ARG002
        return  # nothing is kept twice
        yield

    async def describe(self) -> str:
        return f"memory, store {self._store_id}"

    async def _load(self, connector_ids: Iterable[str]) -> dict[str, State]:
        await asyncio.sleep(0)  # others run here, as they do while a real store reads
        return {id_: self._states[id_] for id_ in connector_ids if id_ in self._states}


def _merge(states: dict[str, State], update: Update) -> Outcome:
    before = states.get(update.connector_id)
    after, outcome = merge(before, update)
    if after is None or after is before:
        return outcome
    try:  # as real stores do; and the copy is not shared with the caller
        kept = json.dumps([after.fields, after.stamps], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return Outcome("rejected", str(error))
    states[update.connector_id] = replace(after, fields=json.loads(kept)[0])
    return outcome


def _connector(connector_id: str, state: State) -> Connector:
    return Connector(id=connector_id, fields=json.loads(json.dumps(dict(state.fields))))
