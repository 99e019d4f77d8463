"""The probes and the metrics of a real worker, through all that can happen to it."""

import asyncio
import json
import signal
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance import generator
from tests.acceptance.conftest import PATIENT, Stack
from tests.acceptance.test_outages import outlast
from tests.brokers import Broker
from tests.conftest import BEHIND_PROXY, MakeBroker
from tests.eventually import eventually
from tests.kafka import DEAD_LETTER_MAX_BYTES, Kafka, Record
from tests.postgres import PostgresServer
from tests.probes import Probes, Samples, of
from tests.programs import Cli, Finished
from tests.proxy import Proxy


@pytest.fixture
def probes(stack: Stack) -> Probes:
    found = Probes()
    stack.more = {**stack.more, **found.env}
    return found


async def check_live(cli: Cli, probes: Probes) -> Finished:
    return await cli("check", "--live", env=probes.env)


def lag_of(samples: Samples) -> dict[int, int]:
    return {
        int(dict(labels)["partition"]): int(value)
        for (name, labels), value in samples.items()
        if name == "last_sync_consumer_lag_records"
    }


async def true_lag(stack: Stack) -> dict[int, int]:
    """Ask the broker."""
    ends, done = await stack.kafka.end_offsets(stack.topics.source), await stack.committed()
    return {partition: end - done.get(partition, 0) for partition, end in ends.items()}


# --- through a worker's life ---------------------------------------------------------------------


async def test_it_is_live_while_it_starts_and_ready_once_it_has_partitions(
    make_broker: MakeBroker, stack: Stack, probes: Probes
) -> None:
    port = Probes().port
    broker = await asyncio.to_thread(make_broker, advertise=port)
    stack.kafka = Kafka(broker.bootstrap)
    await stack.kafka.create(stack.topics)
    async with Proxy(broker.address(BEHIND_PROXY), port=port) as proxy:
        await proxy.switch("black_hole")
        worker = stack.worker(LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS=proxy.address)
        await probes.becomes("/readyz", 503, "starting")
        assert (await probes.get("/livez"))[0] == 200
        await proxy.switch("pass")
        await probes.becomes("/readyz", 200, "partitions assigned: 4 of 4")
        done = await check_live(stack.cli, probes)
        assert done.exit_code == 0
        assert [line[:10] for line in done.stdout.splitlines()] == ["ok  live: ", "ok  ready:"]
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    done = await check_live(stack.cli, probes)
    assert done.exit_code == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"BAD live: no answer from 127.0.0.1 port {probes.port}")


async def test_a_worker_that_stops_says_so_until_it_has_stopped(
    stack: Stack, probes: Probes
) -> None:
    made = generator.topic(200, 20, seed=31, unknown=0, malformed=0)
    await stack.fill(made)
    lock = sqlite3.connect(stack.database, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    worker = stack.worker(LAST_SYNC_SHUTDOWN_SECONDS="30")
    assert "locked" in await probes.becomes("/readyz", 503, "holding (store)")
    await outlast(0.5)  # the pause: now it waits for the lock again, for as long as SQLite does
    worker.signal(signal.SIGTERM)
    await probes.becomes("/readyz", 503, "stopping", 5)
    assert await worker.ended() == 0
    assert (await probes.get("/livez"))[0] == 0
    lock.close()


async def test_a_frozen_process_fails_its_probes(stack: Stack, probes: Probes) -> None:
    worker = stack.worker()
    await probes.becomes("/readyz", 200)
    worker.signal(signal.SIGSTOP)
    done = await check_live(stack.cli, probes)
    assert done.exit_code == 1
    assert "timed out" in done.stdout
    worker.signal(signal.SIGCONT)
    await probes.becomes("/readyz", 200)


async def test_a_drain_serves_its_health_and_ends(stack: Stack, probes: Probes) -> None:
    await stack.fill(generator.topic(300, 20, seed=32, unknown=0, malformed=0))
    await stack.drain()
    assert (await probes.get("/livez"))[0] == 0


# --- trouble -------------------------------------------------------------------------------------


async def test_a_breaker_that_holds_tells_how_to_release_it_and_stays_live(
    stack: Stack, probes: Probes
) -> None:
    made = generator.topic(1_500, 200, seed=33, unknown=0, malformed=0)
    await stack.kafka.produce(stack.topics.source, made.records)
    worker = stack.worker(**PATIENT)
    said = await probes.becomes("/readyz", 503, "holding (flood)")
    assert "LAST_SYNC_FLOOD_SHARE=1" in said
    assert (await probes.get("/livez"))[0] == 200
    done = await check_live(stack.cli, probes)
    assert done.exit_code == 0  # a restart would help nothing
    assert "BAD ready: holding (flood)" in done.stdout
    held = await probes.samples()
    assert of(held, "holding", cause="flood") == of(held, "holds_total", cause="flood") == 1
    assert of(held, "store_retries_total") == 0
    await stack.kafka.produce(stack.topics.source, made.records[:100])  # unseen: nothing is fetched

    async def lag_is_true() -> bool:
        return lag_of(await probes.samples()) == await true_lag(stack)

    await eventually(lag_is_true, 20)
    assert sum((await true_lag(stack)).values()) == len(made.records) + 100
    assert await probes.value("oldest_unprocessed_event_age_seconds") > 1
    await stack.register(made.registered)
    await stack.drained()
    await probes.becomes("/readyz", 200)
    await eventually(lag_is_true, 20)
    free = await probes.samples()
    assert of(free, "holding", cause="flood") == 0
    assert of(free, "holds_total", cause="flood") == 1
    assert set(lag_of(free).values()) == {0}
    assert of(free, "oldest_unprocessed_event_age_seconds") == 0
    assert worker.exit_code is None


async def test_a_store_that_is_away_makes_an_idle_worker_unready(
    stack: Stack, probes: Probes, make_postgres: Callable[..., PostgresServer]
) -> None:
    server = await asyncio.to_thread(make_postgres)
    stack.more = {**stack.more, "LAST_SYNC_STORE_URL": server.url}
    assert (await stack.cli("store", "upgrade", env=stack.env)).exit_code == 0
    credentials, _, rest = server.url.rpartition("@")
    address, _, database = rest.partition("/")
    async with Proxy(address) as proxy:
        stack.worker(LAST_SYNC_STORE_URL=f"{credentials}@{proxy.address}/{database}")
        await probes.becomes("/readyz", 200)
        for mode in ("black_hole", "refuse"):
            await proxy.switch(mode)
            await probes.becomes("/readyz", 503, "the store cannot be reached")
            assert (await probes.get("/livez"))[0] == 200
            await proxy.switch("pass")
            await probes.becomes("/readyz", 200)


@pytest.fixture
def own(stack: Stack, own_broker: Broker) -> Broker:
    """Move the stack to a broker that the test may kill."""
    stack.kafka = Kafka(own_broker.bootstrap)
    return own_broker


async def test_a_dead_broker_makes_members_and_those_standing_by_unready(
    stack: Stack, probes: Probes, own: Broker
) -> None:
    await stack.kafka.create(stack.topics, partitions=1)
    other = Probes()
    stack.worker()
    await probes.becomes("/readyz", 200, "1 of 1")
    stack.worker(**other.env)

    async def standing_by() -> bool:
        said = [await each.get("/readyz") for each in (probes, other)]
        return sorted((status, text[:11]) for status, text in said) == [
            (200, "partitions "),
            (200, "standing by"),
        ]

    await eventually(standing_by, 30)
    assert await probes.value("rebalances_total") >= 2
    assigned = [await each.value("assigned_partitions") for each in (probes, other)]
    assert sorted(assigned) == [0, 1]
    await asyncio.to_thread(own.kill)
    for each in (probes, other):
        await each.becomes("/readyz", 503, "holding (broker)")
        assert (await each.get("/livez"))[0] == 200
        assert await each.value("holding", cause="broker") == 1
    await asyncio.to_thread(own.start)
    for each in (probes, other):
        await each.becomes("/readyz", 200, timeout=60)


async def test_each_member_has_the_lag_of_its_own_partitions_alone(
    stack: Stack, probes: Probes
) -> None:
    made = generator.topic(300, 20, seed=34, unknown=0, malformed=0)
    await stack.fill(made)
    stack.worker()
    await stack.drained()

    async def lags(*each: Probes) -> list[set[int]]:
        return [set(lag_of(await one.samples())) for one in each]

    assert await lags(probes) == [{0, 1, 2, 3}]
    other = Probes()
    stack.worker(**other.env)
    await other.becomes("/readyz", 200, "2 of 4")

    async def shared() -> bool:
        mine, theirs = await lags(probes, other)
        return mine | theirs == {0, 1, 2, 3} and len(mine) == len(theirs) == 2

    await eventually(shared, 20)


# --- figures -------------------------------------------------------------------------------------


def event(connector: str, number: int, *, key: str | None = None, **more: Any) -> Record:
    value = {
        "event_id": f"e{number}",
        "connector_id": connector,
        "occurred_at": f"2026-01-01T00:00:{number:02}Z",
        "last_sync": {"last_sync_error": "none"},
        **more,
    }
    key = connector if key is None else key
    return Record(key=key.encode(), value=json.dumps(value).encode(), partition=0)


async def test_figures_are_those_of_what_was_published(stack: Stack, probes: Probes) -> None:
    await stack.register(["a", "b"])
    with sqlite3.connect(stack.database) as store:
        store.execute(
            "CREATE TRIGGER refuses BEFORE UPDATE ON connectors WHEN NEW.last_sync_error = 'poison'"
            " BEGIN SELECT RAISE(ABORT, 'no poison'); END"
        )
    store.close()
    newest = event("a", 5)
    await stack.kafka.produce(
        stack.topics.source,
        [
            newest,
            newest,
            event("a", 1),
            event("a", 5, last_sync={"last_sync_error": "another text"}),
            event("a", 9, key="not-a"),
            event("nobody", 2),
            event("b", 3, last_sync={"last_sync_error": "poison"}),
            event("b", 4, last_sync={}),
            event("b", 4, occurred_at="never"),
            event("b", 4, occurred_at="never"),
        ],
    )
    # Nothing is decided by what shares a batch.
    worker = stack.worker(LAST_SYNC_BATCH_SIZE="1", **PATIENT)
    await stack.drained()
    await worker.says('"lag": 0', 10)
    found = await probes.samples()
    outcomes = {
        (dict(labels)["outcome"], dict(labels)["reason"]): value
        for (name, labels), value in found.items()
        if name == "last_sync_events_total" and value
    }
    lost = outcomes["superseded", ""]  # of two contents with one id the greater digest wins
    assert outcomes == {
        ("applied", ""): 4 - lost,
        ("duplicate", ""): 1,
        ("superseded", ""): lost,
        ("connector_not_found", "connector_not_found"): 1,
        ("rejected", "rejected"): 1,
        ("invalid", "empty_last_sync"): 1,
        ("invalid", "invalid_time"): 2,
    }
    assert lost in {1, 2}
    assert of(found, "dead_letters_written_total", reason="invalid_time") == 2
    assert of(found, "dead_letters_written_total", reason="rejected") == 1
    assert of(found, "key_mismatches_total") == 1
    assert of(found, "reused_event_ids_total") == 1
    assert of(found, "batch_records_count") == of(found, "batch_records_sum") == 10
    assert of(found, "step_seconds_count", step="store") == 10
    assert of(found, "step_seconds_count", step="dead_letters") == 5
    assert of(found, "event_delay_seconds_count") == outcomes["applied", ""]
    assert of(found, "commits_total", result="done") >= 10
    assert of(found, "rebalances_total") == 1
    assert of(found, "assigned_partitions") == 4


async def test_a_letter_that_was_cut_is_counted_as_too_large(stack: Stack, probes: Probes) -> None:
    large = event("nobody", 1, note="x" * (DEAD_LETTER_MAX_BYTES - 400))
    await stack.kafka.produce(stack.topics.source, [large], compression="gzip")
    stack.worker()
    await stack.drained()
    found = await probes.samples()
    assert of(found, "dead_letters_written_total", reason="too_large") == 1
    reason = "connector_not_found"
    assert of(found, "dead_letters_written_total", reason=reason) == 0
    assert of(found, "events_total", outcome=reason, reason=reason) == 1


# --- settings ------------------------------------------------------------------------------------


async def test_a_busy_port_is_exit_3_with_one_line(stack: Stack, probes: Probes) -> None:
    stack.worker()
    await probes.becomes("/livez", 200)
    done = await stack.cli("run", env=stack.env)
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert f"port {probes.port}" in line
    assert "LAST_SYNC_HEALTH_PORT" in line


async def test_without_a_port_nothing_is_served_and_the_check_says_why(stack: Stack) -> None:
    done = await stack.cli("check", "--live", env=stack.env)
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert "LAST_SYNC_HEALTH_PORT is not set" in line


async def test_the_port_may_stand_in_a_file_and_the_verdicts_be_json(
    stack: Stack, probes: Probes
) -> None:
    stack.worker()
    await probes.becomes("/readyz", 200)
    (stack.folder / ".env").write_text(f"LAST_SYNC_HEALTH_PORT={probes.port}\n")
    plain = await stack.cli("check", "--live")
    assert (plain.exit_code, plain.stdout[:8]) == (0, "ok  live")
    found = json.loads((await stack.cli("check", "--live", "--json")).stdout)
    assert found["ok"] is True
    assert [check["name"] for check in found["checks"]] == ["live", "ready"]
