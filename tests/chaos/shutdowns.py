"""SIGTERM in every situation: exit 0 within the deadline, and nothing lost."""

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.brokers import Broker
from tests.chaos.events import Mix
from tests.chaos.nursery import Member
from tests.chaos.rig import Result, Rig, Run, running
from tests.eventually import eventually
from tests.postgres import PostgresServer

MIX = Mix(connectors=200)
DEADLINE = 10.0  # seconds
FROZEN_SESSION = "9500"  # milliseconds, longer than a worker waits for its own end
PER_ROUND = 400  # records

Situation = Callable[[Run], AbstractAsyncContextManager[list[Member]]]


async def shutdown(
    rig: Rig,
    name: str,
    situation: Situation,
    *,
    rounds: int,
    store: str = "",
    bootstrap: str = "",
) -> Result:
    """Bring workers into the situation and end them, again and again; then drain and check."""
    name = f"shutdown-{name}"
    slowest, problems = 0.0, list[str]()
    url = store or rig.store("sqlite", name)
    async with running(
        rig, name, url, MIX, partitions=4, bootstrap=bootstrap, observed=False
    ) as run:
        for number in range(rounds):
            await run.publish(PER_ROUND, publishers=1, seed=number)
            async with situation(run) as members:
                for seconds, problem in await asyncio.gather(*map(_end, members)):
                    slowest = max(slowest, seconds)
                    problems += [f"round {number}: {problem}"] if problem else []
            run.say(f"{number + 1}/{rounds} rounds")
        await run.drain()
        facts = f"{rounds} rounds, slowest exit {slowest:.1f} s, {len(problems)} wrong"
        return Result(name=name, verdict=await run.verdict(), facts=facts, problems=problems)


async def _end(member: Member) -> tuple[float, str]:
    asked = time.monotonic()
    member.signal(signal.SIGTERM)
    try:
        code = await member.ended(DEADLINE)
    except AssertionError:
        member.signal(signal.SIGKILL)
        await member.ended()
        return DEADLINE, f"did not end within {DEADLINE} s: {member.tail}"
    return time.monotonic() - asked, f"exit code {code}: {member.tail}" if code else ""


@asynccontextmanager
async def idle(run: Run) -> AsyncIterator[list[Member]]:
    worker = run.worker()
    await worker.says("partitions.assigned")
    await run.drained()
    yield [worker]


@asynccontextmanager
async def loaded(run: Run) -> AsyncIterator[list[Member]]:
    worker = run.worker("--slow", "0.1", LAST_SYNC_BATCH_SIZE="20")
    await worker.says("batch.done")
    yield [worker]


@asynccontextmanager
async def holding(run: Run) -> AsyncIterator[list[Member]]:
    """Another program has locked the store."""
    lock = sqlite3.connect(run.store.removeprefix("sqlite:///"), isolation_level=None)
    try:
        lock.execute("BEGIN IMMEDIATE")
        worker = run.worker()
        await worker.says("batch.held")
        yield [worker]
    finally:
        lock.close()


@asynccontextmanager
async def rebalancing(run: Run) -> AsyncIterator[list[Member]]:
    """A frozen member keeps the rebalance that a new one began from ending, for a session long."""
    first, frozen = run.worker(), run.worker(LAST_SYNC_KAFKA_SESSION_TIMEOUT_MS=FROZEN_SESSION)
    await eventually(lambda: _partitions(first) == _partitions(frozen) == 2, 30)
    await run.drained()
    revoked = first.stderr.count("partitions.revoked")
    frozen.signal(signal.SIGSTOP)
    newcomer = run.worker()
    try:
        await eventually(lambda: first.stderr.count("partitions.revoked") > revoked, 20)
        yield [first, newcomer]
        assert '"partitions.assigned"' not in newcomer.stderr, "the rebalance was over too soon"
    finally:
        frozen.signal(signal.SIGKILL)
        await frozen.ended()


def _partitions(member: Member) -> int:
    """How many it was last given."""
    given = [line for line in member.logged if line["event"] == "partitions.assigned"]
    return len(given[-1]["partitions"]) if given else 0


def without_broker(broker: Broker) -> Situation:
    @asynccontextmanager
    async def situation(run: Run) -> AsyncIterator[list[Member]]:
        worker = run.worker("--slow", "0.2", LAST_SYNC_BATCH_SIZE="20")
        await worker.says("batch.done")
        await asyncio.to_thread(broker.kill)
        try:
            await worker.says("waiting_for")
            yield [worker]
        finally:
            await asyncio.to_thread(broker.start)
            await answers(run.handled)

    return situation


def without_store(server: PostgresServer) -> Situation:
    @asynccontextmanager
    async def situation(run: Run) -> AsyncIterator[list[Member]]:
        worker = run.worker("--slow", "0.1", LAST_SYNC_BATCH_SIZE="20")
        await worker.says("batch.done")
        await asyncio.to_thread(server.kill)
        try:
            await worker.says("batch.held")
            yield [worker]
        finally:
            await asyncio.to_thread(server.start)

    return situation


async def answers(ask: Callable[[], Awaitable[object]]) -> None:
    """Return once the broker that was killed serves the group again."""

    async def answered() -> bool:
        try:
            await ask()
        except Exception:  # noqa: BLE001 - whatever a client says of a broker that recovers
            return False
        return True

    await eventually(answered, 30)
