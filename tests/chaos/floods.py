"""Much that can never be applied: poison, unknown connectors, and one bad update among 500."""

import math
import signal
from dataclasses import replace
from typing import Any, cast

from sqlalchemy import event

from tests.chaos.events import Mix
from tests.chaos.nursery import Member
from tests.chaos.rig import Result, Rig, Run, running
from tests.eventually import eventually
from worker.merge import Stamp, Update
from worker.stores import open_store

MIX = Mix(connectors=500, poison=0, unknown=0)
WINDOW = 1_000  # letters that may be written before the breaker holds, at most
UNKNOWN = 10_000  # connectors that are registered too late
NO_WRITES = ("SELECT", "BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK")
BATCH = 500
BAD = 271  # the update among them that the store refuses


async def poison(rig: Rig, share: float, *, events: int) -> Result:
    """A share of what is sent is no event. The worker writes letters or holds; a person decides."""
    name, mix = f"poison-{share:.0%}", replace(MIX, poison=share)
    async with running(rig, name, rig.store("sqlite", name), mix, partitions=4) as run:
        await run.publish(events)
        worker = run.worker()
        held = await _held_or_done(run, worker)
        letters = len(await run.letters())
        worker.signal(signal.SIGTERM)
        code = await worker.ended()
        await run.drain(LAST_SYNC_FLOOD_SHARE="1")
        problems = [f"exit code {code}"] if code else []
        if share != 0.5:  # half may be a little more or less than the breaker's half
            problems += _misjudged(held=held, flooded=share > 0.5, letters=letters)
        facts = f"held: {'yes' if held else 'no'}, {letters} letters before a person decided"
        return Result(name=name, verdict=await run.verdict(), facts=facts, problems=problems)


def _misjudged(*, held: bool, flooded: bool, letters: int) -> list[str]:
    if held != flooded:
        return ["the breaker held" if held else "the breaker did not hold"]
    if flooded and letters > WINDOW:
        return [f"{letters} letters before the breaker held"]
    return []


async def _held_or_done(run: Run, worker: Member) -> bool:
    async def settled() -> bool:
        return "flood breaker" in worker.stderr or await run.lag() == 0

    await eventually(settled, 60)
    return "flood breaker" in worker.stderr


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
        if letters or handled:
            problems.append(f"{letters} letters, {handled} records committed while it held")
        facts = f"{connectors:,} unknown connectors, {letters} letters while held, then released"
        return Result(name=name, verdict=await run.verdict(), facts=facts, problems=problems)


async def bisection(rig: Rig, store: str) -> Result:
    """One update of 500 is refused: the others are merged, in few statements."""
    name, url = f"bisection-{store}", rig.store(store, "bisection")
    most = 2 * math.ceil(math.log2(BATCH)) + 2  # the whole twice, then two halves at each depth
    names = [f"connector-{n:05}" for n in range(BATCH)]
    problems = []
    async with open_store(url) as opened:
        await opened.add(names)
        written: list[str] = []

        def note(_: object, __: object, statement: str, *___: object) -> None:
            if not statement.lstrip().upper().startswith(NO_WRITES):
                written.append(statement)

        event.listen(cast("Any", opened)._engine.sync_engine, "before_cursor_execute", note)
        outcomes = await opened.apply([_update(name, n) for n, name in enumerate(names)])
        refused = [n for n, outcome in enumerate(outcomes) if outcome.name != "applied"]
        stored = {found.id: found.fields async for found in opened.connectors()}
    if refused != [BAD] or outcomes[BAD].name != "rejected":
        problems.append(f"refused: {refused}")
    if [name for name in names if not stored[name]] != [names[BAD]]:
        problems.append("not all others were merged")
    if not 1 < len(written) <= most:
        problems.append(f"{len(written)} writes, at most {most} allowed")
    facts = f"{len(written)} statements that write, at most {most} allowed"
    return Result(name=name, facts=facts, problems=problems)


def _update(connector: str, number: int) -> Update:
    """Text with a lone surrogate, which no database takes; no event could bring it this far."""
    text = "\ud800" if number == BAD else "sound"
    return Update(
        connector_id=connector,
        fields={"last_sync_error": text},
        stamp=Stamp(number, 4, f"event-{number}", ""),
    )
