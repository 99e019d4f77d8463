"""What contenders run on: a broker, a PostgreSQL, topics filled once, a fresh store for each."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.contenders import Job, settings
from benchmarks.events import START, Load, connector_ids, records, unknown
from schemas.dead_letter import DeadLetter
from tests.brokers import find_brokers
from tests.kafka import Kafka, Record, Topics
from tests.postgres import Databases, find_postgres
from worker.dead_letters import DeadLetterTopic
from worker.stores import open_store, upgrade_store

Figures = dict[str, float]
TEMPLATE = "last_sync_benchmark"
LIMIT = 900  # seconds that one contender may take
LETTERS = 1_000  # written at once
TOGETHER = 100  # letters of a batch of the worker's, which have one time
LARGEST = 1_000_000  # bytes of a letter


@dataclass(kw_only=True)
class Stage:
    """Where everything stands; made by `opened`."""

    kafka: Kafka
    databases: Databases
    folder: Path
    topics: dict[Load, Topics] = field(default_factory=dict)

    def topic(self, load: Load) -> Topics:
        """A topic with this load; the group is one that nobody has used."""
        if load not in self.topics:
            topics = self.topics[load] = Topics.unique()
            in_a_loop(self.kafka.create, topics, partitions=load.partitions)
            in_a_loop(self.kafka.produce, topics.source, records(load))
        found = self.topics[load]
        return Topics(source=found.source, dlq=found.dlq, group=Topics.unique().group)

    def store(self, kind: str, load: Load) -> str:
        """The URL of a new store in which the connectors of the load are registered."""
        name = Topics.unique().group
        url = f"sqlite:///{self.folder / name}.db"
        if kind == "postgresql":
            url = self.databases.create(TEMPLATE)
        in_a_loop(register, url, load)
        return url

    def run(
        self, contender: str, load: Load, kind: str = "", under: Sequence[str] = (), **more: Any
    ) -> Figures:
        """Let a contender work through the load in a process of its own, or of the command `under`.

        Ends the benchmark when not every event was applied that should be.
        """
        given = {"store": self.store(kind, load) if kind else "", "events": load.events, **more}
        job = self.job(self.topic(load), **given)
        if contender == "calibrate":
            job.group = ""
        figures = finished(started(contender, job, under))
        if kind:
            self.drop(job.store)
        check(contender, figures, load, job.events)
        return figures

    def drop(self, store: str) -> None:
        """Forget a store, so that the server has nothing to do for it while others are measured."""
        if store.startswith("sqlite"):
            for path in self.folder.glob(f"{Path(store).name}*"):
                path.unlink()
        else:
            self.databases.drop(store)

    def job(self, topics: Topics, **more: Any) -> Job:
        """What a contender is told to do with these topics."""
        return Job(
            bootstrap=self.kafka.bootstrap,
            topic=topics.source,
            dlq=topics.dlq,
            group=topics.group,
            **more,
        )

    def letters(self, load: Load, kind: str) -> tuple[Topics, str]:
        """A topic of dead letters, one for each event, and a store in which they are welcome."""
        topics, store = Topics.unique(), self.store(kind, load)
        in_a_loop(self.kafka.create, topics)
        in_a_loop(write_letters, self.job(topics, store=store), load)
        return topics, store


@contextmanager
def opened() -> Iterator[Stage]:
    with ExitStack() as stack:
        bootstrap = os.environ.get("LAST_SYNC_TEST_BOOTSTRAP")
        if bootstrap is None:
            broker = stack.enter_context(find_brokers(os.environ, say)())
            broker.start()
            bootstrap = broker.bootstrap
        postgres = os.environ.get("LAST_SYNC_TEST_POSTGRES")
        if postgres is None:  # which the tests run without fsync
            server = find_postgres(os.environ, say)(configuration={"fsync": "on"})
            stack.enter_context(server)
            server.start()
            postgres = server.url
        databases = Databases(postgres)
        databases.make_template(TEMPLATE, partial(in_a_loop, upgrade_store))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        say(durability(folder, postgres))
        yield Stage(kafka=Kafka(bootstrap), databases=databases, folder=folder)


def durability(folder: Path, postgres: str) -> str:
    """What the stores stand on: a disk in memory, or a server that does not wait, is fast."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    mount = max((m for m in mounts if folder.is_relative_to(m[1])), key=lambda m: len(m[1]))
    return f"SQLite on {mount[2]}; PostgreSQL: {', '.join(asyncio.run(shown(postgres)))}"


async def shown(postgres: str) -> list[str]:
    database = await asyncpg.connect(postgres)
    names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
    found = [f"{name} {await database.fetchval(f'SHOW {name}')}" for name in names]
    await database.close()
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr)


def in_a_loop(
    function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any, **options: Any
) -> None:
    asyncio.run(function(*arguments, **options))


async def register(url: str, load: Load) -> None:
    ids = connector_ids(load)
    async with open_store(url) as store:
        for start in range(0, len(ids), 10_000):
            await store.add(ids[start : start + 10_000])


async def write_letters(job: Job, load: Load) -> None:
    """Write them as the worker does."""
    async with open_store(job.store) as store:
        store_id = store.store_id
    letters = [letter(record, number, store_id) for number, record in enumerate(records(load))]
    async with DeadLetterTopic.opened(settings(job), LARGEST) as topic:
        for start in range(0, len(letters), LETTERS):
            await topic.publish(letters[start : start + LETTERS])


def letter(record: Record, number: int, store_id: str) -> DeadLetter:
    assert record.key is not None
    return DeadLetter(
        group="benchmark",
        topic="benchmark",
        partition=record.partition or 0,
        offset=number,
        timestamp_ms=1_767_225_600_000 + number,
        key=record.key,
        value=record.value,
        headers=(),
        reason="connector_not_found",
        status=404,
        message=f"connector {record.key.decode()!r} is not registered in the store",
        connector_id=record.key.decode(),
        failed_at=START + timedelta(seconds=number // TOGETHER),
        store=store_id,
    )


def check(contender: str, figures: Figures, load: Load, least: int) -> None:
    """A contender that leaves something out is fast for nothing."""
    events, applied = int(figures["events"]), int(figures["applied"])
    wanted = events - unknown(load) if load.poison else events
    if events < least or (applied != wanted and not load.mixed):  # of those some are superseded
        raise SystemExit(
            f"{contender} handled {events:,} events of {least:,} and applied {applied:,}"
            f" instead of {wanted:,}: what it took says nothing"
        )


def started(contender: str, job: Job, under: Sequence[str] = ()) -> subprocess.Popen[str]:
    call = [sys.executable, "-m", "benchmarks.contenders", contender, json.dumps(asdict(job))]
    return subprocess.Popen(
        [*under, *call],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def finished(process: subprocess.Popen[str]) -> Figures:
    out, _ = process.communicate(timeout=LIMIT)
    said = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not said:
        raise SystemExit(f"{process.args!r} failed")
    figures: Figures = json.loads(said[-1])
    return figures


def environment(**more: str) -> dict[str, str]:
    """The environment without a person's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LAST_SYNC_")}
    return kept | more


@dataclass(kw_only=True)
class Table:
    """Figures of contenders that took turns, each round against the first of them, or another."""

    rounds: defaultdict[str, list[Figures]] = field(default_factory=lambda: defaultdict(list))
    bases: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, figures: Figures, *, of: str = "") -> None:
        self.bases[name] = of or next(iter(self.rounds), name)
        self.rounds[name].append(figures)
        rate, cpu = figures["rate"], figures["cpu_us"]
        say(f"  {name}: {rate:,.0f}/s, {cpu:.1f} µs CPU, {figures['peak_mb']:.0f} MB")

    def ratios(self, name: str, to: str, figure: str = "rate") -> list[float]:
        pairs = zip(self.rounds[name], self.rounds[to], strict=True)
        return [mine[figure] / other[figure] for mine, other in pairs]

    def least(self, name: str, figure: str) -> float:
        return min(each[figure] for each in self.rounds[name])

    def show(self) -> None:
        titles = f"{'events/s':<25} {'rate':<19} {'µs CPU':<18} {'CPU':<19} {'MB':<14}"
        print(f"\n{'':31} {titles} of")
        for name, rounds in self.rounds.items():
            base = self.bases[name]
            rate, cpu, peak = (
                spread([each[figure] for each in rounds], digits)
                for figure, digits in (("rate", 0), ("cpu_us", 1), ("peak_mb", 0))
            )
            speed, cost = (spread(self.ratios(name, base, f)) for f in ("rate", "cpu_us"))
            print(f"{name:31} {rate:<25} {speed:<19} {cpu:<18} {cost:<19} {peak:<14} {base}")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the range."""
    median, *ends = (
        f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({'-'.join(ends)})"
