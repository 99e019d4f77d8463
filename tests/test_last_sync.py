"""The payload, and how a sync job's record becomes it."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.last_sync import (
    ERROR_FIELDS,
    LAST_SYNC_FIELDS,
    MAX_ERROR_BYTES,
    LastSync,
    SyncJob,
    cut,
    payload_fields,
)
from schemas.scalars import STATUSES, time_text

OCCURRED = datetime(2024, 11, 9, 15, 13, 8, 231000, tzinfo=UTC)
STARTED = datetime(2024, 11, 9, 15, 0, 1, tzinfo=UTC)
SCHEDULED = datetime(2024, 11, 9, 15, 0, tzinfo=UTC)
COMPLETED = datetime(2024, 11, 9, 15, 13, 7, tzinfo=UTC)
TERMINATED = {"completed", "error", "canceled"}

EVERYTHING: dict[str, Any] = {
    "id": "j-1",
    "error": "the source said no",
    "scheduled_at": SCHEDULED,
    "started_at": STARTED,
    "completed_at": COMPLETED,
    "indexed_document_count": 42,
    "deleted_document_count": 7,
    "sync_cursor": {"page": 3},
}


def derived(**job: Any) -> dict[str, Any]:
    payload = LastSync.from_job(SyncJob(**job), OCCURRED)
    return {name: getattr(payload, name) for name in payload.model_fields_set}


def test_the_fields_are_those_of_the_api_in_order() -> None:
    assert LAST_SYNC_FIELDS == (
        "last_access_control_sync_error",
        "last_access_control_sync_scheduled_at",
        "last_access_control_sync_status",
        "last_deleted_document_count",
        "last_incremental_sync_scheduled_at",
        "last_indexed_document_count",
        "last_sync_error",
        "last_sync_scheduled_at",
        "last_sync_status",
        "last_synced",
        "sync_cursor",
    )
    assert {"last_access_control_sync_error", "last_sync_error"} == ERROR_FIELDS


def test_a_completed_full_job_sets_every_content_field() -> None:
    assert derived(job_type="full", status="completed", **EVERYTHING) == {
        "last_sync_status": "completed",
        "last_sync_error": "the source said no",
        "last_sync_scheduled_at": SCHEDULED,
        "last_indexed_document_count": 42,
        "last_deleted_document_count": 7,
        "last_synced": COMPLETED,
        "sync_cursor": {"page": 3},
    }


def test_an_incremental_job_sets_the_incremental_schedule() -> None:
    fields = derived(job_type="incremental", status="completed", **EVERYTHING)
    assert fields["last_incremental_sync_scheduled_at"] == SCHEDULED
    assert "last_sync_scheduled_at" not in fields
    assert fields["last_sync_status"] == "completed"


def test_an_access_control_job_sets_its_own_three_fields_and_the_success() -> None:
    assert derived(job_type="access_control", status="completed", **EVERYTHING) == {
        "last_access_control_sync_status": "completed",
        "last_access_control_sync_error": "the source said no",
        "last_access_control_sync_scheduled_at": SCHEDULED,
        "last_synced": COMPLETED,
    }


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("job_type", ["full", "incremental", "access_control"])
def test_the_fields_that_each_type_and_status_sets(job_type: str, status: str) -> None:
    fields = derived(job_type=job_type, status=status, **EVERYTHING)
    content = job_type != "access_control"
    family = "last_sync" if content else "last_access_control_sync"
    schedule = "last_incremental_sync" if job_type == "incremental" else family
    expected = {f"{family}_status", f"{family}_error", f"{schedule}_scheduled_at"}
    if content and status in TERMINATED:
        expected |= {"last_indexed_document_count", "last_deleted_document_count"}
    if content and status == "completed":
        expected.add("sync_cursor")
    if status == "completed":
        expected.add("last_synced")
    assert set(fields) == expected
    assert fields[f"{family}_status"] == status


@pytest.mark.parametrize("job_type", ["full", "incremental", "access_control"])
@pytest.mark.parametrize("status", STATUSES)
def test_a_bare_job_sets_status_and_clears_the_error(job_type: str, status: str) -> None:
    fields = derived(job_type=job_type, status=status)
    family = "last_access_control_sync" if job_type == "access_control" else "last_sync"
    error = "unknown error" if status == "error" else None
    expected: dict[str, Any] = {f"{family}_status": status, f"{family}_error": error}
    if status == "completed":
        expected["last_synced"] = OCCURRED
    assert fields == expected


def test_an_empty_error_is_no_error() -> None:
    failed = derived(job_type="full", status="error", error="")
    assert failed["last_sync_error"] == "unknown error"
    assert derived(job_type="full", status="suspended", error="")["last_sync_error"] is None


def test_zero_documents_is_a_count() -> None:
    fields = derived(job_type="full", status="canceled", indexed_document_count=0)
    assert fields["last_indexed_document_count"] == 0
    assert "last_deleted_document_count" not in fields


def test_an_empty_cursor_is_a_cursor() -> None:
    assert derived(job_type="full", status="completed", sync_cursor={})["sync_cursor"] == {}


def test_null_in_a_job_is_absent() -> None:
    nothing = dict.fromkeys(EVERYTHING)
    bare = derived(job_type="full", status="completed")
    assert derived(job_type="full", status="completed", **nothing) == bare


@pytest.mark.parametrize("name", sorted(set(LAST_SYNC_FIELDS) - ERROR_FIELDS))
def test_null_is_refused_in_every_field_but_the_errors(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}"):
        LastSync.model_validate({name: None})


@pytest.mark.parametrize("name", sorted(ERROR_FIELDS))
def test_null_clears_an_error(name: str) -> None:
    assert payload_fields(LastSync.model_validate({name: None})) == {name: None}


def test_a_field_left_out_is_no_part_of_the_payload() -> None:
    assert payload_fields(LastSync(last_sync_status="pending")) == {"last_sync_status": "pending"}


def test_clearing_an_error_is_not_leaving_it_alone() -> None:
    cleared = LastSync(last_sync_error=None, last_sync_status="pending")
    assert cleared != LastSync(last_sync_status="pending")
    assert cleared == LastSync(last_sync_status="pending", last_sync_error=None)


def test_a_publisher_may_give_aware_datetimes_or_text() -> None:
    zone = timezone(timedelta(hours=1))
    moment = datetime(2024, 11, 9, 16, 13, 8, 231000, tzinfo=zone)
    expected = {"last_synced": "2024-11-09T15:13:08.231000Z"}
    assert payload_fields(LastSync(last_synced=moment)) == expected
    text = LastSync.model_validate({"last_synced": "2024-11-09T16:13:08.231+01:00"})
    assert payload_fields(text) == expected


def test_a_naive_datetime_is_refused() -> None:
    with pytest.raises(ValidationError, match="with its offset"):
        LastSync(last_synced=datetime(2024, 11, 9))  # noqa: DTZ001 - this is what is refused


def test_a_misspelt_keyword_is_refused() -> None:
    with pytest.raises(ValidationError, match="last_sync_state"):
        LastSync.model_validate({"last_sync_state": "completed"})


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_written_with_six_digits_whatever_the_year(moment: datetime) -> None:
    written = moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    assert time_text(moment) == written


@pytest.mark.parametrize("character", ["x", "é", "€", "😀"])
@pytest.mark.parametrize("shift", range(5))
def test_a_long_error_is_cut_on_a_characters_boundary(character: str, shift: int) -> None:
    text = cut("a" * shift + character * (MAX_ERROR_BYTES + 1))
    assert text is not None
    assert text.endswith("… [cut]")
    assert MAX_ERROR_BYTES - 3 <= len(text.encode()) <= MAX_ERROR_BYTES
    assert set(text.removesuffix("… [cut]")) <= {"a", character}


@pytest.mark.parametrize("text", ["x" * 32_766, "é" * 16_383, "😀" * 8_191])
def test_an_error_that_just_fits_is_kept(text: str) -> None:
    assert cut(text) == text


@given(st.text(), st.integers(0, 6_000))
def test_cutting_twice_is_cutting_once(text: str, times: int) -> None:
    once = cut(text * times)
    assert cut(once) == once
