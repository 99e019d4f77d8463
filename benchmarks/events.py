"""The events of the benchmarks: seeded, so that every run has the same."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from zlib import crc32

from schemas.scalars import JOB_TYPES, STATUSES
from tests.kafka import Record

# What the connector protocol has in a job beside what an event needs
OTHERS = {
    "cancelation_requested_at": None,
    "canceled_at": None,
    "connector": {
        "configuration": {},
        "filtering": [],
        "id": "connector",
        "index_name": "search-connector",
        "language": "en",
        "pipeline": {"extract_binary_content": True, "name": "ent-search-generic-ingestion"},
        "service_type": "sharepoint_online",
    },
    "created_at": "2026-01-01T00:00:00Z",
    "indexed_document_volume": 4096,
    "last_seen": "2026-01-01T00:00:00Z",
    "metadata": {},
    "total_document_count": 4242,
    "trigger_method": "scheduled",
    "worker_hostname": "connectors-0",
}
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is in a topic."""

    events: int
    connectors: int = 10_000  # that there are events of
    among: int = 1  # of so many connectors in the store, one has events
    partitions: int = 4
    busy: int | None = None  # partitions that have events; None for all
    size: int = 375  # bytes of a value, about
    poison: float = 0.0  # share of events for connectors that nobody registered
    whole: bool = False  # jobs with the other fields of Elastic's own record, which are not read
    mixed: bool = False  # starts and ends of all kinds of jobs, instead of completed full syncs


def connector_ids(load: Load) -> list[str]:
    return [f"connector-{number:06}" for number in range(load.connectors * load.among)]


def records(load: Load) -> Iterator[Record]:
    """Completed full syncs, each connector's in the order of time and in one partition."""
    chosen = random.Random(1)  # noqa: S311 - a benchmark's data
    for number in range(load.events):
        connector = f"connector-{load.among * chosen.randrange(load.connectors):06}"
        if chosen.random() < load.poison:
            connector = f"unknown-{connector}"
        content = event(number, connector, load.size - 375)
        if load.whole:
            content["job"] |= OTHERS
        if load.mixed:
            content["job"] |= {
                "job_type": chosen.choice(JOB_TYPES),
                "status": chosen.choice(STATUSES),
            }
        value = json.dumps(content).encode()
        key = connector.encode()
        yield Record(key=key, value=value, partition=crc32(key) % (load.busy or load.partitions))


@cache
def unknown(load: Load) -> int:
    """How many of the records are for connectors that nobody registered."""
    return sum((record.key or b"").startswith(b"unknown-") for record in records(load))


def event(number: int, connector: str, more: int) -> dict[str, Any]:
    began = START + timedelta(seconds=number)
    scheduled, ended = (
        moment.isoformat().replace("+00:00", "Z")
        for moment in (began, began + timedelta(seconds=42))
    )
    return {
        "event_id": f"01J{number:023}",
        "connector_id": connector,
        "occurred_at": (began + timedelta(seconds=42)).isoformat(),
        "job": {
            "id": f"job-{number}",
            "job_type": "full",
            "status": "completed",
            "error": "x" * more or None,
            "scheduled_at": scheduled,
            "started_at": scheduled,
            "completed_at": ended,
            "indexed_document_count": number,
            "deleted_document_count": 42,
        },
    }
