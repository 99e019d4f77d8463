"""How far this member is behind, partition by partition, and since when."""

import time
from collections.abc import Mapping

from aiokafka import TopicPartition

from worker.batch import Batch
from worker.metrics import Metrics


class Lag:
    """What is known of the assigned partitions: what is done, where they end, what waits.

    The age of what waits is that of the record in hand; of one that was not read yet, that of the
    last record before it; where there is neither, the time since it was first seen to wait.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._done: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._oldest: dict[TopicPartition, float] = {}  # Unix time

    @property
    def records(self) -> int:
        return sum(self._behind().values())

    def begun(self, batch: Batch) -> None:
        """Records are in hand."""
        for tp, record in batch.first.items():
            self._done.setdefault(tp, record.offset)
            self._oldest[tp] = _seconds(record.timestamp)
        for tp, end in batch.offsets.items():  # the end that is known may be from before them
            self._ends[tp] = max(end, self._ends.get(tp, 0))
        self._tell()

    def finished(self, batch: Batch, ends: Mapping[TopicPartition, int]) -> None:
        """The batch is done; what follows it is not older than its last records."""
        self._ends |= ends
        for tp in batch.last.keys() & self._done.keys():  # others were revoked meanwhile
            self._oldest[tp] = _seconds(batch.last[tp].timestamp)
        self._tell()

    def moved(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Everything before these offsets is done."""
        self._done |= offsets
        self._tell()

    def seen(
        self, ends: Mapping[TopicPartition, int], positions: Mapping[TopicPartition, int]
    ) -> None:
        """The partitions end here; what was never in hand waits from its position on."""
        for tp, position in positions.items():
            self._done.setdefault(tp, position)
        self._ends |= ends
        self._tell()

    def forget(self) -> None:
        """The partitions are another's now."""
        for known in (self._done, self._ends, self._oldest):
            known.clear()
        self._tell()

    def _behind(self) -> dict[TopicPartition, int]:
        return {
            tp: max(0, self._ends[tp] - done) for tp, done in self._done.items() if tp in self._ends
        }

    def _tell(self) -> None:
        behind = self._behind()
        for tp, records in behind.items():
            if records:
                self._oldest.setdefault(tp, time.time())
            else:
                self._oldest.pop(tp, None)
        self._metrics.lag(
            {tp.partition: records for tp, records in behind.items()},
            min(self._oldest.values(), default=None),
        )


def _seconds(timestamp_ms: int) -> float:
    return timestamp_ms / 1000 if timestamp_ms >= 0 else time.time()
