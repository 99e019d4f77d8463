"""The sync-finished event: one event in three framings, and why a record is not one."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from schemas import cloud_events
from schemas.cloud_events import PLAIN, Frame, Framing, Headers
from schemas.document import parse, refusal, storable
from schemas.explanation import explained
from schemas.last_sync import (
    JOB_TIMES,
    LAST_SYNC_TIMES,
    TERMINAL,
    LastSync,
    SyncJob,
    job_fields,
    payload_fields,
)
from schemas.reasons import REASONS, Invalid, Reason
from schemas.scalars import MAX_ID_BYTES, Identifier, Time, time_text

__all__ = ["REASONS", "SKEW", "Invalid", "Reason", "Record", "SyncFinished", "decode"]

_MICROSECOND = timedelta(microseconds=1)
SKEW = timedelta(minutes=5)  # how far two honest clocks may differ
SKEW_US = SKEW // _MICROSECOND
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RANK: Mapping[str, int] = {
    "pending": 0,
    "in_progress": 1,
    "suspended": 2,
    "canceling": 3,
    "completed": 4,
    "error": 4,
    "canceled": 4,
}
RANK_WITHOUT_STATUS = 1

_EMPTY = LastSync()


class Record(NamedTuple):
    """What to hand to a Kafka producer."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class SyncFinished(BaseModel):
    """A sync's status changed.

    Carries either `job`, the sync job's own record, or `last_sync`, the fields to set.
    """

    model_config = ConfigDict(frozen=True)

    event_id: Identifier = Field(
        description="Names the event: a redelivery has the same id. In a CloudEvent: source, a "
        "space, and id.",
        examples=["01JCB3ZQ4V8ZR3W9T1K5M7N2P6"],
    )
    connector_id: Identifier = Field(
        description="The connector that was synced.", examples=["my-connector"]
    )
    occurred_at: Time = Field(
        description="When the status changed, not when the event was published.",
        examples=["2024-11-09T15:13:08.231Z"],
    )
    job: SyncJob | None = Field(default=None, description="The sync job's own record.")
    last_sync: LastSync | None = Field(
        default=None, description="The fields to set; those left out are left alone."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        job, payload = self.job, self.last_sync
        if (job is None) is (payload is None):
            raise _failed("no_payload" if job is None else "two_payloads", "")
        if payload is not None and not payload.model_fields_set:
            raise _failed("empty_last_sync", "last_sync")
        carried, times = (job, JOB_TIMES) if job is not None else (payload, LAST_SYNC_TIMES)
        values, occurred_at = carried.__dict__, self.occurred_at
        for name in times:
            moment = values[name]
            if moment is not None and moment - occurred_at > SKEW:
                raise _failed("time_after_event", f"{_name(job)}.{name}", time_text(moment))
        cursor = values["sync_cursor"]
        if cursor is not None and not storable(cursor):
            raise _failed("invalid_cursor", f"{_name(job)}.sync_cursor")
        return self

    @classmethod
    def from_job(
        cls,
        *,
        connector_id: str,
        job: SyncJob,
        occurred_at: datetime,
        event_id: str | None = None,
    ) -> Self:
        """Build the event of a job whose status changed at `occurred_at`.

        Without `event_id` it gets a fresh one: a retry must send the same event again, not a new
        one. Raises `pydantic.ValidationError`.
        """
        event_id = str(uuid.uuid4()) if event_id is None else event_id
        return cls(event_id=event_id, connector_id=connector_id, occurred_at=occurred_at, job=job)

    def fields(self) -> dict[str, JsonValue]:
        """Give the fields this event sets, ready for JSON.

        Times are UTC text such as `2024-11-09T15:13:08.231000Z`; long errors are cut.
        """
        if self.job is not None:
            return job_fields(self.job.__dict__, self.occurred_at, time_text)
        return payload_fields(self.last_sync or _EMPTY)

    @property
    def at(self) -> int:
        """Microseconds since the epoch that order this event among its connector's.

        While a job runs this is its start, so that its end comes later on any host's clock.
        """
        job = self.job
        if job is None or job.started_at is None:
            return microseconds(self.occurred_at)
        if job.status in TERMINAL and self.occurred_at > job.started_at:
            return microseconds(self.occurred_at)
        return microseconds(job.started_at)

    @property
    def rank(self) -> int:
        """How far along a sync's life the status is: decides between events of equal `at`."""
        return (
            RANK[self.job.status] if self.job else payload_rank((self.last_sync or _EMPTY).__dict__)
        )

    def to_record(self, framing: Framing = "plain", *, source: str | None = None) -> Record:
        """Give key, value and headers to publish.

        A CloudEvent is known by its source and id together. With `source` the event's own id is
        the CloudEvent's id, and it will be read as `<source> <event_id>`; without, `event_id` must
        already be such a pair. Raises `ValueError` when the event cannot be framed so.
        """
        if framing == "plain":
            return self._plain_record()
        attributes = self._attributes(source)
        if framing == "binary":
            headers = [
                (cloud_events.PREFIX + name, text.encode()) for name, text in attributes.items()
            ]
            media = (cloud_events.CONTENT_TYPE, b"application/json")
            return Record(self.connector_id.encode(), _json(self._data()), [media, *headers])
        document = {**attributes, "datacontenttype": "application/json", "data": self._data()}
        media = (cloud_events.CONTENT_TYPE, cloud_events.STRUCTURED.encode())
        return Record(self.connector_id.encode(), _json(document), [media])

    def _plain_record(self) -> Record:
        if len(self.event_id.encode()) > MAX_ID_BYTES:
            raise ValueError(
                f"event_id is longer than {MAX_ID_BYTES} bytes, as only a CloudEvent's source and "
                "id together may be: choose the framing structured or binary"
            )
        document = {
            "event_id": self.event_id,
            "connector_id": self.connector_id,
            "occurred_at": time_text(self.occurred_at),
            **self._data(),
        }
        return Record(self.connector_id.encode(), _json(document), [])

    def _attributes(self, source: str | None) -> dict[str, str]:
        if source is None:
            source, _, event_id = self.event_id.partition(" ")
        else:
            event_id = self.event_id.removeprefix(f"{source} ")
        if not (cloud_events.is_id(source) and cloud_events.is_id(event_id)):
            raise ValueError(
                f"a CloudEvent needs a source and an id of 1 to {MAX_ID_BYTES} bytes each, and "
                f"event_id {self.event_id!r} is not a pair of them: name the source"
            )
        return {
            "specversion": cloud_events.SPEC_VERSION,
            "id": event_id,
            "source": source,
            "type": cloud_events.EVENT_TYPE,
            "time": time_text(self.occurred_at),
            "subject": self.connector_id,
        }

    def _data(self) -> dict[str, JsonValue]:
        if self.job is not None:
            return {"job": self.job.model_dump(mode="json", exclude_unset=True)}
        payload = self.last_sync or _EMPTY
        return {"last_sync": payload.model_dump(mode="json", exclude_unset=True)}


def _name(job: SyncJob | None) -> str:
    return "last_sync" if job is None else "job"


def _failed(reason: str, path: str, found: str = "") -> PydanticCustomError:
    fix: Any = REASONS[reason].fix
    return PydanticCustomError(reason, fix, {"path": path, "found": found})


def _json(document: dict[str, Any]) -> bytes:
    if not storable(document):
        raise ValueError("the event is nested too deep for this framing: make sync_cursor flatter")
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


_validate: Callable[[Any], SyncFinished] = SyncFinished.__pydantic_validator__.validate_python


def payload_rank(payload: Mapping[str, Any]) -> int:
    """Give the highest rank among the statuses that a payload carries."""
    statuses = (
        payload.get("last_sync_status"),
        payload.get("last_access_control_sync_status"),
    )
    return max((RANK[s] for s in statuses if s is not None), default=RANK_WITHOUT_STATUS)


def microseconds(moment: datetime) -> int:
    """Count microseconds since the epoch, exactly."""
    return (moment - EPOCH) // _MICROSECOND


def decode(value: bytes | None, headers: Headers = (), *, now: int) -> SyncFinished | Invalid:
    """Give the event that a record carries, or the first thing that is wrong with it.

    Pure, and never raises, whatever the bytes. `now` is in microseconds since the epoch.
    """
    if not value:
        return _without_value(value)
    frame = cloud_events.frame(headers) if headers else PLAIN
    if isinstance(frame, Invalid):
        return frame
    document = None
    try:
        document = parse(value)
        event = _validate(document) if frame is PLAIN else _framed(frame, document)
    except ValueError as error:
        return _claimed(refusal(value) or _explained(error), frame, document)
    if isinstance(event, Invalid):
        problem = refusal(value) or event
    elif (frame is not PLAIN or _unread(document, event)) and not storable(document):
        problem = refusal(value) or _explained(ValueError("no store can keep it"))
    elif microseconds(event.occurred_at) - now > SKEW_US:
        problem = _in_future(event, frame)
    else:
        return event
    return _claimed(problem, frame, document)


def _explained(error: ValueError) -> Invalid:
    if isinstance(error, ValidationError):
        return explained(error, {})
    found = f"the value is not JSON: {error}"
    return Invalid("invalid_json", "", f"{found}: {REASONS['invalid_json'].fix}")


def _claimed(problem: Invalid, frame: Frame, document: Any) -> Invalid:
    return replace(problem, connector_id=cloud_events.claimed_connector(frame, document))


def _framed(frame: Frame, document: Any) -> SyncFinished | Invalid:
    envelope = cloud_events.opened(frame, document)
    if isinstance(envelope, Invalid):
        return envelope
    try:
        event = _validate(envelope.fields)
    except ValidationError as error:
        return explained(error, envelope.paths)
    return event.model_copy(update={"event_id": f"{envelope.source} {event.event_id}"})


def _unread(document: Any, event: SyncFinished) -> bool:
    """Tell whether a plain document may have parts that validation did not look into."""
    job = event.job
    if len(document) != len(event.__pydantic_fields_set__):
        return True
    if job is None:
        return (event.last_sync or _EMPTY).sync_cursor is not None
    return job.sync_cursor is not None or len(document["job"]) != len(job.__pydantic_fields_set__)


def _without_value(value: bytes | None) -> Invalid:
    reason = "null_value" if value is None else "empty_value"
    return Invalid(reason, "", f"the record's value is {reason[:-6]}: {REASONS[reason].fix}")


def _in_future(event: SyncFinished, frame: Frame) -> Invalid:
    path = {"plain": "occurred_at", "structured": "time", "binary": "headers.ce_time"}
    found = f"{path[frame.framing]} is {time_text(event.occurred_at)}"
    message = f"{found}, more than 5 minutes ahead: {REASONS['occurred_in_future'].fix}"
    return Invalid("occurred_in_future", path[frame.framing], message)
