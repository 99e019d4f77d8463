"""What goes wrong during a soak, in turn; each fault ends by itself."""

import asyncio
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, cycle

from tests.brokers import Broker
from tests.eventually import eventually
from tests.postgres import PostgresServer
from tests.programs import Spawn
from tests.proxy import Proxy
from tests.soak.delays import Watcher
from tests.soak.judge import Disturbance
from tests.soak.plan import Plan, Schedule

BROKER_FROZEN = 15.0  # seconds
STORE_FROZEN = 10.0  # seconds
RESET = 1.0  # seconds in which every connection is reset
SLOW = 20.0  # seconds
LATENCY = 0.005  # seconds for each chunk, in each direction
VISIT = 30.0  # seconds that another worker stays
CAUGHT_UP = 1.0  # seconds that a probe may be behind
STEADY = 5.0  # seconds that it has to stay so
PATIENCE = 150.0  # seconds until it has to have caught up

Fault = Callable[[], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Faults:
    """Whom the faults befall."""

    broker: Broker
    server: PostgresServer | None
    store: str
    proxies: list[Proxy]
    spawn: Spawn
    environ: Mapping[str, str]
    problems: list[str] = field(default_factory=list)

    @property
    def turns(self) -> dict[str, Fault]:
        """In the warm-up all of them come, a few times."""
        return {
            "broker frozen": self.freeze_broker,
            "store frozen": self.freeze_store,
            "broker restarted": lambda: asyncio.to_thread(self.broker.restart),
            "second worker": self.visit,
            **({"store restarted": self.restart_store} if self.server else {}),
            "connections reset": self.reset,
            "latency": self.slow_down,
        }

    async def freeze_broker(self) -> None:
        self.broker.pause()  # not in a thread: whoever cancels has to find it frozen, or not
        try:
            await asyncio.sleep(BROKER_FROZEN)
        finally:
            self.broker.resume()

    async def freeze_store(self) -> None:
        if self.server is None:
            await self._lock_sqlite()
            return
        self.server.pause()
        try:
            await asyncio.sleep(STORE_FROZEN)
        finally:
            self.server.resume()

    async def _lock_sqlite(self) -> None:
        lock = sqlite3.connect(self.store.removeprefix("sqlite:///"), isolation_level=None)
        try:
            lock.execute("PRAGMA busy_timeout = 5000")
            lock.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(STORE_FROZEN)
        finally:
            lock.close()

    async def restart_store(self) -> None:
        assert self.server is not None
        await asyncio.to_thread(self.server.restart)

    async def reset(self) -> None:
        for proxy in self.proxies:
            await proxy.switch("reset")
        await asyncio.sleep(RESET)
        for proxy in self.proxies:
            await proxy.switch("pass")

    async def slow_down(self) -> None:
        for proxy in self.proxies:
            proxy.latency = LATENCY
        try:
            await asyncio.sleep(SLOW)
        finally:
            for proxy in self.proxies:
                proxy.latency = 0.0

    async def visit(self) -> None:
        """Another worker joins the group, and leaves it: two rebalances."""
        other = self.spawn("run", env=self.environ)
        await asyncio.sleep(VISIT)
        if "partitions.assigned" not in other.stderr:
            self.problems.append("the second worker was given no partitions")
        other.signal(signal.SIGTERM)
        if code := await other.ended(VISIT):
            self.problems.append(f"the second worker ended with {code}: {other.stderr[-500:]}")


async def befall(
    plan: Plan,
    schedule: Schedule,
    faults: Faults,
    watcher: Watcher,
    said: Callable[[Disturbance], None],
) -> None:
    """Let one fault after the other happen, and tell of each when the worker has caught up."""
    turns = cycle(faults.turns.items())
    for moment in moments(plan, len(faults.turns)):
        last = plan.seconds - plan.every / 2  # the end is for looking at what remained
        if moment > last:
            return
        if schedule.now > last:
            faults.problems.append(f"no time was left for faults from {moment:.0f} s on")
            return
        await asyncio.sleep(max(0.0, moment - schedule.now))
        name, fault = next(turns)
        begin = schedule.now
        await fault()
        over = schedule.now
        try:
            await eventually(_Steady(watcher, schedule).reached, PATIENCE)
        except AssertionError:
            faults.problems.append(f"{name}: {watcher.behind:.0f} s behind after {PATIENCE:.0f} s")
        said(Disturbance(name=name, begin=begin, over=over, end=schedule.now))


def moments(plan: Plan, faults: int) -> Iterator[float]:
    """Give the seconds at which faults begin: in rounds in the warm-up, then at a steady pace."""
    warming = plan.rounds * faults
    for number in range(1, warming + 1):
        yield number * plan.settled / (warming + 1)
    yield from count(plan.settled + plan.every, plan.every)


@dataclass(slots=True)
class _Steady:
    watcher: Watcher
    schedule: Schedule
    since: float | None = None

    def reached(self) -> bool:
        """Whether probes have come in time for a while; the end of the soak is in time, too."""
        now = self.schedule.now
        if self.watcher.behind > CAUGHT_UP:
            self.since = None
        elif self.since is None:
            self.since = now
        return self.since is not None and now - self.since >= STEADY
