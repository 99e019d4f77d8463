"""What the kernel and the worker's own metrics say of the worker, every ten seconds."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from tests.probes import Probes, Samples, parsed
from tests.soak.plan import Schedule

EVERY = 10.0  # seconds
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    at: float  # seconds since the begin
    rss: float  # MB, as pss and private
    pss: float
    private: float
    fds: int
    threads: int
    cpu: float  # seconds since the process began
    lag: float | None  # records, and events so far; None where the worker did not answer
    events: float | None


async def sample(schedule: Schedule, pid: int, probes: Probes) -> Sample:
    process, at = Path(f"/proc/{pid}"), schedule.now
    state, rollup = _kilobytes(process / "status"), _kilobytes(process / "smaps_rollup")
    fds, cpu = sum(1 for _ in (process / "fd").iterdir()), _cpu(process)
    # Last: an answer takes a thread and a descriptor, which may be there a moment longer.
    status, text = await probes.get("/metrics")
    metrics = parsed(text) if status == 200 else {}
    return Sample(
        at=at,
        rss=state["VmRSS"] / 1024,
        pss=rollup["Pss"] / 1024,
        private=(rollup["Private_Clean"] + rollup["Private_Dirty"]) / 1024,
        fds=fds,
        threads=state["Threads"],
        cpu=cpu,
        lag=_sum(metrics, "last_sync_consumer_lag_records"),
        events=_sum(metrics, "last_sync_events_total"),
    )


async def sample_for_ever(
    schedule: Schedule, pid: int, probes: Probes, samples: list[Sample]
) -> None:
    while True:
        samples.append(await sample(schedule, pid, probes))
        await asyncio.sleep(EVERY)


def _kilobytes(path: Path) -> dict[str, int]:
    """Read lines like `VmRSS:  1234 kB`; the unit is left out."""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    words = {name: rest.split() for name, _, rest in lines}
    return {name: int(found[0]) for name, found in words.items() if found and found[0].isdigit()}


def _cpu(process: Path) -> float:
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS  # utime and stime


def _sum(metrics: Samples, name: str) -> float | None:
    return sum(v for (found, _), v in metrics.items() if found == name) if metrics else None
