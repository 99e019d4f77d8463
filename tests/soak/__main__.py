"""An hour at a steady rate with faults, and whether the worker is as it was: `make soak`.

It ends by itself. The exit code is 1 when a claim does not hold.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from tests.chaos.checker import KINDS, Verdict
from tests.chaos.rig import open_letters
from tests.eventually import eventually
from tests.programs import LAST_SYNC, Cli, Spawn, Spawned
from tests.soak.delays import Watcher
from tests.soak.faults import Faults, befall
from tests.soak.judge import Claim, Disturbance, Measured, claims, percentiles, table
from tests.soak.onlooker import Reads
from tests.soak.plan import PROBE_EVERY, Plan, Schedule
from tests.soak.proof import prove
from tests.soak.rig import Ground, Helper, Services, helpers, prepared, serving
from tests.soak.samples import Sample, sample_for_ever

GRACE = 30.0  # minutes for start, catching up and checking, at most
LEAD = 5.0  # seconds from the start of the processes to the first event
READY = 60.0  # seconds
CATCH_UP = 120.0  # seconds
FAREWELL = 60.0  # seconds
MINUTE = 60.0  # seconds
LEAKY = (sys.executable, "-P", str(Path(__file__).with_name("leaky.py")))

Say = Callable[[str], None]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__.splitlines()[0]
    )
    for one in fields(Plan):
        if one.name not in {"store", "broken"}:
            kind = type(one.default)
            flag = f"--{one.name.replace('_', '-')}"
            parser.add_argument(flag, type=kind, default=one.default, help=f"{one.default}")
    parser.add_argument("--store", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--broken", action="store_true", help="a worker that leaks on purpose")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--keep", type=Path, help="new folder for logs and what was read")
    chosen = vars(parser.parse_args())
    results, keep = chosen.pop("json"), chosen.pop("keep")
    if keep and keep.exists():
        parser.error(f"--keep {keep}: it is there already; name a new folder")
    plan, began = Plan(**chosen), time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f}  {text}", flush=True)

    with ExitStack() as stack:
        folder = keep or Path(tempfile.mkdtemp(prefix="last-sync-soak-"))
        folder.mkdir(parents=True, exist_ok=True)
        if not keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        services = stack.enter_context(serving(plan, folder.absolute(), say))
        measured, verdict, problems = asyncio.run(soak(plan, services, say))
    found = claims(measured, verdict, problems)
    print("\n".join([*table(measured), *shown(measured, verdict, found)]))
    print(f"{time.monotonic() - began:.0f} s in all")
    if results:
        results.write_text(json.dumps(document(measured, verdict, found), indent=1) + "\n")
    sys.exit(not all(claim.good for claim in found))


async def soak(
    plan: Plan, services: Services, say: Say
) -> tuple[Measured, Verdict | None, Sequence[str]]:
    """Give what was measured, the verdict if it came to one, and what went wrong."""
    async with prepared(plan, services) as ground:
        run, verdict = Soak(plan, ground, say), None
        try:
            async with asyncio.timeout((plan.minutes + GRACE) * MINUTE):
                await run.last()
                say("reading back what was published, to check the store and the letters by it")
                verdict = await run.verdict()
        except* Exception as errors:  # noqa: BLE001 - what was measured until then is shown all the same
            traceback.print_exception(errors)
            run.faults.problems += [f"{type(e).__name__}: {e}" for e in errors.exceptions]
        finally:
            run.spawn.close()
        return run.measured, verdict, run.faults.problems


class Soak:
    """One worker, all that is done to it, and all that is seen of it."""

    def __init__(self, plan: Plan, ground: Ground, say: Say) -> None:
        self._plan, self._ground, self._say = plan, ground, say
        self._services = ground.services
        program = LEAKY if plan.broken else (LAST_SYNC,)
        self.spawn = Spawn(self._services.folder, ground.environ, program)
        self._schedule = Schedule(begin=0.0, rate=plan.rate)
        probed = round(plan.seconds * plan.rate) // PROBE_EVERY
        self._watcher = Watcher(schedule=self._schedule, probes=probed)
        self.samples: list[Sample] = []
        self.disturbances: list[Disturbance] = []
        self.faults = Faults(
            broker=self._services.broker,
            server=self._services.server,
            store=self._services.store,
            proxies=ground.proxies,
            spawn=self.spawn,
            environ=ground.environ,
        )

    async def last(self) -> None:
        """Let the worker work to the plan's end, and end it when it has done everything."""
        probes, store = self._ground.probes, self._services.store
        worker = self.spawn("run", env=probes.env)
        await probes.becomes("/readyz", 200, timeout=READY)
        self._schedule.begin = time.monotonic() + LEAD
        with helpers(self._plan, self._ground, self._schedule) as (publisher, onlooker):
            async with asyncio.TaskGroup() as group:
                side = [
                    group.create_task(task)
                    for task in (
                        self._stays(worker),
                        sample_for_ever(self._schedule, worker.pid, probes, self.samples),
                        self._tell(publisher),
                    )
                ]
                befalling = group.create_task(self._befall())
                watching = group.create_task(self._watcher.watch(store))
                await publisher.ended()
                await asyncio.wait({watching}, timeout=CATCH_UP)
                await eventually(self._drained, CATCH_UP)
                await befalling
                for task in (*side, watching):
                    task.cancel()
            await onlooker.end()
        self._say(f"published: {publisher.report}")
        if failed := publisher.report["failed"]:
            self.faults.problems.append(f"{failed:,.0f} events were not acknowledged")
        await self._end(worker)

    async def _befall(self) -> None:
        def said(one: Disturbance) -> None:
            self.disturbances.append(one)
            took, more = one.over - one.begin, one.end - one.over
            self._say(f"{one.name}: {took:.0f} s, and {more:.0f} s until all was steady again")

        await befall(self._plan, self._schedule, self.faults, self._watcher, said)

    async def _stays(self, worker: Spawned) -> None:
        await eventually(lambda: worker.exit_code is not None, float("inf"))
        raise AssertionError(f"the worker ended with {worker.exit_code}: {worker.stderr[-2000:]}")

    async def _drained(self) -> bool:
        topics, kafka = self._ground.topics, self._ground.kafka
        ends = await kafka.end_offsets(topics.source)
        return await kafka.committed(topics.group, topics.source) == {
            partition: end for partition, end in ends.items() if end
        }

    async def _end(self, worker: Spawned) -> None:
        worker.signal(signal.SIGTERM)
        if code := await worker.ended(FAREWELL):
            self.faults.problems.append(f"the worker ended with {code}: {worker.stderr[-500:]}")

    async def _tell(self, publisher: Helper) -> None:
        while True:
            begin = max(0.0, self._schedule.now)
            await asyncio.sleep(MINUTE)
            self._say(self._minute(begin, publisher.report))

    def _minute(self, begin: float, report: dict[str, float]) -> str:
        took = [delay for due, delay in self._watcher.delays if due >= begin]
        p50, p99 = (1000 * value for value in percentiles(took)) if len(took) > 1 else (0.0, 0.0)
        last = self.samples[-1]
        lag = "?" if last.lag is None else f"{last.lag:,.0f}"
        return (
            f"{self._schedule.now / MINUTE:.1f} minutes: {report.get('acknowledged', 0):,}"
            f" published, RSS {last.rss:.1f} MB, {last.fds} fds, {last.threads} threads, lag {lag},"
            f" delay p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        )

    @property
    def measured(self) -> Measured:
        return Measured(
            plan=self._plan,
            samples=self.samples,
            delays=self._watcher.delays,
            disturbances=self.disturbances,
        )

    async def verdict(self) -> Verdict:
        """Read the store and the letters as a person would, and check them."""
        ground, folder = self._ground, self._services.folder
        cli = Cli(folder=folder, environ=ground.environ)
        listing = await cli("connectors", "list", "--json")
        assert listing.exit_code == 0, listing.stderr
        documents = map(json.loads, listing.stdout.splitlines())
        reads = Reads(folder)
        reads.add({document.pop("id"): document for document in documents}, whole=True)
        reads.close()
        letters = await open_letters(ground.kafka, ground.topics.dlq)
        return await asyncio.to_thread(
            partial(
                prove,
                ground.kafka.bootstrap,
                ground.topics.source,
                folder,
                self._plan.registered,
                letters,
            )
        )


def shown(measured: Measured, verdict: Verdict | None, found: Sequence[Claim]) -> list[str]:
    periods = list(measured.periods())
    quiet = sum(p.quiet for p in periods)
    worst = max((p.p99 for p in periods if not p.quiet), default=0.0)
    texts = [text for kind in KINDS for text in getattr(verdict, kind, [])[:5]]
    return [
        f"{quiet} of {len(periods)} periods were quiet; in others p99 was {worst:.1f} s at worst",
        *(f"{'ok    ' if one.good else 'NOT OK'}  {one.name}: {one.text}" for one in found),
        *texts,
    ]


def document(
    measured: Measured, verdict: Verdict | None, found: Sequence[Claim]
) -> dict[str, object]:
    checked = verdict and {"events": verdict.events, "letters": verdict.letters, **verdict.counts}
    return {
        "plan": asdict(measured.plan),
        "claims": [asdict(claim) for claim in found],
        "verdict": checked,
        "periods": [asdict(period) for period in measured.periods()],
        "disturbances": [asdict(one) for one in measured.disturbances],
        "samples": [asdict(sample) for sample in measured.samples],
    }


if __name__ == "__main__":
    main()
