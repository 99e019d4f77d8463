"""The loop: poll, apply, write dead letters, commit; hold while the broker or the store is away.

docs/delivery.md walks through each point at which it can be interrupted.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError

from worker import kafka, memory
from worker.batch import Batch
from worker.drain import Drain
from worker.errors import TransientError
from worker.handling import FloodError, Handler
from worker.health import Health
from worker.lag import Lag
from worker.logs import get_logger
from worker.lookout import Lookout
from worker.metrics import Cause
from worker.reader import AHEAD, FULL, POLL, Reader
from worker.retry import backoff, pause
from worker.watchdog import Watchdog

log = get_logger(__name__)

SLOW = 3.0  # seconds, and those of reading ahead, until polls go on without the batch in flight
COMMIT_TIMEOUT = 5.0  # seconds
# Bytes of a broker's answer, about: mostly a batch. All are of one partition, if it has so many,
# for events of a connector share a key. With a remote store the next batch is in memory, too.
FETCH, FETCH_AHEAD = 8_192 * 1024, 4_608 * 1024
SHARE_AHEAD = 1 / 5  # of the records in hand, beside a store that is not remote
NEVER = 3_600.0  # seconds
WORTHWHILE = 1 / 16  # of the most in a batch, from which on reading ahead pays: large ones are few
# A client has one request at a broker. While it waits there for records of idle partitions, a busy
# one waits for it.
FETCH_WAIT = 100  # milliseconds
REBALANCE_TIMEOUT = 20.0  # seconds
# Longer than joining may take, or rejoin storms follow. Nothing arrives for so long on a connection
# whose other end is gone without a word.
REQUEST_TIMEOUT = 25.0  # seconds
# While a rebalance lasts the whole group stands still: it waits for the last member to learn of it,
# by a heartbeat, and to finish what it has in hand.
HEARTBEATS_PER_SESSION = 3
HEARTBEAT = 1.0  # seconds between two, at most
REVOKE_BUDGET = 3.0  # seconds; far longer than a batch takes on a database that is well


CAUSES: dict[str, Cause] = {
    "the store": "store",
    "the dead-letter topic": "dead_letter_topic",
    "the commit": "commit",
}


Trace = Callable[[Batch], AbstractContextManager[object]]


class _Abandoned(Exception):  # noqa: N818 - not an error: the batch will be delivered again
    """The worker stops while it holds a batch."""


def client_options(session_timeout_ms: int, *, remote: bool) -> dict[str, object]:
    """How the loop wants its aiokafka consumer, with a store that is `remote` or not."""
    size = FETCH_AHEAD if remote else FETCH
    return {
        "fetch_max_bytes": size,
        "fetch_max_wait_ms": FETCH_WAIT,
        "max_partition_fetch_bytes": size,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # a reset is decided here, where loss can be told apart
        "isolation_level": "read_committed",
        "partition_assignment_strategy": (RoundRobinPartitionAssignor,),  # two hang start()
        "rebalance_timeout_ms": int(REBALANCE_TIMEOUT * 1000),
        "request_timeout_ms": int(REQUEST_TIMEOUT * 1000),
        "session_timeout_ms": session_timeout_ms,
        "heartbeat_interval_ms": min(
            session_timeout_ms // HEARTBEATS_PER_SESSION, int(HEARTBEAT * 1000)
        ),
    }


def limit_prefetching(client: AIOKafkaConsumer) -> None:
    """Let one answer a broker wait here, until all of it was taken.

    aiokafka would ask for other partitions when it lay here for a tenth of a second, and with many
    of them and a slow store have many answers in memory. It has no setting for it. What waits is
    what the next poll gives, so that the others lose nothing.
    """
    client._fetcher._prefetch_backoff = NEVER  # noqa: SLF001


class Consumer(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """One member of the group, from its first assignment until it is stopped."""

    def __init__(
        self,
        *,
        client: AIOKafkaConsumer,
        group: str,
        batch_size: int,
        handler: Handler,
        watchdog: Watchdog,
        stalled_after: float,
        health: Health,
        trace: Trace,
        stop: asyncio.Event,
    ) -> None:
        self._client, self._batch_size = client, batch_size
        self._reader = Reader(client, group=group, batch_size=batch_size, stop=stop)
        self._handler = handler
        self._watchdog = watchdog
        self._health, self._metrics = health, health.metrics
        self._lag = Lag(health.metrics)
        self._lookout = Lookout(client, health=health, lag=self._lag, stalled_after=stalled_after)
        self._trace = trace
        self._stop = stop
        self._work: asyncio.Task[None] | None = None
        self._step = ""
        self._hands_off = False  # positions are not ours to commit
        self._committed: dict[TopicPartition, int] = {}

    async def run(self, drain: Drain | None = None) -> None:
        """Work until `stop` is set, or until what there was to drain is done."""
        stopping = asyncio.create_task(self._reader.limit_the_last_poll(), name="last-poll")
        try:
            await self._work_until_stopped(drain)
        finally:
            stopping.cancel()

    async def _work_until_stopped(self, drain: Drain | None) -> None:
        while not self._stop.is_set():
            busy = await self._work_once()
            if self._stop.is_set():
                return
            if self._reader.refused:
                continue  # positions stand behind it
            if not busy or self._lookout.due:
                await self._look_around(glance=busy)
            if drain is not None and await drain.done():
                return

    async def _work_once(self) -> bool:
        """See the next batch through, and let go of it; false where there is none."""
        batch = await self._reader.next()
        self._watchdog.step()
        if batch:
            await self._see_through(batch)
        return batch is not None

    # --- one batch ---------------------------------------------------------------------------

    async def _see_through(self, batch: Batch) -> None:
        """Finish the batch, or abandon it uncommitted; keep polling while it takes long."""
        self._lag.begun(batch)
        work = self._work = asyncio.create_task(self._finish(batch), name="batch")
        try:
            slow_at = time.monotonic() + SLOW
            if len(batch.records) >= self._batch_size * WORTHWHILE and await self._has_time(work):
                full = self._batch_size * FULL
                most = full if self._handler.remote else len(batch.records) * SHARE_AHEAD
                await self._reader.read_ahead(work, most)
                slow_at += AHEAD
            await asyncio.wait({work}, timeout=slow_at - time.monotonic())
            if not work.done() and self._health.held is None:
                log.warning("batch.slow", step=self._step, waiting_for=f"{self._step} to answer")
            while not work.done():
                await self._tick(work)
        finally:
            await self._end_work()
            self._health.release()
            self._lookout.progressed()
            if paused := self._client.paused():
                self._client.resume(*paused)
        if work.cancelled():  # by a revocation
            log.info("batch.abandoned", records=len(batch.records), reason="partitions revoked")
            return
        try:
            work.result()
        except _Abandoned:
            self._hands_off = True
            log.info("batch.abandoned", records=len(batch.records), reason="stopping")

    async def _has_time(self, work: asyncio.Task[None]) -> bool:
        """Wait until the store leaves time to read ahead; false where it did not."""
        time_left = asyncio.create_task(self._handler.leaves_time.wait(), name="time-left")
        try:
            await asyncio.wait({work, time_left}, timeout=SLOW, return_when=asyncio.FIRST_COMPLETED)
            return time_left.done()
        finally:
            time_left.cancel()

    async def _end_work(self) -> None:
        if self._work is None:
            return
        self._work.cancel()
        await asyncio.wait({self._work})
        if not self._work.cancelled():
            self._work.exception()  # seen, for the case that another error is on its way

    async def _finish(self, batch: Batch) -> None:
        with self._trace(batch):
            await self._until_done("the store", lambda: self._handler.classify(batch))
            letters = self._handler.dead_letters(batch)
            if letters:
                await self._until_done(
                    "the dead-letter topic", lambda: self._handler.publish(batch, letters)
                )
            self._handler.passed(batch)
            await self._until_done("the commit", lambda: self._commit(batch))
        self._handler.report(batch, self._lag.records)

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
                await pause(self._stop, delay)
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

    async def _tick(self, work: asyncio.Task[None]) -> None:
        """A member that does not poll is thrown out: poll with everything paused."""
        self._client.pause(*self._client.assignment())
        leaked = await self._reader.poll(POLL)
        for tp, records in leaked.items():  # handed out between an assignment and its pause
            if tp in self._client.assignment():
                self._client.seek(tp, records[0].offset)
        self._watchdog.step()
        if self._lookout.due:
            await self._lookout.measure_lag(await self._reader.positions())
        await asyncio.wait({work}, timeout=POLL if leaked else 0)

    async def _commit(self, batch: Batch) -> None:
        started = time.perf_counter()
        await self._commit_offsets(batch.offsets)
        batch.seconds["commit"] += time.perf_counter() - started
        self._lag.finished(batch, self._lookout.fetched_ends())

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
        self._lookout.progressed()
        self._metrics.progressed()
        self._watchdog.step()

    # --- nothing to do -----------------------------------------------------------------------

    async def _look_around(self, *, glance: bool) -> None:
        """Commit positions that moved without a record (transaction markers), and look around."""
        ours = not self._hands_off  # before positions are read: an assignment may come meanwhile
        positions = await self._reader.positions()
        moved = {tp: at for tp, at in positions.items() if self._committed.get(tp) != at}
        if moved and ours and not self._hands_off:
            try:
                await self._commit_offsets(moved)
            except TransientError as error:
                log.warning("commit.failed", error=str(error))
        if self._lookout.due:
            await self._lookout.look_at_the_end(positions, glance=glance)
            memory.give_back()

    # --- rebalancing: called by aiokafka while the loop runs -----------------------------------

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Finish and commit the batch in flight within the budget, or abandon it."""
        self._hands_off = True  # before anything is forgotten that positions know of
        self._reader.forget()
        if self._work is not None and not self._work.done():
            budget = 0 if self._health.held else REVOKE_BUDGET
            await asyncio.wait({self._work}, timeout=budget)
            await self._end_work()
        self._committed.clear()
        self._lag.forget()
        self._health.revoked()
        if revoked:
            log.info("partitions.revoked", partitions=sorted(tp.partition for tp in revoked))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._hands_off = False
        self._reader.forget()
        self._lookout.progressed()
        self._lag.forget()
        self._health.assigned(assigned, of=len(self._lookout.partitions()))
        if self._work is not None and not self._work.done():
            self._client.pause(*assigned)
        log.info("partitions.assigned", partitions=sorted(tp.partition for tp in assigned))
