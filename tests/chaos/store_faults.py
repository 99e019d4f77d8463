"""The store slow, cut off, frozen, killed or refusing while events flow: workers hold and go on."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.chaos.events import Mix
from tests.chaos.nursery import Member
from tests.chaos.rig import PATIENCE, Result, Rig, Run, running
from tests.conftest import upgrade
from tests.elasticsearch import Failure, FakeElasticsearch, Request, in_a_thread
from tests.eventually import POLL, eventually
from tests.postgres import PostgresFactory, PostgresServer
from tests.proxy import Mode, Proxy

WORKERS = 2
PACE = 150  # records a second
AFTERWARDS = 4.0  # seconds that events go on flowing when the store is well again
RESUMES = 15.0  # seconds in which work has to go on
LATENCY = 0.05  # seconds, each way
SLOWED = 4 * LATENCY  # a transaction reads, and writes
RESETS = 80  # many, for a transaction takes milliseconds
HIT = 10  # requests that have to go wrong, at least
NO_ANSWER = "did not answer in time"
TOO_LATE = 13.0  # seconds; Elasticsearch's client waits 10 s
BURSTS, BURST = 3, 10  # of requests that are too late, and how many in each
AGE = 12.0  # seconds of the last burst, at the end
STORMS = 3

Lines = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """A server of the scenario's own, behind a proxy that workers go through."""

    server: PostgresServer
    proxy: Proxy

    @property
    def proxied(self) -> str:
        return self.server.url.replace(f":{self.server.port}/", f":{self.proxy.port}/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is done to a store, and what workers then say: otherwise it has proved nothing.

    `hurt` does it to the store for so many seconds and gives what it counted. `hold` stands in what
    a worker holds for; None: it need not hold.
    """

    hurt: Callable[[Any, float], Awaitable[str]]
    seconds: float
    hold: str | None = ""
    slows: bool = False  # transactions take long
    works_on: bool = False  # records are committed while it lasts
    mends: bool = False  # to the end, and `store verify --repair` follows, as docs/stores.md says


# --- PostgreSQL ----------------------------------------------------------------------------------


async def _latency(store: Postgres, seconds: float) -> str:
    store.proxy.latency = LATENCY
    await asyncio.sleep(seconds)
    store.proxy.latency = 0
    return f"{LATENCY:g} s each way"


async def _resets(store: Postgres, seconds: float) -> str:
    for _ in range(RESETS):
        await store.proxy.switch("reset")
        await store.proxy.switch("pass")
        await asyncio.sleep(seconds / RESETS)
    return f"{RESETS} times all connections"


def _cut(mode: Mode) -> Callable[[Postgres, float], Awaitable[str]]:
    async def hurt(store: Postgres, seconds: float) -> str:
        await store.proxy.switch(mode)
        await asyncio.sleep(seconds)
        await store.proxy.switch("pass")
        return f"for {seconds:g} s"

    return hurt


async def _frozen(store: Postgres, seconds: float) -> str:
    await asyncio.to_thread(store.server.pause)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(store.server.resume)
    return f"for {seconds:g} s"


async def _restarted(store: Postgres, seconds: float) -> str:
    await asyncio.to_thread(store.server.stop)
    await asyncio.sleep(seconds)  # a restart in no time is not felt: workers connect again at once
    await asyncio.to_thread(store.server.start)
    return f"stopped for {seconds:g} s"


async def _killed(store: Postgres, seconds: float) -> str:
    await asyncio.to_thread(store.server.kill)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(store.server.start)
    return f"away for {seconds:g} s"


# A worker gives a transaction 20 s: of less it notices nothing but that it takes long.
POSTGRESQL = {
    "black-hole": Fault(hurt=_cut("black_hole"), seconds=30, hold=NO_ANSWER),
    "half-open": Fault(hurt=_cut("half_open"), seconds=25, hold=NO_ANSWER),
    "frozen": Fault(hurt=_frozen, seconds=25, hold=NO_ANSWER),
    "latency": Fault(hurt=_latency, seconds=15, hold=None, slows=True, works_on=True),
    "resets": Fault(hurt=_resets, seconds=8),
    "killed": Fault(hurt=_killed, seconds=3),
    "restarted": Fault(hurt=_restarted, seconds=3),
}


async def postgresql(rig: Rig, name: str, servers: PostgresFactory) -> Result:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(servers())
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(upgrade, server.url)
        proxy = await stack.enter_async_context(Proxy(server.url.rpartition("@")[2].split("/")[0]))
        store = Postgres(server=server, proxy=proxy)
        run = await stack.enter_async_context(
            running(rig, f"postgresql-{name}", server.url, Mix(connectors=300), partitions=6)
        )
        return await _through(run, POSTGRESQL[name], store, LAST_SYNC_STORE_URL=store.proxied)


# --- Elasticsearch -------------------------------------------------------------------------------


async def _unavailable(server: FakeElasticsearch, seconds: float) -> str:
    failure = server.fail(503)
    await asyncio.sleep(seconds)
    return f"{_ended([failure])} answers in {seconds:g} s"


async def _storms(server: FakeElasticsearch, seconds: float) -> str:
    """Half of the requests are turned away, most of the time."""
    storms = list[Failure]()
    for _ in range(STORMS):
        storms.append(server.fail(429, match=_one_in(2)))
        await asyncio.sleep(seconds / STORMS * 0.7)
        storms[-1].clear()
        await asyncio.sleep(seconds / STORMS * 0.3)
    return f"{_counted(storms)} answers in {STORMS} storms"


async def _resets_of_one_in_a_hundred(server: FakeElasticsearch, seconds: float) -> str:
    """Half of them after the request took effect."""
    failures = [server.fail(kind, match=_one_in(200)) for kind in ("reset", "reset_after")]
    await asyncio.sleep(seconds)
    return f"{_ended(failures)} requests in {seconds:g} s"


def _one_in(many: int) -> Callable[[Request], bool]:
    chance = random.Random(1)  # noqa: S311 - not for secrets
    return lambda _: chance.randrange(many) == 0


async def _too_late(server: FakeElasticsearch, seconds: float) -> str:
    """Requests that take effect, or are answered, after their client has given up.

    At the end the last of them are given up, and done again, and have not yet arrived.
    """
    failures = list[Failure]()
    for number in range(BURSTS):
        if number:
            await asyncio.sleep((seconds - AGE) / (BURSTS - 1))
        failures += (
            server.fail(kind, times=BURST // 2, match=_puts_values, seconds=TOO_LATE)
            for kind in ("lands_late", "answers_late")
        )
    await asyncio.sleep(AGE)
    for failure in failures:
        failure.times = 0  # those that are late go on being it
    return f"{_counted(failures)} requests {TOO_LATE:g} s late"


def _puts_values(request: Request) -> bool:
    return request.path.endswith("/_last_sync")


def _ended(failures: Sequence[Failure]) -> int:
    for failure in failures:
        failure.clear()
    return _counted(failures)


def _counted(failures: Sequence[Failure]) -> int:
    count = sum(failure.count for failure in failures)
    if count < HIT:
        raise AssertionError(f"only {count} requests went wrong")
    return count


ELASTICSEARCH = {
    "503": Fault(hurt=_unavailable, seconds=60, hold="answered 503"),
    "late": Fault(hurt=_too_late, seconds=24, hold=NO_ANSWER, mends=True),
    # Most of these the client's HTTP library sends again by itself.
    "resets": Fault(hurt=_resets_of_one_in_a_hundred, seconds=25, hold=None, works_on=True),
    "429": Fault(hurt=_storms, seconds=18, hold="answered 429"),
}


async def elasticsearch(rig: Rig, name: str) -> Result:
    """Nobody looks on: a list is of a moment ago, and would seem to go back."""
    server = FakeElasticsearch()
    server.refresh_interval = 0.2
    with in_a_thread(server):
        url, mix = f"elasticsearch+{server.url}", Mix(connectors=300)
        async with running(
            rig, f"elasticsearch-{name}", url, mix, partitions=6, observed=False
        ) as run:
            return await _through(run, ELASTICSEARCH[name], server)


# --- either --------------------------------------------------------------------------------------


async def _through(run: Run, fault: Fault, store: Any, **environ: str) -> Result:
    """Events flow, the store is hurt and gets well, the workers finish, and the run is checked."""
    members = await asyncio.gather(*(_started(run, **environ) for _ in range(WORKERS)))
    async with _publishing(run):
        for member in members:
            await member.says("batch.done")
        said, committed = [len(member.logged) for member in members], await run.handled()
        counted = await fault.hurt(store, fault.seconds)
        committed = await run.handled() - committed
        resumed = await _goes_on(run)
        if not fault.mends:
            await asyncio.sleep(AFTERWARDS)
        during = [line for n, m in zip(said, members, strict=True) for line in m.logged[n:]]
    await run.drained()
    problems = [*_unhurt(fault, during, committed), *await _dead(members)]
    facts = f"{counted}; {_suffered(fault, during)}, {committed:,} records committed meanwhile"
    facts += f", went on after {resumed:.1f} s"
    if fault.mends:
        await eventually(lambda: not any(one.waiting for one in store.failures), TOO_LATE)
        facts += f"; {await _mended(run)} fields put again by `store verify --repair`"
        for index in store.indices.values():
            index.refresh()  # a search would not show them for a second
    return Result(name=run.name, verdict=await run.verdict(), facts=facts, problems=problems)


async def _started(run: Run, **environ: str) -> Member:
    """Start a worker, and anew as often as the machine is too busy for it to start in time."""
    async with asyncio.timeout(PATIENCE):
        while True:
            member = run.worker(**environ)
            while member.exit_code is None:
                if '"worker.started"' in member.stderr:
                    return member
                await asyncio.sleep(POLL)


@asynccontextmanager
async def _publishing(run: Run) -> AsyncIterator[None]:
    seconds = 300.0  # more than any fault needs
    publishing = asyncio.create_task(
        run.publish(int(PACE * seconds), publishers=2, seconds=seconds)
    )
    try:
        yield
    finally:
        run.enough.set()
        await publishing


async def _goes_on(run: Run) -> float:
    """Wait for the next commit; give the seconds that it took."""
    well, before = time.monotonic(), await run.handled()

    async def committed() -> bool:
        return await run.handled() > before

    await eventually(committed, RESUMES)
    return time.monotonic() - well


async def _dead(members: Sequence[Member]) -> list[str]:
    """End the workers; name those that had ended by themselves, or now do so badly."""
    early = [member for member in members if member.exit_code is not None]
    problems = [f"a worker ended by itself: {member.tail}" for member in early]
    for member in members:
        member.signal(signal.SIGTERM)
    codes = [await member.ended() for member in members]
    return problems + [f"exit code {code}" for code in codes if code]


async def _mended(run: Run) -> int:
    mending = run.rig.nursery.spawn("store", "verify", "--repair", "--json", environ=run.environ)
    assert await mending.ended(60) == 0, mending.tail
    return len(mending.stdout.splitlines())


# --- whether it hurt -----------------------------------------------------------------------------


def _holds(lines: Lines) -> list[str]:
    return [
        line["waiting_for"]
        for line in lines
        if line["event"] == "batch.held" and line["step"] == "the store"
    ]


def _slowest(lines: Lines) -> float:
    return max((line["store_s"] for line in lines if line["event"] == "batch.done"), default=0.0)


def _suffered(fault: Fault, lines: Lines) -> str:
    slowest = f", slowest transaction {_slowest(lines):.1f} s" if fault.slows else ""
    return f"{len(_holds(lines))} holds{slowest}"


def _unhurt(fault: Fault, lines: Lines, committed: int) -> list[str]:
    """Say what a fault that has bitten would have shown."""
    problems = []
    if fault.slows and _slowest(lines) < SLOWED:
        problems.append(f"no transaction took {SLOWED:g} s")
    if fault.hold is not None and not any(fault.hold in text for text in _holds(lines)):
        problems.append(f"no worker held for {fault.hold!r}, but for {_holds(lines)[:3]}")
    if fault.works_on and not committed:
        problems.append("nothing was committed while it lasted")
    return problems
