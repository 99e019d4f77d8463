"""What is Elasticsearch's own: the ledger, writers in each other's way, errors, the version."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import JsonValue

from schemas.updates import Update
from tests.contract.conftest import CancelAtWait
from tests.elasticsearch import FakeElasticsearch, Pin, Request, in_a_thread
from tests.eventually import takes_less
from tests.programs import Cli
from worker import settings
from worker.app import checks
from worker.errors import MisconfiguredError, TransientError
from worker.stores import (
    ConnectorStore,
    Difference,
    ElasticsearchAccess,
    elastic_client,
    elasticsearch,
    ledger,
    open_store,
)

OLD: dict[str, JsonValue] = {"last_sync_status": "in_progress", "last_sync_error": None}
NEW: dict[str, JsonValue] = {"last_sync_status": "completed", "last_indexed_document_count": 7}


def update(at: int, **fields: Any) -> Update:
    return Update(connector_id="a", fields=fields, at=at, rank=1, event_id=f"event {at}")


def one_each(ids: Sequence[str]) -> list[Update]:
    return [Update(connector_id=id_, fields=NEW, at=1, rank=1, event_id="e") for id_ in ids]


@pytest.fixture
async def server() -> AsyncIterator[FakeElasticsearch]:
    async with FakeElasticsearch() as server:
        yield server


def url_of(server: FakeElasticsearch) -> str:
    return f"elasticsearch+{server.url}"


@pytest.fixture
async def store(server: FakeElasticsearch) -> AsyncIterator[ConnectorStore]:
    async with open_store(url_of(server)) as store:
        await store.add(["a"])
        yield store


@pytest.fixture
async def other(server: FakeElasticsearch, store: ConnectorStore) -> AsyncIterator[ConnectorStore]:
    async with open_store(url_of(server)) as other:
        yield other


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `verify` look again soon: nobody here is slow between two writes."""
    monkeypatch.setattr(elasticsearch, "IN_FLIGHT", 0.2)


async def fields_of(store: ConnectorStore) -> dict[str, Any] | None:
    connector = await store.get("a")
    return None if connector is None else dict(connector.fields)


async def differences(store: ConnectorStore, *, repair: bool = False) -> list[Difference]:
    return [difference async for difference in store.verify(repair=repair)]


def puts(server: FakeElasticsearch) -> list[Any]:
    return [body for _, path, body in server.requests if path.endswith("/_last_sync")]


# Two writers, step by step. A writer's steps: it reads the ledger, puts the values, writes the
# ledger. One writer is stopped before or after each of them while the other does all of its own.


def reads_ledger(request: Request) -> bool:
    return request.path.endswith("/_mget")


def puts_values(request: Request) -> bool:
    return request.path.endswith("/_last_sync")


def writes_ledger(request: Request) -> bool:
    return request.path.endswith("/_bulk")


STEPS = [reads_ledger, puts_values, writes_ledger]
WRITERS = [(update(1, **OLD), update(2, **NEW)), (update(2, **NEW), update(1, **OLD))]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize(("first", "second"), WRITERS, ids=["old first", "new first"])
async def test_two_writers_converge_wherever_one_is_stopped(
    server: FakeElasticsearch,
    store: ConnectorStore,
    other: ConnectorStore,
    first: Update,
    second: Update,
    step: Callable[[Request], bool],
    *,
    before: bool,
) -> None:
    pin = server.pin(step, before=before)
    stopped = asyncio.create_task(store.apply([first]))
    await pin.reached.wait()
    await other.apply([second])
    pin.release.set()
    await stopped
    assert await fields_of(store) == {**OLD, **NEW}
    assert await differences(store) == []
    again = await other.apply([first, second])
    assert {outcome.name for outcome in again} <= {"duplicate", "superseded"}


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_a_writer_that_wins_nothing_sets_nothing_back(
    server: FakeElasticsearch,
    store: ConnectorStore,
    other: ConnectorStore,
    step: Callable[[Request], bool],
    *,
    before: bool,
) -> None:
    await store.apply([update(2, **OLD)])
    pin = server.pin(step, before=before)
    stopped = asyncio.create_task(store.apply([update(1, **OLD), update(2, **OLD)]))
    await pin.reached.wait()
    await other.apply([update(3, last_sync_status="error", last_indexed_document_count=8)])
    pin.release.set()
    await stopped
    assert await fields_of(store) == {
        "last_sync_status": "error",
        "last_sync_error": None,
        "last_indexed_document_count": 8,
    }
    assert await differences(store) == []


@pytest.mark.parametrize("others_step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize(("first", "second"), WRITERS, ids=["old first", "new first"])
async def test_two_writers_converge_whichever_two_steps_meet(
    server: FakeElasticsearch,
    store: ConnectorStore,
    other: ConnectorStore,
    first: Update,
    second: Update,
    step: Callable[[Request], bool],
    others_step: Callable[[Request], bool],
) -> None:
    pin = server.pin(step, before=False)
    one = asyncio.create_task(store.apply([first]))
    await pin.reached.wait()
    others_pin = server.pin(others_step, before=False)
    two = asyncio.create_task(other.apply([second]))
    await others_pin.reached.wait()
    pin.release.set()
    await one
    others_pin.release.set()
    await two
    assert await fields_of(store) == {**OLD, **NEW}
    assert await differences(store) == []


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_a_deletion_and_a_merge_agree_wherever_the_merge_is_stopped(
    server: FakeElasticsearch,
    store: ConnectorStore,
    other: ConnectorStore,
    step: Callable[[Request], bool],
) -> None:
    pin = server.pin(step, before=False)
    merging = asyncio.create_task(store.apply([update(1, **OLD)]))
    await pin.reached.wait()
    assert await other.delete(["a"]) == [True]
    pin.release.set()
    await merging
    assert await store.get("a") is None
    assert await other.add(["a"]) == [True]
    assert await fields_of(store) == {}
    assert [o.name for o in await store.apply([update(1, **OLD)])] == ["superseded"]


async def test_a_registration_between_does_not_lose_what_was_merged(
    server: FakeElasticsearch, store: ConnectorStore, other: ConnectorStore
) -> None:
    await store.delete(["a"])
    pin = server.pin(lambda request: request.method == "GET" and "_connector/" in request.path,
                     before=False)  # fmt: skip
    adding = asyncio.create_task(store.add(["a"]))
    await pin.reached.wait()
    assert await other.add(["a"]) == [True]
    late = update(2**52, **NEW)
    assert [o.name for o in await other.apply([late])] == ["applied"]
    pin.release.set()
    assert await adding == [False]
    assert await fields_of(store) == NEW
    assert await differences(store) == []


# A writer that dies, step by step; what it had in hand is handled again by another.


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_a_writer_that_dies_leaves_nothing_that_its_successor_does_not_mend(
    server: FakeElasticsearch,
    store: ConnectorStore,
    other: ConnectorStore,
    step: Callable[[Request], bool],
    *,
    before: bool,
) -> None:
    await store.apply([update(2, **NEW)])
    await dies_at(server, store, update(3, last_sync_status="error"), step, before=before)
    outcomes = await other.apply([update(3, last_sync_status="error")])
    assert outcomes[0].name in {"applied", "duplicate"}
    assert await fields_of(store) == {**NEW, "last_sync_status": "error"}
    assert await differences(store) == []


async def dies_at(
    server: FakeElasticsearch,
    store: ConnectorStore,
    event: Update,
    step: Callable[[Request], bool],
    *,
    before: bool,
) -> None:
    """Stop the writer at a step, cancel it there, and let the request come to nothing more."""
    pin = server.pin(step, before=before)
    dying = asyncio.create_task(store.apply([event]))
    await pin.reached.wait()
    if before:
        server.fail("reset", times=1, match=step)
    dying.cancel()
    with suppress(asyncio.CancelledError):
        await dying
    pin.release.set()


# The two windows that remain, and how they are closed.


async def test_verify_mends_a_put_that_landed_after_its_writer_gave_up(
    server: FakeElasticsearch, store: ConnectorStore, other: ConnectorStore
) -> None:
    pin = server.pin(puts_values)
    late = asyncio.create_task(store.apply([update(1, **OLD)]))
    await pin.reached.wait()
    late.cancel()
    with suppress(asyncio.CancelledError):
        await late
    assert [o.name for o in await other.apply([update(1, **OLD)])] == ["applied"]
    assert [o.name for o in await other.apply([update(2, **NEW)])] == ["applied"]
    pin.release.set()  # the request that its writer has forgotten takes effect now
    await until(lambda: server.connectors["a"]["last_sync_status"] == "in_progress")
    await closes(store, "in_progress")


async def test_verify_mends_what_a_writer_left_whose_event_was_handled_elsewhere(
    server: FakeElasticsearch, store: ConnectorStore, other: ConnectorStore
) -> None:
    await store.apply([update(1, **OLD)])
    pin = server.pin(puts_values)
    dying = asyncio.create_task(store.apply([update(1, **OLD)]))
    await pin.reached.wait()
    await other.apply([update(2, **NEW)])
    death = server.fail("reset", match=writes_ledger)  # before its ledger write takes effect
    pin.release.set()
    with pytest.raises(TransientError):
        await dying
    death.clear()
    await closes(store, "in_progress")


async def closes(store: ConnectorStore, found: str) -> None:
    wrong = Difference(
        connector_id="a", field="last_sync_status", found=found, expected="completed"
    )
    assert await differences(store) == [wrong]
    assert await differences(store, repair=True) == [wrong]
    assert await differences(store) == []
    assert await fields_of(store) == {**OLD, **NEW}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - another task makes it true
            await asyncio.sleep(0.01)


async def test_verify_does_not_take_a_write_in_flight_for_a_difference(
    server: FakeElasticsearch, store: ConnectorStore, other: ConnectorStore
) -> None:
    await store.apply([update(1, **OLD)])
    pin = server.pin(writes_ledger)
    writing = asyncio.create_task(store.apply([update(2, **NEW)]))
    await pin.reached.wait()
    verifying = asyncio.create_task(differences(other))
    await until(lambda: ("POST", f"/{ledger.INDEX}/_search") in [r[:2] for r in server.requests])
    pin.release.set()
    await writing
    assert await verifying == []


async def test_verify_finds_a_connector_that_is_gone_and_notes_it(
    server: FakeElasticsearch, store: ConnectorStore
) -> None:
    await store.apply([update(1, **OLD)])
    server.indices[".elastic-connectors-v1"].remove("a")
    gone = Difference(connector_id="a", field=None)
    assert await differences(store, repair=True) == [gone]
    assert await differences(store) == []


async def test_the_command_says_what_differs_and_repairs_it(cli: Cli) -> None:
    server = FakeElasticsearch()
    with in_a_thread(server):
        async with open_store(url_of(server)) as store:
            await store.add(["a"])
            await store.apply([update(1, **NEW)])
        server.connectors["a"]["last_sync_status"] = "pending"
        env = {"LAST_SYNC_STORE_URL": url_of(server)}
        told = await cli("store", "verify", env=env)
        assert told.exit_code == 1
        assert told.stdout == (
            'a: last_sync_status is "pending", and the newest event says "completed"\n'
        )
        mended = await cli("store", "verify", "--repair", "--json", env=env)
        assert mended.exit_code == 0
        assert json.loads(mended.stdout) == {
            "connector_id": "a",
            "field": "last_sync_status",
            "found": "pending",
            "expected": "completed",
            "repaired": True,
        }
        assert (await cli("store", "verify", env=env)).exit_code == 0


# What is sent


async def test_only_touched_fields_are_put_and_null_clears_an_error(
    server: FakeElasticsearch, store: ConnectorStore
) -> None:
    await store.apply([update(1, last_sync_error="x", last_synced="2024-11-09T15:13:08.231000Z")])
    await store.apply([update(2, last_sync_error=None)])
    assert puts(server)[-1] == {"last_sync_error": ""}
    assert server.connectors["a"]["last_synced"] == "2024-11-09T15:13:08.231Z"
    assert await fields_of(store) == {
        "last_sync_error": None,
        "last_synced": "2024-11-09T15:13:08.231000Z",
    }


async def test_a_batch_reads_and_writes_the_ledger_once(
    server: FakeElasticsearch, store: ConnectorStore
) -> None:
    ids = [str(number) for number in range(100)]
    await store.add(ids)
    server.requests.clear()
    batch = [
        Update(connector_id=id_, fields=NEW, at=at, rank=1, event_id=f"event {at}")
        for id_ in ids
        for at in (1, 2)
    ]
    await store.apply(batch)
    paths = [path for _, path, _ in server.requests]
    assert paths.count("/_bulk") == 1
    assert paths.count(f"/{ledger.INDEX}/_mget") == 1
    assert len(paths) == len(ids) + 2


async def test_no_more_requests_are_in_flight_than_the_setting_says() -> None:
    server, ids = FakeElasticsearch(), [str(number) for number in range(20)]
    async with server, open_store(url_of(server), ElasticsearchAccess(concurrency=3)) as store:
        pins: list[Pin] = [server.pin(lambda r: r.path.startswith("/_connector/")) for _ in ids]
        adding = asyncio.create_task(store.add(ids))
        for done in range(len(ids)):
            in_flight = min(3, len(ids) - done)
            await until(partial(reached, pins, done + in_flight))
            assert not reached(pins, done + in_flight + 1)
            pins[done].release.set()
        assert all(await adding)


@pytest.fixture
async def ids(store: ConnectorStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Eight connectors, in slices of two."""
    monkeypatch.setattr(elasticsearch, "AT_ONCE", 2)
    ids = [str(number) for number in range(8)]
    await store.add(ids)
    return ids


def changed(server: FakeElasticsearch) -> list[str]:
    return [path.split("/")[2] for _, path, _ in server.requests if path.endswith("/_last_sync")]


async def test_one_slice_is_changed_while_the_ledger_is_written_of_the_one_before(
    server: FakeElasticsearch, store: ConnectorStore, ids: list[str]
) -> None:
    pin = server.pin(writes_ledger)
    applying = asyncio.create_task(store.apply(one_each(ids)))
    await until(pin.reached.is_set)
    await until(lambda: len(changed(server)) == 4)
    await asyncio.sleep(0.1)
    assert sorted(changed(server)) == ids[:4]
    pin.release.set()
    assert [o.name for o in await applying] == ["applied"] * len(ids)
    assert await differences(store) == []


async def test_who_lost_to_another_writer_is_tried_again_alone_and_before_others_begin(
    server: FakeElasticsearch, store: ConnectorStore, ids: list[str]
) -> None:
    server.fail(409, times=1, match=puts_values)
    outcomes = await store.apply(one_each(ids))
    assert [o.name for o in outcomes] == ["applied"] * len(ids)
    made = changed(server)
    assert (sorted(made[:4]), made[4], sorted(made[5:])) == (ids[:4], made[0], ids[4:])
    assert await differences(store) == []


async def test_a_call_that_is_cancelled_by_itself_is_no_success(
    store: ConnectorStore, ids: list[str]
) -> None:
    async def attempt(*_: Any) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await store._change(ids[:2], attempt)  # type: ignore[attr-defined]


async def test_a_cancellation_counts_where_a_call_failed_at_the_same_time() -> None:
    failed = asyncio.Event()

    async def fail() -> None:
        failed.set()
        raise TransientError("away")

    async def work() -> None:
        async with elasticsearch._together() as group:
            group.create_task(fail())
            await asyncio.sleep(1)

    working = asyncio.create_task(work())
    await failed.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_calls_that_were_given_up_leave_their_places() -> None:
    server, ids = FakeElasticsearch(), [str(number) for number in range(20)]
    async with server, open_store(url_of(server), ElasticsearchAccess(concurrency=3)) as store:
        await store.add(ids)
        batch = one_each(ids)
        refused = server.fail(503, match=lambda r: puts_values(r) and "/2/" in r.path)
        silence = server.fail("hang", match=puts_values)
        async with asyncio.timeout(5):
            for _ in range(2):
                with pytest.raises(TransientError, match="503"):
                    await store.apply(batch)
            refused.clear()
            silence.clear()
            await store.apply(batch)


def reached(pins: Sequence[Pin], count: int) -> bool:
    return sum(pin.reached.is_set() for pin in pins) >= count


async def test_two_who_register_the_same_at_once_may_share_them(
    server: FakeElasticsearch, store: ConnectorStore, other: ConnectorStore
) -> None:
    registers = server.pin(lambda r: r.method == "PUT" and r.path == "/_connector/b")
    asks = server.pin(lambda r: r.method == "GET" and r.path == "/_connector/c")
    one = asyncio.create_task(store.add(["b", "c"]))
    await registers.reached.wait()
    await asks.reached.wait()
    writes = server.pin(writes_ledger)
    another = asyncio.create_task(other.add(["b", "c"]))
    await writes.reached.wait()
    registers.release.set()
    asks.release.set()
    assert await one == [True, False]
    writes.release.set()
    assert await another == [False, True]


async def test_a_cursor_is_merged_as_elasticsearch_does(store: ConnectorStore) -> None:
    await store.apply([update(1, sync_cursor={"page": 1, "of": {"a": 1}})])
    await store.apply([update(2, sync_cursor={"page": 2, "of": {"b": 2}})])
    assert await fields_of(store) == {"sync_cursor": {"page": 2, "of": {"a": 1, "b": 2}}}
    assert await differences(store) == []


async def test_an_error_text_that_elasticsearch_refuses_is_rejected_alone(
    store: ConnectorStore,
) -> None:
    await store.add(["b"])
    poison = update(2, last_sync_error="x" * 40_000)
    fine = Update(connector_id="b", fields=NEW, at=1, rank=1, event_id="b")
    outcomes = await store.apply([update(1, **OLD), poison, fine, update(3, **NEW)])
    assert [o.name for o in outcomes] == ["applied", "rejected", "applied", "applied"]
    assert "document_parsing_exception" in outcomes[1].detail
    assert await fields_of(store) == {**OLD, **NEW}


# Connectors that others register and delete


async def test_a_connector_that_others_registered_takes_events(
    server: FakeElasticsearch, store: ConnectorStore
) -> None:
    api = store._api  # type: ignore[attr-defined]
    await api.register("theirs")
    event = Update(connector_id="theirs", fields=NEW, at=1, rank=1, event_id="e")
    assert [o.name for o in await store.preview([event])] == ["applied"]
    assert [o.name for o in await store.apply([event])] == ["applied"]


async def test_what_others_deleted_for_good_is_reset_once(
    server: FakeElasticsearch, store: ConnectorStore
) -> None:
    server.soft_deletes = False
    await store.apply([update(1, **OLD)])
    await store._api.delete("a")  # type: ignore[attr-defined]
    for _ in range(2):
        assert [o.name for o in await store.apply([update(2, **NEW)])] == ["connector_not_found"]
    reset = server.indices[ledger.INDEX].documents["a"]
    assert [o.name for o in await store.apply([update(2, **NEW)])] == ["connector_not_found"]
    assert server.indices[ledger.INDEX].documents["a"] is reset
    assert await store.add(["a"]) == [True]
    assert [o.name for o in await store.apply([update(2, **NEW)])] == ["superseded"]


# The server


@pytest.mark.parametrize(
    ("number", "flavor", "fine"),
    [
        ("9.5.3", "default", True),
        ("8.15.0", "default", True),
        ("8.19.21", "default", True),
        ("8.14.3", "default", False),
        ("7.17.0", "default", False),
        ("8.11.0", "serverless", True),
    ],
)
async def test_versions_that_would_null_the_stats_are_refused(
    server: FakeElasticsearch, number: str, flavor: str, *, fine: bool
) -> None:
    server.number, server.build_flavor = number, flavor
    if fine:
        async with open_store(url_of(server)) as store:
            assert ("serverless" if flavor == "serverless" else number) in await store.describe()
        return
    with pytest.raises(MisconfiguredError, match=f"is Elasticsearch {number}.*upgrade it to 8.15"):
        async with open_store(url_of(server)):
            pass


async def test_another_product_is_refused(server: FakeElasticsearch) -> None:
    server.product = False
    with pytest.raises(MisconfiguredError, match="is not Elasticsearch"):
        async with open_store(url_of(server)):
            pass


async def test_an_index_of_another_program_is_left_alone(server: FakeElasticsearch) -> None:
    async with open_store(url_of(server)):
        del server.indices[ledger.INDEX].mappings["_meta"]
    with pytest.raises(MisconfiguredError, match="is not one that this program made"):
        async with open_store(url_of(server)):
            pass


async def test_a_newer_ledger_is_refused(server: FakeElasticsearch) -> None:
    async with open_store(url_of(server)):
        server.indices[ledger.INDEX].mappings["_meta"]["schema"] = 9
    with pytest.raises(MisconfiguredError, match="has the schema 9"):
        async with open_store(url_of(server)):
            pass


async def test_ten_may_open_a_fresh_server_at_once(server: FakeElasticsearch) -> None:
    async def opening() -> str:
        async with open_store(url_of(server)) as store:
            return store.store_id

    assert len(set(await asyncio.gather(*(opening() for _ in range(10))))) == 1


async def test_it_works_with_index_creation_switched_off(server: FakeElasticsearch) -> None:
    server.auto_create_index = False
    async with open_store(url_of(server)) as store:
        await store.add(["a"])
        assert [o.name for o in await store.apply([update(1, **OLD)])] == ["applied"]


async def test_deprecation_warnings_are_logged_and_survived(cli: Cli) -> None:
    server = FakeElasticsearch()
    server.warning = "this API is deprecated"
    with in_a_thread(server):
        done = await cli("connectors", "add", "a", "--store", url_of(server))
    assert done.exit_code == 0
    assert done.stdout == "a: registered\n"
    logged = [json.loads(line) for line in done.stderr.splitlines()]
    assert all("this API is deprecated" in line["event"] for line in logged)
    assert logged


async def test_keys_and_passwords_are_used_and_never_shown(server: FakeElasticsearch) -> None:
    server.api_keys, server.users = {"k3y"}, {"elastic": "p@ss"}
    async with open_store(url_of(server), ElasticsearchAccess(api_key="k3y")):
        pass
    with_user = url_of(server).replace("://", "://elastic:p%40ss@")
    async with open_store(with_user):
        pass
    for url, access in [
        (url_of(server).replace("://", "://elastic:wr0ng@"), None),
        (url_of(server), ElasticsearchAccess(api_key="wr0ng")),
        (url_of(server), None),
    ]:
        with pytest.raises(MisconfiguredError, match="401 security_exception") as caught:
            async with open_store(url, access):
                pass
        assert "wr0ng" not in str(caught.value)
        assert "check LAST_SYNC_ELASTICSEARCH_API_KEY" in str(caught.value)
    with pytest.raises(MisconfiguredError, match="remove one"):
        async with open_store(with_user, ElasticsearchAccess(api_key="k3y")):
            pass


async def test_the_ca_file_decides_whom_to_trust(tmp_path: Path) -> None:
    ca, files = trustme.CA(), [str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem")]
    certificate = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(files[0])
    certificate.cert_chain_pems[0].write_to_path(files[1])
    certificate.private_key_pem.write_to_path(files[2])
    async with FakeElasticsearch(ssl_certfile=files[1], ssl_keyfile=files[2]) as server:
        trusting = ElasticsearchAccess(cafile=Path(files[0]))
        async with open_store(url_of(server), trusting) as store:
            assert await store.add(["a"]) == [True]
        with pytest.raises(MisconfiguredError, match="check LAST_SYNC_ELASTICSEARCH_CAFILE"):
            async with open_store(url_of(server)):
                pass
    with pytest.raises(MisconfiguredError, match="check the URL and the CA file"):
        async with open_store(url_of(server), ElasticsearchAccess(cafile=tmp_path / "none")):
            pass


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("elasticsearch+http://", "write elasticsearch"),
        ("elasticsearch+http://h?x=1", "write elasticsearch"),
        ("elasticsearch+http://[", "check the URL"),
        ("elasticsearch+http://a..b", "check the URL"),
        ("elasticsearch+http://127.1", "check the URL"),
        ("elasticsearch://h", "not a URL that this release knows"),
    ],
)
async def test_a_url_that_names_no_server_is_refused(url: str, says: str) -> None:
    with pytest.raises(MisconfiguredError, match=says):
        async with open_store(url):
            pass


def test_several_nodes_and_a_path_may_be_named() -> None:
    assert elastic_client._hosts("elasticsearch+https://u:p%3A@a,b:9201/es/") == (
        ["https://a:9200/es", "https://b:9201/es"],
        ("u", "p:"),
    )
    assert elastic_client._hosts("elasticsearch+http://[::1]:9200")[0] == ["http://[::1]:9200"]


# Trouble


TROUBLE: list[tuple[Any, type[Exception], str]] = [
    (401, MisconfiguredError, "LAST_SYNC_ELASTICSEARCH_API_KEY"),
    (403, MisconfiguredError, "manage_connector"),
    (429, TransientError, "429"),
    (503, TransientError, "503"),
    ("reset", TransientError, "reset|disconnected"),
    ("reset_after", TransientError, "reset|disconnected"),
    ("hang", TransientError, "did not answer in time"),
    ("html_404", MisconfiguredError, "a proxy or another service"),
    ("html_502", TransientError, "502"),
    ("index_not_found", TransientError, "an index is not there"),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize(("kind", "expected", "says"), TROUBLE, ids=lambda value: str(value)[:30])
async def test_trouble_is_told_apart_at_every_step_and_nothing_is_lost(
    server: FakeElasticsearch,
    store: ConnectorStore,
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[[Request], bool],
    kind: Any,
    expected: type[Exception],
    says: str,
) -> None:
    book = store._book  # type: ignore[attr-defined]
    book.client._request_timeout = store._api.client._request_timeout = 0.3  # type: ignore[attr-defined]
    failure = server.fail(kind, match=step)
    with pytest.raises(expected, match=says):
        await store.apply([update(1, **OLD)])
    failure.clear()
    outcomes = await store.apply([update(1, **OLD)])
    assert outcomes[0].name in {"applied", "duplicate"}
    assert await fields_of(store) == OLD


@pytest.mark.parametrize("match", [puts_values, writes_ledger], ids=lambda match: match.__name__)
async def test_lost_races_are_run_again(
    server: FakeElasticsearch, store: ConnectorStore, match: Callable[[Request], bool]
) -> None:
    server.fail(409, times=3, match=match)
    assert [o.name for o in await store.apply([update(1, **OLD)])] == ["applied"]
    assert len(puts(server)) == 4


@pytest.mark.parametrize("match", [puts_values, writes_ledger], ids=lambda match: match.__name__)
async def test_races_that_are_lost_again_and_again_are_transient(
    server: FakeElasticsearch,
    store: ConnectorStore,
    match: Callable[[Request], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elasticsearch, "CONTENTION_TIMEOUT", 0.3)
    server.fail(409, match=match)
    with pytest.raises(TransientError, match="other writers of connector 'a' were quicker"):
        await store.apply([update(1, **OLD)])


async def test_a_lost_ledger_stops_the_worker_before_anything_is_put(
    server: FakeElasticsearch, store: ConnectorStore
) -> None:
    del server.indices[ledger.INDEX]
    server.requests.clear()
    with pytest.raises(MisconfiguredError, match="the index last-sync-ledger is gone"):
        await store.apply([update(1, **OLD)])
    assert puts(server) == []


async def test_a_server_that_comes_back_is_used_again(
    server: FakeElasticsearch, store: ConnectorStore
) -> None:
    await server.stop()
    with pytest.raises(TransientError):
        await store.apply([update(1, **OLD)])
    await server.start()
    assert [o.name for o in await store.apply([update(1, **OLD)])] == ["applied"]


async def test_check_says_what_is_wrong_within_five_seconds(cli: Cli) -> None:
    server = FakeElasticsearch()
    with in_a_thread(server):
        good = await cli("check", "--store", url_of(server))
        assert "ok  store: Elasticsearch 9.5.3, ledger last-sync-ledger schema 1" in good.stdout
        silence = server.fail("hang")
        bad = await cli("check", "--store", url_of(server))
        given = settings.load({"store_url": url_of(server)})
        await takes_less(4.4, lambda: checks.check(given))  # and half a second until it begins
        silence.clear()
    assert bad.exit_code == 3
    assert "BAD store: store elasticsearch+http://127.0.0.1" in bad.stdout
    assert "did not answer in time" in bad.stdout


@pytest.mark.parametrize("at_once", [2, 500])
async def test_a_cancelled_batch_is_finished_by_the_next(
    store: ConnectorStore,
    other: ConnectorStore,
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
) -> None:
    monkeypatch.setattr(elasticsearch, "AT_ONCE", at_once)
    batch = one_each(ids)
    for wait in range(1, 12):
        with suppress(asyncio.CancelledError):
            await asyncio.create_task(CancelAtWait(store.apply(batch), wait, 0).run())
    await other.apply(batch)
    assert [o.name for o in await other.preview(batch)] == ["duplicate"] * len(ids)
    assert await differences(other) == []
