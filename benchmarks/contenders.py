"""Who is measured. Each runs in a process of its own and prints its figures as JSON.

All read one topic from its beginning to the end that it has at the start. A figure counts from the
first batch that is done to the last, so that joining a group and warming up are nobody's cost.
"""

import asyncio
import io
import json
import logging
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import asyncpg
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import BaseModel, SecretStr

from benchmarks.events import Load, connector_ids
from worker import logs, memory
from worker.app import letters as open_letters
from worker.app import replays, running
from worker.replay import Signature
from worker.settings import Settings
from worker.stores import open_merging_store
from worker.stores.base import ElasticsearchAccess
from worker.watchdog import Watchdog

BATCH = 500  # records that the plain loops fetch at once


@dataclass(kw_only=True)
class Job:
    """Where a contender reads and writes."""

    bootstrap: str
    topic: str
    dlq: str = ""
    group: str = ""
    store: str = ""
    batch_size: int = 0  # the worker's; 0 is its default
    events: int = 0  # after which a contender stops; the worker stops at the end of the topic


@dataclass(kw_only=True)
class Meter:
    """Notes each batch that is done, and how many of its events set what they had to set."""

    notes: list[tuple[int, float, float]] = field(default_factory=list)
    applied: int = 0

    def done(self, events: int, applied: int) -> None:
        self.notes.append((events, time.perf_counter(), time.process_time()))
        self.applied += applied

    def figures(self) -> dict[str, float]:
        """Leave out the first batch, and the last: while one is stored the next is read."""
        if len(self.notes) < 3:
            raise SystemExit(f"{len(self.notes)} batches are too few to measure: more --events")
        (first, began, cpu_before), *rest, (last, end, _) = self.notes
        events = sum(count for count, _, _ in rest)
        _, ended, cpu_after = rest[-1]
        return {
            "events": first + events + last,
            "applied": self.applied,
            "first": first,
            "began": began,
            "ended": end,
            "rate": events / (ended - began),
            "cpu_us": 1e6 * (cpu_after - cpu_before) / events,
            "peak_mb": peak_mb(),
        }


def peak_mb() -> float:
    """Of this process; `getrusage` would begin with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class SyncJob(BaseModel):
    """A job as one would write it down, without this project's rules."""

    id: str | None = None
    job_type: Literal["full", "incremental", "access_control"]
    status: Literal[
        "canceling", "canceled", "completed", "error", "in_progress", "pending", "suspended"
    ]
    error: str | None = None
    scheduled_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    indexed_document_count: int | None = None
    deleted_document_count: int | None = None


class Event(BaseModel):
    """The event in the same way: what the calibration loop and the plain ones validate."""

    event_id: str
    connector_id: str
    occurred_at: datetime
    job: SyncJob


async def fetched(
    job: Job,
    meter: Meter,
    handle: Callable[[AIOKafkaConsumer, Sequence[Any]], Awaitable[int]],
    *,
    for_ever: bool = False,
) -> None:
    """Fetch 500 at once until the end of the topic; `handle` tells how many it applied."""
    client = AIOKafkaConsumer(
        job.topic,
        bootstrap_servers=job.bootstrap,
        group_id=job.group or None,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await client.start()
    try:
        left = job.events
        while left > 0 or for_ever:
            polled = await client.getmany(timeout_ms=500, max_records=BATCH)
            records = [record for found in polled.values() for record in found]
            if records:
                meter.done(len(records), await handle(client, records))
                left -= len(records)
    finally:
        await client.stop()


async def calibrate(job: Job, meter: Meter) -> None:
    """Fetch and validate, nothing else."""

    async def handle(_: AIOKafkaConsumer, records: Sequence[Any]) -> int:
        for record in records:
            Event.model_validate_json(record.value)
        return len(records)

    await fetched(job, meter, handle)


NAMES = ("id", "at", "status", "error", "scheduled_at", "synced", "indexed", "deleted")
TABLE = (
    "CREATE TABLE plain (id TEXT PRIMARY KEY, at {time}, status TEXT, error TEXT,"
    " scheduled_at {time}, synced {time}, indexed BIGINT, deleted BIGINT)"
)
UPSERT = (
    f"INSERT INTO plain ({', '.join(NAMES)}) {{values}} ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in NAMES[1:])
    + " WHERE plain.at IS NULL OR excluded.at > plain.at"
)


def row(event: Event) -> tuple[Any, ...]:
    job = event.job
    return (
        event.connector_id,
        event.occurred_at,
        job.status,
        job.error,
        job.scheduled_at,
        job.completed_at,
        job.indexed_document_count,
        job.deleted_document_count,
    )


async def bulk_sqlite(job: Job, meter: Meter) -> None:
    """A plain bulk loop: one upsert a batch, and the commit."""
    database = sqlite3.connect(job.store.removeprefix("sqlite:///"), isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(TABLE.format(time="TEXT"))
    upsert = UPSERT.format(values=f"VALUES ({', '.join('?' * len(NAMES))})")
    times = [NAMES.index(name) for name in ("at", "scheduled_at", "synced")]

    async def handle(client: AIOKafkaConsumer, records: Sequence[Any]) -> int:
        rows = [list(row(Event.model_validate_json(record.value))) for record in records]
        for each in rows:
            for place in times:
                each[place] = each[place].isoformat()
        database.execute("BEGIN IMMEDIATE")
        applied = database.executemany(upsert, rows).rowcount
        database.execute("COMMIT")
        await client.commit()
        return applied

    await fetched(job, meter, handle)


KINDS = ("text", "timestamptz", "text", "text", "timestamptz", "timestamptz", "bigint", "bigint")
ARRAYS = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(KINDS, 1))
UPSERT_ARRAYS = UPSERT.format(values=f"SELECT * FROM unnest({ARRAYS})")
UPDATE = (
    f"UPDATE plain SET {', '.join(f'{name} = ${n}' for n, name in enumerate(NAMES[1:], 2))}"
    " WHERE id = $1 AND coalesce(at < $2, true)"
)


async def upserted(database: asyncpg.Connection, events: Sequence[Event]) -> int:
    """Write the newest event of each connector, an array a column; tell how many were applied.

    Here each is newer than all before it: all of them were, unless a row was not written.
    """
    newest = {event.connector_id: event for event in sorted(events, key=lambda e: e.occurred_at)}
    columns = list(map(list, zip(*map(row, newest.values()), strict=True)))
    missing = len(newest) - written(await database.execute(UPSERT_ARRAYS, *columns))
    return len(events) - missing


def written(status: str) -> int:
    """How many rows a statement wrote, by what PostgreSQL said of it: `UPDATE 1`."""
    return int(status.rpartition(" ")[2])


async def bulk_postgresql(job: Job, meter: Meter, *, for_ever: bool = False) -> None:
    """The same: one INSERT with an array a column."""
    database = await asyncpg.connect(job.store)
    await database.execute(TABLE.format(time="TIMESTAMPTZ"))

    async def handle(client: AIOKafkaConsumer, records: Sequence[Any]) -> int:
        events = [Event.model_validate_json(record.value) for record in records]
        applied = await upserted(database, events)
        await client.commit()
        return applied

    await fetched(job, meter, handle, for_ever=for_ever)
    await database.close()


async def per_event(job: Job, meter: Meter) -> None:
    """Validate, UPDATE, commit the offset, for every event by itself, on PostgreSQL."""
    database = await asyncpg.connect(job.store)
    await database.execute(TABLE.format(time="TIMESTAMPTZ"))
    await database.execute("INSERT INTO plain SELECT id FROM connectors")

    async def handle(client: AIOKafkaConsumer, records: Sequence[Any]) -> int:
        applied = 0
        for record in records:
            event = Event.model_validate_json(record.value)
            applied += written(await database.execute(UPDATE, *row(event)))
            await client.commit({TopicPartition(record.topic, record.partition): record.offset + 1})
        return applied

    await fetched(job, meter, handle)
    await database.close()


def settings(job: Job) -> Settings:
    more: dict[str, Any] = {"batch_size": job.batch_size} if job.batch_size else {}
    return Settings(
        kafka_bootstrap_servers=job.bootstrap,
        kafka_topic=job.topic,
        kafka_dead_letter_topic=job.dlq,
        kafka_group_id=job.group,
        store_url=SecretStr(job.store),
        **more,
    )


async def worker(job: Job, meter: Meter) -> None:
    """Drain with the real worker."""

    def note(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if event["event"] == "batch.done":
            meter.done(event["records"], event["applied"])
        return event

    with redirect_stderr(Nowhere()):
        logs.configure()
        structlog.configure(processors=[note, *structlog.get_config()["processors"]])
        memory.settle()
        async with open_merging_store(job.store) as store:
            await running.consume(settings(job), store, asyncio.Event(), Watchdog(60), drain=True)


async def worker_for_ever(job: Job, _: Meter) -> None:
    """The worker as a service: it ends by a signal."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    await running.run(settings(job))


async def bulk_for_ever(job: Job, meter: Meter) -> None:
    """The plain bulk loop as a service."""
    await bulk_postgresql(job, meter, for_ever=True)


async def faststream_message(job: Job, meter: Meter) -> None:
    """FastStream with a handler that is called for each message."""
    await faststream(job, meter, batch=False, ack="NACK_ON_ERROR")


async def faststream_batch(job: Job, meter: Meter) -> None:
    """FastStream with a handler that is called for each batch of 500."""
    await faststream(job, meter, batch=True, ack="NACK_ON_ERROR")


async def faststream_message_default(job: Job, meter: Meter) -> None:
    """The same for each message, with FastStream's own `ack_first`."""
    await faststream(job, meter, batch=False, ack="ACK_FIRST")


async def faststream_batch_default(job: Job, meter: Meter) -> None:
    """The same for each batch, with FastStream's own `ack_first`."""
    await faststream(job, meter, batch=True, ack="ACK_FIRST")


async def faststream(job: Job, meter: Meter, *, batch: bool, ack: str) -> None:
    """Apply by the statements of the plain loops; with `NACK_ON_ERROR` commit then, as they do.

    With `ACK_FIRST`, its default, it commits on a timer what was fetched, applied or not.
    """
    from faststream import AckPolicy  # noqa: PLC0415 - the dependency group `bench`
    from faststream.kafka import KafkaBroker  # noqa: PLC0415

    database = await asyncpg.connect(job.store)  # a pool would reset it after each statement
    await database.execute(TABLE.format(time="TIMESTAMPTZ"))
    await database.execute("INSERT INTO plain SELECT id FROM connectors")
    broker, done, left = KafkaBroker(job.bootstrap, logger=None), asyncio.Event(), [job.events]

    async def each(event: Event) -> None:
        finish(1, written(await database.execute(UPDATE, *row(event))))

    async def all_of(events: list[Event]) -> None:
        finish(len(events), await upserted(database, events))

    def finish(count: int, applied: int) -> None:
        meter.done(count, applied)
        left[0] -= count
        if left[0] <= 0:
            done.set()

    options: dict[str, Any] = {"max_records": BATCH} if batch else {}
    subscribed = broker.subscriber(
        job.topic,
        group_id=job.group,
        auto_offset_reset="earliest",
        batch=batch,
        ack_policy=AckPolicy[ack],
        **options,
    )
    subscribed(all_of if batch else each)
    async with broker:
        await broker.start()
        await done.wait()
    await database.close()


class Nowhere(io.TextIOBase):
    """Drops what is written."""

    def write(self, text: str) -> int:
        return len(text)


async def replay(job: Job, meter: Meter) -> None:
    """Replay all open letters as `dlq replay` does: read the table, apply, close, tell of each."""
    with redirect_stderr(Nowhere()):
        logs.configure()
        meter.done(0, 0)
        async with open_letters.dead_letters(settings(job)) as letters:
            table = await letters.table(keep=lambda _: True)
            signature = Signature(by="benchmark", why="measured")
            async for results in replays.replay(
                settings(job), letters, table, signature, dry_run=False
            ):
                meter.done(len(results), sum(result.outcome == "applied" for result in results))
        meter.done(0, 0)  # nothing is left out: the table was read at once


async def puts(job: Job, meter: Meter) -> None:
    """Put stats through Elastic's own client, as many at once as the worker may, nothing else."""
    from elasticsearch import AsyncElasticsearch  # noqa: PLC0415 - 20 MB, which others do not have

    headers = {"accept": "application/json", "content-type": "application/json"}
    stats = {"last_sync_status": "completed", "last_indexed_document_count": 42}
    ids = cycle(connector_ids(Load(events=job.events, connectors=1_000)))
    paths = (f"/_connector/{id_}/_last_sync" for id_ in islice(ids, job.events))
    concurrency = ElasticsearchAccess().concurrency
    url = job.store.removeprefix("elasticsearch+")
    async with AsyncElasticsearch(url, connections_per_node=concurrency) as client:

        async def one_after_the_other() -> None:
            for path in paths:
                await client.perform_request("PUT", path, headers=headers, body=stats)
                meter.done(1, 1)

        await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))


CONTENDERS = {
    contender.__name__: contender
    for contender in (
        *(calibrate, bulk_sqlite, bulk_postgresql, per_event, worker, replay),
        *(worker_for_ever, bulk_for_ever, puts, faststream_message, faststream_batch),
        *(faststream_message_default, faststream_batch_default),
    )
}


def main() -> None:
    name, given = sys.argv[1:]
    meter = Meter()
    asyncio.run(CONTENDERS[name](Job(**json.loads(given)), meter))
    if not name.endswith("_for_ever"):
        print(json.dumps(meter.figures()))


if __name__ == "__main__":
    main()
