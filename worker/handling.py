"""What is done with a batch: verdicts from the store, dead letters, and the report at the end."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Protocol

from schemas.dead_letter import DeadLetter
from schemas.reasons import Invalid
from schemas.updates import Update
from worker import pipeline
from worker.batch import Batch
from worker.breaker import Breaker
from worker.errors import TransientError
from worker.logs import get_logger
from worker.metrics import Metrics
from worker.pipeline import Origin
from worker.stores.base import MergingStore
from worker.variables import variable

log = get_logger(__name__)

BREATH = 0.05  # seconds of reading until the event loop has its turn


class Letters(Protocol):
    """Where dead letters go; returns them as written, when every one is acknowledged."""

    async def publish(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]: ...


class FloodError(TransientError):
    """Too many connectors would be dead-lettered at once."""


class Handler:
    """The steps of a batch but for the commit; each may be tried again."""

    def __init__(
        self,
        *,
        origin: Origin,
        store: MergingStore,
        letters: Letters,
        breaker: Breaker,
        metrics: Metrics,
    ) -> None:
        self._origin, self._store, self._letters = origin, store, letters
        self._breaker, self._metrics = breaker, metrics

    @property
    def remote(self) -> bool:
        """See `MergingStore.remote`."""
        return self._store.remote

    @property
    def leaves_time(self) -> asyncio.Event:
        """See `MergingStore.leaves_time`."""
        return self._store.leaves_time

    async def classify(self, batch: Batch) -> None:
        """Give every record its verdict; on a repeated attempt only those that had a bad one."""
        await self._read(batch)
        again = batch.failures if batch.verdicts else range(len(batch.records))
        reads = [batch.reads[i] for i in again]
        started = time.perf_counter()
        outcomes = iter(await self._store.apply([r for r in reads if isinstance(r, Update)]))
        verdicts = [r if isinstance(r, Invalid) else next(outcomes) for r in reads]
        batch.seconds["store"] += time.perf_counter() - started
        if not batch.verdicts:
            batch.verdicts = verdicts
        else:
            for i, verdict in zip(again, verdicts, strict=True):
                batch.verdicts[i] = verdict
        batch.failures = pipeline.failures(batch.verdicts)
        self._hold_back_a_flood(batch)

    @staticmethod
    async def _read(batch: Batch) -> None:
        """Read what was not read yet; a member that says nothing meanwhile is thrown out."""
        quiet_since = time.monotonic()
        for _ in chain(batch.reading_again(), batch.reading()):
            if time.monotonic() - quiet_since > BREATH:
                await asyncio.sleep(0)
                quiet_since = time.monotonic()

    def _hold_back_a_flood(self, batch: Batch) -> None:
        if batch.failures and (flood := self._breaker.trips(self._seen(batch, len(batch.records)))):
            bad, connectors = flood
            reasons = Counter(pipeline.reason(batch.verdicts[i]) for i in batch.failures)
            raise FloodError(
                f"flood breaker: {bad} of the last {connectors} connectors would be dead-lettered "
                f"({', '.join(f'{n} {reason}' for reason, n in reasons.most_common(3))}). "
                "Is it the right store, are the connectors registered, was a producer released? "
                "Repair it and the worker goes on by itself; to write the dead letters all the "
                f"same, restart with {variable('flood_share')}=1"
            )

    @staticmethod
    def _seen(batch: Batch, last: int) -> list[tuple[str | bytes | None, bool]]:
        """The last events of the batch as the breaker looks at them."""
        bad = set(batch.failures)
        start = max(0, len(batch.records) - last)
        pairs = zip(batch.records[start:], batch.reads[start:], strict=True)
        return [(pipeline.subject(*pair), i in bad) for i, pair in enumerate(pairs, start)]

    def dead_letters(self, batch: Batch) -> list[DeadLetter]:
        now = datetime.now(UTC)
        return [
            pipeline.letter(batch.records[i], batch.reads[i], batch.verdicts[i], self._origin, now)
            for i in batch.failures
        ]

    async def publish(self, batch: Batch, letters: Sequence[DeadLetter]) -> None:
        started = time.perf_counter()
        written = await self._letters.publish(letters)
        self._metrics.letters_written(letter.reason for letter in written)
        batch.seconds["dead_letters"] += time.perf_counter() - started
        for letter in written:
            log.warning(
                "dead_letter.written",
                id=letter.id,
                reason=letter.reason,
                connector_id=letter.connector_id,
            )

    def passed(self, batch: Batch) -> None:
        """Let the breaker remember a batch whose letters are written."""
        self._breaker.passed(self._seen(batch, self._breaker.window))

    def report(self, batch: Batch, lag: int) -> None:
        outcomes = pipeline.counts(batch.verdicts)
        mismatched = pipeline.mismatched(batch.records, batch.reads)
        reused = pipeline.reused(batch.verdicts)
        self._metrics.batch_done(batch, outcomes, mismatched=len(mismatched), reused=reused)
        log.info(
            "batch.done",
            records=len(batch.records),
            **outcomes,
            key_mismatches=len(mismatched),
            reused_event_ids=reused,
            lag=lag,
            **{f"{step}_s": round(seconds, 4) for step, seconds in batch.seconds.items()},
        )
        if mismatched:
            first = f"{mismatched[0].partition}/{mismatched[0].offset}"
            log.warning("batch.key_mismatch", records=len(mismatched), first=first)
