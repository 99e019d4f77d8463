"""Members join and leave the group all the while, on a slow store.

Each member keeps a journal of what it did for which partition in which epoch (the group's
generation). The rules that it has to obey are those of `overlaps`; `pauses` gives the times in
which nothing was done for a partition.
"""

import asyncio
import json
import random
import re
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.events import Mix
from tests.chaos.nursery import Member
from tests.chaos.rig import Result, Rig, Run, running
from tests.postgres import execute

MIX = Mix(connectors=300)
SESSION = "10000"  # milliseconds, the default: the pauses are those of production
STAYERS, DOORS = 2, 2  # members that stay; doors through which others come and go
SLOWNESS = 1.5  # seconds that each transaction of the store takes longer
PACE = 200  # records a second
STAYS = (0.2, 2.0)  # seconds that a newcomer works before it leaves
EMPTY = (0.0, 1.5)  # seconds until the next one comes through that door
LONGEST = 400.0  # seconds
FEW = 10  # epochs in which it may happen that each partition goes to another member
PAUSE = 5.0  # seconds; 99 of 100 retained partitions have to wait less

# The first UPDATE of a transaction dawdles, its locks in hand.
SLOW_DOWN = (
    f"""
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF current_setting('chaos.dawdled', true) IS DISTINCT FROM txid_current()::text THEN
            PERFORM set_config('chaos.dawdled', txid_current()::text, true);
            PERFORM pg_sleep({SLOWNESS});
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER dawdle BEFORE UPDATE ON connectors
        FOR EACH STATEMENT EXECUTE FUNCTION dawdle()
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """A line of a member's journal, for one partition; `offset` where it has one.

    assigned, revoking, revoked; fetched (the first offset); applied (the store's call ended);
    committing (the next offset), committed (the brokers took it).
    """

    at: float
    member: int
    did: str
    epoch: int
    partition: int
    offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """Seconds in which nothing was fetched or committed for a partition."""

    retained: Sequence[float]  # over a rebalance, by the member that keeps it
    moved: Sequence[float]  # from the last member to the next
    usual: Sequence[float]  # without a rebalance between


async def storm(rig: Rig, *, rounds: int, seed: int = 1) -> Result:
    """Let `rounds` members join and leave; the others go on."""
    url = rig.database()
    await asyncio.to_thread(execute, url, *SLOW_DOWN)
    async with running(rig, "rebalances", url, MIX) as run:
        run.environ["LAST_SYNC_KAFKA_SESSION_TIMEOUT_MS"] = SESSION
        members = await _weather(run, rounds, random.Random(seed))  # noqa: S311 - no secret
        acts = sorted(_acts(members), key=lambda act: act.at)
        found, epochs = pauses(acts), {act.epoch for act in acts if act.did == "assigned"}
        problems = [*overlaps(acts)[:5], *_mild(found, len(epochs), rounds), *_quick(members)]
        facts = f"{rounds} joins and {rounds} leaves, {len(epochs)} epochs; {_told(found)}"
        return Result(name=run.name, verdict=await run.verdict(), facts=facts, problems=problems)


async def _weather(run: Run, rounds: int, chance: random.Random) -> list[Member]:
    members: list[Member] = []
    publishing = asyncio.create_task(run.publish(int(PACE * LONGEST), seconds=LONGEST))

    def join() -> Member:
        members.append(run.worker("--journal"))
        return members[-1]

    try:
        stayers = [join() for _ in range(STAYERS)]
        for stayer in stayers:
            await stayer.says('"partitions.assigned"')
        numbers, entrance = iter(range(rounds)), asyncio.Lock()
        async with asyncio.timeout(LONGEST), asyncio.TaskGroup() as doors:
            for _ in range(DOORS):
                doors.create_task(_come_and_go(run, join, entrance, numbers, chance))
    finally:
        run.enough.set()
        await publishing
    await run.drained()
    for stayer in stayers:
        await _leave(stayer)
    return members


async def _come_and_go(
    run: Run,
    join: Callable[[], Member],
    entrance: asyncio.Lock,
    numbers: Iterator[int],
    chance: random.Random,
) -> None:
    """Newcomers enter one by one, each into an epoch of its own; they leave when they like."""
    for number in numbers:
        async with entrance:
            newcomer = join()
            await newcomer.says('"partitions.assigned"', 60)
        await asyncio.sleep(chance.uniform(*STAYS))
        await _leave(newcomer)
        await asyncio.sleep(chance.uniform(*EMPTY))
        if number % 10 == 9:
            run.say(f"{number + 1} came and went")


async def _leave(member: Member) -> None:
    member.signal(signal.SIGTERM)
    code = await member.ended()
    if code:
        raise AssertionError(f"a worker ended with {code}: {member.tail}")


def _acts(members: Iterable[Member]) -> Iterable[Act]:
    for number, member in enumerate(members):
        for line in map(json.loads, member.stdout.splitlines()):
            for partition, offset in line["offsets"].items():
                yield Act(
                    at=line["at"],
                    member=number,
                    did=line["did"],
                    epoch=line["epoch"],
                    partition=int(partition),
                    offset=offset,
                )


# --- what must not be ----------------------------------------------------------------------------


def overlaps(acts: Sequence[Act]) -> list[str]:
    """Name each act by which two epochs' effects overlapped wrongly.

    - A partition has one owner in an epoch.
    - Who commits for a partition owns it in that epoch, and offsets never go back.
    - An owner starts where the owners before it have committed to.
    - No call to the store for a partition ends after its next owner was given it.
    """
    problems: list[str] = []
    owners: dict[tuple[int, int], Act] = {}
    for act in acts:
        if act.did == "assigned":
            first = owners.setdefault((act.epoch, act.partition), act)
            if first.member != act.member:
                problems.append(f"two owners: {first} and {act}")
    by_partition = defaultdict(list)
    for act in acts:
        by_partition[act.partition].append(act)
    for history in by_partition.values():
        problems += _commits_of_others(history, owners)
        problems += _goes_back(history)
        problems += _starts_elsewhere(history)
        problems += _ends_too_late(history)
    return problems


def _commits_of_others(
    history: Sequence[Act], owners: Mapping[tuple[int, int], Act]
) -> Iterable[str]:
    for act in history:
        if act.did == "committed":
            owner = owners.get((act.epoch, act.partition))
            if owner is None or owner.member != act.member:
                yield f"committed by another than its owner: {act}, owner: {owner}"


def _goes_back(history: Sequence[Act]) -> Iterable[str]:
    commits = sorted(
        (act for act in history if act.did == "committed"), key=lambda act: (act.epoch, act.at)
    )
    for before, after in pairwise(commits):
        if (after.offset or 0) < (before.offset or 0):
            yield f"a committed offset went back: {before}, then {after}"


def _starts_elsewhere(history: Sequence[Act]) -> Iterable[str]:
    """What was not acknowledged may have been committed all the same."""
    firsts: dict[int, Act] = {}
    for act in history:
        if act.did == "fetched":
            firsts.setdefault(act.epoch, act)
    for epoch, first in firsts.items():
        before = [act for act in history if act.epoch < epoch]
        least = _furthest(before, "committed")
        most = _furthest(before, "committing")
        if not least <= (first.offset or 0) <= most:
            yield f"not where the owners before it ended ({least} to {most}): {first}"


def _furthest(acts: Iterable[Act], did: str) -> int:
    return max((act.offset or 0 for act in acts if act.did == did), default=0)


def _ends_too_late(history: Sequence[Act]) -> Iterable[str]:
    owner = None
    for act in history:
        if act.did == "assigned":
            owner = act
        if act.did == "applied" and owner is not None and owner.epoch > act.epoch:
            yield f"the store was still at it: {act}, after {owner}"


# --- pauses --------------------------------------------------------------------------------------


def pauses(acts: Sequence[Act]) -> Pauses:
    """From the last fetch or commit for a partition to the next.

    A partition is retained by a member that did the act before and the one after, and had it in
    every epoch between.
    """
    retained: list[float] = []
    moved: list[float] = []
    usual: list[float] = []
    owners = {(a.epoch, a.partition): a.member for a in acts if a.did == "assigned"}
    active = defaultdict(list)
    for act in acts:
        if act.did in ("fetched", "committed"):
            active[act.partition].append(act)
    for history in active.values():
        for before, after in pairwise(history):
            between = range(before.epoch, after.epoch + 1)
            kept = all(
                owners.get((n, after.partition), after.member) == before.member for n in between
            )
            kind = usual if before.epoch == after.epoch else retained if kept else moved
            kind.append(after.at - before.at)
    return Pauses(retained=retained, moved=moved, usual=usual)


def _mild(found: Pauses, epochs: int, rounds: int) -> Iterable[str]:
    if epochs <= rounds:  # one for the stayers, and one for each newcomer
        yield f"only {epochs} epochs: the storm was none"
    if not found.retained and epochs > FEW:
        yield "no partition was retained"
    if _share(found.retained, 0.99) >= PAUSE:
        yield f"1 in 100 retained partitions paused for {_share(found.retained, 0.99):.1f} s"


def _quick(members: Iterable[Member]) -> Iterable[str]:
    said = (re.findall(r'"store_s": ([\d.]+)', member.stderr) for member in members)
    usual = _share([float(seconds) for times in said for seconds in times], 0.5)
    if usual < SLOWNESS:
        yield f"the store was not slow: every second batch took less than {usual:.2f} s"


def _told(found: Pauses) -> str:
    return ", ".join(
        f"{kind}: {len(times)} pauses, p50 {_share(times, 0.5):.2f} s,"
        f" p99 {_share(times, 0.99):.2f} s, max {max(times, default=0):.2f} s"
        for kind, times in (
            ("retained", found.retained),
            ("moved", found.moved),
            ("usual", found.usual),
        )
    )


def _share(times: Sequence[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] if times else 0.0
