"""Much that can never be applied: poison, unknown connectors, and one bad update among 500."""

import math
import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from schemas.updates import Update
from tests.chaos.events import Mix
from tests.chaos.nursery import Member
from tests.chaos.rig import Result, Rig, Run, running
from tests.eventually import eventually
from worker.stores import open_store

MIX = Mix(connectors=500, poison=0, unknown=0)
FEWEST = 20  # connectors for which the breaker holds
WINDOW = 1_000  # letters that may be written before the breaker holds, at most
UNKNOWN = 10_000  # connectors that are registered too late
BATCH = 500
BAD = 271  # the update among them that the store refuses


async def poison(rig: Rig, share: float, *, events: int) -> Result:
    """A share of what is sent is no event. The worker writes letters or holds; a person decides."""
    name, mix = f"poison-{share:.0%}", replace(MIX, poison=share)
    async with running(rig, name, rig.store("sqlite", name), mix, partitions=4) as run:
        await run.publish(events)
        worker = run.worker()
        found = await _held_or_done(run, worker)
        letters = len(await run.letters())
        problems = _misjudged(found, share, letters)
        if found:
            problems += await _gone_on(run, worker)
        worker.signal(signal.SIGTERM)
        code = await worker.ended()
        problems += [f"exit code {code}"] if code else []
        await run.drain(LAST_SYNC_FLOOD_SHARE="1")  # to the end: the release is worth something
        held = f"for {found[0]} of {found[1]} connectors" if found else "no"
        facts = f"held: {held}, {letters} letters before a person decided"
        return Result(name=name, verdict=await run.verdict(), facts=facts, problems=problems)


def _misjudged(found: tuple[int, int] | None, share: float, letters: int) -> list[str]:
    """What the breaker promises: to hold for more than half of the connectors, and only then.

    With half of the records poison, it is by chance half of the connectors, or a few more.
    """
    problems = []
    if share != 0.5 and bool(found) != (share > 0.5):
        problems.append("the breaker held" if found else "the breaker did not hold")
    if found and found[0] * 2 <= found[1]:
        problems.append(f"held for {found[0]} of {found[1]} connectors, not more than half")
    if found and found[1] < FEWEST:
        problems.append(f"held for {found[1]} connectors, which are too few")
    if share == 1 and letters > WINDOW:
        problems.append(f"{letters} letters before the breaker held")
    return problems


async def _held_or_done(run: Run, worker: Member) -> tuple[int, int] | None:
    """Wait for either; give for how many of how many connectors the breaker holds."""

    async def settled() -> bool:
        return "flood breaker" in worker.stderr or await run.lag() == 0

    await eventually(settled, 60)
    found = re.search(r"flood breaker: (\d+) of the last (\d+) connectors", worker.stderr)
    return (int(found[1]), int(found[2])) if found else None


async def _gone_on(run: Run, worker: Member) -> list[str]:
    """A worker that holds writes no letter and commits nothing, however often it tries again."""
    before = len(await run.letters()), await run.handled()
    tries = worker.stderr.count('"batch.held"')
    await eventually(lambda: worker.stderr.count('"batch.held"') > tries + 1, 30)
    after = len(await run.letters()), await run.handled()
    return [] if before == after else [f"letters, commits while it held: {before}, then {after}"]


async def unknown_connectors(rig: Rig, *, connectors: int = UNKNOWN) -> Result:
    """All connectors are unknown: nothing is written, and registering them releases the worker."""
    name, mix = "unknown-connectors", replace(MIX, connectors=connectors)
    url = rig.store("sqlite", name)
    async with running(rig, name, url, mix, partitions=4, registered=False) as run:
        await run.publish(connectors * 2)
        worker = run.worker()
        await worker.says("flood breaker")
        await eventually(lambda: worker.stderr.count("batch.held") > 2, 30)
        letters, handled = len(await run.letters()), await run.handled()
        await run.register(run.registered)
        await run.drained(90)
        worker.signal(signal.SIGTERM)
        code = await worker.ended()
        problems = [f"exit code {code}"] if code else []
        if '"batch.released"' not in worker.stderr:
            problems.append("the worker does not say that it was released")
        if letters or handled:
            problems.append(f"{letters} letters, {handled} records committed while it held")
        facts = f"{connectors:,} unknown connectors, {letters} letters while held, then released"
        return Result(name=name, verdict=await run.verdict(), facts=facts, problems=problems)


async def bisection(rig: Rig, store: str) -> Result:
    """One update of 500 is refused: the others are merged, in few transactions."""
    name, url = f"bisection-{store}", rig.store(store, "bisection")
    most = 2 * math.ceil(math.log2(BATCH)) + 1  # the whole, then two halves at each depth
    names = [f"connector-{n:05}" for n in range(BATCH)]
    problems = []
    async with open_store(url) as opened:
        await opened.add(names)
        driver = cast("Any", opened)._driver
        merge, sizes = driver.merge, []

        async def noted(updates: Sequence[Update]) -> Any:
            sizes.append(len(updates))
            return await merge(updates)

        driver.merge = noted
        outcomes = await opened.apply([_update(name, n) for n, name in enumerate(names)])
        refused = [n for n, outcome in enumerate(outcomes) if outcome.name != "applied"]
        stored = {found.id: found.fields async for found in opened.connectors()}
    if refused != [BAD] or outcomes[BAD].name != "rejected":
        problems.append(f"refused: {refused}")
    if [name for name in names if not stored[name]] != [names[BAD]]:
        problems.append("not all others were merged")
    if not 1 < len(sizes) <= most:
        problems.append(f"{len(sizes)} transactions, at most {most} allowed")
    facts = f"{len(sizes)} transactions, at most {most} allowed"
    return Result(name=name, facts=facts, problems=problems)


def _update(connector: str, number: int) -> Update:
    """Text with a lone surrogate, which no database takes; no event could bring it this far."""
    text = "\ud800" if number == BAD else "sound"
    return Update(
        connector_id=connector,
        fields={"last_sync_error": text},
        at=number,
        rank=4,
        event_id=f"event-{number}",
    )
