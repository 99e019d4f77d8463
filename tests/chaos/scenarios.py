"""Every scenario by name, in the size that is wanted, and the table of what they found."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tests.brokers import BrokerFactory
from tests.chaos import (
    broker_faults,
    bugs,
    crashes,
    floods,
    full_disk,
    kills,
    rebalances,
    second_writers,
    shutdowns,
    store_faults,
    topic_faults,
)
from tests.chaos.checker import KINDS
from tests.chaos.rig import Result, Rig
from tests.conftest import upgrade
from tests.postgres import PostgresFactory

AT_ONCE = 4  # scenarios; most of their time they wait
LIMIT = 1_500.0  # seconds for all of them

Scenario = Callable[[], Awaitable[Result]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything; `seed` decides what is sent and who is killed when."""

    events: int = 200_000  # of each kill loop
    kills: int = 200
    crashes: int = 3  # at each point, on each store
    shutdowns: int = 20  # in each situation
    poison: int = 10_000  # records of each flood
    rebalances: int = 50  # members that join and leave
    writers: int = 30  # kills of workers that others write beside
    outages: int = 60  # seconds; faults of stores that last longer are left out
    seed: int = 1


WHOLE = Sizes()
SLICE = Sizes(
    events=20_000,
    kills=8,
    crashes=1,
    shutdowns=1,
    poison=3_000,
    rebalances=2,
    writers=6,
    outages=10,
)


def scenarios(
    rig: Rig, sizes: Sizes, brokers: BrokerFactory, servers: PostgresFactory
) -> Iterator[tuple[str, Scenario]]:
    """Name and make every scenario; the longest first."""
    loop = partial(kills.kill_loop, rig, events=sizes.events, kills=sizes.kills)
    yield "kills-sqlite", partial(loop, "sqlite", workers=1, seed=sizes.seed)
    yield "kills-postgresql", partial(loop, "postgresql", workers=3, seed=sizes.seed)
    yield "rebalances", partial(rebalances.storm, rig, rounds=sizes.rebalances, seed=sizes.seed)
    yield from _outages(rig, sizes, brokers, servers)
    beside = partial(second_writers.second_writers, rig, seed=sizes.seed)
    yield "second-writers", partial(beside, kills=sizes.writers)
    rounds = sizes.shutdowns
    yield "shutdown-broker-dead", partial(_shutdown_without_broker, rig, brokers, rounds)
    yield "shutdown-store-dead", partial(_shutdown_without_store, rig, servers, rounds)
    for name, situation in (
        ("rebalancing", shutdowns.rebalancing),
        ("holding", shutdowns.holding),
        ("idle", shutdowns.idle),
        ("loaded", shutdowns.loaded),
    ):
        yield f"shutdown-{name}", partial(shutdowns.shutdown, rig, name, situation, rounds=rounds)
    for store in ("sqlite", "postgresql", "elasticsearch"):
        yield f"crashes-{store}", partial(crashes.crash_points, rig, store, rounds=sizes.crashes)
    for share in (0.01, 0.5, 1.0):
        yield f"poison-{share:.0%}", partial(floods.poison, rig, share, events=sizes.poison)
    yield "unknown-connectors", partial(floods.unknown_connectors, rig)
    for store in ("sqlite", "postgresql"):
        yield f"bisection-{store}", partial(floods.bisection, rig, store)
    for bug, costs in second_writers.FINDS.items():
        seeded = partial(beside, kills=SLICE.writers, bug=bug)
        yield f"second-writers-{bug}", partial(_found_out, seeded, costs)
    for bug, (_, costs) in bugs.SUFFERS.items():
        yield f"bug-{bug}", partial(_found_out, partial(bugs.seeded_bug, rig, bug), costs)
        yield f"without-{bug}", partial(bugs.seeded_bug, rig, bug, present=False)


def _outages(
    rig: Rig, sizes: Sizes, brokers: BrokerFactory, servers: PostgresFactory
) -> Iterator[tuple[str, Scenario]]:
    for name, fault in store_faults.POSTGRESQL.items():
        if fault.seconds <= sizes.outages:
            make = partial(store_faults.postgresql, rig, name, servers)
            yield f"postgresql-{name}", make
    for name, fault in store_faults.ELASTICSEARCH.items():
        if fault.seconds <= sizes.outages:
            yield f"elasticsearch-{name}", partial(store_faults.elasticsearch, rig, name)
    for name in broker_faults.FAULTS:
        yield name, partial(broker_faults.broker_fault, rig, brokers, name)
    yield full_disk.NAME, partial(full_disk.full, rig, brokers)
    yield "letters-forbidden", partial(topic_faults.forbidden, rig, brokers)
    yield "letters-refused", partial(topic_faults.refused, rig)
    yield "offsets-cut-off", partial(topic_faults.cut_off, rig, brokers)
    yield "offsets-deleted", partial(topic_faults.deleted, rig)


async def _shutdown_without_broker(rig: Rig, brokers: BrokerFactory, rounds: int) -> Result:
    with brokers() as broker:
        await asyncio.to_thread(broker.start)
        situation = shutdowns.without_broker(broker)
        return await shutdowns.shutdown(
            rig, "broker-dead", situation, rounds=rounds, bootstrap=broker.bootstrap
        )


async def _shutdown_without_store(rig: Rig, servers: PostgresFactory, rounds: int) -> Result:
    with servers() as server:
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(upgrade, server.url)
        situation = shutdowns.without_store(server)
        return await shutdowns.shutdown(
            rig, "store-dead", situation, rounds=rounds, store=server.url
        )


async def _found_out(seeded: Scenario, costs: Collection[str]) -> Result:
    """Being found out is what is wanted: the findings themselves are no failure."""
    result = await seeded()
    counts = result.verdict.counts
    facts = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    found = any(counts[kind] for kind in costs)
    problems = [] if found else ["the checker did not find it out"]
    return Result(name=result.name, facts=f"found out: {facts}", problems=problems)


async def run_all(
    wanted: Sequence[tuple[str, Scenario]], say: Callable[[str], None]
) -> list[Result]:
    turn, deadline = asyncio.Semaphore(AT_ONCE), asyncio.get_running_loop().time() + LIMIT
    return await asyncio.gather(
        *(_bounded(name, make, turn, deadline, say) for name, make in wanted)
    )


async def _bounded(
    name: str,
    scenario: Scenario,
    turn: asyncio.Semaphore,
    deadline: float,
    say: Callable[[str], None],
) -> Result:
    async with turn:
        began = time.monotonic()
        try:
            async with asyncio.timeout_at(deadline):
                result = await scenario()
        except Exception as error:  # noqa: BLE001 - the table has a line for each, and the exit code 1
            result = Result(name=name, problems=_told(error))
        took = time.monotonic() - began
        say(f"{name}: {'ok' if result.good else 'NOT OK'} after {took:.0f} s; {result.facts}")
        return result


def _told(error: Exception) -> list[str]:
    if isinstance(error, ExceptionGroup):
        return [text for one in error.exceptions for text in _told(one)]
    return ["\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])]


def table(results: Sequence[Result]) -> Iterator[str]:
    yield f"{'scenario':30} {'records':>8} {'letters':>8} {' '.join(KINDS)}  verdict"
    for one in results:
        counts = " ".join(f"{n:>{len(kind)}}" for kind, n in one.verdict.counts.items())
        line = f"{one.name:30} {one.verdict.events:>8,} {one.verdict.letters:>8,} {counts}"
        yield f"{line}  {one.said}  {one.not_run or one.facts}"
    for one in results:
        found = [text for kind in KINDS for text in getattr(one.verdict, kind)[:5]]
        yield from (f"{one.name}: {text}" for text in [*one.problems, *found])
