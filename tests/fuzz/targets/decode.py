"""Records: the event or what is wrong with it, the same by both ways of reading."""

import json
from collections.abc import Iterator
from contextlib import nullcontext

from schemas.last_sync import LAST_SYNC_TIMES
from schemas.reasons import REASONS, Invalid
from schemas.sync_finished import SyncFinished, decode
from schemas.updates import Update, update, update_of
from tests import oracle
from tests.fuzz.inputs import GROWN, Target, of_record, record
from tests.fuzz.mutations import TIMES
from tests.test_pipeline import NOW, Record
from worker.merge import APPLIED, fold, registered

WORDS = [
    *(b"content-type", b"application/json", b"application/cloudevents+json", b"1.0", b"\xfe", b""),
    *(b"application/cloudevents-batch+json", b"Application/CloudEvents+JSON; charset=utf-8"),
    *(b"ce_id", b"ce_source", b"ce_specversion", b"ce_type", b"ce_time", b"ce_subject", b"CE_ID"),
    *(
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\\u0000",
        b"1e999",
        b"-0",
        b"NaN",
        b"[[",
        b"]",
    ),
    *(b'"x":1,', b'"event_id":"e",', b"null", b"{}", b'\\"', *(time.encode() for time in TIMES)),
]
TIME = "2024-11-09T15:13:08.231Z"
LONG = "x" + GROWN.decode("latin-1") + "a" + GROWN.decode("latin-1")  # is cut where it is kept
JOB = {
    "job_type": "full",
    "status": "completed",
    "error": "none",
    "sync_cursor": {"a": [1.5]},
    "scheduled_at": TIME,
    "started_at": TIME,
    "completed_at": TIME,
    "indexed_document_count": 1,
    "deleted_document_count": 2,
}
PAYLOAD = {
    **dict.fromkeys(LAST_SYNC_TIMES, TIME),
    "last_sync_status": "error",
    "last_sync_error": None,
    "last_indexed_document_count": 0,
}
CARRIED = (
    {"job": JOB},
    {"job": JOB | {"job_type": "incremental", "status": "suspended"}},
    {"job": JOB | {"job_type": "access_control", "status": "error", "error": LONG}},
    {"last_sync": PAYLOAD},
    {"last_sync": {"last_access_control_sync_error": LONG, "sync_cursor": {}}},
)


def seeds() -> Iterator[bytes]:
    """Each reason's example, what was found once, and events that are in order."""
    for each in REASONS.values():
        yield of_record(b"my-connector", each.value, each.headers)
    yield of_record(None, b"[]", (("content-type", b"application/cloudevents-batch\x7f"),))
    for carried in CARRIED:
        event = {"event_id": "e", "connector_id": "my-connector", "occurred_at": TIME, **carried}
        yield of_record(b"my-connector", json.dumps(event, ensure_ascii=False).encode("latin-1"))


SEEDS = list(seeds())


def run(data: bytes) -> None:
    read = record(data)
    event = decode(read.value, read.headers, now=NOW)
    found = update(read.value, read.headers, now=NOW)
    if isinstance(event, Invalid):
        assert found == event
        assert event.reason in REASONS
        assert event.message.isprintable(), event.message
        assert event.path.isprintable(), event.path
        return
    assert found == update_of(event)
    merges_once(update_of(event))
    can_be_published_again(event)
    if not read.headers:
        agrees_with_the_oracle(event, read)


def merges_once(update: Update) -> None:
    json.dumps(dict(update.fields), allow_nan=False).encode()
    state, outcomes = fold(registered(None), [update])
    assert outcomes == [APPLIED]
    again, outcomes = fold(state, [update])
    assert again is state
    assert outcomes[0].name == "duplicate"


def can_be_published_again(event: SyncFinished) -> None:
    try:
        published = event.to_record("plain")
    except ValueError:  # an id of a CloudEvent may be too long for it
        return
    assert decode(published.value, now=NOW) == event


def agrees_with_the_oracle(event: SyncFinished, read: Record) -> None:
    written = json.loads(read.value or b"")
    fields = event.fields()
    assert oracle.fields_of(written) == fields
    assert oracle.stamp_of(written) == update_of(event).stamp


TARGET = Target(opened=lambda: nullcontext(run), seeds=SEEDS, words=WORDS)
