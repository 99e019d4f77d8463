"""How long it takes from the broker's acknowledgement to the row, and to the committed offset."""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

import asyncpg
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from benchmarks.contenders import Job
from benchmarks.events import event

INTERVAL = 0.01  # seconds between two events
WARM_UP = 50  # events that are not counted
PATIENCE = 30.0  # seconds for one event
ROW = "SELECT {column} FROM {table} WHERE id = 'connector-000001'"
ROWS = {
    "worker_for_ever": ROW.format(column="last_indexed_document_count", table="connectors"),
    "bulk_for_ever": ROW.format(column="indexed", table="plain"),
}


async def measure(contender: str, job: Job, seconds: int) -> tuple[list[float], list[float]]:
    """Publish an event, see it arrive, and go on with the next: milliseconds for each."""
    producer = AIOKafkaProducer(bootstrap_servers=job.bootstrap, acks="all", linger_ms=0)
    admin = AIOKafkaAdminClient(bootstrap_servers=job.bootstrap)
    database = await asyncpg.connect(job.store)
    await producer.start()
    await admin.start()
    coordinator: int | None = None
    rows, offsets = [], []
    try:
        for number in range(1, WARM_UP + round(seconds / INTERVAL)):
            value = event(number, "connector-000001", 0) | {
                "occurred_at": datetime.now(UTC).isoformat()
            }
            sent = await producer.send_and_wait(
                job.topic, json.dumps(value).encode(), b"connector-000001", partition=0
            )
            acknowledged = time.perf_counter()
            await until(partial(visible, database, ROWS[contender], number))
            rows.append(1000 * (time.perf_counter() - acknowledged))
            if coordinator is None:  # each look would ask for it first
                coordinator = await admin.find_coordinator(job.group)
            await until(partial(committed, admin, job, coordinator, sent.offset))
            offsets.append(1000 * (time.perf_counter() - acknowledged))
            await asyncio.sleep(max(0, acknowledged + INTERVAL - time.perf_counter()))
    finally:
        await producer.stop()
        await admin.close()
        await database.close()
    return rows[WARM_UP:], offsets[WARM_UP:]


async def until(arrived: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await arrived():
            pass


async def visible(database: asyncpg.Connection, query: str, number: int) -> bool:
    try:
        found = await database.fetchval(query)
    except asyncpg.UndefinedTableError:  # the plain loop makes its own
        return False
    return found is not None and found >= number


async def committed(admin: AIOKafkaAdminClient, job: Job, coordinator: int, offset: int) -> bool:
    tp = TopicPartition(job.topic, 0)
    found = await admin.list_consumer_group_offsets(
        job.group, group_coordinator_id=coordinator, partitions=[tp]
    )
    return bool(found[tp].offset > offset)


def percentiles(values: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]
