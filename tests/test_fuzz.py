"""Any bytes as key, value and headers: never an exception, always an update or a letter."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.dead_letter import DeadLetter
from schemas.sync_finished import REASONS, Invalid
from tests.test_pipeline import EVENT, NOW, ORIGIN, Record
from worker import pipeline

MAX_BYTES = 1_114_124

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(
        [
            "completed",
            "full",
            "2026-01-01T00:00:00Z",
            "2099-01-01T00:00:00Z",
            "9999-12-31T23:59:59-01:00",
            "..",
            "\x00",
            "\ud800",
            2**63,
            10**400,
            float("inf"),
        ]
    ),
)
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)
JOB = {
    "id": "j",
    "job_type": "full",
    "status": "completed",
    "error": None,
    "scheduled_at": "2026-01-01T00:00:00Z",
    "started_at": "2026-01-01T00:00:00Z",
    "completed_at": "2026-01-01T00:00:00Z",
    "indexed_document_count": 1,
    "deleted_document_count": 2,
    "sync_cursor": {"at": 1},
}


@st.composite
def nearly_events(draw: st.DrawFn) -> bytes:
    """An event in which a few values are something else, and maybe some bytes too."""
    event: dict[str, Any] = EVENT | draw(st.sampled_from([{}, {"job": JOB, "last_sync": None}]))
    event = json.loads(json.dumps(event))
    for place in draw(st.lists(st.sampled_from([(), ("job",), ("last_sync",)]), max_size=3)):
        target = event
        for name in place:
            if isinstance(target.get(name), dict):
                target = target[name]
        name = draw(st.one_of(st.sampled_from(sorted(target) or ["x"]), st.text(max_size=8)))
        target[name] = draw(documents)
    value = bytearray(json.dumps(event).encode())
    for _ in range(draw(st.integers(0, 2))):
        value[draw(st.integers(0, len(value) - 1))] = draw(st.integers(0, 255))
    return bytes(value)


names = st.one_of(
    st.text(),
    st.sampled_from(["content-type", "ce_id", "ce_source", "ce_specversion", "ce_type", "ce_time"]),
)
contents = st.one_of(
    st.none(),
    st.binary(max_size=64),
    st.sampled_from(
        [
            b"1.0",
            b"application/cloudevents+json",
            b"application/json",
            b"2026-01-01T00:00:00Z",
            b"id",
        ]
    ),
)
records = st.builds(
    Record,
    value=st.one_of(st.none(), st.binary(), nearly_events(), nearly_events()),
    key=st.one_of(st.none(), st.binary()),
    headers=st.lists(st.tuples(names, contents), max_size=8),
    offset=st.integers(0, 2**63 - 1),
    timestamp=st.integers(-1, 2**63 - 1),
)


def ends_well(record: Record) -> None:
    read = pipeline.read(record, NOW)
    if not isinstance(read, Invalid):
        json.dumps(dict(read.fields), allow_nan=False).encode()
        return
    assert read.reason in REASONS
    assert read.message
    assert read.message.isprintable()
    at = datetime(2026, 1, 1, tzinfo=UTC)
    letter = pipeline.letter(record, read, read, ORIGIN, at)
    key, value, headers = letter.to_record(MAX_BYTES)
    back = DeadLetter.from_record(key, value, headers)
    assert (back.id, back.reason, back.value, back.key) == (
        letter.id,
        read.reason,
        record.value,
        record.key,
    )


@given(records)
@settings(max_examples=2_000, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_record_ends_as_an_update_or_a_letter(record: Record) -> None:
    ends_well(record)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@given(records)
@settings(max_examples=100_000, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_of_100_000_records_ends_as_an_update_or_a_letter(record: Record) -> None:
    ends_well(record)
