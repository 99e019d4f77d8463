"""The last-sync stats of a connector, and how a sync job's record becomes them."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.scalars import (
    ConnectorSyncStatus,
    ErrorText,
    JobCount,
    JobCursor,
    JobId,
    JobTime,
    Kind,
    PayloadCount,
    PayloadCursor,
    PayloadStatus,
    PayloadTime,
    Status,
    time_text,
)

__all__ = [
    "ERROR_FIELDS",
    "JOB_TIMES",
    "LAST_SYNC_FIELDS",
    "LAST_SYNC_TIMES",
    "STATUS_FIELDS",
    "TERMINAL",
    "ConnectorSyncStatus",
    "LastSync",
    "SyncJob",
    "job_fields",
    "payload_fields",
    "ready",
]

MAX_ERROR_BYTES = 32_766  # longer text makes Elasticsearch refuse the write
CUT = "… [cut]"
UNKNOWN_ERROR = "unknown error"
TERMINAL = frozenset({"completed", "error", "canceled"})


class SyncJob(BaseModel):
    """A sync job's own record; `null` means absent, other fields are ignored."""

    model_config = ConfigDict(frozen=True)

    job_type: Kind = Field(description="What was synced.", examples=["full"])
    status: Status = Field(description="The status the job has now.", examples=["completed"])
    id: JobId = Field(default=None, description="The job's own id.", examples=["j-1"])
    error: ErrorText = Field(default=None, description="What went wrong; null for nothing.")
    scheduled_at: JobTime = Field(default=None, description="When the job was scheduled.")
    started_at: JobTime = Field(
        default=None,
        description="When the job started, or was resumed; orders the events of one job.",
    )
    completed_at: JobTime = Field(default=None, description="When the job ended.")
    indexed_document_count: JobCount = Field(default=None, description="Documents indexed.")
    deleted_document_count: JobCount = Field(default=None, description="Documents deleted.")
    sync_cursor: JobCursor = Field(
        default=None, description="Where the next incremental sync continues."
    )


class LastSync(BaseModel):
    """The payload of `PUT _connector/<id>/_last_sync`; fields not set are left alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    last_access_control_sync_error: ErrorText = Field(
        default=None, description="Error of the last access control sync; null clears it."
    )
    last_access_control_sync_scheduled_at: PayloadTime = Field(
        default=None, description="When the last access control sync was scheduled."
    )
    last_access_control_sync_status: PayloadStatus = Field(
        default=None, description="Status of the last access control sync."
    )
    last_deleted_document_count: PayloadCount = Field(
        default=None, description="Documents that the last sync deleted."
    )
    last_incremental_sync_scheduled_at: PayloadTime = Field(
        default=None, description="When the last incremental sync was scheduled."
    )
    last_indexed_document_count: PayloadCount = Field(
        default=None, description="Documents that the last sync indexed."
    )
    last_sync_error: ErrorText = Field(
        default=None, description="Error of the last content sync; null clears it."
    )
    last_sync_scheduled_at: PayloadTime = Field(
        default=None, description="When the last full sync was scheduled."
    )
    last_sync_status: PayloadStatus = Field(
        default=None, description="Status of the last content sync."
    )
    last_synced: PayloadTime = Field(
        default=None, description="When a sync last succeeded, an access control sync too."
    )
    sync_cursor: PayloadCursor = Field(
        default=None, description="Where the next incremental sync continues."
    )

    @classmethod
    def from_job(cls, job: SyncJob, occurred_at: datetime) -> Self:
        return cls.model_validate(job_fields(job.__dict__, occurred_at, time_text))

    def __eq__(self, other: object) -> bool:
        """Compare the set fields too: clearing an error is not leaving it alone."""
        if not isinstance(other, LastSync):
            return NotImplemented
        return super().__eq__(other) and self.model_fields_set == other.model_fields_set

    __hash__ = None  # type: ignore[assignment]  # a cursor cannot be hashed


Moment = TypeVar("Moment")

LAST_SYNC_FIELDS: tuple[str, ...] = tuple(sorted(LastSync.model_fields))
LAST_SYNC_TIMES = tuple(n for n in LAST_SYNC_FIELDS if n == "last_synced" or n.endswith("_at"))
JOB_TIMES = ("scheduled_at", "started_at", "completed_at")
ERROR_FIELDS = frozenset({"last_access_control_sync_error", "last_sync_error"})
STATUS_FIELDS = ("last_access_control_sync_status", "last_sync_status")


def job_fields(
    job: Mapping[str, Any], occurred_at: Moment, text: Callable[[Moment], str]
) -> dict[str, JsonValue]:
    """Give the fields that a job's record sets, ready for JSON, in the order of their names.

    `text` writes a time in UTC: `2024-11-09T15:13:08.231000Z`.
    """
    get, kind, status = job.get, job["job_type"], job["status"]
    error = get("error") or (UNKNOWN_ERROR if status == "error" else None)
    scheduled_at = get("scheduled_at")
    fields: dict[str, JsonValue] = {}
    if kind == "access_control":
        fields["last_access_control_sync_error"] = error and cut(error)
        if scheduled_at is not None:
            fields["last_access_control_sync_scheduled_at"] = text(scheduled_at)
        fields["last_access_control_sync_status"] = status
    else:
        ended = status in TERMINAL
        if ended and (deleted := get("deleted_document_count")) is not None:
            fields["last_deleted_document_count"] = deleted
        if kind == "incremental" and scheduled_at is not None:
            fields["last_incremental_sync_scheduled_at"] = text(scheduled_at)
        if ended and (indexed := get("indexed_document_count")) is not None:
            fields["last_indexed_document_count"] = indexed
        fields["last_sync_error"] = error and cut(error)
        if kind == "full" and scheduled_at is not None:
            fields["last_sync_scheduled_at"] = text(scheduled_at)
        fields["last_sync_status"] = status
    if status == "completed":
        fields["last_synced"] = text(get("completed_at") or occurred_at)
        if kind != "access_control" and (cursor := get("sync_cursor")) is not None:
            fields["sync_cursor"] = cursor
    return fields


def payload_fields(payload: LastSync) -> dict[str, JsonValue]:
    """Give the fields that a payload sets, ready for JSON, in the order of their names."""
    values = payload.__dict__
    return ready({name: values[name] for name in payload.model_fields_set}, time_text)


def ready(values: Mapping[str, Any], text: Callable[[Any], str]) -> dict[str, JsonValue]:
    """Give a payload's values in the order of their names, with long errors cut."""
    fields = {
        name: text(values[name]) if name in LAST_SYNC_TIMES else values[name]
        for name in LAST_SYNC_FIELDS
        if name in values
    }
    for name in ERROR_FIELDS & fields.keys():
        fields[name] = cut(fields[name])
    return fields


def cut(text: str | None) -> str | None:
    """Shorten an error to what Elasticsearch can index, on a character's boundary."""
    if text is None or len(text) * 4 <= MAX_ERROR_BYTES:
        return text
    encoded = text.encode()
    if len(encoded) <= MAX_ERROR_BYTES:
        return text
    return encoded[: MAX_ERROR_BYTES - len(CUT.encode())].decode(errors="ignore") + CUT
