"""The last-sync stats of a connector, and how a sync job's record becomes them."""

from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, JsonValue
from pydantic_core import SchemaSerializer, core_schema

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
)

__all__ = [
    "ERROR_FIELDS",
    "LAST_SYNC_FIELDS",
    "TERMINAL",
    "ConnectorSyncStatus",
    "LastSync",
    "SyncJob",
    "derived",
    "normalised",
]

MAX_ERROR_BYTES = 32_766  # longer text makes Elasticsearch refuse the write
CUT = "… [cut]"
UNKNOWN_ERROR = "unknown error"
TERMINAL = frozenset({"completed", "error", "canceled"})

_text_of = SchemaSerializer(core_schema.datetime_schema()).to_python


class SyncJob(BaseModel):
    """A sync job's own record; `null` means absent, other fields are ignored."""

    model_config = ConfigDict(frozen=True)

    job_type: Kind
    status: Status
    id: JobId = None
    error: ErrorText = None
    scheduled_at: JobTime = None
    started_at: JobTime = None
    completed_at: JobTime = None
    indexed_document_count: JobCount = None
    deleted_document_count: JobCount = None
    sync_cursor: JobCursor = None


class LastSync(BaseModel):
    """The payload of `PUT _connector/<id>/_last_sync`; fields not set are left alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    last_access_control_sync_error: ErrorText = None
    last_access_control_sync_scheduled_at: PayloadTime = None
    last_access_control_sync_status: PayloadStatus = None
    last_deleted_document_count: PayloadCount = None
    last_incremental_sync_scheduled_at: PayloadTime = None
    last_indexed_document_count: PayloadCount = None
    last_sync_error: ErrorText = None
    last_sync_scheduled_at: PayloadTime = None
    last_sync_status: PayloadStatus = None
    last_synced: PayloadTime = None
    sync_cursor: PayloadCursor = None

    @classmethod
    def from_job(cls, job: SyncJob, occurred_at: datetime) -> Self:
        return cls(**derived(job, occurred_at))


LAST_SYNC_FIELDS: tuple[str, ...] = tuple(sorted(LastSync.model_fields))
ERROR_FIELDS = frozenset({"last_access_control_sync_error", "last_sync_error"})


def derived(job: SyncJob, occurred_at: datetime) -> dict[str, Any]:
    """Give the fields that this job's record sets, by its type and status."""
    fields = _access_control(job) if job.job_type == "access_control" else _content(job)
    if job.status == "completed":
        fields["last_synced"] = job.completed_at or occurred_at
    return fields


def _access_control(job: SyncJob) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "last_access_control_sync_error": _error(job),
        "last_access_control_sync_status": job.status,
    }
    if job.scheduled_at is not None:
        fields["last_access_control_sync_scheduled_at"] = job.scheduled_at
    return fields


def _content(job: SyncJob) -> dict[str, Any]:
    fields: dict[str, Any] = {"last_sync_error": _error(job), "last_sync_status": job.status}
    if job.scheduled_at is not None:
        incremental = job.job_type == "incremental"
        name = "last_incremental_sync_scheduled_at" if incremental else "last_sync_scheduled_at"
        fields[name] = job.scheduled_at
    if job.status in TERMINAL:
        if job.indexed_document_count is not None:
            fields["last_indexed_document_count"] = job.indexed_document_count
        if job.deleted_document_count is not None:
            fields["last_deleted_document_count"] = job.deleted_document_count
    if job.status == "completed" and job.sync_cursor is not None:
        fields["sync_cursor"] = job.sync_cursor
    return fields


def _error(job: SyncJob) -> str | None:
    if job.error:
        return job.error
    return UNKNOWN_ERROR if job.status == "error" else None


def normalised(fields: dict[str, Any]) -> dict[str, JsonValue]:
    """Make the fields ready for JSON: times as UTC text, long errors cut."""
    for name, value in fields.items():
        if isinstance(value, datetime):
            fields[name] = time_text(value)
    for name in ERROR_FIELDS & fields.keys():
        fields[name] = cut(fields[name])
    return fields


def time_text(moment: datetime) -> str:
    text: str = _text_of(moment, mode="json")
    if len(text) == len("2024-11-09T15:13:08.231000Z"):
        return text
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def cut(text: str | None) -> str | None:
    if text is None or len(text) * 4 <= MAX_ERROR_BYTES:
        return text
    encoded = text.encode()
    if len(encoded) <= MAX_ERROR_BYTES:
        return text
    return encoded[: MAX_ERROR_BYTES - len(CUT.encode())].decode(errors="ignore") + CUT
