"""One random history in every store: the same state in each, whatever crashed on the way."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from schemas.updates import Update
from tests.contract.conftest import CancelAtWait, Place
from worker.stores import Connector, ConnectorStore

FAR_FUTURE = 2**52  # microseconds: later than any reset made here
CONNECTORS = ("a", "b", "c")
VALUES: dict[str, list[Any]] = {
    "last_sync_status": ["pending", "completed"],
    "last_sync_error": [None, "x", "é \U0001f600"],
    "last_access_control_sync_error": [None, "y"],
    "last_indexed_document_count": [0, 2**63 - 1],
    "last_synced": ["2024-11-09T15:13:08.231000Z", "0001-01-01T00:00:00.000001Z"],
    # One set of keys: Elasticsearch keeps keys that a later cursor no longer has.
    "sync_cursor": [{"page": 1, "of": [1.5, None]}, {"page": 2, "of": []}],
}

ids = st.lists(st.sampled_from(CONNECTORS), min_size=1, max_size=3)
fields = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(values) for name, values in VALUES.items()}
).filter(bool)
event = st.builds(
    lambda name, fields, at, rank, number: (name, fields, at, rank, f"e{number}"),
    st.sampled_from(CONNECTORS),
    fields,
    st.sampled_from([1, 2, 3, FAR_FUTURE, FAR_FUTURE + 1]),
    st.sampled_from([1, 4]),
    st.integers(0, 3),
)
batches = st.lists(event, min_size=1, max_size=5)


class History(RuleBasedStateMachine):
    """Drives the same calls through all stores, and compares what they answer and hold."""

    stores: dict[str, ConnectorStore]
    runner: asyncio.Runner
    examples: Iterator[int]

    @initialize()
    def begin(self) -> None:
        self.mark = f"{next(self.examples)}:"  # connectors of its own
        self.published: list[Update] = []

    @rule(names=ids)
    def register(self, names: list[str]) -> None:
        self.same_answer("add", [self.mark + name for name in names])

    @rule(names=ids)
    def delete(self, names: list[str]) -> None:
        self.same_answer("delete", [self.mark + name for name in names])

    @rule(batch=batches)
    def publish(self, batch: list[Any]) -> None:
        self.same_answer("apply", self.made(batch))

    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        if self.published:
            again = st.lists(st.sampled_from(self.published), min_size=1, max_size=5)
            self.same_answer("apply", data.draw(again))

    @rule(batch=batches, between=batches, wait=st.integers(1, 12))
    def crash(self, batch: list[Any], between: list[Any], wait: int) -> None:
        """A writer dies somewhere; another goes on, and then is handed what the first had."""
        updates, others = self.made(batch), self.made(between)
        for store in self.stores.values():
            self.runner.run(died(store, updates, wait))
            self.runner.run(store.apply(others))
            self.runner.run(store.apply(updates))

    @rule()
    def repair(self) -> None:
        for store in self.stores.values():
            assert self.runner.run(differences(store)) == []

    @invariant()
    def the_same_state(self) -> None:
        names = [self.mark + name for name in CONNECTORS]
        states = {kind: self.runner.run(held(store, names)) for kind, store in self.stores.items()}
        for kind, state in states.items():
            assert state == states["memory"], kind

    @invariant()
    def the_same_stamps(self) -> None:
        """Which only outcomes can show."""
        self.same_answer("preview", self.published)

    def made(self, batch: list[Any]) -> list[Update]:
        updates = [
            Update(self.mark + name, fields, at, rank, event_id)
            for name, fields, at, rank, event_id in batch
        ]
        self.published += updates
        return updates

    def same_answer(self, call: str, given: Sequence[Any]) -> None:
        answers = {
            kind: self.runner.run(getattr(store, call)(given))
            for kind, store in self.stores.items()
        }
        for kind, answer in answers.items():
            assert answer == answers["memory"], kind


async def died(store: ConnectorStore, updates: list[Update], wait: int) -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.create_task(CancelAtWait(store.apply(updates), wait, 0).run())


async def differences(store: ConnectorStore) -> list[Any]:
    return [difference async for difference in store.verify(repair=False)]


async def held(store: ConnectorStore, names: list[str]) -> list[Connector | None]:
    return [await store.get(name) for name in names]


@pytest.mark.timeout(300)
def test_one_history_gives_one_state_in_every_store(
    memory: Place, sqlite: Place, postgresql: Place, elasticsearch: Place
) -> None:
    places = {
        "memory": memory,
        "sqlite": sqlite,
        "postgresql": postgresql,
        "elasticsearch": elasticsearch,
    }
    with asyncio.Runner() as runner:
        opened = {kind: place.open() for kind, place in places.items()}
        History.runner, History.examples = runner, count()
        History.stores = {kind: runner.run(one.__aenter__()) for kind, one in opened.items()}
        run_state_machine_as_test(
            History,
            settings=settings(
                max_examples=40,
                stateful_step_count=15,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        for one in opened.values():
            runner.run(one.__aexit__(None, None, None))
