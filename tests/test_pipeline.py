import json
from datetime import UTC, datetime
from typing import Any, Self

import pytest

from schemas.dead_letter import MIN_RECORD, DeadLetter
from schemas.sync_finished import Invalid
from schemas.updates import Update
from worker import pipeline, records
from worker.merge import APPLIED, CONNECTOR_NOT_FOUND, DUPLICATE, SUPERSEDED, Outcome
from worker.pipeline import Origin

NOW = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z in microseconds
ORIGIN = Origin(group="g", store="s")
AT = datetime(2026, 1, 1, tzinfo=UTC)
EVENT = {
    "event_id": "e",
    "connector_id": "c",
    "occurred_at": "2026-01-01T00:00:00Z",
    "last_sync": {"last_sync_status": "completed"},
}


class Record(records.Record):
    def __new__(
        cls,
        value: bytes | None,
        key: bytes | None = b"c",
        *,
        partition: int = 3,
        offset: int = 7,
        timestamp: int = 99,
        headers: records.Headers = (),
    ) -> Self:
        return super().__new__(cls, "t", partition, offset, timestamp, key, value, headers)


def record(document: Any = EVENT, **more: Any) -> Record:
    return Record(json.dumps(document).encode(), **more)


def test_an_event_becomes_an_update() -> None:
    update = pipeline.read(record(), NOW)
    assert isinstance(update, Update)
    assert (update.connector_id, dict(update.fields)) == ("c", {"last_sync_status": "completed"})
    assert update.stamp[:3] == (NOW, 4, "e")


def test_outcomes_that_end_well_make_no_letter() -> None:
    good: list[pipeline.Verdict] = [APPLIED, DUPLICATE, SUPERSEDED]
    rejected = Outcome("rejected", "too big")
    bad: list[pipeline.Verdict] = [CONNECTOR_NOT_FOUND, rejected, Invalid("r", "p", "m")]
    assert not any(pipeline.failed(verdict) for verdict in good)
    assert all(pipeline.failed(verdict) for verdict in bad)


def test_every_count_is_there_also_when_it_is_zero() -> None:
    assert pipeline.counts([APPLIED, APPLIED, Invalid("r", "p", "m")]) == {
        "applied": 2,
        "superseded": 0,
        "duplicate": 0,
        "connector_not_found": 0,
        "invalid": 1,
        "rejected": 0,
    }


def test_a_missing_connector_is_a_404_with_the_original_as_it_was() -> None:
    origin = record(headers=[("traceparent", b"x")])
    read = pipeline.read(origin, NOW)
    letter = pipeline.letter(origin, read, CONNECTOR_NOT_FOUND, ORIGIN, AT)
    assert letter.id == "g/t/3/7@99"
    assert (letter.reason, letter.status, letter.connector_id) == ("connector_not_found", 404, "c")
    assert (letter.value, letter.key, letter.headers) == (
        origin.value,
        b"c",
        (("traceparent", b"x"),),
    )
    assert "register it" in letter.message
    assert (letter.store, letter.failed_at) == ("s", AT)


def test_an_invalid_record_is_a_400_that_names_the_field() -> None:
    origin = record(EVENT | {"last_sync": {"last_sync_status": "Completed"}})
    read = pipeline.read(origin, NOW)
    assert isinstance(read, Invalid)
    letter = pipeline.letter(origin, read, read, ORIGIN, AT)
    assert (letter.status, letter.reason) == (400, read.reason)
    assert letter.message.startswith('last_sync.last_sync_status is "Completed": ')
    assert letter.connector_id == "c"


def test_a_rejected_update_is_a_400_that_says_why() -> None:
    read = pipeline.read(record(), NOW)
    letter = pipeline.letter(record(), read, Outcome("rejected", "too big"), ORIGIN, AT)
    assert (letter.status, letter.reason) == (400, "rejected")
    assert letter.message.endswith("too big")


@pytest.mark.parametrize(
    ("written", "kept"), [(99, 99), (0, 0), (-1, -1), (-2, -1), (-(2**63), -1)]
)
def test_the_letter_of_any_timestamp_can_be_read(written: int, kept: int) -> None:
    read = record({}, timestamp=written)
    verdict = pipeline.read(read, NOW)
    assert isinstance(verdict, Invalid)
    letter = pipeline.letter(read, verdict, verdict, ORIGIN, AT)
    assert DeadLetter.from_record(*letter.fitted(MIN_RECORD).record()).timestamp_ms == kept


def test_the_breaker_s_subject_is_the_connector_or_else_the_key() -> None:
    good, broken = record(), Record(b"{", key=b"k")
    assert pipeline.subject(good, pipeline.read(good, NOW)) == "c"
    assert pipeline.subject(broken, pipeline.read(broken, NOW)) == b"k"


def test_a_key_that_is_not_the_connector_id_is_noticed_and_the_body_decides() -> None:
    other = record(key=b"other")
    records = [record(), other, Record(b"{")]
    reads = [pipeline.read(each, NOW) for each in records]
    assert pipeline.mismatched(records, reads) == [other]
    assert reads[1].connector_id == "c"
