"""SIGKILL of a random worker, again and again, under load."""

import asyncio
import random
import signal
import time
from collections.abc import Sequence

from tests.chaos.nursery import Member
from tests.chaos.rig import Result, Rig, Run, running

PAUSE = (0.3, 1.5)  # seconds between two kills
# Seconds more that a kill takes: until the group has thrown out its only member and taken the next,
# or another member is found working. Publishers are paced by it, to last as long as the kills.
REJOIN, FIND = 1.5, 0.5
REPORT = 10.0  # seconds between lines that tell how far it is


async def kill_loop(
    rig: Rig, store: str, *, workers: int, events: int, kills: int, seed: int = 1
) -> Result:
    """Publish all the while; then a last worker drains, and the run is checked.

    Only a worker that has partitions is hit, and after the pause: one that is dead before it has
    joined proves nothing.
    """
    async with running(rig, f"kills-{store}", rig.store(store, "kills")) as run:
        seconds = kills * (sum(PAUSE) / 2 + (REJOIN if workers == 1 else FIND))
        publishing = asyncio.create_task(run.publish(events, seconds=seconds, seed=seed))
        try:
            interrupted = await kill(run, workers, kills, random.Random(seed))  # noqa: S311
            await publishing
        finally:
            publishing.cancel()
            await asyncio.wait({publishing})
        during = await run.handled()
        await run.drain(300)
        facts = (
            f"{kills} kills, {interrupted} of workers that had committed a batch;"
            f" {during:,} records committed between them"
        )
        problems = [] if during else ["no worker lived long enough to commit a record"]
        if interrupted < kills // 4:
            problems.append("nearly all of the killed workers had not committed anything yet")
        return Result(name=run.name, verdict=await run.verdict(), facts=facts, problems=problems)


async def kill(
    run: Run,
    workers: int,
    kills: int,
    chance: random.Random,
    *,
    pause: tuple[float, float] = PAUSE,
    faults: Sequence[str] = (),
) -> int:
    """Kill and replace; tell how many of the victims had committed a batch."""
    members = [run.worker(*faults) for _ in range(workers)]
    said, interrupted = time.monotonic(), 0
    try:
        for number in range(kills):
            victim = await _one_that_works(members, chance)
            await asyncio.sleep(chance.uniform(*pause))
            victim.signal(signal.SIGKILL)
            code = await victim.ended()
            if code != -signal.SIGKILL:
                raise AssertionError(f"a worker ended by itself, with {code}: {victim.tail}")
            members[members.index(victim)] = run.worker(*faults)
            interrupted += '"batch.done"' in victim.stderr
            if time.monotonic() - said > REPORT:
                said = time.monotonic()
                run.say(f"{number + 1}/{kills} kills, {await run.handled():,} records committed")
    finally:
        for member in members:
            member.signal(signal.SIGKILL)
            await member.ended()
    return interrupted


async def _one_that_works(members: list[Member], chance: random.Random) -> Member:
    async with asyncio.timeout(30):
        while True:
            if ended := [one for one in members if one.exit_code is not None]:
                raise AssertionError(f"a worker ended by itself: {ended[0].tail}")
            working = [one for one in members if '"partitions.assigned"' in one.stderr]
            if working:
                return chance.choice(working)
            await asyncio.sleep(0.02)
