"""Run the benchmarks: all, or those that are named.

Contenders take turns in rounds, each in a fresh process; a ratio is that of one round. `--full`
takes the sizes of docs/performance.md, without it a run takes minutes.
"""

import argparse
import asyncio
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks import delay
from benchmarks.elastic import SlowElasticsearch
from benchmarks.events import Load
from benchmarks.locks import watched
from benchmarks.profile import PY_SPY, recorder, shares
from benchmarks.stage import (
    Stage,
    Table,
    check,
    environment,
    finished,
    in_a_loop,
    opened,
    register,
    say,
    spread,
    started,
)
from tests.elasticsearch import in_a_thread

LAST_SYNC = Path(sys.executable).with_name("last-sync")
STORES = ("sqlite", "postgresql")
PACKAGES = ("aiokafka", "asyncpg", "pydantic", "sqlalchemy", "faststream")
ON_REQUEST = ("profile", "gate")  # left out where none is named

# Times the calibration loop's CPU, the least of each. Measured are 2.0 to 2.7.
GATE = 4.0
ENDING = 2.0  # seconds at the end of a drain: looks for more, and the stop
DRAIN = 200_000  # events at most where many loads are drained: ten batches of the worker's


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything."""

    rounds: int
    events: int
    memory: int
    letters: int
    seconds: int
    connectors: int


SMALL = Size(
    rounds=3, events=150_000, memory=400_000, letters=10_000, seconds=5, connectors=100_000
)
FULL = Size(
    rounds=5, events=400_000, memory=2_000_000, letters=100_000, seconds=20, connectors=1_000_000
)


def drain(stage: Stage, size: Size) -> None:
    """The worker beside a loop that fetches and validates, and beside a plain bulk loop."""
    table, load = Table(), Load(events=size.events)
    for _ in range(size.rounds):
        table.add("calibration", stage.run("calibrate", load))
        for kind in STORES:
            table.add(f"worker, {kind}", stage.run("worker", load, kind))
            table.add(f"bulk loop, {kind}", stage.run(f"bulk_{kind}", load, kind))
    table.show()
    for kind in STORES:
        times = spread(table.ratios(f"worker, {kind}", f"bulk loop, {kind}"))
        print(f"the worker's rate is {times} times the bulk loop's, {kind}")


def peers(stage: Stage, size: Size) -> None:
    """Workers that handle one event after the other, and FastStream, on the same PostgreSQL."""
    table, load = Table(), Load(events=size.events)
    contenders = {"per event": "per_event"}
    if find_spec("faststream"):
        contenders |= {
            "FastStream, message": "faststream_message",
            "FastStream, batch": "faststream_batch",
            "FastStream, message, ack_first": "faststream_message_default",
            "FastStream, batch, ack_first": "faststream_batch_default",
        }
    else:
        say("  FastStream is not installed: .venv/bin/pip install --group bench")
    for _ in range(size.rounds):
        table.add("worker, postgresql", stage.run("worker", load, "postgresql"))
        for name, contender in contenders.items():
            events = size.events if "batch" in contender else 3_000
            table.add(name, stage.run(contender, load, "postgresql", events=events))
    table.show()
    for name in contenders:
        times = spread(table.ratios("worker, postgresql", name))
        print(f"the worker's rate is {times} times that of: {name}")


def two(stage: Stage, size: Size) -> None:
    """Two workers of one group on one PostgreSQL, against one."""
    # Of a small topic one of them may take all but a batch, before the other is there.
    table, load = Table(), Load(events=max(size.events, FULL.events))
    for _ in range(size.rounds):
        table.add("one worker", stage.run("worker", load, "postgresql"))
        store = stage.store("postgresql", load)
        job = stage.job(stage.topic(load), store=store)
        with watched(store) as looks:
            both = [finished(process) for process in [started("worker", job) for _ in range(2)]]
        say(f"  somebody waited for a lock at {looks.waiting} of {looks.made} looks")
        stage.drop(store)
        events = sum(each["events"] for each in both)
        assert events >= load.events, f"two workers handled {events:,} events of {load.events:,}"
        earliest = min(both, key=lambda each: each["began"])
        span = max(each["ended"] for each in both) - earliest["began"]
        cpu = sum(each["cpu_us"] * each["events"] for each in both) / events
        peak = max(each["peak_mb"] for each in both)
        rate = (events - earliest["first"]) / span
        table.add("two workers", {"rate": rate, "cpu_us": cpu, "peak_mb": peak})
    table.show()


def profile(stage: Stage, size: Size) -> None:
    """Where the worker's CPU goes."""
    if not PY_SPY.exists():
        raise SystemExit("py-spy is not installed: .venv/bin/pip install --group bench")
    load, stacks = Load(events=size.events), stage.folder / "stacks"
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in STORES}
    for _ in range(size.rounds):
        for kind, rounds in found.items():
            cpu = stage.run("worker", load, kind)["cpu_us"]
            stage.run("worker", load, kind, under=recorder(stacks))
            rounds.append({name: share * cpu for name, share in shares(stacks).items()})
    print(f"\n{'µs CPU an event':16}", *map("{:>18}".format, STORES))
    for name in found["sqlite"][0]:
        cells = [spread([each[name] for each in rounds]) for rounds in found.values()]
        print(f"{name:16}", *map("{:>18}".format, cells))


def poison(stage: Stage, size: Size) -> None:
    """One event in a hundred is for a connector that nobody registered."""
    table = Table()
    for _ in range(size.rounds):
        for share in (0.0, 0.01):
            load = Load(events=size.events, poison=share)
            table.add(f"{share:.0%} poison, sqlite", stage.run("worker", load, "sqlite"))
    table.show()


def replay(stage: Stage, size: Size) -> None:
    """Replay dead letters, against draining events."""
    table = Table()
    for _ in range(size.rounds):
        table.add("drain, sqlite", stage.run("worker", Load(events=size.events), "sqlite"))
        load = Load(events=size.letters)
        topics, store = stage.letters(load, "sqlite")
        job = stage.job(topics, store=store)
        figures = finished(started("replay", job))
        stage.drop(store)
        check("replay", figures, load, size.letters)
        table.add("replay, sqlite", figures)
    table.show()


def batches(stage: Stage, size: Size) -> None:
    """Batches of one size or another, SQLite."""
    table = Table()
    for _ in range(size.rounds):
        for batch in (2_000, 500, 100, 10, 1):
            load = Load(events=min(size.events, 20_000 if batch >= 100 else 2_000))
            figures = stage.run("worker", load, "sqlite", batch_size=batch)
            table.add(f"batches of {batch:,}", figures)
    table.show()


def sizes(stage: Stage, size: Size) -> None:
    """Events of one size or another, SQLite."""
    table = Table()
    for _ in range(size.rounds):
        for length, events in ((375, size.events), (4_096, 20_000), (65_536, 2_000)):
            load = Load(events=min(size.events, events), size=length)
            table.add(f"events of {length:,} bytes", stage.run("worker", load, "sqlite"))
    table.show()


def kinds(stage: Stage, size: Size) -> None:
    """Completed full syncs; with all that a job's record may have; starts and ends of all kinds."""
    table, load = Table(), Load(events=min(size.events, DRAIN))
    loads = {
        "completed": load,
        "whole records": replace(load, whole=True),
        "all kinds": replace(load, mixed=True),
    }
    for _ in range(size.rounds):
        for kind in STORES:
            for name, load in loads.items():
                figures = stage.run("worker", load, kind)
                table.add(f"{name}, {kind}", figures, of=f"{next(iter(loads))}, {kind}")
    table.show()


def partitions(stage: Stage, size: Size) -> None:
    """Topics of one partition or many, SQLite; and all events in one of four, both stores."""
    table, load = Table(), Load(events=min(size.events, DRAIN))
    for _ in range(size.rounds):
        for count in (4, 1, 16, 64):
            name, some = f"{count} partitions, sqlite", replace(load, partitions=count)
            table.add(name, stage.run("worker", some, "sqlite"))
        name = "4 partitions, postgresql"
        table.add(name, stage.run("worker", load, "postgresql"), of=name)
        for kind in STORES:
            busy = stage.run("worker", replace(load, busy=1), kind)
            table.add(f"1 of 4 busy, {kind}", busy, of=f"4 partitions, {kind}")
    table.show()


def connectors(stage: Stage, size: Size) -> None:
    """Stores with few connectors or many, and events of a few of them, of all, or of one."""
    table, few, many = Table(), 10_000, size.connectors
    loads = {f"{few:,}": Load(events=min(size.events, DRAIN), connectors=few)}
    loads[f"{few:,} of {many:,}"] = replace(loads[f"{few:,}"], among=many // few)
    loads[f"{many:,}"] = replace(loads[f"{few:,}"], connectors=many)
    loads["1"] = replace(loads[f"{few:,}"], connectors=1)
    for _ in range(size.rounds):
        for kind in STORES:
            for name, load in loads.items():
                figures = stage.run("worker", load, kind)
                table.add(f"{name}, {kind}", figures, of=f"{next(iter(loads))}, {kind}")
    table.show()


def memory(stage: Stage, size: Size) -> None:
    """Resident memory of `last-sync run --drain` itself, over a long drain."""
    load = Load(events=size.memory)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in STORES}
    for _ in range(size.rounds):
        for kind, rounds in found.items():
            rounds.append(remembered(stage, load, kind))
            peak, slope = rounds[-1]
            say(f"  {kind}: peak {peak:.0f} MB resident, slope {slope:+.1f} MB a minute")
    for kind, rounds in found.items():
        peaks, slopes = zip(*rounds, strict=True)
        print(f"\n{size.memory:,} events, {kind}: peak {spread(peaks)} MB resident", end="")
        print(f", slope {spread(slopes)} MB a minute")


def remembered(stage: Stage, load: Load, kind: str) -> tuple[float, float]:
    """The most megabytes at any time, and what is added to them a minute while it drains."""
    topics, store = stage.topic(load), stage.store(kind, load)
    process = subprocess.Popen(
        [LAST_SYNC, "run", "--drain"],
        stderr=subprocess.DEVNULL,
        env=environment(
            LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS=stage.kafka.bootstrap,
            LAST_SYNC_KAFKA_TOPIC=topics.source,
            LAST_SYNC_KAFKA_DEAD_LETTER_TOPIC=topics.dlq,
            LAST_SYNC_KAFKA_GROUP_ID=topics.group,
            LAST_SYNC_STORE_URL=store,
        ),
    )
    seen, peak = [], 0.0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        text = status.read_text()
        if "VmRSS:" in text:
            resident, peak = (
                int(text.partition(name)[2].split()[0]) / 1024 for name in ("VmRSS:", "VmHWM:")
            )
            seen.append((time.monotonic(), resident))
        time.sleep(0.1)
    assert process.returncode == 0
    stage.drop(store)
    # It has warmed up by then, and does not end yet, when it gives memory back.
    draining = [one for one in seen[len(seen) // 3 :] if one[0] < seen[-1][0] - ENDING]
    return peak, statistics.linear_regression(*zip(*draining, strict=True)).slope * 60


def elastic(stage: Stage, size: Size) -> None:
    """The Elasticsearch store, where batches fold and where not; and a loop that only puts."""
    titles = ("events/s", "µs CPU", "requests an event", "requests/s", "in flight")
    events = size.events // 10
    contenders = {
        f"{count:,} connectors": ("worker", Load(events=events, connectors=count))
        for count in (10_000, 1_000)
    }
    contenders["puts alone"] = ("puts", Load(events=events // 4, connectors=1_000))
    found: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for _ in range(size.rounds):
        for name, rounds in found.items():
            rounds.append(served(stage, *contenders[name]))
            shown = "; ".join(map("{}: {:.2f}".format, titles, rounds[-1]))
            say(f"  {name}: {shown}")
    print(f"\n{'':18}", *map("{:>24}".format, titles))
    for name, rounds in found.items():
        print(f"{name:18}", *(f"{spread(f):>24}" for f in zip(*rounds, strict=True)))


def served(stage: Stage, contender: str, load: Load) -> list[float]:
    """Events a second, CPU an event in microseconds, requests an event and a second, in flight."""
    server = SlowElasticsearch()
    with in_a_thread(server):
        store = f"elasticsearch+{server.url}"
        in_a_loop(register, store, load)
        server.begin()
        figures = stage.run(contender, load, store=store)
        requests = len(server.requests) / load.events
    return [
        *(figures["rate"], figures["cpu_us"], requests, figures["rate"] * requests),
        server.in_flight,
    ]


def delays(stage: Stage, size: Size) -> None:
    """From the broker's acknowledgement to the row and to the offset, at 100 events a second."""
    titles = ("row, p50", "row, p99", "offset, p50", "offset, p99")
    found: dict[str, list[list[float]]] = {"worker_for_ever": [], "bulk_for_ever": []}
    for _ in range(size.rounds):
        for contender, rounds in found.items():
            rounds.append(delayed(stage, contender, size.seconds))
            shown = "; ".join(map("{}: {:.1f} ms".format, titles, rounds[-1]))
            say(f"  {contender}: {shown}")
    print(f"\n{'':12} {'worker, ms':>18} {'bulk loop, ms':>18}  times")
    by_title = [zip(*rounds, strict=True) for rounds in found.values()]
    for title, mine, theirs in zip(titles, *by_title, strict=True):
        times = spread([a / b for a, b in zip(mine, theirs, strict=True)])
        print(f"{title:12} {spread(mine):>18} {spread(theirs):>18}  {times}")


def delayed(stage: Stage, contender: str, seconds: int) -> list[float]:
    """Milliseconds: p50 and p99 of the row, and of the offset."""
    load = Load(events=0)
    stage.topics.pop(load, None)  # each begins with an empty topic
    job = stage.job(stage.topic(load), store=stage.store("postgresql", load))
    process = started(contender, job)
    try:
        measured = asyncio.run(delay.measure(contender, job, seconds))
    finally:
        process.terminate()
        process.wait()
    return [each for delays in measured for each in delay.percentiles(delays)]


def imports(stage: Stage, size: Size) -> None:
    """How long a person waits for a command, and how much of that is Python's own start."""
    topics = stage.topic(Load(events=0))
    settings = environment(
        LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS=stage.kafka.bootstrap,
        LAST_SYNC_KAFKA_TOPIC=topics.source,
        LAST_SYNC_KAFKA_DEAD_LETTER_TOPIC=topics.dlq,
        LAST_SYNC_STORE_URL=stage.store("sqlite", Load(events=0, connectors=1)),
    )
    calls: dict[str, list[str | Path]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "last-sync --help": [LAST_SYNC, "--help"],
        "last-sync connectors list": [LAST_SYNC, "connectors", "list"],
        "last-sync dlq list": [LAST_SYNC, "dlq", "list"],
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(5 * size.rounds):
        for name, call in calls.items():
            took[name].append(timed(call, settings))
    print(f"\n{'':26} {'ms':>20} {'CPU, ms':>20}")
    for name, found in took.items():
        shown = [
            f"{statistics.median(times):.0f} ({min(times):.0f}-{max(times):.0f})"
            for times in zip(*found, strict=True)
        ]
        print(f"{name:26} {shown[0]:>20} {shown[1]:>20}")


def timed(call: list[str | Path], settings: dict[str, str]) -> tuple[float, float]:
    """Milliseconds until the command has ended, and those of CPU that it took."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(call, check=True, capture_output=True, env=settings)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1000 * took, 1000 * cpu


def gate(stage: Stage, _: Size) -> None:
    """Fail when an event costs far more CPU than committed, in the best of three rounds."""
    table, load = Table(), Load(events=SMALL.events)
    for _round in range(3):
        table.add("calibration", stage.run("calibrate", load))
        for kind in STORES:
            table.add(f"worker, {kind}", stage.run("worker", load, kind))
    table.show()
    for kind in STORES:
        cost = table.least(f"worker, {kind}", "cpu_us") / table.least("calibration", "cpu_us")
        if cost > GATE:
            raise SystemExit(
                f"an event costs the worker {cost:.1f} times the CPU of the calibration loop on"
                f" {kind}, and {GATE} is the bound: find the change that did it"
                " (make bench BENCH=profile)"
            )


def machine() -> str:
    cpus = Path("/proc/cpuinfo").read_text()
    model = cpus.partition("model name")[2].partition(":")[2].partition("\n")[0].strip()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES if find_spec(name))
    return (
        f"{os.cpu_count()} CPUs, {model}; Python {platform.python_version()},"
        f" SQLite {sqlite3.sqlite_version}; {packages}"
    )


SCENARIOS: dict[str, Callable[[Stage, Size], None]] = {
    scenario.__name__: scenario
    for scenario in (
        *(drain, peers, two, poison, replay, batches, sizes, kinds, partitions, connectors, memory),
        *(elastic, delays, imports, profile, gate),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--full", action="store_true", help="the sizes of docs/performance.md")
    parser.add_argument("--rounds", type=int, help="rounds of each scenario")
    parser.add_argument("--events", type=int, help="events of a drain")
    chosen = parser.parse_args()
    if unknown := set(chosen.scenarios) - SCENARIOS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(SCENARIOS)}")
    whole = FULL if chosen.full else SMALL
    given = {name: value for name in ("rounds", "events") if (value := getattr(chosen, name))}
    size = Size(**{name: given.get(name, getattr(whole, name)) for name in Size.__slots__})
    print(machine())
    with opened() as stage:
        for name in chosen.scenarios or (each for each in SCENARIOS if each not in ON_REQUEST):
            print(f"\n# {name}: {SCENARIOS[name].__doc__}", flush=True)
            SCENARIOS[name](stage, size)


if __name__ == "__main__":
    main()
