"""Transactions that stay open: nobody who reads committed records gets what stands behind them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from aiokafka import TopicPartition

from worker.logs import get_logger

log = get_logger(__name__)

Offsets = Mapping[TopicPartition, int]


@dataclass(slots=True)
class _Open:
    offset: int  # its first record, where reading ends
    since: float
    told: float


class OpenTransactions:
    """Says so when one has been open for `patience` seconds, and then again after as many."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._open: dict[TopicPartition, _Open] = {}

    def seen(self, stable: Offsets, ends: Offsets) -> None:
        """Note where committed records end, and where all do."""
        kept = {tp: offset for tp, offset in stable.items() if ends[tp] > offset}
        self._open = {tp: self._known(tp, offset) for tp, offset in kept.items()}
        for tp, found in self._open.items():
            if time.monotonic() - found.told > self._patience:
                found.told = time.monotonic()
                _tell(tp, found, ends[tp])

    def _known(self, tp: TopicPartition, offset: int) -> _Open:
        known, now = self._open.get(tp), time.monotonic()
        return known if known and known.offset == offset else _Open(offset, now, now)


def _tell(tp: TopicPartition, found: _Open, end: int) -> None:
    log.warning(
        "transaction.open",
        topic=tp.topic,
        partition=tp.partition,
        offset=found.offset,
        kept_back=end - found.offset,
        seconds=round(time.monotonic() - found.since),
        waiting_for=(
            "the transaction that begins there to end: let its producer commit or abort it, or end "
            "it by kafka-transactions.sh --bootstrap-server … abort "
            f"--topic {tp.topic} --partition {tp.partition} --start-offset {found.offset}; "
            "a restart of the worker does not help"
        ),
    )
