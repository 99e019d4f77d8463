"""The list of open letters and their replay, through compaction, crashes, crowds and changes."""

import asyncio
import base64
import json
import os
import re
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewPartitions

from schemas.dead_letter import DeadLetter
from tests.acceptance.conftest import Stack, dead_lettered, event, record
from tests.acceptance.test_dlq import dlq, listed, replayed
from tests.brokers import Broker
from tests.eventually import eventually
from tests.kafka import Kafka, Record
from worker.dead_letters import MAX_BATCH
from worker.stores import open_store

GOLDEN = Path(__file__).parents[1] / "data" / "dead_letters"
EAGER_CLEANER = {
    "cleanup.policy": "compact",
    "max.message.bytes": "2000000",
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0.01",
    "delete.retention.ms": "100",
    "segment.bytes": "1048576",
}


async def test_compaction_keeps_open_letters_and_removes_resolved_ones(stack: Stack) -> None:
    await stack.kafka.alter(stack.topics.dlq, EAGER_CLEANER)
    unknown = [record(event(f"u-{n}", 1), f"u-{n}", 0) for n in range(5)]
    await dead_lettered(stack, unknown)
    await stack.register(["u-0", "u-1"])
    assert await replayed(stack, "--connector", "u-[01]") == ["applied", "applied"]
    before = {letter["id"] for letter in await listed(stack)}
    number = 0

    async def is_compacted() -> bool:
        """Each new letter rolls the segment, so that the cleaner may have the one before."""
        nonlocal number
        number += 1
        await stack.kafka.produce(stack.topics.source, [record(b"{", "x", 0)])
        await stack.drain(LAST_SYNC_FLOOD_SHARE="1")
        records = await stack.kafka.read_all(stack.topics.dlq)
        return all(one.value is not None for one in records)

    await eventually(is_compacted, 100)
    keys = [one.key for one in await stack.kafka.read_all(stack.topics.dlq)]
    assert len(keys) == len(set(keys)) == 3 + number
    after = await listed(stack)
    assert before == {one["id"] for one in after if one["status"] == 404}
    assert len(after) == 3 + number


REPLAY_STEPS = [
    "before the store",
    "after the store",
    "before the tombstones",
    "among the tombstones",
    "after the tombstones",
]
DISCARD_STEPS = REPLAY_STEPS[2:]


@pytest.mark.parametrize("step", REPLAY_STEPS)
async def test_a_replay_that_is_killed_ends_as_one_that_is_not(stack: Stack, step: str) -> None:
    await dead_lettered(stack, [record(event(f"u-{n}", n), f"u-{n}", n % 4) for n in range(20)])
    await stack.register([f"u-{n}" for n in range(20)])
    command = ("replay", "--all", "--yes", "--batch-size", "6")
    assert await killed_at(stack, step, *command) == -signal.SIGKILL
    assert len(await listed(stack)) == left_after(step)
    await dlq(stack, *command)
    assert await listed(stack) == []
    assert await stack.stored() == {f"u-{n}": {"last_indexed_document_count": n} for n in range(20)}


@pytest.mark.parametrize("step", DISCARD_STEPS)
async def test_a_discard_that_is_killed_ends_as_one_that_is_not(stack: Stack, step: str) -> None:
    await dead_lettered(stack, [record(b"{", "x", n % 4) for n in range(20)])
    command = ("discard", "--all", "--reason-text", "a test", "--yes")
    stack.more = {"LAST_SYNC_BATCH_SIZE": "6"}
    assert await killed_at(stack, step, *command) == -signal.SIGKILL
    assert len(await listed(stack)) == left_after(step)
    await dlq(stack, *command)
    assert await listed(stack) == []


def left_after(step: str) -> int:
    """How many of 20 letters are open when the first batch, of 6, is cut short."""
    return {"among the tombstones": 17, "after the tombstones": 14}.get(step, 20)


@pytest.mark.parametrize("step", ["after the store", "after the tombstones"])
async def test_an_edit_that_is_killed_can_be_done_again(stack: Stack, step: str) -> None:
    await stack.register(["known"])
    await dead_lettered(stack, [record(b"{", "known")])
    (one,) = await listed(stack)
    (stack.folder / "fixed.json").write_text(json.dumps({"value": event("known", 7)}))
    command = ("edit", one["id"], "--file", "fixed.json", "--yes")
    assert await killed_at(stack, step, *command) == -signal.SIGKILL
    assert await stack.stored() == {"known": {"last_indexed_document_count": 7}}
    if step == "after the store":
        done = await dlq(stack, *command)
        assert "duplicate, and closed" in done.stderr
    assert await listed(stack) == []


async def test_an_edit_closes_the_letter_in_every_partition_that_has_it(stack: Stack) -> None:
    """As when a record was delivered again after the dead-letter topic got more partitions."""
    await stack.register(["known"])
    await dead_lettered(stack, [record(b"{", "known", 0)])
    (opened,) = await stack.kafka.read_all(stack.topics.dlq)
    await stack.kafka.produce(stack.topics.dlq, [replace(opened, partition=3)])
    (one, other) = await listed(stack)
    assert one["id"] == other["id"]
    (stack.folder / "fixed.json").write_text(json.dumps({"value": event("known", 7)}))
    await dlq(stack, "edit", one["id"], "--file", "fixed.json", "--yes")
    assert await listed(stack) == []


KILLED = """
import os, signal, sys
from worker.dead_letters import DeadLetterTopic
from worker.stores.sql_merging import SqlMergingStore

async def half(self, tombstones):
    await close(self, tombstones[:len(tombstones) // 2])

def dying(call, *, before):
    async def wrapped(*args, **kwargs):
        if before:
            os.kill(os.getpid(), signal.SIGKILL)
        await call(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return wrapped

step, close = sys.argv.pop(1), DeadLetterTopic.close
if step.endswith("the store"):
    SqlMergingStore.apply = dying(SqlMergingStore.apply, before=step.startswith("before"))
else:
    call = half if step.startswith("among") else close
    DeadLetterTopic.close = dying(call, before=step.startswith("before"))
from worker.cli import main
main()
"""


async def killed_at(stack: Stack, step: str, *arguments: str) -> int:
    """Run the program, which kills itself at the step, in its first batch."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        KILLED,
        step,
        "dlq",
        *arguments,
        env={**os.environ, **stack.env},
        cwd=stack.folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await asyncio.wait_for(process.wait(), 30)


async def test_tombstones_of_one_partition_may_fill_more_than_one_batch(stack: Stack) -> None:
    await dead_lettered(stack, [record(b"{", "x", 1) for _ in range(40)])
    why = "w" * 4_000  # bytes, in each of them
    done = await dlq(stack, "discard", "--all", "--reason-text", why, "--yes")
    assert done.stderr.count('"event": "dead_letter.resolved"') == 40
    closed = [one for one in await stack.kafka.read_all(stack.topics.dlq) if one.value is None]
    assert 40 * len(why) > 2 * MAX_BATCH
    assert {dict(one.headers)["__dlq.resolved.reason"] for one in closed} == {why.encode()}
    assert len({one.key for one in closed}) == 40
    assert await listed(stack) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_finishes_the_batch_and_the_next_run_goes_on(
    stack: Stack, signum: signal.Signals
) -> None:
    records = [record(event(f"u-{n}", n), f"u-{n}", n % 4) for n in range(60)]
    await dead_lettered(stack, records)
    await stack.register([f"u-{n}" for n in range(60)])
    running = stack.spawn("dlq", "replay", "--all", "--yes", "--rate", "5", env=stack.env)
    await running.says("dead_letter.resolved", 30)
    running.signal(signum)
    assert await running.ended() == 1
    left = len(await listed(stack))
    assert 0 < left < 60
    assert re.search(rf"applied +{60 - left}\n", running.stderr)
    assert re.search(rf"not tried +{left} ", running.stderr)
    assert "run the same command again" in running.stderr
    assert await replayed(stack, "--all") == ["applied"] * left


async def test_an_outage_ends_a_replay_with_its_summary_and_the_next_run_goes_on(
    stack: Stack, own_broker: Broker
) -> None:
    stack.kafka = Kafka(own_broker.bootstrap)
    await stack.kafka.create(stack.topics)
    await dead_lettered(stack, [record(event(f"u-{n}", n), f"u-{n}", n % 4) for n in range(20)])
    await stack.register([f"u-{n}" for n in range(20)])
    running = stack.spawn("dlq", "replay", "--all", "--yes", "--rate", "2", env=stack.env)
    await running.says("dead_letter.resolved", 30)
    await asyncio.to_thread(own_broker.kill)
    await running.says("replay.held", 30)
    running.signal(signal.SIGINT)  # a person who does not want to wait for it
    assert await running.ended(25) == 1
    assert "not tried" in running.stderr
    assert "Kafka" in running.stderr
    await asyncio.to_thread(own_broker.start)
    await replayed(stack, "--all")
    assert await listed(stack) == []


async def test_replays_beside_workers_and_each_other_end_in_one_state(stack: Stack) -> None:
    names = [f"u-{n}" for n in range(50)]
    await dead_lettered(stack, [record(event(name, 1), name, 0) for name in names])
    await stack.register(names)
    worker = stack.worker()
    await worker.says("worker.started", 30)
    newer = [record(event(name, 9), name, n % 4) for n, name in enumerate(names)]
    await asyncio.gather(
        replayed(stack, "--all"),
        replayed(stack, "--all"),
        stack.kafka.produce(stack.topics.source, newer),
    )
    await stack.drained()
    assert await listed(stack) == []
    assert await stack.stored() == {name: {"last_indexed_document_count": 9} for name in names}


async def test_a_redelivery_opens_a_resolved_letter_again_harmlessly(stack: Stack) -> None:
    await dead_lettered(stack, [record(event("u", 1), "u", 0)])
    (letter,) = await listed(stack)
    await stack.register(["u"])
    assert await replayed(stack, "--all") == ["applied"]
    (opened, _) = await stack.kafka.read_all(stack.topics.dlq)
    await stack.kafka.produce(stack.topics.dlq, [opened])  # as a worker that was killed writes it
    assert [one["id"] for one in await listed(stack)] == [letter["id"]]
    assert await replayed(stack, "--all") == ["duplicate"]
    assert await listed(stack) == []


async def test_a_recreated_topic_overwrites_no_letter(stack: Stack) -> None:
    await dead_lettered(stack, [record(event("first", 1), "u", 0, timestamp=1_700_000_000_000)])
    await stack.kafka.delete_topic(stack.topics.source)
    await stack.cli("topics", "create", "--partitions", "4", env=stack.env)
    stack.topics = type(stack.topics)(
        source=stack.topics.source, dlq=stack.topics.dlq, group=f"{stack.topics.group}.again"
    )
    await dead_lettered(stack, [record(event("second", 1), "u", 0, timestamp=1_700_000_000_001)])
    found = await listed(stack)
    assert [one["connector_id"] for one in found] == ["first", "second"]
    assert {one["offset"] for one in found} == {0}


async def test_two_groups_with_two_stores_share_one_dead_letter_topic(stack: Stack) -> None:
    await dead_lettered(stack, [record(event("u", 1), "u", 0)])
    first = dict(stack.more)
    stack.more = {
        "LAST_SYNC_KAFKA_GROUP_ID": f"{stack.topics.group}.other",
        "LAST_SYNC_STORE_URL": f"sqlite:///{stack.folder}/other.db",
    }
    await stack.drain()
    assert len({one["id"] for one in await listed(stack)}) == 2
    await stack.register(["u"])
    assert await replayed(stack, "--all", code=1) == ["applied", "other_store"]
    stack.more = first
    await stack.register(["u"])
    assert await replayed(stack, "--all") == ["applied"]
    assert await listed(stack) == []


async def test_more_partitions_of_the_dead_letter_topic_lose_no_letter(stack: Stack) -> None:
    await dead_lettered(stack, [record(event("u", n), "u", n) for n in range(4)])
    async with stack.kafka._admin() as admin:
        await admin.create_partitions({stack.topics.dlq: NewPartitions(total_count=9)})
    await dead_lettered(stack, [record(event("u", n), "u", n % 4) for n in range(4, 8)])
    assert len(await listed(stack)) == 8
    await stack.register(["u"])
    assert len(await replayed(stack, "--all")) == 8
    assert await listed(stack) == []


async def test_a_letter_that_was_cut_can_be_shown_and_discarded_only(stack: Stack) -> None:
    smaller = {"cleanup.policy": "compact", "max.message.bytes": "140000"}
    await stack.kafka.alter(stack.topics.dlq, smaller)
    await stack.kafka.alter(stack.topics.source, {"max.message.bytes": "70000"})
    large = json.dumps(event("u", 1, filler="x" * 1_000_000)).encode()
    await produce_compressed(stack, Record(value=large, key=b"u", partition=0))
    await stack.drain()
    (letter,) = await listed(stack)
    assert letter["reason"] == "too_large"
    await stack.register(["u"])
    assert await replayed(stack, "--all", code=1) == ["too_large"]
    assert (
        "can only be discarded"
        in (await dlq(stack, "edit", letter["id"], "--file", "/dev/null", code=1)).stderr
    )
    shown = await dlq(stack, "show", letter["id"])
    assert f"the record's value had {len(large)} bytes" in shown.stdout
    await dlq(stack, "discard", "--reason", "too_large", "--reason-text", "a test", "--yes")
    assert await listed(stack) == []


async def produce_compressed(stack: Stack, one: Record) -> None:
    async with stack.kafka._producer(
        compression_type="gzip", max_request_size=2_000_000
    ) as producer:
        await producer.send_and_wait(
            stack.topics.source, one.value, key=one.key, partition=one.partition
        )


async def test_letters_of_the_first_format_are_listed_shown_replayed_and_discarded(
    stack: Stack,
) -> None:
    files = [json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))]
    records = [replace(of(file), partition=n) for n, file in enumerate(files)]  # some share an id
    await stack.kafka.produce(stack.topics.dlq, records)
    found = await listed(stack)
    assert len(found) == len(files)
    assert {one["reason"] for one in found} == {file["reads"]["reason"] for file in files}
    await stack.register(["old-intranet"])
    stores = {
        json.loads((await dlq(stack, "show", one["id"], "--json")).stdout)["store"] for one in found
    }
    named = [word for store in stores for word in ("--store-id", store)]
    assert await replayed(stack, "--reason", "connector_not_found", *named) == ["applied"]
    assert (await stack.stored())["old-intranet"]["last_indexed_document_count"] == 42
    await dlq(stack, "discard", "--all", "--reason-text", "a test", "--yes")
    assert await listed(stack) == []


def of(file: dict[str, Any]) -> Record:
    headers = [(name, decoded(value)) for name, value in file["headers"]]
    return Record(key=decoded(file["key"]), value=decoded(file["value"]), headers=headers)


def decoded(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


async def test_a_record_that_is_no_letter_is_listed_and_can_be_discarded(stack: Stack) -> None:
    await stack.register(["known"])
    await stack.kafka.produce(stack.topics.dlq, [Record(value=b"?", key=b"stray", partition=0)])
    (stray,) = await listed(stack)
    assert (stray["id"], stray["reason"]) == ("stray", "unreadable")
    assert await replayed(stack, "--all", code=1) == ["unreadable"]
    await dlq(stack, "show", "stray")
    await dlq(stack, "discard", "--id", "stray", "--reason-text", "a test", "--yes")
    assert await listed(stack) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_very_many_letters_fit_into_little_memory(stack: Stack, count: int) -> None:
    async with open_store(f"sqlite:///{stack.database}") as store:
        await store.add([f"u-{n}" for n in range(1_000)])
        made = [letter(stack, n, store.store_id) for n in range(count)]
    await stack.kafka.produce(stack.topics.dlq, made)
    for command, expected in (
        (["list"], count + 1),
        (["list", "--json"], count),
        (["stats"], 28),  # twenty connectors, and a line for the others
        (["replay", "--all", "--dry-run"], count),
        (["replay", "--all", "--yes"], 0),
    ):
        peak, lines = await measured(stack, *command)
        assert peak < 200 * 1024, f"{command}: {peak} KiB"
        assert lines == expected, command
    assert await listed(stack) == []


def letter(stack: Stack, number: int, store_id: str) -> Record:
    connector_id = f"u-{number % 1_000}"
    content = event(connector_id, number)
    content["last_sync"]["last_sync_error"] = "x" * 500
    value = json.dumps(content).encode()
    traced = ("traceparent", "tracestate", "content-type", "producer")
    key, value, headers = (
        DeadLetter(
            group=stack.topics.group,
            topic=stack.topics.source,
            partition=number % 4,
            offset=number,
            timestamp_ms=1_700_000_000_000 + number,
            key=connector_id.encode(),
            value=value,
            headers=tuple((name, f"{name} of {number}".encode()) for name in traced),
            reason="connector_not_found",
            status=404,
            message=f"connector {connector_id!r} is not registered in the store: register it",
            connector_id=connector_id,
            failed_at=datetime.now(UTC),
            store=store_id,
        )
        .fitted(1_000_000)
        .record()
    )
    return Record(value=value, key=key, headers=headers, partition=number % 4)


MEASURED = """
import atexit
from pathlib import Path
from worker.cli import main

def note():  # getrusage would count what the test itself had before the exec
    status = Path("/proc/self/status").read_text()
    Path("peak").write_text(status.partition("VmHWM:")[2].split()[0])

atexit.register(note)
main()
"""


async def measured(stack: Stack, *arguments: str) -> tuple[int, int]:
    """The most memory that the command took, in KiB, and the lines that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MEASURED, "dlq", *arguments),
        env={**os.environ, **stack.env},
        cwd=stack.folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    stdout, _ = await process.communicate()
    assert process.returncode == 0
    return int((stack.folder / "peak").read_text()), len(stdout.splitlines())
