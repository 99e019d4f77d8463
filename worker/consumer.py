"""The loop: poll, apply, write dead letters, commit; hold while the broker or the store is away.

docs/delivery.md walks through each point at which it can be interrupted.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from schemas.dead_letter import DeadLetter
from schemas.sync_finished import Invalid
from worker import kafka, pipeline
from worker.batch import Batch
from worker.breaker import Breaker
from worker.errors import (
    LastSyncError,
    MisconfiguredError,
    OffsetsLostError,
    StalledError,
    TransientError,
)
from worker.health import Health
from worker.lag import Lag
from worker.logs import get_logger
from worker.merge import Update
from worker.metrics import Cause
from worker.pipeline import Origin
from worker.retry import backoff
from worker.stores.base import ConnectorStore
from worker.variables import variable
from worker.watchdog import Watchdog

log = get_logger(__name__)

POLL = 0.5  # seconds that one poll waits for records
LAST_POLL = 1.0  # seconds that one may take when the worker stops: a rebalance can block it
SLOW = 3.0  # seconds after which a batch in flight counts as held and polling goes on without it
COMMIT_TIMEOUT = 5.0  # seconds
REQUEST_TIMEOUT = 5.0  # seconds
GLANCE = 2.0  # seconds that a look may keep records waiting
LOOK_AROUND = 5.0  # seconds between looks at the end of the topic
DRAIN_CHECK = 0.3  # seconds between looks at the group's committed offsets
REBALANCE_TIMEOUT = 20.0  # seconds; below request_timeout_ms (40 s), or rejoin storms follow
# While a rebalance lasts the whole group stands still: it waits for the last member to learn of it,
# by a heartbeat, and to finish what it has in hand.
HEARTBEATS_PER_SESSION = 3
HEARTBEAT = 1.0  # seconds between two, at most
REVOKE_BUDGET = 3.0  # seconds; far longer than a batch takes on a store that is well


CAUSES: dict[str, Cause] = {
    "the store": "store",
    "the dead-letter topic": "dead_letter_topic",
    "the commit": "commit",
}


class Letters(Protocol):
    """Where dead letters go; returns them as written, when every one is acknowledged."""

    async def publish(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]: ...


Trace = Callable[[Batch], AbstractContextManager[object]]


class FloodError(TransientError):
    """Too many connectors would be dead-lettered at once."""


class _Abandoned(Exception):  # noqa: N818 - not an error: the batch will be delivered again
    """The worker stops while it holds a batch."""


@dataclass(slots=True, kw_only=True)
class Drain:
    """Done when the group has committed up to the ends that the topic had at the start."""

    ends: Mapping[TopicPartition, int]
    group_offsets: Callable[[], Awaitable[Mapping[TopicPartition, int]]]
    _asked: float = 0.0

    async def done(self) -> bool:
        """Ask the broker, now and then: other members of the group work on their partitions."""
        if time.monotonic() - self._asked < DRAIN_CHECK:
            return False
        self._asked = time.monotonic()
        try:
            with kafka.translated("asking for the group's offsets"):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    committed = await self.group_offsets()
        except TransientError as error:
            log.warning("drain.held", waiting_for=str(error))
            return False
        return all(committed.get(tp, 0) >= end for tp, end in self.ends.items())


def client_options(session_timeout_ms: int) -> dict[str, object]:
    """How the loop wants its aiokafka consumer."""
    return {
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # a reset is decided here, where loss can be told apart
        "isolation_level": "read_committed",
        "partition_assignment_strategy": (RoundRobinPartitionAssignor,),  # two hang start()
        "rebalance_timeout_ms": int(REBALANCE_TIMEOUT * 1000),
        "session_timeout_ms": session_timeout_ms,
        "heartbeat_interval_ms": min(
            session_timeout_ms // HEARTBEATS_PER_SESSION, int(HEARTBEAT * 1000)
        ),
    }


def free_dropped_records() -> None:
    """Free what was fetched and then dropped, at a pause or a rebalance.

    aiokafka leaves it in reference cycles: a megabyte a partition in few objects, and the garbage
    collector, which counts objects, would come too late.
    """
    gc.collect()


class Consumer(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """One member of the group, from its first assignment until it is stopped."""

    def __init__(
        self,
        *,
        client: AIOKafkaConsumer,
        origin: Origin,
        store: ConnectorStore,
        letters: Letters,
        breaker: Breaker,
        batch_size: int,
        watchdog: Watchdog,
        stalled_after: float,
        health: Health,
        trace: Trace,
        stop: asyncio.Event,
    ) -> None:
        self._client = client
        self._origin = origin
        self._store = store
        self._letters = letters
        self._breaker = breaker
        self._batch_size = batch_size
        self._watchdog = watchdog
        self._stalled_after = stalled_after
        self._health, self._metrics = health, health.metrics
        self._lag = Lag(health.metrics)
        self._trace = trace
        self._stop = stop
        self._polling: asyncio.Timeout | None = None
        self._work: asyncio.Task[None] | None = None
        self._ahead: Batch | None = None  # fetched, and not begun
        self._step = ""
        self._abandoned = False
        self._committed: dict[TopicPartition, int] = {}
        self._looked = self._progressed = time.monotonic()

    async def run(self, drain: Drain | None = None) -> None:
        """Work until `stop` is set, or until what there was to drain is done."""
        stopping = asyncio.create_task(self._limit_the_last_poll(), name="last-poll")
        try:
            await self._work_until_stopped(drain)
        finally:
            stopping.cancel()

    async def _work_until_stopped(self, drain: Drain | None) -> None:
        while not self._stop.is_set():
            batch = await self._next()
            self._watchdog.step()
            if batch:
                await self._see_through(batch)
            if self._stop.is_set():
                return
            if not batch or time.monotonic() - self._looked > LOOK_AROUND:
                await self._look_around(GLANCE if batch else REQUEST_TIMEOUT)
            if drain is not None and await drain.done():
                return

    # --- reading -----------------------------------------------------------------------------

    async def _next(self) -> Batch | None:
        if self._ahead:
            batch, self._ahead = self._ahead, None
            return batch
        polled = await self._poll(POLL)
        return Batch.of(polled) if polled else None

    async def _read_ahead(self) -> LastSyncError | None:
        """Fetch and read the next batch while another process does the work of this one.

        Gives what ends the worker: after the batch in flight, for a person who sets the offset
        behind what cannot be read takes all before it for done.
        """
        try:
            polled = await self._poll(0)
        except (MisconfiguredError, OffsetsLostError) as error:
            return error
        if polled:
            self._ahead = ahead = Batch.of(polled)
            for _ in ahead.reading():
                await asyncio.sleep(0)  # the batch in flight goes first
        return None

    async def _poll(self, seconds: float) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Never cancelled while the worker goes on: that would break aiokafka's poll timer."""
        try:
            with kafka.translated("reading records"):
                polled = await self._getmany(seconds)
        except NoOffsetForPartitionError as error:
            await self._begin(error.args[0])
        except OffsetOutOfRangeError as error:
            raise await self._lost(error.args[0]) from None
        except TransientError as error:
            log.warning("poll.failed", error=str(error))
            await self._pause_for(POLL)
        else:
            return polled
        return {}

    async def _getmany(self, seconds: float) -> dict[TopicPartition, list[ConsumerRecord]]:
        try:
            async with asyncio.timeout(LAST_POLL if self._stop.is_set() else None) as self._polling:
                polled: dict[TopicPartition, list[ConsumerRecord]] = await self._client.getmany(
                    timeout_ms=int(seconds * 1000), max_records=self._batch_size
                )
                return polled
        except TimeoutError:
            if self._polling is None or not self._polling.expired():
                raise
            return {}
        finally:
            self._polling = None

    async def _limit_the_last_poll(self) -> None:
        await self._stop.wait()
        if self._polling is not None:
            self._polling.reschedule(asyncio.get_running_loop().time() + LAST_POLL)

    async def _begin(self, tp: TopicPartition) -> None:
        """A group that never committed here starts at the beginning."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self._client.seek_to_beginning(tp)
        except (KafkaError, TimeoutError) as error:
            log.warning("poll.failed", error=kafka.describe(error))

    async def _lost(self, wanted: Mapping[TopicPartition, int]) -> OffsetsLostError:
        (tp, offset), *_ = wanted.items()
        bounds = "unknown bounds"
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                first = await self._client.beginning_offsets([tp])
                end = await self._client.end_offsets([tp])
            bounds = f"offsets {first[tp]} to {end[tp]}"
        except (KafkaError, TimeoutError):
            pass  # the loss itself is what has to be told
        return OffsetsLostError(
            f"offsets lost: group {self._origin.group} wants offset {offset} of {tp.topic} "
            f"partition {tp.partition}, which has {bounds}: records were deleted before they were "
            "read, or the topic was made anew. Decide where to go on and set the group's offset "
            "(kafka-consumer-groups.sh --reset-offsets); the events that are gone have to be "
            "published again"
        )

    # --- one batch ---------------------------------------------------------------------------

    async def _see_through(self, batch: Batch) -> None:
        """Finish the batch, or abandon it uncommitted; keep polling while it takes long."""
        self._lag.begun(batch)
        work = self._work = asyncio.create_task(self._finish(batch), name="batch")
        refused: LastSyncError | None = None  # what the next poll came upon
        try:
            if self._store.remote and len(batch.records) >= self._batch_size // 2:
                refused = await self._read_ahead()
            await asyncio.wait({work}, timeout=SLOW)
            if not work.done() and self._health.held is None:
                log.warning("batch.slow", step=self._step, waiting_for=f"{self._step} to answer")
            while not work.done():
                await self._tick(work)
        finally:
            await self._end_work()
            self._health.release()
            self._progressed = time.monotonic()
            if paused := self._client.paused():
                self._client.resume(*paused)
                free_dropped_records()
        if refused:
            raise refused
        if work.cancelled():  # by a revocation
            log.info("batch.abandoned", records=len(batch.records), reason="partitions revoked")
            return
        try:
            work.result()
        except _Abandoned:
            self._abandoned = True
            log.info("batch.abandoned", records=len(batch.records), reason="stopping")

    async def _end_work(self) -> None:
        if self._work is None:
            return
        self._work.cancel()
        await asyncio.wait({self._work})
        if not self._work.cancelled():
            self._work.exception()  # seen, for the case that another error is on its way

    async def _finish(self, batch: Batch) -> None:
        with self._trace(batch):
            await self._until_done("the store", lambda: self._classify(batch))
            letters = self._dead_letters(batch)
            if letters:
                await self._until_done(
                    "the dead-letter topic", lambda: self._publish(batch, letters)
                )
            self._breaker.passed(self._seen(batch, self._breaker.window))
            await self._until_done("the commit", lambda: self._commit(batch))
        self._report(batch)

    async def _until_done(self, step: str, attempt: Callable[[], Awaitable[None]]) -> None:
        self._step = step
        for delay in backoff():
            try:
                await attempt()
            except TransientError as error:
                self._hold(step, error)
                log.warning(
                    "batch.held", step=step, waiting_for=str(error), retry_in=round(delay, 2)
                )
                await self._pause_for(delay)
                self._watchdog.step()
                if self._stop.is_set():
                    raise _Abandoned from None
            else:
                if self._health.held is not None:
                    log.info("batch.released", step=step, waited_for=self._health.held.text)
                self._health.release()
                return

    def _hold(self, step: str, error: TransientError) -> None:
        cause = "flood" if isinstance(error, FloodError) else CAUSES[step]
        if cause == "store":
            self._metrics.store_retried()
        self._health.hold(cause, str(error))

    async def _pause_for(self, seconds: float) -> None:
        """Sleep, but not beyond the wish to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def _tick(self, work: asyncio.Task[None]) -> None:
        """A member that does not poll is thrown out: poll with everything paused."""
        self._client.pause(*self._client.assignment())
        leaked = await self._poll(POLL)
        for tp, records in leaked.items():  # handed out between an assignment and its pause
            if tp in self._client.assignment():
                self._client.seek(tp, records[0].offset)
        self._watchdog.step()
        if time.monotonic() - self._looked > LOOK_AROUND:
            self._looked = time.monotonic()
            await self._measure_lag()
        await asyncio.wait({work}, timeout=POLL if leaked else 0)

    async def _measure_lag(self) -> None:
        """While a batch is held nothing is fetched, and the topic grows unseen."""
        positions = await self._positions()
        try:
            with kafka.translated("asking for the end of the topic"):
                async with asyncio.timeout(SLOW):
                    self._see(await self._client.end_offsets(list(positions)), positions)
        except (TransientError, IllegalStateError) as error:
            log.warning("lag.unknown", error=str(error))

    async def _classify(self, batch: Batch) -> None:
        """Give every record its verdict; on a repeated attempt only those that had a bad one."""
        batch.read()
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

    def _dead_letters(self, batch: Batch) -> list[DeadLetter]:
        now = datetime.now(UTC)
        return [
            pipeline.letter(batch.records[i], batch.reads[i], batch.verdicts[i], self._origin, now)
            for i in batch.failures
        ]

    async def _publish(self, batch: Batch, letters: Sequence[DeadLetter]) -> None:
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

    async def _commit(self, batch: Batch) -> None:
        started = time.perf_counter()
        await self._commit_offsets(batch.offsets)
        batch.seconds["commit"] += time.perf_counter() - started
        self._lag.finished(batch, self._fetched_ends())

    async def _commit_offsets(self, offsets: dict[TopicPartition, int]) -> None:
        """Commit, or let it go when the partitions are no longer ours: they come again."""
        try:
            with kafka.translated("committing offsets"):
                async with asyncio.timeout(COMMIT_TIMEOUT):
                    await self._client.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            self._metrics.committed("dropped")
            log.warning("commit.dropped", error=kafka.describe(error))
            return
        except TransientError:
            self._metrics.committed("failed")
            raise
        self._metrics.committed("done")
        self._committed.update(offsets)
        self._lag.moved(offsets)
        self._progressed = time.monotonic()
        self._metrics.progressed()
        self._watchdog.step()

    def _report(self, batch: Batch) -> None:
        outcomes = pipeline.counts(batch.verdicts)
        mismatched = [
            f"{record.partition}/{record.offset}"
            for record, read in zip(batch.records, batch.reads, strict=True)
            if pipeline.key_differs(record, read)
        ]
        reused = pipeline.reused(batch.verdicts)
        self._metrics.batch_done(batch, outcomes, mismatched=len(mismatched), reused=reused)
        log.info(
            "batch.done",
            records=len(batch.records),
            **outcomes,
            key_mismatches=len(mismatched),
            reused_event_ids=reused,
            lag=self._lag.records,
            **{f"{step}_s": round(seconds, 4) for step, seconds in batch.seconds.items()},
        )
        if mismatched:
            log.warning("batch.key_mismatch", records=len(mismatched), first=mismatched[0])

    def _fetched_ends(self) -> dict[TopicPartition, int]:
        """Where the partitions end, as the last fetch said."""
        ends = {tp: self._client.last_stable_offset(tp) for tp in self._client.assignment()}
        return {tp: end for tp, end in ends.items() if end is not None}

    # --- nothing to do -----------------------------------------------------------------------

    async def _look_around(self, patience: float) -> None:
        """Commit positions that moved without a record (transaction markers), and look around."""
        settled = not self._abandoned  # before they are read: an assignment may come meanwhile
        positions = await self._positions()
        moved = {tp: at for tp, at in positions.items() if self._committed.get(tp) != at}
        if moved and settled and not self._abandoned:
            try:
                await self._commit_offsets(moved)
            except TransientError as error:
                log.warning("commit.failed", error=str(error))
        if time.monotonic() - self._looked > LOOK_AROUND:
            await self._look_at_the_end(positions, patience)
            self._looked = time.monotonic()  # a look that took long is not due again at once

    async def _positions(self) -> dict[TopicPartition, int]:
        """Where the next batch begins, for the partitions of which that is known by now."""
        positions = {}
        for tp in self._client.assignment():
            try:
                async with asyncio.timeout(0):  # at once or not at all
                    positions[tp] = await self._client.position(tp)
            except (TimeoutError, KafkaError):
                continue
        if self._ahead:
            positions |= {tp: record.offset for tp, record in self._ahead.first.items()}
        return positions

    async def _look_at_the_end(
        self, positions: Mapping[TopicPartition, int], patience: float
    ) -> None:
        """A consumer may stay silent after an outage of the whole cluster: notice it.

        One partition without a leader keeps the answer for all of them away.
        """
        try:
            with kafka.translated("asking for the end of the topic"):
                async with asyncio.timeout(patience):
                    ends = await self._client.end_offsets(list(positions) or self._any_partition())
        except (TransientError, IllegalStateError) as error:
            self._health.hold("broker", str(error))
            log.warning("poll.held", waiting_for=str(error))
            return
        self._health.release()
        self._see(ends, positions)
        behind = sum(max(0, ends[tp] - position) for tp, position in positions.items())
        unknown = len(self._client.assignment() - positions.keys())
        silent = time.monotonic() - self._progressed
        if not behind and not unknown:
            self._progressed = time.monotonic()
            self._metrics.progressed()
        elif silent > self._stalled_after:
            raise StalledError(
                f"the topic has {behind} more records and {unknown} partitions without a known "
                f"position, but nothing arrived for {silent:.0f} s; ending the process for a "
                "fresh start"
            )

    def _see(
        self, ends: Mapping[TopicPartition, int], positions: Mapping[TopicPartition, int]
    ) -> None:
        """Note the ends of the partitions that are still ours, now that they are known."""
        ours = positions.keys() & self._client.assignment()
        self._lag.seen({tp: ends[tp] for tp in ours}, {tp: positions[tp] for tp in ours})

    def _any_partition(self) -> list[TopicPartition]:
        """One to ask for by a member that has none, to learn whether the brokers answer."""
        return self._partitions()[:1]

    def _partitions(self) -> list[TopicPartition]:
        return [
            TopicPartition(topic, partition)
            for topic in self._client.subscription()
            for partition in self._client.partitions_for_topic(topic) or ()
        ]

    # --- rebalancing: called by aiokafka while the loop runs -----------------------------------

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Finish and commit the batch in flight within the budget, or abandon it."""
        self._ahead = None  # who gets the partitions reads on from what is committed
        if self._work is not None and not self._work.done():
            budget = 0 if self._health.held else REVOKE_BUDGET
            await asyncio.wait({self._work}, timeout=budget)
            await self._end_work()
        self._abandoned = True  # positions are another's to commit, until the next assignment
        self._committed.clear()
        self._lag.forget()
        self._health.revoked()
        if revoked:
            log.info("partitions.revoked", partitions=sorted(tp.partition for tp in revoked))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._abandoned, self._ahead = False, None
        self._progressed = time.monotonic()
        self._lag.forget()
        free_dropped_records()
        self._health.assigned(assigned, of=len(self._partitions()))
        if self._work is not None and not self._work.done():
            self._client.pause(*assigned)
        log.info("partitions.assigned", partitions=sorted(tp.partition for tp in assigned))
