"""The sync-finished event: one event in three framings, and why a record is not one."""

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, Self

import jiter
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from schemas.last_sync import TERMINAL, LastSync, SyncJob, derived, normalised
from schemas.reasons import REASONS, Invalid, Reason
from schemas.scalars import Identifier, Time

__all__ = ["REASONS", "Invalid", "Reason", "Record", "SyncFinished", "decode"]

Framing = Literal["plain", "structured", "binary"]
Headers = Sequence[tuple[str, bytes | None]]

SKEW = timedelta(minutes=5)
SKEW_US = 300_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RANK = {
    "pending": 0,
    "in_progress": 1,
    "suspended": 2,
    "canceling": 3,
    "completed": 4,
    "error": 4,
    "canceled": 4,
}


class Record(NamedTuple):
    """What to hand to a Kafka producer."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class SyncFinished(BaseModel):
    """A sync's state changed: either the job's own record or the last-sync payload."""

    model_config = ConfigDict(frozen=True)

    event_id: Identifier
    connector_id: Identifier
    occurred_at: Time
    job: SyncJob | None = None
    last_sync: LastSync | None = None

    @classmethod
    def from_job(
        cls,
        *,
        connector_id: str,
        job: SyncJob,
        occurred_at: datetime,
        event_id: str | None = None,
    ) -> Self:
        return cls(
            event_id=event_id or str(uuid.uuid4()),
            connector_id=connector_id,
            occurred_at=occurred_at,
            job=job,
        )

    def fields(self) -> dict[str, JsonValue]:
        """Give the touched fields, ready for JSON."""
        if self.job is not None:
            return normalised(derived(self.job, self.occurred_at))
        assert self.last_sync is not None  # noqa: S101 -- thin
        payload = self.last_sync
        return normalised({name: getattr(payload, name) for name in payload.model_fields_set})

    @property
    def at(self) -> int:
        """Microseconds since the epoch that order this event among its connector's."""
        job = self.job
        if job is None or job.started_at is None:
            return microseconds(self.occurred_at)
        if job.status in TERMINAL:
            return microseconds(max(self.occurred_at, job.started_at))
        return microseconds(job.started_at)

    @property
    def rank(self) -> int:
        """How far the status is in a job's life; decides between equal `at`."""
        if self.job is not None:
            return RANK[self.job.status]
        payload = self.last_sync
        statuses = (
            (payload.last_sync_status, payload.last_access_control_sync_status) if payload else ()
        )
        return max((RANK[status] for status in statuses if status), default=1)

    def to_record(self, framing: Framing = "plain", *, source: str | None = None) -> Record:
        if framing != "plain":
            raise NotImplementedError(source)
        value = self.model_dump(mode="json", exclude_unset=True)
        return Record(
            self.connector_id.encode(),
            json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(),
            [],
        )


def microseconds(moment: datetime) -> int:
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def decode(value: bytes | None, headers: Headers = (), *, now: int) -> SyncFinished | Invalid:
    """Give the event that a record carries, or why it is none; never raises.

    `now` is in microseconds since the epoch.
    """
    del headers
    try:
        document: Any = jiter.from_json(
            value or b"", catch_duplicate_keys=True, allow_inf_nan=False
        )
        event = SyncFinished.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return Invalid(first["type"], ".".join(map(str, first["loc"])), first["msg"])
    except ValueError as error:
        return Invalid("invalid_json", "", str(error))
    if microseconds(event.occurred_at) > now + SKEW_US:
        return Invalid("occurred_in_future", "occurred_at", "in the future", event.connector_id)
    return event
