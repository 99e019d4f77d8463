"""The API beside a worker, both writing one store at the same time."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.updates import Update
from tests.api.conftest import Api, served
from worker.merge import State, fold
from worker.stores import ConnectorStore, open_store
from worker.stores.sql import SqlStore

FIELDS = ("last_sync_error", "last_access_control_sync_error", "last_indexed_document_count")
YEAR = 365 * 86_400_000_000  # microseconds

values = {
    "last_sync_error": st.sampled_from(["a", "b", None]),
    "last_access_control_sync_error": st.sampled_from(["a", "b"]),
    "last_indexed_document_count": st.integers(0, 3),
}
contents = st.sets(st.sampled_from(FIELDS), min_size=1).flatmap(
    lambda names: st.fixed_dictionaries({name: values[name] for name in sorted(names)})
)
events = st.lists(st.tuples(st.integers(1, 5), contents), max_size=8)
puts = st.lists(st.lists(st.sets(st.sampled_from(FIELDS), min_size=1), max_size=3), max_size=3)


@pytest.fixture
async def both(sql_store_url: str) -> AsyncIterator[tuple[ConnectorStore, Api]]:
    """Open the store twice, as worker and API have it in two processes."""
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(open_store(sql_store_url))
        store = await stack.enter_async_context(open_store(sql_store_url))
        assert isinstance(store, SqlStore)
        yield worker, await stack.enter_async_context(served(store))


def updates(connector_id: str, made: Sequence[tuple[int, Any]], since: int) -> list[Update]:
    return [
        Update(
            connector_id=connector_id, fields=fields, at=since + at, rank=4, event_id=f"e{number}"
        )
        for number, (at, fields) in enumerate(made)
    ]


async def apply_one_by_one(store: ConnectorStore, given: Sequence[Update]) -> None:
    for update in given:
        await store.apply([update])


async def caller(api: Api, connector_id: str, name: int, asked: Sequence[set[str]]) -> Any:
    """Make the requests one after the other; gives the last value sent of each field."""
    sent: dict[str, Any] = {}
    for number, fields in enumerate(asked):
        unique = 1_000 * (name + 1) + number
        body = {field: unique if "count" in field else f"put {unique}" for field in fields}
        answer = await api.call("PUT", f"/_connector/{connector_id}/_last_sync", json.dumps(body))
        assert (answer.status, answer.body) == (200, {"result": "updated"})
        sent |= body
    return sent


async def fields_of(store: ConnectorStore, connector_id: str) -> Any:
    found = await store.get(connector_id)
    assert found is not None
    return found.fields


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(before=events, asked=puts, after=events)
async def test_puts_win_over_the_events_before_them_and_lose_to_later_ones(
    both: tuple[ConnectorStore, Api],
    before: list[tuple[int, Any]],
    asked: list[list[set[str]]],
    after: list[tuple[int, Any]],
) -> None:
    store, api = both
    connector_id = uuid4().hex
    await store.add([connector_id])
    now = time.time_ns() // 1000
    early = updates(connector_id, before, now - YEAR)

    *last, _ = await asyncio.gather(
        *(caller(api, connector_id, name, each) for name, each in enumerate(asked)),
        apply_one_by_one(store, early),
    )

    held = await fields_of(store, connector_id)
    state, _ = fold(State(fields={}, stamps={}), early)
    assert state is not None
    put = {field for sent in last for field in sent}
    for field in FIELDS:
        if field in put:
            assert held[field] in [sent[field] for sent in last if field in sent]
        else:
            assert held.get(field) == state.fields.get(field)

    late = [
        each._replace(event_id=f"late {each.event_id}")
        for each in updates(connector_id, after, now + YEAR)
    ]
    await asyncio.gather(apply_one_by_one(store, late), apply_one_by_one(store, early))

    latest, _ = fold(State(fields={}, stamps={}), late)
    assert latest is not None
    assert await fields_of(store, connector_id) == {**held, **latest.fields}


async def test_replacing_a_connector_beats_the_events_in_flight(
    both: tuple[ConnectorStore, Api],
) -> None:
    store, api = both
    await store.add(["one"])
    now = time.time_ns() // 1000
    early = updates("one", [(1, {"last_sync_error": "early"})], now - YEAR)
    await store.apply(early)
    assert (await api.call("PUT", "/_connector/one")).body["result"] == "updated"
    (outcome,) = await store.apply(early)
    assert (outcome.name, dict(await fields_of(store, "one"))) == ("superseded", {})
