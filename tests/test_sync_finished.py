"""The event, its framings, and every way in which a record is not one."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from schemas import document
from schemas.last_sync import LAST_SYNC_FIELDS, LastSync, SyncJob
from schemas.reasons import REASONS
from schemas.scalars import JOB_TYPES, STATUSES
from schemas.sync_finished import Invalid, SyncFinished, decode, microseconds
from schemas.updates import Update, update, update_of

Headers = Sequence[tuple[str, bytes | None]]

NOW = 1_731_165_600_000_000  # 2024-11-09T15:20:00Z
STRUCTURED = [("content-type", b"application/cloudevents+json")]
FROM_STORE = {"connector_not_found", "rejected", "too_large"}
JOB: dict[str, Any] = {
    "id": "j-1",
    "job_type": "full",
    "status": "completed",
    "error": None,
    "scheduled_at": "2024-11-09T15:00:00.000Z",
    "started_at": "2024-11-09T15:00:01.118Z",
    "completed_at": "2024-11-09T15:13:08.112Z",
    "indexed_document_count": 42,
    "deleted_document_count": 42,
}
EVENT: dict[str, Any] = {
    "event_id": "e-1",
    "connector_id": "my-connector",
    "occurred_at": "2024-11-09T15:13:08.231Z",
    "job": JOB,
}
CLOUD_EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/sync",
    "type": "anything",
    "subject": "my-connector",
    "time": "2024-11-09T15:13:08.231Z",
    "data": {"job": JOB},
}
# The example of Elastic's page "Update connector last sync stats API", verbatim
ELASTIC = b"""{
    "last_access_control_sync_error": "Houston, we have a problem!",
    "last_access_control_sync_scheduled_at": "2023-11-09T15:13:08.231Z",
    "last_access_control_sync_status": "pending",
    "last_deleted_document_count": 42,
    "last_incremental_sync_scheduled_at": "2023-11-09T15:13:08.231Z",
    "last_indexed_document_count": 42,
    "last_sync_error": "Houston, we have a problem!",
    "last_sync_scheduled_at": "2024-11-09T15:13:08.231Z",
    "last_sync_status": "completed",
    "last_synced": "2024-11-09T15:13:08.231Z"
}"""


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Change members; `...` takes one out."""
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def event(**changes: Any) -> bytes:
    return json.dumps(changed(EVENT, changes)).encode()


def job(**changes: Any) -> bytes:
    return event(job=changed(JOB, changes))


def payload(**fields: Any) -> bytes:
    return event(job=..., last_sync=fields)


def with_text(text: str) -> bytes:
    """Put raw JSON text where a field is that nobody knows."""
    return event(note=0).replace(b'"note": 0', b'"note": ' + text.encode())


def structured(**changes: Any) -> tuple[bytes, Headers]:
    return json.dumps(changed(CLOUD_EVENT, changes)).encode(), STRUCTURED


def binary(data: Any = None, **changes: Any) -> tuple[bytes, list[tuple[str, bytes | None]]]:
    attributes = changed(CLOUD_EVENT, {"data": ..., **changes})
    headers: list[tuple[str, bytes | None]] = [
        (f"ce_{name}", value if value is None or isinstance(value, bytes) else value.encode())
        for name, value in attributes.items()
    ]
    return json.dumps(CLOUD_EVENT["data"] if data is None else data).encode(), headers


def decoded_alike(value: bytes | None, headers: Headers, now: int) -> SyncFinished | Invalid:
    """Decode, and see that the worker's shorter way comes to the same."""
    decoded, found = decode(value, headers, now=now), update(value, headers, now=now)
    if isinstance(decoded, Invalid):
        assert found == decoded
    else:
        assert isinstance(found, Update), found
        assert found == update_of(decoded)
        assert list(found.fields) == sorted(found.fields)
    return decoded


def accepted(value: bytes, headers: Headers = (), *, now: int = NOW) -> SyncFinished:
    decoded = decoded_alike(value, headers, now)
    assert isinstance(decoded, SyncFinished), decoded
    return decoded


def refused(value: bytes | None, headers: Headers = (), *, now: int = NOW) -> Invalid:
    decoded = decoded_alike(value, headers, now)
    assert isinstance(decoded, Invalid), decoded
    assert decoded.reason in REASONS
    assert decoded.message.isprintable(), decoded.message
    assert decoded.path.isprintable(), decoded.path
    assert len(decoded.message) < 800
    return decoded


def why(value: bytes | None, headers: Headers = ()) -> tuple[str, str]:
    invalid = refused(value, headers)
    return invalid.reason, invalid.path


# --- what is accepted ---------------------------------------------------------------------------


def test_a_job_event_is_read() -> None:
    read = accepted(event())
    assert (read.event_id, read.connector_id) == ("e-1", "my-connector")
    assert read.occurred_at == datetime(2024, 11, 9, 15, 13, 8, 231000, tzinfo=UTC)
    assert read.last_sync is None
    assert read.fields() == {
        "last_sync_status": "completed",
        "last_sync_error": None,
        "last_sync_scheduled_at": "2024-11-09T15:00:00.000000Z",
        "last_indexed_document_count": 42,
        "last_deleted_document_count": 42,
        "last_synced": "2024-11-09T15:13:08.112000Z",
    }


def test_elastics_own_example_is_a_payload() -> None:
    fields = json.loads(ELASTIC)
    body = event(job=..., last_sync=0).replace(b'"last_sync": 0', b'"last_sync": ' + ELASTIC)
    normalised = {
        name: value.replace("231Z", "231000Z") if isinstance(value, str) else value
        for name, value in fields.items()
    }
    assert accepted(body).fields() == normalised


def test_unknown_fields_of_envelope_and_job_are_ignored() -> None:
    extra = {"trace": {"ids": [1, 2.5, None, True, "x"]}, "__proto__": {"a": 1}}
    assert accepted(event(**extra)) == accepted(event())
    assert accepted(job(**extra)) == accepted(event())


@pytest.mark.parametrize("absent", ["job", "last_sync"])
def test_a_null_payload_is_absent(absent: str) -> None:
    value = event(last_sync=None) if absent == "last_sync" else event(job=None, last_sync={"x": 1})
    if absent == "last_sync":
        assert accepted(value) == accepted(event())
    else:
        assert why(value) == ("unknown_field", "last_sync.x")


def test_null_in_a_job_is_absent() -> None:
    optional = set(JOB) - {"job_type", "status"}
    read = accepted(job(**dict.fromkeys(optional), sync_cursor=None))
    assert read.fields() == {
        "last_sync_status": "completed",
        "last_sync_error": None,
        "last_synced": "2024-11-09T15:13:08.231000Z",
    }


def test_a_cursor_is_kept_as_it_is() -> None:
    cursor = {"page": 3, "deep": [{"x": [1.5, -0.0, 10**4299, "é😀", None, False]}], "": ""}
    assert accepted(payload(sync_cursor=cursor)).fields() == {"sync_cursor": cursor}


def test_white_space_around_the_document_is_json() -> None:
    assert accepted(b" \r\n\t" + event() + b"\n") == accepted(event())


def test_a_long_error_is_cut_at_the_worker() -> None:
    text = accepted(job(status="error", error="é" * 20_000)).fields()["last_sync_error"]
    assert isinstance(text, str)
    assert len(text.encode()) <= 32_766
    assert text.endswith("… [cut]")


def test_an_empty_error_of_a_payload_stays_as_it_is() -> None:
    assert accepted(payload(last_sync_error="")).fields() == {"last_sync_error": ""}


# --- ids ----------------------------------------------------------------------------------------

IDS = [
    "x",
    "...",
    "a.b",
    " ",
    ".a",
    "..a",
    "é" * 256,
    "x" * 512,
    "\u2028",
    "😀" * 128,
    "/",
    "__proto__",
]
NO_IDS = [
    "",
    ".",
    "..",
    "x" * 513,
    "é" * 256 + "x",
    "😀" * 128 + "x",
    "a\tb",
    "a\n",
    "\x01",
    "\x1f",
    "\x7f",
    "\x80",
    "\x85",
    "\x9f",
    5,
    True,
    1.5,
    ["a"],
    {"a": 1},
]


@pytest.mark.parametrize("name", ["event_id", "connector_id"])
@pytest.mark.parametrize("value", IDS)
def test_an_id_has_1_to_512_bytes(name: str, value: str) -> None:
    assert getattr(accepted(event(**{name: value})), name) == value


@pytest.mark.parametrize("name", ["event_id", "connector_id"])
@pytest.mark.parametrize("value", NO_IDS)
def test_anything_else_is_no_id(name: str, value: Any) -> None:
    assert why(event(**{name: value})) == ("invalid_id", name)


@pytest.mark.parametrize("value", NO_IDS)
def test_a_jobs_id_is_validated_though_nothing_uses_it(value: Any) -> None:
    assert why(job(id=value)) == ("invalid_id", "job.id")


# --- times --------------------------------------------------------------------------------------

TIMES = {
    "2024-11-09T15:13:08Z": "2024-11-09T15:13:08.000000Z",
    "2024-11-09t15:13:08z": "2024-11-09T15:13:08.000000Z",
    "2024-11-09T15:13:08z": "2024-11-09T15:13:08.000000Z",
    "2024-11-09t15:13:08.5Z": "2024-11-09T15:13:08.500000Z",
    "2024-11-09T15:13:08-00:00": "2024-11-09T15:13:08.000000Z",
    "2024-11-09T15:13:08+00:00": "2024-11-09T15:13:08.000000Z",
    "2024-11-09T15:13:08+05:30": "2024-11-09T09:43:08.000000Z",
    "2024-11-09T15:13:08+23:59": "2024-11-08T15:14:08.000000Z",
    "2024-11-08T15:13:08-23:59": "2024-11-09T15:12:08.000000Z",
    "2024-11-09T15:13:08.12345678901234567899Z": "2024-11-09T15:13:08.123456Z",
    "2024-11-09T15:13:08.12345699999999999999+01:00": "2024-11-09T14:13:08.123456Z",
    "1969-12-31T23:59:59.9999999Z": "1969-12-31T23:59:59.999999Z",
    "0001-01-01T00:00:00Z": "0001-01-01T00:00:00.000000Z",
    "0001-01-01T00:00:00-00:01": "0001-01-01T00:01:00.000000Z",
    "2024-02-29T00:00:00Z": "2024-02-29T00:00:00.000000Z",
    "2000-02-29T00:00:00Z": "2000-02-29T00:00:00.000000Z",
}
NO_TIMES = [
    "2024-11-09 15:13:08Z",
    "2024-11-09_15:13:08Z",
    "2024-11-09T15:13:08",
    "2024-11-09T15:13Z",
    "2024-11-09T15Z",
    "2024-11-09",
    "20241109T151308Z",
    "2024-W45-6T15:13:08Z",
    "2024-11-09T15:13:60Z",
    "2016-12-31T23:59:60Z",
    "2024-11-09T24:00:00Z",
    "2024-11-09T15:60:00Z",
    "2024-02-30T00:00:00Z",
    "2023-02-29T00:00:00Z",
    "1900-02-29T00:00:00Z",
    "2024-13-01T00:00:00Z",
    "2024-00-01T00:00:00Z",
    "2024-01-00T00:00:00Z",
    "2024-04-31T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "0000-12-31T23:59:00-00:01",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-00:01",
    "10000-01-01T00:00:00Z",
    "-2024-11-09T15:13:08Z",
    "+2024-11-09T15:13:08Z",
    "2024-11-09T15:13:08+24:00",
    "2024-11-09T15:13:08+12:60",
    "2024-11-09T15:13:08+0100",
    "2024-11-09T15:13:08+01",
    "2024-11-09T15:13:08+01:00:00",
    "2024-11-09T15:13:08.Z",
    "2024-11-09T15:13:08,5Z",
    "2024-11-09T15:13:08ZZ",
    "2024-11-09T15:13:08Z\n",
    " 2024-11-09T15:13:08Z",
    "2024-11-09T15:13:08 Z",
    "2024-11-09T15:13:08Z[UTC]",
    "٢٠٢٤-11-09T15:13:08Z",
    "2024-11-09T15:13:0\uff18Z",
    "1731165188",
    "now",
    "",
    1731165188,
    1731165188.5,
    True,
    {},
    [],
]


@pytest.mark.parametrize(("text", "written"), TIMES.items())
def test_a_time_is_rfc_3339_with_an_offset_and_kept_in_utc(text: str, written: str) -> None:
    read = accepted(payload(last_synced=text))
    assert read.fields() == {"last_synced": written}
    assert accepted(event(occurred_at=text, job={"job_type": "full", "status": "pending"}))


@pytest.mark.parametrize("text", TIMES)
def test_a_time_is_kept_in_utc_whatever_its_offset(text: str) -> None:
    read = accepted(event(occurred_at=text, job={"job_type": "full", "status": "pending"}))
    assert read.occurred_at.tzinfo is UTC


@pytest.mark.parametrize("text", TIMES)
def test_a_stamp_drops_the_same_digits_as_the_field(text: str) -> None:
    read = accepted(event(occurred_at=text, job={"job_type": "full", "status": "completed"}))
    written = read.fields()["last_synced"]
    assert isinstance(written, str)
    assert read.at == exact_microseconds(written)


@pytest.mark.parametrize("value", NO_TIMES)
@pytest.mark.parametrize(
    ("build", "path"),
    [
        (lambda t: event(occurred_at=t), "occurred_at"),
        (lambda t: job(started_at=t), "job.started_at"),
        (lambda t: job(job_type="access_control", completed_at=t), "job.completed_at"),
        (lambda t: payload(last_sync_scheduled_at=t), "last_sync.last_sync_scheduled_at"),
    ],
)
def test_anything_else_is_no_time(build: Any, path: str, value: Any) -> None:
    assert why(build(value)) == ("invalid_time", path)


def exact_microseconds(text: str) -> int:
    """Count microseconds without `datetime`'s arithmetic: the oracle for stamps."""
    year, month, day, hour, minute, second, fraction = map(int, re.findall(r"\d+", text))
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    lengths = [31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    days += sum(lengths[: month - 1]) + day - 1
    seconds = ((days - 719_162) * 24 + hour) * 3600 + minute * 60 + second
    return seconds * 1_000_000 + fraction


@given(st.datetimes(timezones=st.just(UTC)))
def test_microseconds_are_exact(moment: datetime) -> None:
    written = moment.replace(tzinfo=None).isoformat(timespec="microseconds")
    assert microseconds(moment) == exact_microseconds(written)


@given(
    st.datetimes(datetime(2000, 1, 2), datetime(2024, 11, 8)),  # noqa: DTZ001 - local parts
    st.integers(-1439, 1439),
    st.text("0123456789", min_size=1, max_size=25),
)
def test_offset_and_fraction_are_taken_exactly(local: datetime, offset: int, digits: str) -> None:
    hours, minutes = divmod(abs(offset), 60)
    zone = f"{'-' if offset < 0 else '+'}{hours:02}:{minutes:02}"
    whole = local.replace(microsecond=0)
    text = f"{whole.isoformat()}.{digits}{zone}"
    expected = Fraction(digits) / 10 ** len(digits) * 1_000_000
    read = accepted(event(occurred_at=text, job={"job_type": "full", "status": "pending"}))
    start = whole.replace(tzinfo=UTC) - timedelta(minutes=offset)
    assert read.at == microseconds(start) + int(expected)


# --- counts, statuses, texts, cursors -----------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2**31, 2**53 + 1, 2**63 - 1])
def test_a_count_is_an_integer_of_63_bits(count: int) -> None:
    read = accepted(payload(last_indexed_document_count=count))
    assert read.fields() == {"last_indexed_document_count": count}


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "9223372036854775808",
        "1" * 4_300,
        "1.0",
        "1e3",
        "1.5",
        "true",
        "false",
        '"42"',
        "[1]",
        "{}",
    ],
)
def test_anything_else_is_no_count(text: str) -> None:
    value = job(indexed_document_count=0).replace(
        b'"indexed_document_count": 0', b'"indexed_document_count": ' + text.encode()
    )
    assert why(value) == ("invalid_count", "job.indexed_document_count")


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_is_taken(status: str) -> None:
    assert accepted(payload(last_sync_status=status)).fields() == {"last_sync_status": status}


@pytest.mark.parametrize("status", ["COMPLETED", "Completed", "cOMPLETED"])
def test_a_status_in_capitals_is_told_to_be_lower_case(status: str) -> None:
    invalid = refused(job(status=status))
    assert (invalid.reason, invalid.path) == ("invalid_status", "job.status")
    assert invalid.message == f'job.status is "{status}": write it lower-case, "completed"'


@pytest.mark.parametrize("status", ["", "done", "cancelled", 1, True, [], {}])
def test_anything_else_is_no_status(status: Any) -> None:
    path = "last_sync.last_access_control_sync_status"
    assert why(payload(last_access_control_sync_status=status)) == ("invalid_status", path)


def test_a_british_status_is_told_the_american_one() -> None:
    assert '"canceled"' in refused(job(status="cancelled")).message


@pytest.mark.parametrize("kind", ["", "FULL", "delta", 1, []])
def test_anything_else_is_no_job_type(kind: Any) -> None:
    assert why(job(job_type=kind)) == ("invalid_job_type", "job.job_type")


@pytest.mark.parametrize("error", [1, True, {}, ["x"]])
def test_an_error_is_a_text(error: Any) -> None:
    assert why(job(error=error)) == ("invalid_text", "job.error")
    assert why(payload(last_sync_error=error)) == ("invalid_text", "last_sync.last_sync_error")


@pytest.mark.parametrize("cursor", ["x", 1, True, [], [{}]])
def test_a_cursor_is_an_object(cursor: Any) -> None:
    assert why(job(sync_cursor=cursor)) == ("invalid_cursor", "job.sync_cursor")
    assert why(payload(sync_cursor=cursor)) == ("invalid_cursor", "last_sync.sync_cursor")


@pytest.mark.parametrize("name", sorted(set(LAST_SYNC_FIELDS)))
def test_null_clears_the_errors_and_nothing_else(name: str) -> None:
    value = payload(**{name: None})
    if name.endswith("_error"):
        assert accepted(value).fields() == {name: None}
    else:
        invalid = refused(value)
        assert (invalid.reason, invalid.path) == ("null_not_allowed", f"last_sync.{name}")
        assert "omit it to leave it alone" in invalid.message


# --- envelope -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["event_id", "connector_id", "occurred_at"])
@pytest.mark.parametrize("value", [..., None])
def test_the_envelope_is_required(name: str, value: Any) -> None:
    assert why(event(**{name: value})) == ("missing_field", name)


@pytest.mark.parametrize("name", ["job_type", "status"])
@pytest.mark.parametrize("value", [..., None])
def test_job_type_and_status_are_required(name: str, value: Any) -> None:
    assert why(job(**{name: value})) == ("missing_field", f"job.{name}")


@pytest.mark.parametrize("nothing", [{"job": ...}, {"job": None}, {"job": None, "last_sync": None}])
def test_an_event_without_a_payload_is_refused(nothing: dict[str, Any]) -> None:
    assert why(event(**nothing)) == ("no_payload", "")


def test_an_event_with_both_payloads_is_refused() -> None:
    assert why(event(last_sync={"last_sync_status": "pending"})) == ("two_payloads", "")


def test_an_empty_payload_is_refused() -> None:
    assert why(payload()) == ("empty_last_sync", "last_sync")


@pytest.mark.parametrize("name", ["job", "last_sync"])
@pytest.mark.parametrize("value", [[], "x", 1, True])
def test_a_payload_is_an_object(name: str, value: Any) -> None:
    assert why(event(**{"job": ..., name: value})) == ("not_an_object", name)


@pytest.mark.parametrize(
    ("name", "offer"),
    [
        ("last_sync_state", "write last_sync_status"),
        ("last_synced_at", "write last_synced"),
        ("lastSyncStatus", "write last_sync_status"),
        ("zzz", "the fields are last_access_control_sync_error,"),
    ],
)
def test_an_unknown_field_of_a_payload_offers_the_nearest_name(name: str, offer: str) -> None:
    invalid = refused(payload(**{name: 1}))
    assert (invalid.reason, invalid.path) == ("unknown_field", f"last_sync.{name}")
    assert offer in invalid.message


def test_last_seen_is_no_field_of_the_contract() -> None:
    assert why(payload(last_seen="2024-11-09T15:13:08Z"))[0] == "unknown_field"


def test_a_null_in_an_unknown_field_of_a_payload_is_a_typo_first() -> None:
    assert why(payload(last_sync_state=None))[0] == "unknown_field"


# --- clocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "path"),
    [
        (lambda t: job(scheduled_at=t), "job.scheduled_at"),
        (lambda t: job(started_at=t), "job.started_at"),
        (lambda t: job(completed_at=t), "job.completed_at"),
        (lambda t: job(job_type="access_control", completed_at=t), "job.completed_at"),
        (lambda t: payload(last_synced=t), "last_sync.last_synced"),
        (lambda t: payload(last_sync_scheduled_at=t), "last_sync.last_sync_scheduled_at"),
        (
            lambda t: payload(last_incremental_sync_scheduled_at=t),
            "last_sync.last_incremental_sync_scheduled_at",
        ),
        (
            lambda t: payload(last_access_control_sync_scheduled_at=t),
            "last_sync.last_access_control_sync_scheduled_at",
        ),
    ],
)
def test_no_time_is_more_than_five_minutes_after_the_event(build: Any, path: str) -> None:
    assert accepted(build("2024-11-09T15:18:08.231Z"))
    assert why(build("2024-11-09T15:18:08.231001Z")) == ("time_after_event", path)
    assert why(build("2099-01-01T00:00:00Z")) == ("time_after_event", path)
    assert why(build("9999-12-31T23:59:59.999999Z")) == ("time_after_event", path)


def test_no_event_is_more_than_five_minutes_after_now() -> None:
    happened = microseconds(datetime(2024, 11, 9, 15, 13, 8, 231000, tzinfo=UTC))
    assert accepted(event(), now=happened - 300_000_000)
    invalid = refused(event(), now=happened - 300_000_001)
    assert (invalid.reason, invalid.path) == ("occurred_in_future", "occurred_at")
    assert invalid.connector_id == "my-connector"


def test_a_letter_from_the_future_becomes_valid_by_waiting() -> None:
    value = event(occurred_at="2031-01-01T00:00:00Z")
    assert why(value) == ("occurred_in_future", "occurred_at")
    later = microseconds(datetime(2031, 1, 1, tzinfo=UTC))
    assert accepted(value, now=later)


def test_the_last_moment_of_the_calendar_does_not_overflow() -> None:
    value = event(occurred_at="9999-12-31T23:59:59.999999Z")
    assert why(value) == ("occurred_in_future", "occurred_at")
    assert accepted(value, now=10**18)


# --- stamps -------------------------------------------------------------------------------------

AT = {"started": 1_731_164_401_118_000, "occurred": 1_731_165_188_231_000}
RANKS = {
    "pending": 0,
    "in_progress": 1,
    "suspended": 2,
    "canceling": 3,
    "completed": 4,
    "error": 4,
    "canceled": 4,
}


@pytest.mark.parametrize("status", ["pending", "in_progress", "suspended", "canceling"])
def test_a_running_job_is_ordered_by_its_start(status: str) -> None:
    assert accepted(job(status=status)).at == AT["started"]
    assert accepted(job(status=status, started_at=None)).at == AT["occurred"]


@pytest.mark.parametrize("status", ["completed", "error", "canceled"])
def test_a_jobs_end_is_ordered_by_the_later_of_start_and_event(status: str) -> None:
    assert accepted(job(status=status)).at == AT["occurred"]
    late_start = job(status=status, started_at="2024-11-09T15:14:00Z")
    assert accepted(late_start).at == 1_731_165_240_000_000
    assert accepted(job(status=status, started_at=None)).at == AT["occurred"]


@pytest.mark.parametrize(("status", "rank"), RANKS.items())
def test_the_rank_is_how_far_a_sync_has_come(status: str, rank: int) -> None:
    assert accepted(job(status=status)).rank == rank
    assert accepted(payload(last_sync_status=status)).rank == rank
    assert accepted(payload(last_access_control_sync_status=status)).rank == rank


def test_a_payload_takes_the_highest_rank_that_it_carries() -> None:
    both = {"last_sync_status": "pending", "last_access_control_sync_status": "canceling"}
    assert accepted(payload(**both)).rank == 3
    assert accepted(payload(last_indexed_document_count=1)).rank == 1


def test_a_payload_is_ordered_by_its_event() -> None:
    assert accepted(payload(last_synced="2020-01-01T00:00:00Z")).at == AT["occurred"]


# --- JSON ---------------------------------------------------------------------------------------


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "text", [nested(63), '{"a":' * 63 + "1" + "}" * 63, json.dumps("[{" * 100)]
)
def test_nesting_of_64_is_taken(text: str) -> None:
    assert accepted(with_text(text))


@pytest.mark.parametrize(
    "text", [nested(64), '{"a":' * 64 + "1" + "}" * 64, nested(150), nested(5_000), "[" * 100_000]
)
def test_deeper_nesting_is_refused(text: str) -> None:
    assert why(with_text(text)) == ("too_deep", "")


def test_nesting_is_counted_outside_of_texts() -> None:
    quoted = json.dumps('"' + "[" * 70 + "\\")
    assert accepted(with_text(quoted))
    assert why(with_text(f"[{quoted}, {nested(63)}]")) == ("too_deep", "")


@given(
    st.lists(st.sampled_from(["[" * 30, "{" * 5, "]" * 20, "}" * 7, '"', "\\", "a", "\n"])).map(
        "".join
    )
)
@example("[" * 64 + "][")
@example("[" * 65)
@example('"[' * 65)
def test_nesting_is_what_one_counts_character_by_character(text: str) -> None:
    depth = deepest = 0
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif inside:
            escaped, inside = character == "\\", character != '"'
        elif character == '"':
            inside = True
        else:
            depth += (character in "[{") - (character in "]}")
            deepest = max(deepest, depth)
    found = decode(text.encode(), now=0) if text else None
    assert (isinstance(found, Invalid) and found.reason == "too_deep") is (deepest > 64)


@pytest.mark.parametrize("where", ["top", "job", "cursor", "unknown"])
@pytest.mark.parametrize("again", ['"a": 1, "a": 1', '"a": 1, "\\u0061": 2', '"": 1, "": 2'])
def test_a_name_that_stands_twice_is_refused_anywhere(where: str, again: str) -> None:
    name = "" if again.startswith('""') else "a"
    values = {
        "top": (event()[:-1] + b", " + again.encode() + b"}", name),
        "job": (job(x=0).replace(b'"x": 0', again.encode()), f"job.{name}"),
        "cursor": (
            job(sync_cursor={"x": 0}).replace(b'"x": 0', again.encode()),
            f"job.sync_cursor.{name}",
        ),
        "unknown": (with_text("[{" + again + "}]"), f"note.0.{name}"),
    }
    value, path = values[where]
    assert why(value) == ("duplicate_key", path)


@pytest.mark.parametrize(
    "text", ["1e999", "-1e999", "1E+400", "NaN", "Infinity", "-Infinity", "1" + "0" * 400 + ".5"]
)
def test_a_number_that_is_not_finite_is_refused_anywhere(text: str) -> None:
    assert why(with_text(text)) == ("not_finite", "note")
    inside = job(sync_cursor={"x": [0]}).replace(b"[0]", f"[{text}]".encode())
    assert why(inside) == ("not_finite", "job.sync_cursor.x.0")
    count = job(indexed_document_count=0).replace(b'count": 0', f'count": {text}'.encode())
    assert why(count) == ("not_finite", "job.indexed_document_count")


def test_an_integer_that_python_cannot_write_is_refused() -> None:
    assert accepted(with_text("1" * 4_300))
    assert why(with_text("1" * 4_301)) == ("number_too_long", "note")
    assert why(with_text("-" + "1" * 4_301)) == ("number_too_long", "note")
    assert why(with_text("1" * 100_000)) == ("number_too_long", "note")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (r'"\u0000"', "note"),
        (r'"a\u0000b"', "note"),
        (r'{"\u0000": 1}', r"note.\u0000"),
        (r'[{"a": {"b\u0000": 1}}]', r"note.0.a.b\u0000"),
    ],
)
def test_nul_is_refused_in_texts_and_names(text: str, path: str) -> None:
    assert why(with_text(text)) == ("nul_character", path)


def test_nul_is_refused_in_known_fields() -> None:
    assert why(job(error="a\0b")) == ("nul_character", "job.error")
    assert why(payload(last_sync_error="\0")) == ("nul_character", "last_sync.last_sync_error")
    assert why(event(connector_id="a\0")) == ("nul_character", "connector_id")
    assert why(job(sync_cursor={"\0": 1})) == ("nul_character", "job.sync_cursor.\\u0000")
    assert why(payload(sync_cursor={"a": ["\0"]}))[0] == "nul_character"


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert accepted(job(error="\\u0000", note="\\u0000"))


@pytest.mark.parametrize("text", [r'"\ud800"', r'"\udc00"', r'"\ud800x"', r'"\udc00\ud800"'])
def test_a_lone_surrogate_is_refused_in_texts_and_names(text: str) -> None:
    assert why(with_text(text)) == ("lone_surrogate", "note")
    assert why(with_text("{" + text + ": 1}"))[0] == "lone_surrogate"
    assert why(event(error=0).replace(b'"e-1"', text.encode())) == ("lone_surrogate", "event_id")


def test_a_pair_of_surrogates_is_a_character() -> None:
    value = job(status="error", error="x").replace(b'"x"', rb'"\ud83d\ude00"')
    assert accepted(value).fields()["last_sync_error"] == "😀"


@pytest.mark.parametrize(
    "raw", [b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xff", b"\xc0\x80", b"\xf4\x90\x80\x80", b"caf\xe9"]
)
def test_bytes_that_are_not_utf_8_are_refused(raw: bytes) -> None:
    assert why(event(note="x").replace(b'"x"', b'"' + raw + b'"')) == ("not_utf8", "")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_refused(encoding: str) -> None:
    reason, path = why(event().decode().encode(encoding))
    assert (reason in {"byte_order_mark", "invalid_json"}, path) == (True, "")
    assert (reason == "byte_order_mark") is (encoding != "utf-16-le")


@pytest.mark.parametrize(
    "value",
    [
        b" ",
        b"{",
        b"{}}",
        b"{} {}",
        b'{"a":1,}',
        b"{'a':1}",
        b"{a:1}",
        b"[1,]",
        b"nul",
        b"True",
        b'{"a":01}',
        b'{"a":+1}',
        b'{"a":.5}',
        b'{"a":1.}',
        b'{"a":"\x01"}',
        b'{"a":"\n"}',
        b'{"a":"\\x"}',
        b'{"a":"\\u12"}',
        b'{"a":"',
        b'"\\',
        b"// x\n{}",
        b"\x00",
        b"\x0b{}",
        b"\x00\x00\x00\x00\x01{}",
    ],
)
def test_what_is_not_json_is_refused(value: bytes) -> None:
    assert why(value) == ("invalid_json", "")


@pytest.mark.parametrize("value", [b"null", b"[]", b'"x"', b"1", b"true", b"1.5"])
def test_what_is_no_object_is_refused(value: bytes) -> None:
    assert why(value) == ("not_an_object", "")


def test_a_record_without_a_value_is_refused() -> None:
    assert why(None) == ("null_value", "")
    assert why(b"") == ("empty_value", "")
    assert why(None, STRUCTURED) == ("null_value", "")


def test_the_text_comes_before_what_it_means() -> None:
    value = event(event_id=5, connector_id=None, note=0).replace(b'"note": 0', b'"note": 1e999')
    assert why(value) == ("not_finite", "note")


def test_the_first_field_comes_first() -> None:
    assert why(event(occurred_at=1, event_id=1, job=1)) == ("invalid_id", "event_id")
    assert why(job(started_at=1, status=1)) == ("invalid_status", "job.status")


# --- CloudEvents --------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [structured, binary])
def test_a_cloud_event_gives_the_same_event(build: Any) -> None:
    read = accepted(*build())
    plain = accepted(event(event_id="/sync 1"))
    assert read == plain
    assert read.fields() == plain.fields()


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/cloudevents+json",
        b"application/cloudevents+json; charset=utf-8",
        b"Application/CloudEvents+JSON;charset=UTF-8",
        b" application/cloudevents+json ",
    ],
)
@pytest.mark.parametrize("name", ["content-type", "Content-Type"])
def test_the_content_type_makes_it_structured(name: str, content_type: bytes) -> None:
    value, _ = structured()
    assert accepted(value, [(name, content_type)]).event_id == "/sync 1"


def test_the_content_type_decides_before_the_attributes() -> None:
    value, _ = structured()
    _, headers = binary(id="2")
    assert accepted(value, [*headers, *STRUCTURED]).event_id == "/sync 1"


@pytest.mark.parametrize(
    "content_type", [b"application/json", b"text/plain", b"application/json; x=y"]
)
def test_another_content_type_leaves_it_to_the_attributes(content_type: bytes) -> None:
    header = ("content-type", content_type)
    assert accepted(event(), [header]).event_id == "e-1"
    value, headers = binary()
    assert accepted(value, [header, *headers]).event_id == "/sync 1"


def test_any_attribute_makes_it_binary() -> None:
    assert why(event(), [("ce_foo", b"bar")]) == ("missing_field", "headers.ce_specversion")


def test_other_headers_are_nobodys_business() -> None:
    headers = [("traceparent", b"\xff"), ("x", None), ("x", b""), ("\ud800", b"\x00"), ("", None)]
    assert accepted(event(), headers) == accepted(event())


@pytest.mark.parametrize(
    "content_type",
    [b"application/cloudevents-batch+json", b"Application/CloudEvents-Batch+JSON; charset=utf-8"],
)
def test_a_batch_is_refused(content_type: bytes) -> None:
    headers = [("content-type", content_type)]
    assert why(b"[]", headers) == ("cloudevents_batch", "headers.content-type")


def test_a_content_type_from_outside_is_shortened_and_escaped() -> None:
    media = b"application/cloudevents-batch\x1b[31m" + b"a" * 5_000
    problem = decode(b"[]", [("content-type", media)], now=NOW)
    assert isinstance(problem, Invalid)
    assert problem.message.isprintable()
    assert len(problem.message) < 200


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/cloudevents+avro",
        b"application/cloudevents+protobuf; x=y",
        b"application/cloudevents",
    ],
)
def test_other_formats_of_cloud_events_are_refused(content_type: bytes) -> None:
    headers = [("content-type", content_type)]
    assert why(event(), headers) == ("unsupported_content_type", "headers.content-type")


def test_content_types_that_differ_are_refused() -> None:
    headers = [*STRUCTURED, ("content-type", b"application/json")]
    assert why(event(), headers) == ("content_type_conflict", "headers.content-type")
    value, _ = structured()
    assert accepted(value, STRUCTURED * 2)


@pytest.mark.parametrize("name", ["ce_id", "ce_time", "ce_extension"])
def test_a_repeated_attribute_is_refused_even_with_the_same_value(name: str) -> None:
    value, headers = binary(extension="x")
    again = next(header for header in headers if header[0] == name)
    assert why(value, [*headers, again]) == ("repeated_header", f"headers.{name}")


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "time", "subject"])
def test_an_attribute_without_value_or_not_utf_8_is_refused(name: str) -> None:
    assert why(*binary(**{name: None})) == ("null_header", f"headers.ce_{name}")
    assert why(*binary(**{name: b"\xff"})) == ("header_not_utf8", f"headers.ce_{name}")


def test_a_content_type_without_value_or_not_utf_8_is_refused() -> None:
    assert why(event(), [("content-type", None)]) == ("null_header", "headers.content-type")
    assert why(event(), [("content-type", b"\xff")]) == ("header_not_utf8", "headers.content-type")


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
def test_required_attributes(name: str) -> None:
    assert why(*structured(**{name: ...})) == ("missing_field", name)
    assert why(*structured(**{name: None})) == ("missing_field", name)
    assert why(*binary(**{name: ...})) == ("missing_field", f"headers.ce_{name}")


def test_a_missing_time_has_its_own_reason() -> None:
    assert why(*structured(time=...)) == ("missing_time", "time")
    assert why(*structured(time=None)) == ("missing_time", "time")
    assert why(*binary(time=...)) == ("missing_time", "headers.ce_time")


def test_the_time_in_the_data_does_not_replace_a_missing_one() -> None:
    data = {"occurred_at": "2024-11-09T15:13:08Z", "job": JOB}
    assert why(*structured(time=..., data=data)) == ("missing_time", "time")


@pytest.mark.parametrize("time", ["2024-11-09 15:13:08Z", ""])
def test_a_malformed_time_is_named_where_it_stands(time: str) -> None:
    assert why(*structured(time=time)) == ("invalid_time", "time")
    assert why(*binary(time=time)) == ("invalid_time", "headers.ce_time")


@pytest.mark.parametrize("version", ["0.3", "1", "1.0.0", "", "2.0"])
def test_only_version_1_0_is_read(version: str) -> None:
    assert why(*structured(specversion=version)) == ("invalid_specversion", "specversion")
    assert why(*binary(specversion=version)) == ("invalid_specversion", "headers.ce_specversion")


def test_a_version_that_is_a_number_is_refused() -> None:
    assert why(*structured(specversion=1.0)) == ("invalid_specversion", "specversion")


@pytest.mark.parametrize("name", ["id", "source"])
@pytest.mark.parametrize("value", [v for v in NO_IDS if v != ""])
def test_id_and_source_are_ids(name: str, value: Any) -> None:
    assert why(*structured(**{name: value})) == ("invalid_id", name)
    if isinstance(value, str):
        assert why(*binary(**{name: value})) == ("invalid_id", f"headers.ce_{name}")


@pytest.mark.parametrize("build", [structured, binary])
def test_source_and_id_have_512_bytes_each(build: Any) -> None:
    read = accepted(*build(source="s" * 512, id="é" * 256))
    assert read.event_id == "s" * 512 + " " + "é" * 256


@pytest.mark.parametrize("value", ["", 1, [], {}])
def test_type_is_any_text_that_is_not_empty(value: Any) -> None:
    assert why(*structured(type=value)) == ("invalid_type", "type")
    assert why(*binary(type="")) == ("invalid_type", "headers.ce_type")


def test_data_base64_is_refused() -> None:
    assert why(*structured(data_base64="e30=")) == ("binary_data", "data_base64")
    assert why(*structured(data=..., data_base64="e30=")) == ("binary_data", "data_base64")
    assert accepted(*structured(data_base64=None))


@pytest.mark.parametrize("data", [..., None])
def test_missing_data_is_refused(data: Any) -> None:
    assert why(*structured(data=data)) == ("missing_data", "data")


@pytest.mark.parametrize("data", ["{}", [], 1, True])
def test_data_is_an_object(data: Any) -> None:
    assert why(*structured(data=data)) == ("not_an_object", "data")
    assert why(*binary(data)) == ("not_an_object", "")


def test_the_subject_is_the_connector() -> None:
    data = {"connector_id": "my-connector", "job": JOB}
    for value, headers in (
        structured(data=data),
        binary(data),
        structured(subject=..., data=data),
        structured(subject=None, data=data),
        binary(data, subject=...),
        structured(data={"connector_id": None, "job": JOB}),
    ):
        assert accepted(value, headers).connector_id == "my-connector"


def test_a_subject_that_disagrees_with_the_data_is_refused() -> None:
    data = {"connector_id": "another", "job": JOB}
    assert why(*structured(data=data)) == ("connector_id_conflict", "subject")
    assert why(*binary(data)) == ("connector_id_conflict", "headers.ce_subject")
    assert refused(*structured(data=data)).connector_id is None
    assert why(*structured(data={"connector_id": 5, "job": JOB}))[0] == "connector_id_conflict"


def test_a_cloud_event_without_a_connector_is_refused() -> None:
    assert why(*structured(subject=...)) == ("missing_field", "data.connector_id")
    assert why(*binary(subject=...)) == ("missing_field", "connector_id")


def test_a_malformed_connector_is_named_where_it_stands() -> None:
    data = {"connector_id": "..", "job": JOB}
    assert why(*structured(subject="..")) == ("invalid_id", "subject")
    assert why(*structured(subject="")) == ("invalid_id", "subject")
    assert why(*binary(subject="..")) == ("invalid_id", "headers.ce_subject")
    assert why(*structured(subject=..., data=data)) == ("invalid_id", "data.connector_id")
    assert why(*binary(data, subject=...)) == ("invalid_id", "connector_id")


@pytest.mark.parametrize("build", [lambda d: structured(data=d), binary])
def test_event_id_and_occurred_at_in_the_data_are_ignored(build: Any) -> None:
    data = {"event_id": "", "occurred_at": {"not": "a time"}, "job": JOB}
    assert accepted(*build(data)) == accepted(event(event_id="/sync 1"))


def test_fields_of_the_data_are_named_where_they_stand() -> None:
    data = {"job": {**JOB, "status": "x"}}
    assert why(*structured(data=data)) == ("invalid_status", "data.job.status")
    assert why(*binary(data)) == ("invalid_status", "job.status")
    late = {"job": {**JOB, "started_at": "2025-01-01T00:00:00Z"}}
    assert why(*structured(data=late)) == ("time_after_event", "data.job.started_at")
    assert why(*binary(late)) == ("time_after_event", "job.started_at")


def test_a_cloud_event_from_the_future_names_its_time() -> None:
    future = "2031-01-01T00:00:00Z"
    assert why(*structured(time=future)) == ("occurred_in_future", "time")
    assert why(*binary(time=future)) == ("occurred_in_future", "headers.ce_time")


def test_the_text_of_a_cloud_event_is_checked_as_a_whole() -> None:
    value, headers = structured(extension=0)
    assert why(value.replace(b'"extension": 0', b'"extension": 1e999'), headers) == (
        "not_finite",
        "extension",
    )
    assert why(*structured(extension="\0")) == ("nul_character", "extension")
    assert why(*binary({"job": JOB, "note": "\0"})) == ("nul_character", "note")
    assert why(*structured(extension=json.loads(nested(64)))) == ("too_deep", "")


@pytest.mark.parametrize("others", range(6))
def test_however_many_fields_nobody_knows_they_are_all_read(others: int) -> None:
    known = {f"x{number}": number for number in range(others)}
    assert why(*binary({"job": JOB, **known, "note": "\0"})) == ("nul_character", "note")
    assert why(*structured(**known, note="\0")) == ("nul_character", "note")
    assert why(event(**known, note="\0")) == ("nul_character", "note")
    assert why(job(**known, note="\0")) == ("nul_character", "job.note")


# --- what a refusal says ------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(set(REASONS) - FROM_STORE))
def test_every_reason_has_an_example_that_gives_it(code: str) -> None:
    reason = REASONS[code]
    assert refused(reason.value, reason.headers).reason == code
    assert reason.status == 400


@pytest.mark.parametrize("code", sorted(FROM_STORE))
def test_the_examples_of_a_stores_reasons_are_events(code: str) -> None:
    reason = REASONS[code]
    assert reason.value is not None
    assert accepted(reason.value, reason.headers)
    assert (reason.status == 404) is (code == "connector_not_found")


def test_an_example_mended_as_told_is_accepted() -> None:
    assert accepted(event(), [("content-type", b"application/json")])
    assert "omit it" in REASONS["null_not_allowed"].fix


def test_the_connector_is_named_where_it_can_be_read() -> None:
    assert refused(job(status="x")).connector_id == "my-connector"
    assert refused(event(connector_id="..")).connector_id is None
    assert refused(b"{").connector_id is None
    _, headers = binary()
    assert refused(b"{", headers).connector_id == "my-connector"
    assert refused(*structured(id=...)).connector_id == "my-connector"
    data = {"connector_id": "inside", "job": 1}
    assert refused(*structured(subject=..., data=data)).connector_id == "inside"


@pytest.mark.parametrize(
    "hostile", ["\x1b[31m" * 50, "\n" * 500, "é" * 5_000, "\u202e" + "x" * 999, '"\\' * 400]
)
def test_a_message_never_repeats_raw_control_characters_or_all_of_a_value(hostile: str) -> None:
    values = [
        event(event_id=hostile + "\x01"),
        event(occurred_at=hostile),
        job(status=hostile),
        payload(**{hostile: 1}),
        with_text('{"' + json.dumps(hostile)[1:-1] + r'\u0000": 1}'),
    ]
    for value in values:
        message = refused(value).message
        assert "\x1b" not in message
        assert hostile[:100] not in message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            job(indexed_document_count="42"),
            (
                'job.indexed_document_count is "42", a text: write a JSON integer from 0 to '
                "9223372036854775807, without quotes or fraction"
            ),
        ),
        (
            event(occurred_at="2024-11-09T15:13:08"),
            (
                'occurred_at is "2024-11-09T15:13:08", without an offset: write an RFC 3339 time '
                'with its offset, such as "2024-11-09T15:13:08.231Z"'
            ),
        ),
        (event(event_id=...), "event_id is missing: add the field"),
        (
            payload(last_sync_state="x"),
            'last_sync has no field "last_sync_state": write last_sync_status',
        ),
    ],
)
def test_a_message_says_what_was_found_and_how_to_write_it_right(
    value: bytes, message: str
) -> None:
    assert refused(value).message == message


# --- publishers ---------------------------------------------------------------------------------

MOMENTS = st.datetimes(
    datetime(2000, 1, 1),  # noqa: DTZ001 - bounds are local
    datetime(2024, 11, 9),  # noqa: DTZ001
    timezones=st.just(UTC),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAMES = (
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)
    .filter(lambda name: name not in {".", ".."})
    .filter(lambda name: len(name.encode()) <= 200)
)
COUNTS = st.integers(0, 2**63 - 1)
JSON: st.SearchStrategy[JsonValue] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CURSORS = st.dictionaries(TEXTS, JSON, max_size=3)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


JOBS = st.fixed_dictionaries(
    {"job_type": st.sampled_from(JOB_TYPES), "status": st.sampled_from(STATUSES)},
    optional={
        "id": optional(NAMES),
        "error": optional(TEXTS),
        "scheduled_at": optional(MOMENTS),
        "started_at": optional(MOMENTS),
        "completed_at": optional(MOMENTS),
        "indexed_document_count": optional(COUNTS),
        "deleted_document_count": optional(COUNTS),
        "sync_cursor": optional(CURSORS),
    },
).map(lambda fields: {"job": SyncJob(**fields)})
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "_at": MOMENTS,
    "last_synced": MOMENTS,
    "_status": st.sampled_from(STATUSES),
    "_count": COUNTS,
    "_error": optional(TEXTS),
    "_cursor": CURSORS,
}
PAYLOADS = (
    st.fixed_dictionaries(
        {},
        optional={
            name: next(kind for ending, kind in KINDS.items() if name.endswith(ending))
            for name in LAST_SYNC_FIELDS
        },
    )
    .filter(bool)
    .map(lambda fields: {"last_sync": LastSync(**fields)})
)


@st.composite
def events(draw: st.DrawFn) -> SyncFinished:
    source = draw(NAMES.filter(lambda name: " " not in name))
    return SyncFinished(
        event_id=f"{source} {draw(NAMES)}",
        connector_id=draw(NAMES),
        occurred_at=datetime(2024, 11, 9, tzinfo=UTC)
        + draw(st.timedeltas(timedelta(0), timedelta(0, 900))),
        **draw(JOBS | PAYLOADS),
    )


@given(events(), st.sampled_from(["plain", "structured", "binary"]))
@settings(max_examples=300)
def test_what_is_published_is_what_is_read(sent: SyncFinished, framing: Any) -> None:
    record = sent.to_record(framing)
    read = accepted(record.value, record.headers)
    assert read == sent
    assert read.fields() == sent.fields()
    assert (read.at, read.rank) == (sent.at, sent.rank)
    assert record.key == sent.connector_id.encode()


@given(events())
def test_fields_are_json_and_publish_again_as_themselves(sent: SyncFinished) -> None:
    fields = sent.fields()
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields
    again = {**EVENT, "occurred_at": "2024-11-09T00:15:00Z", "last_sync": fields}
    again.pop("job")
    assert accepted(json.dumps(again).encode()).fields() == fields


def test_an_event_built_from_a_job_has_a_fresh_id() -> None:
    sync = SyncJob(job_type="full", status="pending")
    moment = datetime(2024, 11, 9, tzinfo=UTC)
    built = [
        SyncFinished.from_job(connector_id="c", job=sync, occurred_at=moment) for _ in range(2)
    ]
    assert built[0].event_id != built[1].event_id
    assert len(built[0].event_id) == 36
    named = SyncFinished.from_job(connector_id="c", job=sync, occurred_at=moment, event_id="e")
    assert named.event_id == "e"


def test_an_empty_event_id_is_refused_not_replaced() -> None:
    sync = SyncJob(job_type="full", status="pending")
    moment = datetime(2024, 11, 9, tzinfo=UTC)
    with pytest.raises(ValidationError, match="event_id"):
        SyncFinished.from_job(connector_id="c", job=sync, occurred_at=moment, event_id="")


@pytest.mark.parametrize("framing", ["structured", "binary"])
def test_a_source_makes_a_cloud_event_of_a_plain_id(framing: Any) -> None:
    sent = accepted(event())
    record = sent.to_record(framing, source="/my service")
    assert accepted(record.value, record.headers).event_id == "/my service e-1"
    with pytest.raises(ValueError, match="name the source"):
        sent.to_record(framing)


def test_a_source_that_the_id_begins_with_is_not_doubled() -> None:
    sent = accepted(*structured())
    record = sent.to_record("binary", source="/sync")
    assert accepted(record.value, record.headers) == sent


def test_a_pair_that_is_too_long_for_a_plain_id_says_so() -> None:
    sent = accepted(*structured(source="s" * 512, id="i" * 512))
    assert accepted(sent.to_record("structured").value, STRUCTURED) == sent
    with pytest.raises(ValueError, match="structured or binary"):
        sent.to_record("plain")


@pytest.mark.parametrize(
    "cursor",
    [
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": "\0"},
        {"a": "\ud800"},
        {"\ud800": 1},
        {"a": {1, 2}},
        {"a": datetime(2024, 1, 1, tzinfo=UTC)},
        {"a": {5: 1}},
        {"a": (1, 2)},
        {"a": 10**4300},
        {"a": json.loads(nested(64))},
    ],
)
def test_a_publisher_cannot_build_a_cursor_that_no_store_can_keep(cursor: Any) -> None:
    with pytest.raises(ValidationError, match="cursor as a JSON object"):
        SyncFinished.from_job(
            connector_id="c",
            job=SyncJob(job_type="full", status="completed", sync_cursor=cursor),
            occurred_at=datetime(2024, 11, 9, tzinfo=UTC),
        )


def test_a_publisher_cannot_build_a_record_that_is_nested_too_deep() -> None:
    cursor = {"a": json.loads(nested(61))}
    sync = SyncJob(job_type="full", status="completed", sync_cursor=cursor)
    sent = SyncFinished(
        event_id="s e", connector_id="c", occurred_at=datetime(2024, 11, 9, tzinfo=UTC), job=sync
    )
    assert accepted(sent.to_record().value) == sent
    with pytest.raises(ValueError, match="flatter"):
        sent.to_record("structured")


@pytest.mark.parametrize(
    "wrong",
    [
        {"connector_id": ".."},
        {"occurred_at": datetime(2024, 11, 9)},  # noqa: DTZ001 - this is what is refused
        {"job": None},
        {"last_sync": LastSync()},
        {"job": None, "last_sync": LastSync()},
        {"job": SyncJob(job_type="full", status="error", scheduled_at="2099-01-01T00:00:00Z")},
    ],
)
def test_a_publisher_cannot_build_an_event_that_would_be_refused(wrong: dict[str, Any]) -> None:
    sync = SyncJob(job_type="full", status="pending")
    good: dict[str, Any] = {
        "event_id": "e",
        "connector_id": "c",
        "occurred_at": datetime(2024, 11, 9, tzinfo=UTC),
        "job": sync,
    }
    assert SyncFinished(**good)
    with pytest.raises(ValidationError):
        SyncFinished(**{**good, **wrong})


@pytest.mark.parametrize("error", ["a\0", "\ud800"])
def test_a_publisher_cannot_build_an_error_that_would_be_refused(error: str) -> None:
    with pytest.raises(ValidationError, match="error"):
        SyncJob(job_type="full", status="error", error=error)


def test_an_event_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(accepted(event()), "event_id", "x")  # noqa: B010 - the type checker knows it too


# --- anything -----------------------------------------------------------------------------------

HEADER_NAMES = st.sampled_from(
    [
        "content-type",
        "ce_id",
        "ce_source",
        "ce_specversion",
        "ce_type",
        "ce_time",
        "ce_subject",
        "CE_ID",
    ]
) | st.text(max_size=5)
HEADER_VALUES = (
    st.none()
    | st.binary(max_size=10)
    | st.sampled_from(
        [b"application/cloudevents+json", b"application/cloudevents-batch+json", b"1.0", b"/s"]
    )
)
ANY_HEADERS = st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=8)


def ends_well(value: bytes | None, headers: Headers) -> None:
    decoded = decode(value, headers, now=NOW)
    if isinstance(decoded, Invalid):
        refused(value, headers)
        assert decoded == decode(value, headers, now=NOW)
    else:
        json.dumps(decoded.fields(), allow_nan=False).encode()
        assert (type(decoded.at), decoded.rank in range(5)) == (int, True)


@given(st.none() | st.binary(max_size=60), ANY_HEADERS)
@example(b"\xef\xbb\xbf", [])
@settings(max_examples=500)
def test_any_bytes_end_as_event_or_reason(value: bytes | None, headers: Headers) -> None:
    ends_well(value, headers)


@given(events(), st.sampled_from(["plain", "structured", "binary"]), st.data())
@settings(max_examples=500)
def test_an_event_with_bytes_changed_ends_as_event_or_reason(
    sent: SyncFinished, framing: Any, data: st.DataObject
) -> None:
    record = sent.to_record(framing)
    start = data.draw(st.integers(0, len(record.value)))
    end = data.draw(st.integers(start, min(len(record.value), start + 8)))
    patch = data.draw(
        st.binary(max_size=6) | st.sampled_from([b'"', b"{", b"\\u0000", b"1e999", b"null"])
    )
    headers = data.draw(st.permutations(record.headers) | ANY_HEADERS)
    ends_well(record.value[:start] + patch + record.value[end:], headers)


STRANGE = JSON | st.sampled_from(["2024-11-09T00:00:00Z", "completed", "full", 1e308, 10**30, ".."])


@given(
    st.dictionaries(
        st.sampled_from([*EVENT, "last_sync", *CLOUD_EVENT, "data_base64"]) | TEXTS,
        STRANGE
        | st.dictionaries(st.sampled_from([*JOB, *LAST_SYNC_FIELDS]) | TEXTS, STRANGE, max_size=5),
    ),
    ANY_HEADERS | st.just(STRUCTURED),
    st.booleans(),
)
@settings(max_examples=500)
def test_any_object_ends_as_event_or_reason(
    changes: dict[str, JsonValue],
    headers: Headers,
    whole: bool,  # noqa: FBT001 - drawn
) -> None:
    ends_well(json.dumps({**EVENT, **changes} if whole else changes).encode(), headers)


@given(JSON)
@settings(max_examples=300)
def test_the_quick_and_the_exact_check_agree(node: JsonValue) -> None:
    text = json.dumps({"a": node}).encode()
    assert document.storable(document.parse(text))
    assert document.refusal(text) is None


@given(
    st.binary(max_size=12)
    | st.text('{}[]",:\\u0d8aeE+-.1 nulltrefasNI\n', max_size=14).map(str.encode)
)
@settings(max_examples=1000)
def test_the_quick_and_the_exact_parser_agree(value: bytes) -> None:
    try:
        quick = document.storable(document.parse(value))
    except ValueError:
        quick = False
    assume(value)
    assert quick is (document.refusal(value) is None)
