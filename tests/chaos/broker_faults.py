"""The brokers break, or the way to them does, while events flow; the same worker goes on by itself.

A fault gives what was seen of it, and raises where it did not bite: one that nobody felt proves
nothing. Publishers reach the brokers directly; where the network breaks, the worker alone does not.
"""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.brokers import STARTED, Broker, BrokerFactory, Listener, free_port
from tests.chaos.events import Mix
from tests.chaos.nursery import Member
from tests.chaos.rig import Result, Rig, Run, running
from tests.chaos.shutdowns import answers
from tests.eventually import eventually
from tests.probes import Probes
from tests.proxy import Proxy

MIX = Mix(connectors=300, poison=0.05, unknown=0.02)
RATE = 100  # records a second
MOST = 300  # seconds that a fault lasts, at most
FEW = 20  # records that a publisher sends at once, so that they come without a pause
PARTITIONS = 4
AFTER = 600  # records that are sent when all is well again
SEND_TIMEOUT = 5.0  # seconds; what a publisher gives up may be in the topic or not
SLOW = "0.3"  # seconds that the store takes longer, so that mostly a batch is in hand
BEHIND_PROXY = "PROXIED"
PATIENCE = 90.0  # seconds for whatever has to show; machines are busy

LATENCY = 0.4  # seconds, each way
DELAYED = 12.0  # seconds, at least
BLACK_HOLE = 30.0  # seconds
FROZEN = 15.0  # seconds; ten sessions
AWAY = 5.0  # seconds between the death of a broker and its next start
RESETS, BETWEEN_RESETS = 12, 0.4  # seconds
ROUND = 4  # resets after which a batch has to be done
GARBAGE = 4_096  # bytes


@dataclass(slots=True, kw_only=True)
class Stage:
    """A worker under load, and what can be done to its brokers."""

    run: Run
    worker: Member
    broker: Broker
    proxy: Proxy
    probes: Probes

    def count(self, event: str) -> int:
        return self.worker.stderr.count(f'"{event}"')

    async def more(self, event: str, than: int) -> None:
        await eventually(lambda: self.count(event) > than, PATIENCE)

    async def unready(self) -> str:
        """Wait until probes are told that the brokers are the trouble."""
        return await self.probes.becomes("/readyz", 503, "Kafka", PATIENCE)

    def batches(self, since: int) -> list[dict[str, Any]]:
        """Those that were done after so many lines of its log."""
        return [line for line in self.worker.logged[since:] if line["event"] == "batch.done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    strike: Callable[[Stage], Awaitable[str]]  # puts it on, lifts it, says how it was felt
    proxied: bool = False


async def broker_fault(rig: Rig, brokers: BrokerFactory, name: str) -> Result:
    """Strike while events flow, send some more, and see the same worker finish them all."""
    fault = FAULTS[name]
    async with _staged(rig, brokers, name, proxied=fault.proxied) as stage:
        run = stage.run
        publishing = asyncio.create_task(run.publish(RATE * MOST, seconds=MOST))
        try:
            await stage.worker.says("batch.done", PATIENCE)
            felt = await fault.strike(stage)
            lifted = time.monotonic()
            await stage.more("batch.done", stage.count("batch.done"))
            facts = [felt, f"worked again after {time.monotonic() - lifted:.1f} s"]
            run.enough.set()
            await publishing
        finally:
            publishing.cancel()
            await asyncio.wait({publishing})
        await answers(run.handled)
        run.enough.clear()
        await run.publish(AFTER, seed=2)
        await run.drained(PATIENCE)
        problems = await _survived(stage)
        facts.append(f"rebalances: {stage.count('partitions.assigned') - 1}")
        facts.append(f"sends that failed: {len(run.unsure)}")
        problems += await run.read_back()
        verdict = await run.verdict()
        return Result(name=name, verdict=verdict, facts="; ".join(facts), problems=problems)


@asynccontextmanager
async def _staged(
    rig: Rig, brokers: BrokerFactory, name: str, *, proxied: bool
) -> AsyncIterator[Stage]:
    listener = Listener(name=BEHIND_PROXY, advertised=free_port())
    with brokers(listeners=[listener]) as broker:
        await asyncio.to_thread(broker.start)
        async with (
            Proxy(broker.address(BEHIND_PROXY), port=listener.advertised) as proxy,
            running(
                rig,
                name,
                rig.store("sqlite", name),
                MIX,
                partitions=PARTITIONS,
                bootstrap=broker.bootstrap,
            ) as run,
        ):
            run.send_timeout, run.chunk = SEND_TIMEOUT, FEW
            probes = Probes()
            way = {"LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS": proxy.address} if proxied else {}
            worker = run.worker("--slow", SLOW, **probes.env, **way)
            try:
                yield Stage(run=run, worker=worker, broker=broker, proxy=proxy, probes=probes)
            finally:
                worker.signal(signal.SIGKILL)
                await worker.ended()


async def _survived(stage: Stage) -> list[str]:
    """It is ready again, and ends as it should when it is told to."""
    await stage.probes.becomes("/readyz", 200, timeout=PATIENCE)
    stage.worker.signal(signal.SIGTERM)
    code = await stage.worker.ended()
    return [f"exit code {code}: {stage.worker.tail}"] if code else []


# --- the network ---------------------------------------------------------------------------------


async def _latency(stage: Stage) -> str:
    before, done = len(stage.worker.logged), stage.count("batch.done")
    stage.proxy.latency = LATENCY
    await asyncio.sleep(DELAYED)
    await stage.more("batch.done", done + 1)
    stage.proxy.latency = 0
    batches = stage.batches(before)
    slowest = max((batch["commit_s"] for batch in batches), default=0)
    assert slowest >= 2 * LATENCY, f"a commit took {slowest} s at most"
    return f"{LATENCY} s each way, {len(batches)} batches meanwhile, slowest commit {slowest:.1f} s"


async def _resets(stage: Stage) -> str:
    done = stage.count("batch.done")
    for number in range(RESETS):
        await eventually(lambda: stage.proxy.connections > 1)
        await stage.proxy.switch("reset")
        assert stage.proxy.resets > number
        await stage.proxy.switch("pass")
        await asyncio.sleep(BETWEEN_RESETS)
        if number % ROUND == ROUND - 1:  # however slow the machine, some work is done between
            await stage.more("batch.done", stage.count("batch.done"))
    done = stage.count("batch.done") - done
    return f"{stage.proxy.resets} connections reset, {done} batches between"


async def _black_hole(stage: Stage) -> str:
    """Longer than the session: the group throws the worker out, and takes it back."""
    ends = time.monotonic() + BLACK_HOLE
    await stage.proxy.switch("black_hole")
    passed, assigned = stage.proxy.passed, stage.count("partitions.assigned")
    await stage.unready()
    handled = await stage.run.handled()
    await asyncio.sleep(ends - time.monotonic())
    assert stage.proxy.passed == passed, "something got through"
    assert await stage.run.handled() == handled, "something was committed"
    lag = await stage.run.lag()
    await stage.proxy.switch("pass")
    await stage.more("partitions.assigned", assigned)
    return f"no byte for {BLACK_HOLE:.0f} s, unready, lag {lag:,}, then a rebalance"


async def _half_open(stage: Stage) -> str:
    """Nobody mends it: the worker itself has to give its connections up."""
    began, assigned = time.monotonic(), stage.count("partitions.assigned")
    await stage.proxy.switch("forget")
    await stage.unready()
    await stage.more("partitions.assigned", assigned)
    assert stage.proxy.lost, "no answer was lost"
    took = time.monotonic() - began
    return f"{stage.proxy.lost:,} bytes of answers lost, unready, new connections in {took:.0f} s"


# --- the brokers' processes ----------------------------------------------------------------------


async def _frozen(stage: Stage) -> str:
    ends = time.monotonic() + FROZEN
    await asyncio.to_thread(stage.broker.pause)
    try:
        await stage.unready()
        await asyncio.sleep(ends - time.monotonic())
    finally:
        await asyncio.to_thread(stage.broker.resume)
    return f"frozen for {FROZEN:.0f} s, unready"


async def _restarted(stage: Stage) -> str:
    before = len(stage.worker.stderr)
    await asyncio.to_thread(stage.broker.stop)
    await _waits(stage, before)
    await asyncio.to_thread(stage.broker.start)
    return _missed(stage, before)


async def _killed(stage: Stage) -> str:
    before = len(stage.worker.stderr)
    await asyncio.to_thread(stage.broker.kill)
    await asyncio.sleep(AWAY)
    await asyncio.to_thread(stage.broker.start)
    return _missed(stage, before)


async def _unclean_log(stage: Stage) -> str:
    """Behind what was acknowledged there is garbage, and no index can be trusted."""
    before, said = len(stage.worker.stderr), len(stage.broker.log())
    await asyncio.to_thread(stage.broker.kill)
    await asyncio.to_thread(_spoil, stage.broker)
    await _waits(stage, before)
    await asyncio.to_thread(stage.broker.start)
    missed = _missed(stage, before)
    log = stage.broker.log()[said:].splitlines()
    cut = [line for line in log if "Corruption found" in line and "truncating" in line]
    of_topic = sum(f"partition={stage.run.topics.source}-" in line for line in cut)
    assert of_topic == PARTITIONS, f"{of_topic} partitions of the topic were found corrupt"
    return f"{missed}; the broker cut garbage off {len(cut)} logs"


async def _waits(stage: Stage, before: int) -> None:
    """A broker may be there again before a commit, or a poll, has failed."""
    await eventually(lambda: '"waiting_for"' in stage.worker.stderr[before:], PATIENCE)


def _spoil(broker: Broker) -> None:
    broker.alter("*/*.log", lambda log: log + secrets.token_bytes(GARBAGE))
    for index in ("*/*.index", "*/*.timeindex"):
        broker.alter(index, lambda _: secrets.token_bytes(GARBAGE))


def _missed(stage: Stage, before: int) -> str:
    """The broker was started again, and the worker waited for it."""
    starts, waited = stage.broker.log().count(STARTED), stage.worker.stderr[before:]
    assert starts == 2, f"{starts} starts of the broker"
    assert '"waiting_for"' in waited, f"the worker did not wait: {waited[-1500:]}"
    return f"the worker said {waited.count('waiting_for')} times what it waits for"


FAULTS = {
    "network-half-open": Fault(strike=_half_open, proxied=True),
    "network-black-hole": Fault(strike=_black_hole, proxied=True),
    "network-latency": Fault(strike=_latency, proxied=True),
    "network-resets": Fault(strike=_resets, proxied=True),
    "broker-frozen": Fault(strike=_frozen),
    "broker-killed": Fault(strike=_killed),
    "broker-unclean-log": Fault(strike=_unclean_log),
    "broker-restarted": Fault(strike=_restarted),
}
