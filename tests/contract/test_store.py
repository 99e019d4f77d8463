"""What `ConnectorStore` promises, tried on every store."""

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.last_sync import LAST_SYNC_FIELDS
from schemas.updates import Update
from tests.contract.conftest import CancelAtWait, Pin, Place
from tests.eventually import eventually
from tests.hostile import IDS
from worker.merge import Outcome, State, delete_batch, fold_batch, register_batch
from worker.stores import Connector, ConnectorStore

FAR_FUTURE = 2**52  # microseconds: later than any reset made by these tests
LONE_SURROGATE = "\ud800"  # what no store can keep as UTF-8


def update(connector_id: str, at: int, **fields: Any) -> Update:
    return Update(connector_id=connector_id, fields=fields, at=at, rank=1, event_id=f"event {at}")


def names(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.name for outcome in outcomes]


async def fields_of(store: ConnectorStore, connector_id: str) -> dict[str, Any] | None:
    connector = await store.get(connector_id)
    return None if connector is None else dict(connector.fields)


async def listed(
    store: ConnectorStore, place: Place, wanted: Callable[[list[Connector]], bool]
) -> list[Connector]:
    """List the connectors, until they are as wanted where the store may be late with that."""
    found: list[Connector] = []

    async def is_listed() -> bool:
        found[:] = [connector async for connector in store.connectors()]
        return wanted(found)

    await eventually(is_listed, place.listed_within)
    return found


# Order and idempotency


async def test_outcomes_come_in_order_as_if_merged_one_at_a_time(store: ConnectorStore) -> None:
    await store.add(["a", "b"])
    first = update("a", 2, last_sync_status="completed")
    outcomes = await store.apply(
        [
            first,
            update("x", 2, last_sync_status="completed"),
            update("b", 1, last_sync_status="pending"),
            first,
            update("a", 1, last_sync_status="pending"),
            update("b", 2, last_sync_status="error"),
        ]
    )
    assert names(outcomes) == [
        "applied",
        "connector_not_found",
        "applied",
        "duplicate",
        "superseded",
        "applied",
    ]
    assert await fields_of(store, "a") == {"last_sync_status": "completed"}
    assert await fields_of(store, "b") == {"last_sync_status": "error"}


async def test_applying_again_changes_nothing(store: ConnectorStore, other: ConnectorStore) -> None:
    await store.add(["a"])
    batch = [update("a", 1, last_sync_error=None), update("a", 2, last_sync_error="x")]
    await store.apply(batch)
    assert names(await other.apply(batch)) == ["superseded", "duplicate"]
    assert await fields_of(store, "a") == {"last_sync_error": "x"}


async def test_a_remote_store_always_leaves_time(store: ConnectorStore) -> None:
    assert store.leaves_time.is_set() == store.remote


async def test_an_empty_batch_has_no_outcomes(store: ConnectorStore) -> None:
    assert await store.apply([]) == []
    assert await store.preview([]) == []
    assert await store.add([]) == []
    assert await store.delete([]) == []


async def test_a_reused_event_id_is_told(store: ConnectorStore) -> None:
    await store.add(["a"])
    one = update("a", 1, last_sync_error="x")
    same_id = one._replace(fields={"last_sync_error": "y"})
    lesser, greater = sorted([one, same_id], key=lambda update: update.digest)
    assert await store.apply([lesser]) == [Outcome("applied")]
    assert await store.apply([greater]) == [Outcome("applied", reused=True)]


async def test_a_batch_may_name_very_many_connectors(store: ConnectorStore, place: Place) -> None:
    ids = [f"connector {number}" for number in range(place.many)]
    assert all(await store.add(ids))
    outcomes = await store.apply([update(id_, 1, last_indexed_document_count=1) for id_ in ids])
    assert set(names(outcomes)) == {"applied"}
    assert await fields_of(store, ids[-1]) == {"last_indexed_document_count": 1}


# Registering, deleting, reading


async def test_adding_says_which_were_not_live(store: ConnectorStore) -> None:
    assert await store.add(["a", "b", "a"]) == [True, True, False]
    await store.apply([update("a", 1, last_sync_error="x")])
    assert await store.add(["b", "c", "a"]) == [False, True, False]
    assert await fields_of(store, "a") == {"last_sync_error": "x"}


async def test_deleting_says_which_were_live(store: ConnectorStore) -> None:
    await store.add(["a", "b"])
    assert await store.delete(["a", "x", "a"]) == [True, False, False]
    assert await store.delete(["a"]) == [False]
    assert names(await store.apply([update("a", FAR_FUTURE, last_sync_error="x")])) == [
        "connector_not_found"
    ]


async def test_a_late_event_of_the_former_life_loses(store: ConnectorStore) -> None:
    await store.add(["a"])
    await store.apply([update("a", 1, last_sync_error="x")])
    await store.delete(["a"])
    assert await store.add(["a"]) == [True]
    assert await fields_of(store, "a") == {}
    for field in LAST_SYNC_FIELDS:
        assert names(await store.apply([update("a", 2, **{field: None})])) == ["superseded"]
    assert names(await store.apply([update("a", FAR_FUTURE, last_sync_error="y")])) == ["applied"]


async def test_a_stamp_of_the_future_outlives_a_reset_without_its_value(
    store: ConnectorStore,
) -> None:
    future = update("a", FAR_FUTURE, last_sync_error=None, last_sync_status="error")
    await store.add(["a"])
    await store.apply([future])
    await store.delete(["a"])
    await store.add(["a"])
    assert await fields_of(store, "a") == {}
    assert names(await store.apply([future])) == ["duplicate"]
    await store.apply([update("a", FAR_FUTURE + 1, last_sync_status="pending")])
    assert await fields_of(store, "a") == {"last_sync_status": "pending"}


async def test_an_event_older_than_a_first_registration_applies(store: ConnectorStore) -> None:
    early = update("a", 1, last_sync_error="x")
    assert names(await store.apply([early])) == ["connector_not_found"]
    await store.add(["a"])
    assert names(await store.apply([early])) == ["applied"]


async def test_an_unknown_and_a_deleted_connector_read_as_none(store: ConnectorStore) -> None:
    await store.add(["gone"])
    await store.delete(["gone"])
    assert await store.get("gone") is None
    assert await store.get("unknown") is None


async def test_live_connectors_are_listed_by_code_point(
    store: ConnectorStore, place: Place
) -> None:
    ids = ["B", "a", "\U0001f600", "\uffe6", "é", "e\u0301", "a b", "a'", 'a"', "%", "x" * 512]
    await store.add([*ids, "gone"])
    await store.delete(["gone"])
    await store.apply([update("é", 1, last_sync_status="error")])
    found = await listed(store, place, lambda found: len(found) == len(ids))
    assert [connector.id for connector in found] == sorted(ids)
    found = await listed(store, place, lambda found: any(one.fields for one in found))
    assert Connector(id="é", fields={"last_sync_status": "error"}) in found


async def test_an_id_is_a_name_and_nothing_else_whatever_it_looks_like(
    store: ConnectorStore, place: Place
) -> None:
    await store.add(IDS)
    batch = [update(id_, 1, last_indexed_document_count=n) for n, id_ in enumerate(IDS)]
    assert names(await store.apply(batch)) == ["applied"] * len(IDS)
    await store.delete(IDS[::2])
    left = {id_: {"last_indexed_document_count": n} for n, id_ in enumerate(IDS) if n % 2}
    found = await listed(store, place, lambda found: len(found) == len(left))
    assert {connector.id: dict(connector.fields) for connector in found} == left
    assert [await fields_of(store, id_) for id_ in IDS] == [left.get(id_) for id_ in IDS]


async def test_a_listing_hinders_no_writer_and_repeats_nothing(
    store: ConnectorStore, other: ConnectorStore, place: Place
) -> None:
    ids = [f"{number:05}" for number in range(1_200)]
    await store.add(ids)
    await listed(store, place, lambda found: len(found) == len(ids))
    seen: list[str] = []
    async for connector in store.connectors():
        if not seen:
            await other.apply([update(connector.id, 1, last_sync_error="x")])
            await other.delete([ids[-1]])
            await other.add(["/"])  # sorts before those already read
        seen.append(connector.id)
    assert seen == (ids if place.lists_at_once else ids[:-1])


async def test_the_stores_id_goes_with_the_data(place: Place) -> None:
    async with place.open() as store:
        await store.add(["a"])
        first = store.store_id
    async with place.open() as again:
        assert (again.store_id == first) == (await again.get("a") is not None) == place.shared


async def test_the_description_names_the_stores_id(store: ConnectorStore) -> None:
    description = await store.describe()
    assert store.store_id in description
    assert "\n" not in description


# Values


async def test_values_come_back_as_they_were_given(
    store: ConnectorStore, other: ConnectorStore, place: Place
) -> None:
    fields = {
        "last_deleted_document_count": 2**63 - 1,
        "last_indexed_document_count": 0,
        "last_sync_error": None,
        "last_access_control_sync_error": "",
        "last_synced": "2024-11-09T15:13:08.231000Z",
        "sync_cursor": {
            "int": 2**70,
            "negative": -(2**64),
            "floats": [0.1, 1.0, -0.0, 5e-324, 1.7976931348623157e308],
            "text": "ü \U0001f600 \u2028 \\ \" ' %s :ids",
            "nested": {"b": [None, True, {}], "a": []},
        },
    }
    await store.add(["a"])
    await store.apply([update("a", 1, **fields)])
    found = await fields_of(other, "a")
    fields["last_access_control_sync_error"] = place.empty_error
    assert repr(sorted((found or {}).items())) == repr(sorted(fields.items()))


async def test_nothing_is_shared_with_the_stores_memory(store: ConnectorStore) -> None:
    given_cursor, fields = {"page": [1]}, {"last_sync_error": "x"}
    await store.add(["a"])
    await store.apply([update("a", 1, sync_cursor=given_cursor, **fields)])
    given_cursor["page"].append(2)
    found = await fields_of(store, "a")
    assert found == {"sync_cursor": {"page": [1]}, "last_sync_error": "x"}
    found["sync_cursor"]["page"].append(3)
    async for connector in store.connectors():
        connector.fields["sync_cursor"]["page"].append(4)  # type: ignore[index, call-overload, union-attr]
    assert await fields_of(store, "a") == {"sync_cursor": {"page": [1]}, "last_sync_error": "x"}


# Rejection


@pytest.mark.parametrize(
    "poison",
    [
        update("17", 1, last_sync_error=LONE_SURROGATE),
        update("17", 1, sync_cursor={"page": [LONE_SURROGATE]}),
        Update(
            connector_id="17",
            fields={"last_sync_error": "x"},
            at=1,
            rank=1,
            event_id=LONE_SURROGATE,
        ),
    ],
    ids=["value", "cursor", "event id"],
)
async def test_content_that_cannot_be_kept_is_rejected_alone(
    store: ConnectorStore, poison: Update
) -> None:
    ids = [str(number) for number in range(50)]
    await store.add(ids)
    batch = [update(id_, 1, last_sync_error="x") for id_ in ids]
    batch[17] = poison
    batch.insert(18, update("17", 2, last_sync_status="error"))
    outcomes = await store.apply(batch)
    assert outcomes[17].name == "rejected"
    assert "surrogates not allowed" in outcomes[17].detail
    assert set(names(outcomes[:17] + outcomes[18:])) == {"applied"}
    assert await fields_of(store, "17") == {"last_sync_status": "error"}
    assert await fields_of(store, "49") == {"last_sync_error": "x"}


async def test_what_no_store_could_keep_is_no_matter_where_it_wins_nothing(
    store: ConnectorStore,
) -> None:
    await store.add(["a"])
    await store.apply([update("a", 2, last_sync_error="x")])
    batch = [update(id_, 1, last_sync_error=LONE_SURROGATE) for id_ in ("a", "unknown")]
    assert names(await store.apply(batch)) == ["superseded", "connector_not_found"]


# Preview


async def test_preview_gives_the_outcomes_of_apply_and_writes_nothing(
    store: ConnectorStore,
) -> None:
    await store.add(["a"])
    batch = [update("a", 1, last_sync_error="x"), update("x", 1, last_sync_error="x")] * 2
    foreseen = await store.preview(batch)
    assert await fields_of(store, "a") == {}
    assert await store.apply(batch) == foreseen
    assert names(foreseen) == ["applied", "connector_not_found", "duplicate", "connector_not_found"]


# Two writers


async def test_two_writers_of_one_connector_lose_nothing(
    store: ConnectorStore, other: ConnectorStore, pin: Pin
) -> None:
    await store.add(["a"])
    with pin.on(store):
        first = asyncio.create_task(store.apply([update("a", 2, last_sync_error="first")]))
        await pin.reached.wait()
        second = asyncio.create_task(
            other.apply([update("a", 1, last_sync_error="second", last_sync_status="error")])
        )
        await asyncio.wait({second}, timeout=0.1)  # it may have to wait for the first
        pin.release.set()
        assert names(await first + await second) == ["applied", "applied"]
    assert await fields_of(store, "a") == {"last_sync_error": "first", "last_sync_status": "error"}


async def test_a_deletion_meets_a_merge_without_loss(
    store: ConnectorStore, other: ConnectorStore, pin: Pin
) -> None:
    await store.add(["a"])
    with pin.on(store):
        merging = asyncio.create_task(store.apply([update("a", 2, last_sync_error="x")]))
        await pin.reached.wait()
        deleting = asyncio.create_task(other.delete(["a"]))
        await asyncio.wait({deleting}, timeout=0.1)
        pin.release.set()
        await asyncio.gather(merging, deleting)
    assert await store.get("a") is None
    await store.add(["a"])
    assert await fields_of(store, "a") == {}


async def test_a_connector_is_registered_once_by_two(
    store: ConnectorStore, other: ConnectorStore, place: Place
) -> None:
    answers = await asyncio.gather(*(one.add(["a", "b"]) for one in (store, other) * 4))
    assert [sum(each) for each in zip(*answers, strict=True)] == [1, 1]
    assert [True, True] in answers or not place.atomic


async def test_readers_wait_for_no_writer_and_see_nothing_of_it_yet(
    store: ConnectorStore, other: ConnectorStore, place: Place, pin: Pin
) -> None:
    await store.add(["a"])
    await listed(store, place, lambda found: len(found) == 1)
    batch = [update("a", 1, last_sync_error="x")]
    with pin.on(store):
        writing = asyncio.create_task(store.apply(batch))
        await pin.reached.wait()
        for reader in (store, other):
            assert await fields_of(reader, "a") == {}
            assert [connector.fields async for connector in reader.connectors()] == [{}]
            assert names(await reader.preview(batch)) == ["applied"]
        assert not writing.done()
        pin.release.set()
        await writing
    assert await fields_of(other, "a") == {"last_sync_error": "x"}


# Cancellation


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Keep it from tidying up what a cancelled call should have tidied up itself."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("delay", [0, 0.0005], ids=["at once", "a little later"])
async def test_a_call_cancelled_wherever_it_waits_stores_all_or_nothing(
    store: ConnectorStore, other: ConnectorStore, place: Place, delay: float
) -> None:
    await store.add(["a", "b"])
    for wait in count(1):
        batch = [update(id_, wait, last_indexed_document_count=wait) for id_ in "ab"]
        # Connected again: asyncpg leaves a future behind where connecting is cancelled.
        await store.apply([update("a", 0, last_sync_error="x")])
        cancelling = CancelAtWait(store.apply(batch), wait, delay)
        with suppress(asyncio.CancelledError):
            await asyncio.create_task(cancelling.run())
        async with asyncio.timeout(2):  # no lock is left behind
            outcomes = await other.apply(batch)
        assert len({*names(outcomes)} & {"applied", "duplicate"}) == 1 or not place.atomic
        assert await fields_of(store, "b") == {"last_indexed_document_count": wait}
        if cancelling.waits < wait:
            break


async def test_a_call_cancelled_while_pinned_stores_nothing(
    store: ConnectorStore, other: ConnectorStore, pin: Pin
) -> None:
    await store.add(["a"])
    with pin.on(store):
        task = asyncio.create_task(store.apply([update("a", 1, last_sync_error="x")]))
        await pin.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await fields_of(other, "a") == {}
    assert names(await other.apply([update("a", 1, last_sync_error="x")])) == ["applied"]


# All of it against the pure rules

VALUES = {
    "last_sync_error": None,
    "last_synced": "2024-11-09T15:13:08.231000Z",
    "sync_cursor": {"page": 1},
}

calls = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.sampled_from("abc"))),
        st.tuples(st.just("delete"), st.lists(st.sampled_from("abc"), max_size=2)),
        st.tuples(
            st.just("apply"),
            st.lists(
                st.builds(
                    lambda id_, at, fields: update(id_, at, **{f: VALUES[f] for f in fields}),
                    st.sampled_from("abc"),
                    st.sampled_from([1, 2, FAR_FUTURE]),
                    st.sets(st.sampled_from(list(VALUES)), min_size=1),
                )
            ),
        ),
    )
)


def test_a_store_does_what_the_rules_say(place: Place) -> None:
    examples = count()

    async def example(store: ConnectorStore, steps: list[tuple[str, list[Any]]]) -> None:
        mark = f"{next(examples)}:"  # one store for all, and connectors for each
        states: dict[str, State] = {}
        for name, items in steps:
            marked = [
                mark + item
                if isinstance(item, str)
                else item._replace(connector_id=mark + item.connector_id)
                for item in items
            ]
            answers = await getattr(store, name)(marked)
            changed, foreseen = RULES[name](states, marked)
            states |= changed
            assert answers == foreseen
        for id_ in "abc":
            state = states.get(mark + id_)
            live = state is not None and not state.deleted
            assert await fields_of(store, mark + id_) == (
                dict(state.fields) if state and live else None
            )

    with asyncio.Runner() as runner:
        opened = place.open()
        store = runner.run(opened.__aenter__())
        check = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])(
            given(calls)(lambda steps: runner.run(example(store, steps)))
        )
        check()
        runner.run(opened.__aexit__(None, None, None))


RULES: dict[str, Any] = {
    "add": register_batch,
    "apply": fold_batch,
    "delete": lambda states, ids: delete_batch(states, ids, 10**15),
}
