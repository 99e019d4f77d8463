"""SIGTERM and SIGINT: exit 0 with what was begun finished and committed."""

import json
import signal
import sqlite3
import time

import pytest

from tests.acceptance import generator
from tests.acceptance.conftest import PATIENT, Stack
from tests.eventually import eventually

WITHIN = 10.0  # seconds


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load_ends_with_0_and_every_applied_event_committed(
    stack: Stack, signum: signal.Signals
) -> None:
    made = generator.topic(20_000, 500, seed=9, unknown=0, malformed=0)
    await stack.fill(made)
    worker = stack.worker(LAST_SYNC_BATCH_SIZE="100", **PATIENT)
    await eventually(lambda: worker.stderr.count("batch.done") >= 3, 30)
    asked = time.monotonic()
    worker.signal(signum)
    assert await worker.ended(WITHIN) == 0
    assert time.monotonic() - asked < WITHIN
    committed, rows = await stack.committed(), stack.rows()
    assert not await stack.is_drained()
    lines = [json.loads(line) for line in worker.stderr.splitlines()]
    handled = sum(line["records"] for line in lines if line["event"] == "batch.done")
    assert sum(committed.values()) == handled
    read = await stack.kafka.read_all(stack.topics.source)
    done = [r.value for r in read if (r.offset or 0) < committed.get(r.partition or 0, 0)]
    partly = generator.Topic(
        registered=made.registered, events=[json.loads(value or b"") for value in done]
    )
    assert await stack.stored() == partly.expected
    assert stack.rows() == rows


async def test_a_signal_while_the_store_is_locked_abandons_the_batch_and_ends_with_0(
    stack: Stack,
) -> None:
    made = generator.topic(500, 50, seed=10, unknown=0, malformed=0)
    await stack.fill(made)
    lock = sqlite3.connect(stack.database, isolation_level=None)
    worker = stack.worker()
    await worker.says("worker.started", 30)
    lock.execute("BEGIN IMMEDIATE")
    await stack.kafka.produce(stack.topics.source, made.records)
    await worker.says("batch.held", 30)
    worker.signal(signal.SIGTERM)
    assert await worker.ended(WITHIN) == 0
    lock.execute("ROLLBACK")
    lock.close()
    assert await stack.letters() == {}
    await stack.drain()
    assert await stack.stored() == made.expected


async def test_a_second_signal_kills_at_once(stack: Stack) -> None:
    made = generator.topic(500, 50, seed=11, unknown=0, malformed=0)
    await stack.register(made.registered)
    worker = stack.worker(LAST_SYNC_SHUTDOWN_SECONDS="60")
    await worker.says("worker.started", 30)
    lock = sqlite3.connect(stack.database, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    await stack.kafka.produce(stack.topics.source, made.records)
    await eventually(lambda: "partitions.assigned" in worker.stderr)
    worker.signal(signal.SIGTERM)
    await worker.says("worker.stopping", 10)
    worker.signal(signal.SIGTERM)
    assert await worker.ended(5) == -signal.SIGTERM
    lock.close()
    await stack.drain()
    assert await stack.stored() == made.expected
