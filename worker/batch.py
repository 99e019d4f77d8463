"""The records in hand, and how far they have come."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from aiokafka import TopicPartition

from schemas.reasons import Invalid
from schemas.updates import Update, update
from worker import pipeline
from worker.pipeline import Verdict
from worker.records import Record

STEPS = ("decode", "store", "dead_letters", "commit")
STEP = 100  # records read at once: about a millisecond
STEP_BYTES = 512 * 1024  # in them; larger ones one by one: a megabyte may take a second


@dataclass(slots=True, kw_only=True)
class Batch:
    """What one poll gave, or a few."""

    records: list[Record] = field(default_factory=list)
    first: dict[TopicPartition, Record] = field(default_factory=dict)
    last: dict[TopicPartition, Record] = field(default_factory=dict)
    reads: list[Update | Invalid] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)  # indexes of what would be dead-lettered
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @classmethod
    def of(cls, polled: Mapping[TopicPartition, list[Record]]) -> "Batch":
        batch = cls()
        batch.add(polled)
        return batch

    def add(self, polled: Mapping[TopicPartition, list[Record]]) -> None:
        for tp, records in polled.items():
            self.records += records
            self.first.setdefault(tp, records[0])
            self.last[tp] = records[-1]

    def reading(self) -> Iterator[None]:
        """Read the records, some at a step."""
        while (start := len(self.reads)) < len(self.records):
            began, now = time.perf_counter(), time.time_ns() // 1000
            records = self.records[start : start + STEP]
            if sum([len(record[5] or b"") for record in records]) > STEP_BYTES:
                del records[1:]
            self.reads += [  # as `pipeline.read` does, which would be one call more for each
                update(value, headers, now=now) for _, _, _, _, _, value, headers in records
            ]
            self.seconds["decode"] += time.perf_counter() - began
            yield

    def reading_again(self) -> Iterator[None]:
        """Read again what is invalid, one at a step: an event from the future ages."""
        for place, read in enumerate(self.reads):
            if isinstance(read, Invalid):
                now = time.time_ns() // 1000
                self.reads[place] = pipeline.read(self.records[place], now)
                yield

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """What to commit: the next to read."""
        return {tp: record.offset + 1 for tp, record in self.last.items()}
