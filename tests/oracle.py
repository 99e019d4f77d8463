"""What the store must hold after a set of events: an independent, slow, obvious reading.

It takes events as the JSON objects that publishers write, shares no code with the product, and
decides by sorting. Whoever changes the rules changes them here too, from the documents.
"""

import hashlib
import json
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

Event = dict[str, Any]
Fields = dict[str, Any]
Stamp = tuple[int, int, str, str]

RANKS = {"pending": 0, "in_progress": 1, "suspended": 2, "canceling": 3}
LAST_RANK = 4


def expected(events: Iterable[Event], registered: Collection[str]) -> dict[str, Fields]:
    """Give each registered connector's fields, as JSON shows them, after all of the events."""
    claims: dict[str, dict[str, list[tuple[Stamp, Any]]]] = {name: {} for name in registered}
    for event in events:
        fields, stamp = fields_of(event), stamp_of(event)
        for field, value in fields.items():
            if event["connector_id"] in claims:
                claims[event["connector_id"]].setdefault(field, []).append((stamp, value))
    return {
        connector_id: {field: winner(made) for field, made in fields.items()}
        for connector_id, fields in claims.items()
    }


def winner(made: list[tuple[Stamp, Any]]) -> Any:
    made.sort(key=lambda claim: claim[0])
    return made[-1][1]


def stamp_of(event: Event) -> Stamp:
    occurred, job = moment(event["occurred_at"]), event.get("job")
    if job:
        rank = RANKS.get(job["status"], LAST_RANK)
        started = moment(job["started_at"]) if job.get("started_at") else occurred
        at = max(occurred, started) if rank == LAST_RANK else started
    else:
        statuses = [v for k, v in event["last_sync"].items() if k.endswith("_status")]
        rank, at = max([RANKS.get(s, LAST_RANK) for s in statuses], default=1), occurred
    content = json.dumps(
        [event["connector_id"], fields_of(event)],
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )
    digest = hashlib.sha256(content.encode()).hexdigest()
    return microseconds(at), rank, event["event_id"], digest


def fields_of(event: Event) -> Fields:
    raw = event.get("last_sync")
    fields = dict(raw) if raw else from_job(event["job"], event["occurred_at"])
    for name, value in fields.items():
        if name.endswith("_error"):
            fields[name] = shortened(value)
        elif name.endswith(("_at", "_synced")):
            fields[name] = text(moment(value))
    return fields


def from_job(job: dict[str, Any], occurred_at: str) -> Fields:
    status, given = job["status"], {k: v for k, v in job.items() if v is not None}
    error = given.get("error") or ("unknown error" if status == "error" else None)
    done, completed = status in ("completed", "error", "canceled"), status == "completed"
    if job["job_type"] == "access_control":
        columns = {"scheduled_at": "last_access_control_sync_scheduled_at"}
        fields = {
            "last_access_control_sync_status": status,
            "last_access_control_sync_error": error,
        }
    else:
        kind = "incremental_sync" if job["job_type"] == "incremental" else "sync"
        columns = {"scheduled_at": f"last_{kind}_scheduled_at"}
        fields = {"last_sync_status": status, "last_sync_error": error}
        if done:
            columns["indexed_document_count"] = "last_indexed_document_count"
            columns["deleted_document_count"] = "last_deleted_document_count"
        if completed:
            columns["sync_cursor"] = "sync_cursor"
    if completed:
        fields["last_synced"] = given.get("completed_at", occurred_at)
    return fields | {column: given[name] for name, column in columns.items() if name in given}


def moment(written: str) -> datetime:
    return datetime.fromisoformat(written.upper()).astimezone(UTC)


def microseconds(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def text(at: datetime) -> str:
    return at.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def shortened(error: str | None) -> str | None:
    if error is None or len(error.encode()) <= 32_766:
        return error
    mark = "… [cut]"
    kept = error.encode()[: 32_766 - len(mark.encode())]
    return kept.decode(errors="ignore") + mark
