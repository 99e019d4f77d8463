"""Pure steps between the topic and the store: records to updates, verdicts to dead letters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from schemas.dead_letter import DeadLetter
from schemas.reasons import Invalid
from schemas.updates import Update, update
from worker.merge import Outcome
from worker.records import Headers, Record

Verdict = Outcome | Invalid
NO_TIMESTAMP = -1  # as Kafka has it
OUTCOMES = ("applied", "superseded", "duplicate", "connector_not_found", "invalid", "rejected")


class Event(Protocol):
    """What of a Kafka record, or of a dead letter, an event is read from."""

    @property
    def value(self) -> bytes | None: ...

    @property
    def headers(self) -> Headers: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who failed to apply a record, and against what."""

    group: str
    store: str


def read(record: Event, now: int) -> Update | Invalid:
    """The update that a record asks for; `now` is in microseconds since the epoch."""
    return update(record.value, record.headers, now=now)


def failed(verdict: Verdict) -> bool:
    """Whether the record has to become a dead letter."""
    return isinstance(verdict, Invalid) or verdict.name in ("connector_not_found", "rejected")


def name(verdict: Verdict) -> str:
    return "invalid" if isinstance(verdict, Invalid) else verdict.name


def reason(verdict: Verdict) -> str:
    return verdict.reason if isinstance(verdict, Invalid) else verdict.name


def distinct(verdicts: Sequence[Verdict]) -> list[tuple[Verdict, int]]:
    """Each object once, with how often it is there: of thousands most are one of a few."""
    if len(set(map(id, verdicts))) == 1:
        return [(verdicts[0], len(verdicts))]
    objects = dict(zip(map(id, verdicts), verdicts, strict=True))
    return [(objects[which], n) for which, n in Counter(map(id, verdicts)).items()]


def failures(verdicts: Sequence[Verdict]) -> list[int]:
    """Indexes of the records that have to become dead letters."""
    bad = {id(verdict) for verdict, _ in distinct(verdicts) if failed(verdict)}
    return [i for i, verdict in enumerate(verdicts) if id(verdict) in bad] if bad else []


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many records had each outcome; all outcomes, so that every log line has them."""
    found = dict.fromkeys(OUTCOMES, 0)
    for verdict, n in distinct(verdicts):
        found[name(verdict)] += n
    return found


def reused(verdicts: Sequence[Verdict]) -> int:
    """How many events had the id of another event, and other content."""
    return sum(
        n for verdict, n in distinct(verdicts) if isinstance(verdict, Outcome) and verdict.reused
    )


def subject(record: Record, read: Update | Invalid) -> str | bytes | None:
    """The connector that a record is about: its key, where nothing better is known."""
    return read.connector_id or record.key


def mismatched(records: Sequence[Record], reads: Sequence[Update | Invalid]) -> list[Record]:
    """The records whose key is not the connector id of their event; the body decides."""
    return [
        record
        for record, read in zip(records, reads, strict=True)
        if isinstance(read, Update) and record.key != read.connector_id.encode()
    ]


def letter(
    record: Record, read: Update | Invalid, verdict: Verdict, origin: Origin, failed_at: datetime
) -> DeadLetter:
    """The work item for a record that cannot be applied as it is."""
    return DeadLetter(
        group=origin.group,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=max(NO_TIMESTAMP, record.timestamp),  # brokers let in others below 0
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
        reason=reason(verdict),
        status=404 if name(verdict) == "connector_not_found" else 400,
        message=_message(read, verdict),
        connector_id=read.connector_id,
        failed_at=failed_at,
        store=origin.store,
    )


def _message(read: Update | Invalid, verdict: Verdict) -> str:
    if isinstance(verdict, Invalid):
        return verdict.message
    if verdict.name == "connector_not_found":
        return (
            f"connector {read.connector_id!r} is not registered in the store: "
            "register it, then replay this letter"
        )
    return f"the store refuses this content for good: {verdict.detail}"
