"""Reading the topic: polls, the batch that is read ahead, and where reading begins or must end."""

import asyncio
from collections.abc import Mapping
from math import ceil

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from worker import batches, kafka
from worker.batch import Batch
from worker.errors import LastSyncError, OffsetsLostError, StalledError, TransientError
from worker.logs import get_logger
from worker.records import Record
from worker.retry import pause

log = get_logger(__name__)

POLL = 0.5  # seconds that one poll waits for records
# A batch may take all that was fetched, and more comes after a moment.
AHEAD = 1.0  # seconds that reading ahead may take, and its last poll a little longer
AHEAD_POLL = 0.02  # seconds
AHEAD_POLLED = 1_000  # records, read before more are polled
FULL = 3 / 4  # of the most in a batch: enough
LAST_POLL = 1.0  # seconds that one may take when the worker stops: a rebalance can block it
REQUEST_TIMEOUT = 5.0  # seconds


class Reader:
    """What the loop knows of its client as a source of records."""

    def __init__(
        self, client: AIOKafkaConsumer, *, group: str, batch_size: int, stop: asyncio.Event
    ) -> None:
        self._client, self._group, self._batch_size, self._stop = client, group, batch_size, stop
        self._polling: asyncio.Timeout | None = None
        self._ahead: Batch | None = None  # fetched, and not begun
        self.refused: LastSyncError | None = None  # what reading ahead came upon

    async def next(self) -> Batch | None:
        """Give what was read ahead, filled up with what is here by now, or what a poll gives."""
        if self._ahead and self._may_add(self._batch_size * FULL):
            await self._add(0, self._batch_size)
            if self._stop.is_set():
                return None
        if self._ahead:
            batch, self._ahead = self._ahead, None
            return batch
        if self.refused:
            raise self.refused
        polled = await self.poll(POLL)
        return Batch.of(polled) if polled else None

    async def read_ahead(self, work: asyncio.Task[None], most: float) -> None:
        """Fetch and read the next batch, or so much of it, while the work of this one goes on.

        What ends the worker waits in `refused` for what stands before it: a person who sets the
        offset behind what cannot be read takes all before it for done.
        """
        batches.make_room()
        clock = asyncio.get_running_loop().time
        until = clock() + AHEAD
        while not work.done() and clock() < until and self._may_add(most):
            await self._add(AHEAD_POLL, min(AHEAD_POLLED, ceil(most)))
            if ahead := self._ahead:
                for _ in ahead.reading():
                    await asyncio.sleep(0)  # the batch in flight goes first

    def _may_add(self, most: float) -> bool:
        """Whether there are fewer ahead. What another partition has is for other connectors."""
        read = len(self._ahead.records) if self._ahead else 0
        return read < most and batches.has_room() and not (self.refused or self._stop.is_set())

    async def _add(self, seconds: float, most: int) -> None:
        read = len(self._ahead.records) if self._ahead else 0
        try:
            polled = await self._poll(seconds, min(most, self._batch_size - read))
        except LastSyncError as error:
            self.refused = error
            return
        if polled:  # a revocation may have what was ahead forgotten meanwhile
            self._ahead = self._ahead or Batch()
            self._ahead.add(polled)

    async def poll(self, seconds: float) -> dict[TopicPartition, list[Record]]:
        """Never cancelled while the worker goes on: that would break aiokafka's poll timer."""
        if not self._ahead:  # which took its part of it
            batches.make_room()
        return await self._poll(seconds, self._batch_size)

    async def _poll(self, seconds: float, most: int) -> dict[TopicPartition, list[Record]]:
        try:
            with kafka.translated("reading records"):
                polled = await self._getmany(seconds, most)
        except NoOffsetForPartitionError as error:
            await self._begin(error.args[0])
        except OffsetOutOfRangeError as error:
            raise await self._lost(error.args[0]) from None
        except TransientError as error:
            log.warning("poll.failed", error=str(error))
            await pause(self._stop, POLL)
        else:
            return polled
        return {}

    async def _getmany(self, seconds: float, most: int) -> dict[TopicPartition, list[Record]]:
        try:
            async with asyncio.timeout(LAST_POLL if self._stop.is_set() else None) as self._polling:
                polled: dict[TopicPartition, list[Record]] = await self._client.getmany(
                    timeout_ms=int(seconds * 1000), max_records=most
                )
                return polled
        except TimeoutError:
            if self._polling is None or not self._polling.expired():
                raise
            return {}
        except KafkaError as error:
            if not kafka.unexplained(error):
                raise
            # What ended the client's heartbeats, or its part in the group, it tells again for ever.
            raise StalledError(
                f"the group {self._group} failed for a reason that this client does not know: "
                f"{kafka.describe(error)}; the brokers' logs may say more. Ending the process for "
                "a fresh start"
            ) from error
        finally:
            self._polling = None

    async def limit_the_last_poll(self) -> None:
        """Cut the poll that is under way when the wish to stop comes."""
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
            f"offsets lost: group {self._group} wants offset {offset} of {tp.topic} "
            f"partition {tp.partition}, which has {bounds}: records were deleted before they were "
            "read, or the topic was made anew. Decide where to go on and set the group's offset "
            "(kafka-consumer-groups.sh --reset-offsets); the events that are gone have to be "
            "published again"
        )

    async def positions(self) -> dict[TopicPartition, int]:
        """Where the next batch begins, for the partitions of which that is known by now."""
        positions, ahead = {}, self._ahead  # a revocation may forget it meanwhile
        for tp in self._client.assignment():
            try:
                async with asyncio.timeout(0):  # at once or not at all
                    positions[tp] = await self._client.position(tp)
            except (TimeoutError, KafkaError):
                continue
        if ahead:
            positions |= {tp: record.offset for tp, record in ahead.first.items()}
        return positions

    def forget(self) -> None:
        """Drop what was read ahead: whoever gets the partitions reads on from what is committed."""
        self._ahead = self.refused = None
