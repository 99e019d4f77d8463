"""A seeded topic's worth of events, with what has to become of them."""

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests import oracle
from tests.kafka import Record

PARTITIONS = 4
START = datetime(2026, 1, 1, tzinfo=UTC)
STATUSES = ("pending", "in_progress", "suspended", "canceling", "completed", "error", "canceled")

MALFORMED = {
    b"": "empty_value",
    b"\xef\xbb\xbf{}": "byte_order_mark",
    b'{"event_id": "cut off': "invalid_json",
    b"[]": "not_an_object",
    b'"caf\xe9"': "not_utf8",
    b'{"a": 1e999}': "not_finite",
    b'{"a": 1, "a": 2}': "duplicate_key",
    b'{"a": "\\ud800"}': "lone_surrogate",
    b"{}": "missing_field",
    b"[" * 65 + b"]" * 65: "too_deep",
    None: "null_value",
}


@dataclass(slots=True)
class Topic:
    """Records to publish, the events among them, and the reasons of those that must fail."""

    registered: list[str]
    records: list[Record] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    failing: Counter[tuple[str, int, bytes | None]] = field(default_factory=Counter)

    @property
    def expected(self) -> dict[str, dict[str, Any]]:
        return oracle.expected(self.events, self.registered)


def topic(
    count: int = 20_000,
    connectors: int = 500,
    *,
    seed: int = 1,
    duplicates: float = 0.05,
    unknown: float = 0.01,
    malformed: float = 0.005,
) -> Topic:
    """Make records in a random order over random partitions; the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    made = Topic(registered=[f"connector-{n:04}" for n in range(connectors)])
    for number in range(count):
        kind = chance.random()
        if kind < malformed:
            _add_malformed(made, chance)
        elif kind < malformed + unknown:
            _add_event(made, chance, f"unknown-{number % 50}", number)
        else:
            _add_event(made, chance, chance.choice(made.registered), number)
    for event in chance.choices(made.events, k=int(count * duplicates)):
        _add_record(made, chance, event)
    chance.shuffle(made.records)
    return made


def _add_event(made: Topic, chance: random.Random, connector_id: str, number: int) -> None:
    event = _event(chance, connector_id, number)
    made.events.append(event)
    _add_record(made, chance, event)


def _add_record(made: Topic, chance: random.Random, event: dict[str, Any]) -> None:
    value = json.dumps(event).encode()
    connector_id = event["connector_id"]
    if connector_id not in made.registered and connector_id.startswith("unknown"):
        made.failing["connector_not_found", 404, value] += 1
    made.records.append(_record(chance, connector_id.encode(), value))


def _add_malformed(made: Topic, chance: random.Random) -> None:
    value, reason = chance.choice([*MALFORMED.items(), (_wrong_field(chance), "invalid_status")])
    made.failing[reason, 400, value] += 1
    made.records.append(_record(chance, b"connector-0001", value))


def _wrong_field(chance: random.Random) -> bytes:
    event = _event(chance, "connector-0001", 0)
    payload = {"last_sync": {"last_sync_status": "Done"}, "job": None}
    return json.dumps(event | payload).encode()


def _record(chance: random.Random, key: bytes, value: bytes | None) -> Record:
    return Record(key=key, value=value, partition=chance.randrange(PARTITIONS))


def _event(chance: random.Random, connector_id: str, number: int) -> dict[str, Any]:
    """Times lie close together, so that stamps tie and lose; an id in fifty is used again."""
    at = START + timedelta(seconds=chance.randrange(3600), microseconds=chance.choice([0, 1, 231]))
    event_id = f"event-{number if chance.random() > 0.02 else chance.randrange(100)}"
    event: dict[str, Any] = {
        "event_id": event_id,
        "connector_id": connector_id,
        "occurred_at": _text(at),
    }
    if chance.random() < 0.8:
        return event | {"job": _job(chance, at, number)}
    return event | {"last_sync": _payload(chance, at, number)}


def _job(chance: random.Random, at: datetime, number: int) -> dict[str, Any]:
    status = chance.choice(STATUSES)
    job: dict[str, Any] = {
        "id": f"job-{number}",
        "job_type": chance.choice(["full", "incremental", "access_control"]),
        "status": status,
        "error": chance.choice([None, "", "it broke: é"]),
        "scheduled_at": _text(at - timedelta(minutes=5)),
    }
    if status != "pending":
        job["started_at"] = _text(at + timedelta(seconds=chance.randrange(-120, 120)))
    if status == "completed" and chance.random() < 0.7:
        job["completed_at"] = _text(at)
    if chance.random() < 0.7:
        job |= {"indexed_document_count": number, "deleted_document_count": 2**63 - 1}
    if chance.random() < 0.1:
        job["sync_cursor"] = {"page": number, "at": [1.5, None, {"é": True}]}
    return job


def _payload(chance: random.Random, at: datetime, number: int) -> dict[str, Any]:
    every = {
        "last_sync_status": chance.choice(STATUSES),
        "last_sync_error": chance.choice([None, "late"]),
        "last_access_control_sync_status": chance.choice(STATUSES),
        "last_access_control_sync_error": None,
        "last_indexed_document_count": number,
        "last_deleted_document_count": 0,
        "last_synced": _text(at),
        "last_sync_scheduled_at": _text(at),
    }
    return {name: every[name] for name in chance.sample(sorted(every), chance.randrange(1, 5))}


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
