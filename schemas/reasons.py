"""Why a record cannot be applied: one code for each reason, what it means and how to mend it."""

import json
from dataclasses import dataclass
from typing import Any, Literal

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Invalid:
    """The first thing that is wrong with a record.

    `path` names the field (`job.started_at`, `headers.ce_time`; empty: the record as a whole);
    `connector_id` stands where it could be read and is itself valid.
    """

    reason: str
    path: str
    message: str
    connector_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """What a reason code says; `value` and `headers` are a record that ends with it.

    The record of a reason that only a store or a topic can give (`connector_not_found`,
    `rejected`, `too_large`) is itself a valid event.
    """

    meaning: str
    fix: str
    value: bytes | None
    headers: Headers = ()
    status: Literal[400, 404] = 400


_JOB: dict[str, Any] = {
    "job_type": "full",
    "status": "completed",
    "started_at": "2024-11-09T15:00:01Z",
}
_EVENT: dict[str, Any] = {
    "event_id": "e-1",
    "connector_id": "my-connector",
    "occurred_at": "2024-11-09T15:13:08.231Z",
    "job": _JOB,
}
_CLOUD_EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/sync",
    "type": "connector.sync-finished",
    "subject": "my-connector",
    "time": "2024-11-09T15:13:08.231Z",
    "data": {"job": _JOB},
}
_STRUCTURED: Headers = (("content-type", b"application/cloudevents+json"),)
_BINARY: Headers = tuple(
    (f"ce_{name}", value.encode()) for name, value in _CLOUD_EVENT.items() if name != "data"
)


def _json(document: dict[str, Any], **changes: Any) -> bytes:
    """Write a document with some members changed, or left out where the change is `...`."""
    changed = {**document, **changes}
    kept = {name: value for name, value in changed.items() if value is not ...}
    return json.dumps(kept, separators=(",", ":")).encode()


def _event(**changes: Any) -> bytes:
    return _json(_EVENT, **changes)


def _job(**changes: Any) -> bytes:
    return _event(job=json.loads(_json(_JOB, **changes)))


def _payload(**fields: Any) -> bytes:
    return _event(job=..., last_sync=fields)


def _cloud_event(**changes: Any) -> bytes:
    return _json(_CLOUD_EVENT, **changes)


REASONS: dict[str, Reason] = {
    # The record as a whole
    "null_value": Reason(
        meaning="The record has no value.",
        fix="publish the event as the record's value; this topic is not compacted and knows no "
        "tombstones",
        value=None,
    ),
    "empty_value": Reason(
        meaning="The record's value has no bytes.",
        fix="publish the event, a JSON object, as the record's value",
        value=b"",
    ),
    # Headers
    "null_header": Reason(
        meaning="A header that decides how the record is read has no value.",
        fix="give the header a value or leave it out",
        value=_json(_CLOUD_EVENT["data"]),
        headers=(*_BINARY, ("ce_dataschema", None)),
    ),
    "header_not_utf8": Reason(
        meaning="A header that decides how the record is read is not UTF-8 text.",
        fix="encode header values as UTF-8",
        value=_event(),
        headers=(("content-type", b"\xff"),),
    ),
    "content_type_conflict": Reason(
        meaning="The record has several content-type headers that differ.",
        fix="send one content-type header",
        value=_event(),
        headers=(("content-type", b"application/json"), *_STRUCTURED),
    ),
    "cloudevents_batch": Reason(
        meaning="The record is a batch of CloudEvents.",
        fix="publish each event as a record of its own",
        value=b"[" + _cloud_event() + b"]",
        headers=(("content-type", b"application/cloudevents-batch+json"),),
    ),
    "unsupported_content_type": Reason(
        meaning="The record is a CloudEvent in a format other than JSON.",
        fix="publish it with content-type application/cloudevents+json, or in binary mode with a "
        "JSON value",
        value=b"\x0a\x01\x31",
        headers=(("content-type", b"application/cloudevents+protobuf"),),
    ),
    "repeated_header": Reason(
        meaning="A ce_* header stands more than once.",
        fix="send every CloudEvents attribute once",
        value=_json(_CLOUD_EVENT["data"]),
        headers=(*_BINARY, ("ce_id", b"2")),
    ),
    # JSON
    "byte_order_mark": Reason(
        meaning="The value begins with a byte-order mark.",
        fix="write plain UTF-8 without a byte-order mark",
        value=b"\xef\xbb\xbf" + _event(),
    ),
    "not_utf8": Reason(
        meaning="The value is not UTF-8.",
        fix="encode the JSON text as UTF-8",
        value=_event().replace(b"my-connector", b"caf\xe9"),
    ),
    "too_deep": Reason(
        meaning="Objects and arrays are nested more than 64 deep.",
        fix="nest at most 64 levels, counting the outermost object as 1",
        value=_event(note=json.loads("[" * 64 + "]" * 64)),
    ),
    "invalid_json": Reason(
        meaning="The value is not JSON.",
        fix="publish one JSON object as RFC 8259 describes it",
        value=_event()[:-1] + b",}",
    ),
    "not_finite": Reason(
        meaning="A number is NaN, infinite, or too large for a 64-bit float.",
        fix="write finite numbers only",
        value=_event(note=0).replace(b'"note":0', b'"note":1e999'),
    ),
    "number_too_long": Reason(
        meaning="An integer has more than 4,300 digits.",
        fix="write integers of at most 4,300 digits, or text",
        value=_event(note=0).replace(b'"note":0', b'"note":1' + b"0" * 4_300),
    ),
    "duplicate_key": Reason(
        meaning="A name stands twice in one JSON object, so its value is a matter of opinion.",
        fix="write every name once",
        value=_event()[:-1] + b',"event_id":"e-2"}',
    ),
    "lone_surrogate": Reason(
        meaning="A text has half of a surrogate pair, which is no character.",
        fix="write characters outside the basic plane as themselves or as a whole pair",
        value=_job(status="error", error="\ud83d"),
    ),
    "nul_character": Reason(
        meaning="A text or a name has the character U+0000.",
        fix="leave the character out: databases cannot store it",
        value=_job(status="error", error="read\x00failed"),
    ),
    "not_an_object": Reason(
        meaning="The value, the CloudEvent's data, the job or the payload is not a JSON object.",
        fix="write a JSON object",
        value=_event(job=["full", "completed"]),
    ),
    # CloudEvents
    "invalid_specversion": Reason(
        meaning="The CloudEvent is of a version other than 1.0.",
        fix='set specversion to the text "1.0"',
        value=_cloud_event(specversion="0.3"),
        headers=_STRUCTURED,
    ),
    "invalid_type": Reason(
        meaning="The CloudEvent's type is not a text, or is empty.",
        fix="set type to a text of your choice that is not empty",
        value=_cloud_event(type=""),
        headers=_STRUCTURED,
    ),
    "missing_time": Reason(
        meaning="The CloudEvent has no time, and events are ordered by it.",
        fix="set time to the moment at which the sync's status changed",
        value=_cloud_event(time=...),
        headers=_STRUCTURED,
    ),
    "binary_data": Reason(
        meaning="The CloudEvent carries data_base64.",
        fix="put the event into data as a JSON object",
        value=_cloud_event(data=..., data_base64="e30="),
        headers=_STRUCTURED,
    ),
    "missing_data": Reason(
        meaning="The CloudEvent has no data.",
        fix="put the event into data as a JSON object",
        value=_cloud_event(data=...),
        headers=_STRUCTURED,
    ),
    "connector_id_conflict": Reason(
        meaning="The CloudEvent's subject and the connector_id in its data differ.",
        fix="give both the same value, or leave one out",
        value=_cloud_event(data={"connector_id": "another-connector", "job": _JOB}),
        headers=_STRUCTURED,
    ),
    # Fields
    "missing_field": Reason(
        meaning="A required field is absent.",
        fix="add the field",
        value=_event(event_id=...),
    ),
    "invalid_id": Reason(
        meaning="An id is not a text, is empty, longer than 512 bytes, has control characters, or "
        "is `.` or `..`.",
        fix="write a text of 1 to 512 UTF-8 bytes without control characters, other than . and ..",
        value=_event(connector_id=".."),
    ),
    "invalid_time": Reason(
        meaning="A time is not an RFC 3339 text with an offset, or no real moment of the years "
        "1 to 9999 in UTC.",
        fix='write an RFC 3339 time with its offset, such as "2024-11-09T15:13:08.231Z"',
        value=_event(occurred_at="2024-11-09 15:13:08"),
    ),
    "invalid_count": Reason(
        meaning="A count is not an integer from 0 to 2^63-1.",
        fix="write a JSON integer from 0 to 9223372036854775807, without quotes or fraction",
        value=_job(indexed_document_count="42"),
    ),
    "invalid_status": Reason(
        meaning="A status is none of the seven.",
        fix="write one of canceling, canceled, completed, error, in_progress, pending, suspended",
        value=_job(status="COMPLETED"),
    ),
    "invalid_job_type": Reason(
        meaning="The job type is none of the three.",
        fix="write one of full, incremental, access_control",
        value=_job(job_type="delta"),
    ),
    "invalid_text": Reason(
        meaning="An error is not a text.",
        fix="write the error as a JSON text, or null for none",
        value=_job(error={"code": 7}),
    ),
    "invalid_cursor": Reason(
        meaning="A sync cursor is not a JSON object.",
        fix="write the cursor as a JSON object",
        value=_job(sync_cursor="page-7"),
    ),
    "null_not_allowed": Reason(
        meaning="A field of last_sync is null; null clears the two error fields and nothing else.",
        fix="omit it to leave it alone",
        value=_payload(last_sync_status="completed", last_synced=None),
    ),
    "unknown_field": Reason(
        meaning="last_sync has a field that does not exist, so an update would be lost.",
        fix="correct the name or leave the field out",
        value=_payload(last_sync_state="completed"),
    ),
    "no_payload": Reason(
        meaning="The event has neither job nor last_sync.",
        fix="add job, the sync job's record, or last_sync, the fields to set",
        value=_event(job=None),
    ),
    "two_payloads": Reason(
        meaning="The event has both job and last_sync.",
        fix="send one of them",
        value=_event(last_sync={"last_sync_status": "completed"}),
    ),
    "empty_last_sync": Reason(
        meaning="last_sync has no fields, so the event would set nothing.",
        fix="add the fields to set, or do not publish the event",
        value=_payload(),
    ),
    # Clocks
    "time_after_event": Reason(
        meaning="A time in the event is more than 5 minutes after occurred_at.",
        fix="set occurred_at to when the status changed, and correct the clock or the time",
        value=_job(scheduled_at="2099-01-01T00:00:00Z"),
    ),
    "occurred_in_future": Reason(
        meaning="occurred_at is more than 5 minutes after the worker's clock.",
        fix="correct the publisher's clock; a replay once the moment has passed applies the event",
        value=_event(occurred_at="9999-01-01T00:00:00Z"),
    ),
    # Given by the store or by the dead-letter topic, not by the record
    "connector_not_found": Reason(
        meaning="The store knows no connector of this id.",
        fix="register the connector, then replay the letter, or discard it",
        value=_event(connector_id="never-registered"),
        status=404,
    ),
    "rejected": Reason(
        meaning="The store refuses this very content for good; the message is the store's.",
        fix="correct the value that the message names, then replay the letter",
        value=_event(),
    ),
    "too_large": Reason(
        meaning="The letter does not fit the dead-letter topic: only the beginning of the value is "
        "kept, with its size and SHA-256; the message names the first reason.",
        fix="publish a smaller event and discard the letter: it cannot be replayed",
        value=_event(),
    ),
}
