"""The store or the broker away in mid-run: the worker waits, says so, and goes on by itself."""

import signal
import sqlite3
import time
from pathlib import Path

import pytest

from tests.acceptance import generator
from tests.acceptance.conftest import Stack
from tests.brokers import Broker
from tests.conftest import MakeBroker
from tests.eventually import eventually
from tests.kafka import Kafka, Topics
from tests.programs import Cli, Spawn

Own = tuple[Stack, Broker]

RESUMES_WITHIN = 10.0  # seconds after the service is back

AWAY = 6_000  # records before: the others make sure that there is work afterwards
LENGTHS = [
    pytest.param(7.0, id="short"),
    pytest.param(30.0, id="30s", marks=pytest.mark.slow),
]


async def outlast(seconds: float) -> None:
    """Let an outage last; its length is what is tested."""
    end = time.monotonic() + seconds
    await eventually(lambda: time.monotonic() >= end, seconds + 1)


@pytest.mark.parametrize("seconds", LENGTHS)
async def test_a_locked_store_is_waited_for_and_makes_no_dead_letter(
    stack: Stack, seconds: float
) -> None:
    made = generator.topic(8_000, 200, seed=4, unknown=0, malformed=0)
    await stack.fill(made, until=AWAY)
    worker = stack.worker(LAST_SYNC_BATCH_SIZE="50")
    await worker.says("batch.done", 30)
    lock = sqlite3.connect(stack.database, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    before = len(worker.stderr)
    await stack.publish(made, AWAY)
    await outlast(seconds)
    said = worker.stderr[before:]
    assert "batch.held" in said
    assert "locked" in said
    assert worker.exit_code is None
    committed = await stack.committed()
    lock.execute("ROLLBACK")
    lock.close()

    async def goes_on() -> bool:
        return await stack.committed() != committed

    await eventually(goes_on, RESUMES_WITHIN)
    await stack.drained()
    await stack.assert_true_to(made)
    assert worker.exit_code is None


@pytest.fixture
async def own(make_broker: MakeBroker, cli: Cli, spawn: Spawn, tmp_path: Path) -> Own:
    """Work on a broker of the test's own, which it may stop."""
    broker = make_broker()
    kafka, topics = Kafka(broker.bootstrap), Topics.unique()
    await kafka.create(topics)
    return Stack(kafka=kafka, topics=topics, cli=cli, spawn=spawn, folder=tmp_path), broker


@pytest.mark.parametrize("how", ["stop", "kill", "pause"])
@pytest.mark.parametrize("seconds", LENGTHS)
async def test_a_broker_that_is_away_is_waited_for_and_nothing_is_lost(
    own: Own, how: str, seconds: float
) -> None:
    stack, broker = own
    made = generator.topic(8_000, 200, seed=5, unknown=0, malformed=0)
    await stack.fill(made, until=AWAY)
    worker = stack.worker(LAST_SYNC_BATCH_SIZE="50")
    await worker.says("batch.done", 30)
    getattr(broker, how)()
    before = len(worker.stderr)
    await outlast(seconds)
    assert worker.exit_code is None
    getattr(broker, "resume" if how == "pause" else "start")()
    returned = time.monotonic()
    done = worker.stderr.count("batch.done")
    await stack.publish(made, AWAY)
    await eventually(lambda: worker.stderr.count("batch.done") > done, RESUMES_WITHIN)
    assert time.monotonic() - returned < RESUMES_WITHIN
    said = worker.stderr[before:]
    assert "waiting_for" in said
    await stack.drained()
    await stack.assert_true_to(made)
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0


@pytest.mark.parametrize("how", ["kill", "pause"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_the_broker_is_dead_ends_with_0_within_ten_seconds(
    own: Own, how: str, signum: signal.Signals
) -> None:
    stack, broker = own
    made = generator.topic(6_000, 200, seed=14, unknown=0, malformed=0)
    await stack.fill(made)
    worker = stack.worker(LAST_SYNC_BATCH_SIZE="50")
    await worker.says("batch.done", 30)
    getattr(broker, how)()
    await worker.says("waiting_for", 20)
    worker.signal(signum)
    assert await worker.ended(10) == 0
