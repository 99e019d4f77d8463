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
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders import Job, settings
from benchmarks.events import START, Load, connector_ids, records
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

    def run(self, contender: str, load: Load, kind: str = "", **more: Any) -> Figures:
        """Let a contender work through the load in a process of its own."""
        given = {"store": self.store(kind, load) if kind else "", "events": load.events, **more}
        job = self.job(self.topic(load), **given)
        if contender == "calibrate":
            job.group = ""
        return finished(started(contender, job))

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
        yield Stage(kafka=Kafka(bootstrap), databases=databases, folder=folder)


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
        timestamp_ms=0,
        key=record.key,
        value=record.value,
        headers=(),
        reason="connector_not_found",
        status=404,
        message=f"connector {record.key.decode()!r} is not registered in the store",
        connector_id=record.key.decode(),
        failed_at=START,
        store=store_id,
    )


def started(contender: str, job: Job) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.contenders", contender, json.dumps(asdict(job))],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def finished(process: subprocess.Popen[str]) -> Figures:
    out, _ = process.communicate(timeout=LIMIT)
    if process.returncode:
        raise SystemExit(f"{process.args!r} failed")
    figures: Figures = json.loads(out.splitlines()[-1])
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

    def show(self) -> None:
        print(f"\n{'':30} {'events/s':>9}  {'rate':<19} {'µs CPU':>6}  {'CPU':<19} {'MB':>4}  of")
        for name, rounds in self.rounds.items():
            rate, cpu, peak = (
                statistics.median(each[figure] for each in rounds)
                for figure in ("rate", "cpu_us", "peak_mb")
            )
            base = self.bases[name]
            speed, cost = (spread(self.ratios(name, base, f)) for f in ("rate", "cpu_us"))
            print(f"{name:30} {rate:9,.0f}  {speed:<19} {cpu:6.1f}  {cost:<19} {peak:4.0f}  {base}")


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
