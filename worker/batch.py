"""The records in hand, and how far they have come."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from aiokafka import ConsumerRecord, TopicPartition

from schemas.sync_finished import Invalid
from worker.merge import Update
from worker.pipeline import Verdict

STEPS = ("decode", "store", "dead_letters", "commit")


@dataclass(slots=True, kw_only=True)
class Batch:
    """What one poll gave."""

    records: list[ConsumerRecord]
    first: dict[TopicPartition, ConsumerRecord]
    last: dict[TopicPartition, ConsumerRecord]
    reads: list[Update | Invalid] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)  # indexes of what would be dead-lettered
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @classmethod
    def of(cls, polled: Mapping[TopicPartition, list[ConsumerRecord]]) -> "Batch":
        return cls(
            records=[record for records in polled.values() for record in records],
            first={tp: records[0] for tp, records in polled.items()},
            last={tp: records[-1] for tp, records in polled.items()},
        )

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """What to commit: the next to read."""
        return {tp: record.offset + 1 for tp, record in self.last.items()}
