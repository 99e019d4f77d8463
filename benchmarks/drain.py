"""Drain a topic with the worker, beside a loop that only fetches and validates.

Then replay as many dead letters of the same events, into a fresh store.
Run `make bench`. Each round runs both, each in a fresh process, one after the other; the ratio of
a round is the worker's events a second over the calibration loop's. Quote the median and range.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import SecretStr

from schemas.dead_letter import DeadLetter
from schemas.sync_finished import SyncFinished
from tests.brokers import find_brokers
from tests.kafka import Kafka, Record, Topics
from worker import app
from worker.replay import Signature
from worker.settings import Settings
from worker.stores import open_store
from worker.watchdog import Watchdog

PARTITIONS = 4
START = datetime(2026, 1, 1, tzinfo=UTC)


def events(count: int, connectors: int) -> Iterator[Record]:
    """Events of about 375 bytes, seeded, each connector's in order."""
    chosen = random.Random(1)  # noqa: S311 - a benchmark's data
    for number in range(count):
        connector = f"connector-{chosen.randrange(connectors):06}"
        began = START + timedelta(seconds=number)
        value = {
            "event_id": f"01J{number:023}",
            "connector_id": connector,
            "occurred_at": (began + timedelta(seconds=42)).isoformat(),
            "job": {
                "id": f"job-{number}",
                "job_type": "full",
                "status": "completed",
                "error": None,
                "scheduled_at": began.isoformat().replace("+00:00", "Z"),
                "started_at": began.isoformat().replace("+00:00", "Z"),
                "completed_at": (began + timedelta(seconds=42)).isoformat().replace("+00:00", "Z"),
                "indexed_document_count": number,
                "deleted_document_count": 42,
            },
        }
        yield Record(
            key=connector.encode(), value=json.dumps(value).encode(), partition=number % PARTITIONS
        )


async def calibrate(bootstrap: str, topic: str) -> dict[str, float]:
    """Fetch and validate, nothing else."""
    client = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None
    )
    await client.start()
    try:
        tps = [TopicPartition(topic, n) for n in range(PARTITIONS)]
        left = sum((await client.end_offsets(tps)).values())
        count, began = left, time.perf_counter()
        while left:
            for records in (await client.getmany(timeout_ms=500, max_records=500)).values():
                for record in records:
                    SyncFinished.model_validate_json(record.value)
                left -= len(records)
        return figures(count, time.perf_counter() - began)
    finally:
        await client.stop()


async def work(bootstrap: str, topics: Topics, url: str) -> dict[str, float]:
    """Drain with the real worker; timed from its first batch to the end of its last commit."""
    batches: list[tuple[float, dict[str, Any]]] = []

    def note(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if event["event"] == "batch.done":
            batches.append((time.perf_counter(), dict(event)))
        raise structlog.DropEvent

    structlog.configure(processors=[note])
    settings = Settings(
        kafka_bootstrap_servers=bootstrap,
        kafka_topic=topics.source,
        kafka_dead_letter_topic=topics.dlq,
        kafka_group_id=topics.group,
    )
    async with open_store(url) as store:
        await app.consume(settings, store, asyncio.Event(), Watchdog(60), drain=True)
    (first, event), (last, _) = batches[0], batches[-1]
    began = first - sum(value for name, value in event.items() if name.endswith("_s"))
    spent = {
        name: sum(batch[name] for _, batch in batches)
        for name in ("decode_s", "store_s", "dead_letters_s", "commit_s")
    }
    return figures(sum(batch["records"] for _, batch in batches), last - began) | spent


async def replay(bootstrap: str, topics: Topics, url: str) -> dict[str, float]:
    """Replay all open letters: read the table, read them whole, apply, close."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    settings = Settings(
        kafka_bootstrap_servers=bootstrap,
        kafka_topic=topics.source,
        kafka_dead_letter_topic=topics.dlq,
        store_url=SecretStr(url),
    )
    began, settled = time.perf_counter(), 0
    async with app.dead_letters(settings) as letters:
        table = await letters.table()
        signature = Signature(by="benchmark", why="measured")
        async for results in app.replay(settings, letters, table, signature, dry_run=False):
            settled += sum(result.resolved for result in results)
    return figures(settled, time.perf_counter() - began)


def figures(count: int, seconds: float) -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "events": count,
        "seconds": seconds,
        "rate": count / seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def in_a_fresh_process(*arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


@contextmanager
def broker() -> Iterator[str]:
    with ExitStack() as stack:
        given = os.environ.get("LAST_SYNC_TEST_BOOTSTRAP")
        if given is None:
            started = stack.enter_context(find_brokers(os.environ, print)())
            started.start()
            given = started.bootstrap
        yield given


async def prepare(bootstrap: str, topics: Topics, count: int, connectors: int, url: str) -> None:
    kafka = Kafka(bootstrap)
    await kafka.create(topics, partitions=PARTITIONS)
    await kafka.produce(topics.source, events(count, connectors))
    async with open_store(url) as store:
        await store.add([f"connector-{n:06}" for n in range(connectors)])


async def prepare_letters(
    bootstrap: str, topics: Topics, count: int, connectors: int, url: str
) -> None:
    """Write a letter for each event, as if no connector had been registered, and register them."""
    async with open_store(url) as store:
        await store.add([f"connector-{n:06}" for n in range(connectors)])
        letters = (
            letter(record, number, store.store_id)
            for number, record in enumerate(events(count, connectors))
        )
        await Kafka(bootstrap).produce(topics.dlq, letters)


def letter(record: Record, number: int, store_id: str) -> Record:
    assert record.key is not None
    key, value, headers = DeadLetter(
        group="benchmark",
        topic="benchmark",
        partition=number % PARTITIONS,
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
    ).to_record(1_000_000)
    return Record(key=key, value=value, headers=headers, partition=number % PARTITIONS)


def measure(count: int, connectors: int, rounds: int) -> None:
    ratios, replays = [], []
    with broker() as bootstrap, tempfile.TemporaryDirectory() as folder:
        print(f"{count} events, {connectors} connectors, {PARTITIONS} partitions, {rounds} rounds")
        for number in range(rounds):
            topics = Topics.unique()
            url = f"sqlite:///{Path(folder) / f'{number}.db'}"
            asyncio.run(prepare(bootstrap, topics, count, connectors, url))
            alone = in_a_fresh_process("--calibrate", bootstrap, topics.source)
            whole = in_a_fresh_process(
                "--work", bootstrap, topics.source, topics.dlq, topics.group, url
            )
            assert alone["events"] == whole["events"] == count
            ratios.append(whole["rate"] / alone["rate"])
            fresh = f"{url}.replayed"
            asyncio.run(prepare_letters(bootstrap, topics, count, connectors, fresh))
            again = in_a_fresh_process(
                "--replay", bootstrap, topics.source, topics.dlq, topics.group, fresh
            )
            assert again["events"] == count
            replays.append(again["rate"] / whole["rate"])
            shares = ", ".join(
                f"{name[:-2]} {1e6 * seconds / count:.1f}"
                for name, seconds in whole.items()
                if name.endswith("_s")
            )
            print(
                f"round {number + 1}: calibration {alone['rate']:,.0f}/s, "
                f"worker {whole['rate']:,.0f}/s, ratio {ratios[-1]:.2f}; "
                f"peak {whole['peak_mb']:.0f} MB; µs an event: {shares}; "
                f"replay {again['rate']:,.0f} letters/s, peak {again['peak_mb']:.0f} MB"
            )
    print(
        f"ratio worker/calibration, SQLite: median {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}); "
        f"replay/worker: median {statistics.median(replays):.2f} "
        f"({min(replays):.2f} to {max(replays):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--connectors", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calibrate", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--replay", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.calibrate:
        print(json.dumps(asyncio.run(calibrate(*chosen.calibrate))))
    elif chosen.work or chosen.replay:
        bootstrap, source, dlq, group, url = chosen.work or chosen.replay
        topics = Topics(source=source, dlq=dlq, group=group)
        measured = work if chosen.work else replay
        print(json.dumps(asyncio.run(measured(bootstrap, topics, url))))
    else:
        measure(chosen.events, chosen.connectors, chosen.rounds)


if __name__ == "__main__":
    main()
