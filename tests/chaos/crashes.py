"""A crash at each named point of the loop, then the next worker."""

import signal
from contextlib import ExitStack

from tests.chaos.events import Mix
from tests.chaos.rig import Result, Rig, Run, running
from tests.chaos.worker import POINTS
from tests.elasticsearch import FakeElasticsearch, in_a_thread

MIX = Mix(connectors=300, poison=0.1, unknown=0.05)
PER_CRASH = 500  # records for each worker to die over


async def crash_points(rig: Rig, store: str, *, rounds: int) -> Result:
    """One worker after the other dies at the next point; a last one drains."""
    with ExitStack() as stack:
        url = rig.store(store, "crashes")
        if store == "elasticsearch":
            server = FakeElasticsearch()
            server.refresh_interval = 0.2
            stack.enter_context(in_a_thread(server))
            url = f"elasticsearch+{server.url}"
        async with running(
            rig, f"crashes-{store}", url, MIX, partitions=4, observed=store != "elasticsearch"
        ) as run:
            return await _crash(run, rounds, mends=store == "elasticsearch")


# Nobody looks on at Elasticsearch: it lists what it held a moment ago.
async def _crash(run: Run, rounds: int, *, mends: bool) -> Result:
    problems = []
    for number in range(rounds):
        for point in POINTS:
            await run.publish(PER_CRASH, seed=number * len(POINTS) + POINTS.index(point))
            if code := await _died_at(run, point):
                problems.append(f"{point}: {code}")
            run.say(f"crashed at {point}")
    await run.drain()
    if mends:
        mended = run.rig.nursery.spawn("store", "verify", "--repair", environ=run.environ)
        if failed := await mended.ended(30):
            problems.append(f"store verify --repair ended with {failed}: {mended.tail}")
    return Result(
        name=run.name,
        verdict=await run.verdict(),
        facts=f"{rounds * len(POINTS)} crashes at {len(POINTS)} points",
        problems=problems,
    )


async def _died_at(run: Run, point: str) -> str:
    """Say what happened instead, if the worker did not die there."""
    faults = ["--crash", f"{point}:1", "--slow", "1" if point == "in_revocation" else "0"]
    worker = run.worker(*faults, LAST_SYNC_BATCH_SIZE="50")
    try:
        if point == "in_revocation":
            await worker.says("partitions.assigned")
            await run.disturb(worker)
        code = await worker.ended(30)
    except (AssertionError, TimeoutError) as error:
        worker.signal(signal.SIGKILL)
        return f"not reached: {error}"
    return "" if code == -signal.SIGKILL else f"ended with {code}: {worker.tail}"
