"""Workers that are wrong on purpose: each has to be found out, or the checker proves nothing."""

import signal
from collections.abc import Sequence

from tests.chaos.events import Mix
from tests.chaos.rig import Result, Rig, Run, running

MIX = Mix(connectors=200, poison=0.1, unknown=0.02)
EVENTS = 3_000
# What a worker with the bug has to suffer for it to show, and what it then costs.
SUFFERS = {
    "commit_before_apply": (["--crash", "after_poll:2"], {"lost", "missing_letters"}),
    "letter_not_awaited": (["--crash", "after_commit:2"], {"missing_letters"}),
    "stamp_ignored": ([], {"lost", "regressed"}),
    "revocation_not_drained": (["--crash", "in_revocation", "--slow", "1"], {"lost"}),
}


async def seeded_bug(rig: Rig, bug: str, *, present: bool = True) -> Result:
    """Run a worker through what brings the bug out; `present=False` is the same without it."""
    faults, _ = SUFFERS[bug]
    name = f"bug-{bug}" if present else f"without-{bug}"
    async with running(rig, name, rig.store("sqlite", name), MIX, partitions=4) as run:
        await run.publish(EVENTS)
        await _suffer(run, [*faults, *(["--bug", bug] if present else [])])
        await run.drain()
        return Result(name=name, verdict=await run.verdict())


async def _suffer(run: Run, faults: Sequence[str]) -> None:
    worker = run.worker(*faults, LAST_SYNC_BATCH_SIZE="200")
    if "--crash" not in faults:
        await run.drained()
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0, worker.tail
        return
    if "in_revocation" in faults:
        await worker.says("partitions.assigned")
        await run.disturb(worker)
    assert await worker.ended(30) == -signal.SIGKILL, worker.tail
