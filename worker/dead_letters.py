"""Writing dead letters: each is acknowledged by the brokers before `publish` returns."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, Self, cast

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from schemas.dead_letter import DeadLetter
from worker import kafka
from worker.errors import MisconfiguredError, TransientError
from worker.settings import Settings

PUBLISH_TIMEOUT = 10.0  # seconds for all letters of a batch
ANY_SIZE = 2**30  # bytes: to close a letter, let the brokers say whether its key is too large
MAX_BATCH = 64 * 1024  # bytes; below what a topic of letters takes as one record

Tombstone = tuple[int, bytes, Sequence[tuple[str, bytes]]]  # partition, key, headers
Sent = tuple[int, bytes, bytes | None, Sequence[tuple[str, bytes | None]]]  # a value before those


class _Producer(AIOKafkaProducer):  # type: ignore[misc]  # aiokafka ships no types
    """Drops at its stop what nobody waits for any more.

    aiokafka's own would go on sending it, after a stop that ran out of time for as long as the
    process lives: letters of a batch that was given up, and may since have been applied elsewhere.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._requests: set[asyncio.Task[None]] = set()
        send = self._sender._send_produce_req  # noqa: SLF001 - nothing public

        async def noted(*of: Any) -> None:
            task = cast("asyncio.Task[None]", asyncio.current_task())
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
            await send(*of)

        self._sender._send_produce_req = noted  # noqa: SLF001

    async def stop(self) -> None:
        if (sender := self._sender.sender_task) is not None:
            sender.cancel()
            await asyncio.sleep(0)  # a request that was just made begins, and is known
            for request in self._requests:
                request.cancel()
            await asyncio.wait({sender})  # it waits for its requests
        waiting = self._message_accumulator
        left = [*chain(*waiting._batches.values()), *waiting._pending_batches]  # noqa: SLF001
        waiting._pending_batches.update(left)  # noqa: SLF001 - sent before, it is looked for there
        for batch in left:
            batch.future.cancel()
        await super().stop()


class DeadLetterTopic:
    """The topic of open letters, keyed by letter id: writing one again changes nothing.

    The producer is not idempotent in Kafka's sense: a repeated letter is harmless by its key,
    and an idempotent one wedges after a batch that the broker refuses, and hangs without brokers.
    """

    def __init__(self, settings: Settings, max_bytes: int) -> None:
        self._settings, self._max_bytes = settings, max_bytes
        self._producer: AIOKafkaProducer | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, max_bytes: int) -> AsyncIterator[Self]:
        topic = cls(settings, max_bytes)
        topic._producer = await topic._connected()
        try:
            yield topic
        finally:
            await topic._drop_producer()

    async def publish(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        """Write the letters and wait until every one is acknowledged by all replicas in sync.

        Gives them as they were written: one that does not fit is cut, and is `too_large`.
        Raises TransientError when that takes too long, MisconfiguredError when it is not allowed;
        the letters may then be written or not, and are to be published again.
        """
        written = [letter.fitted(self._max_bytes) for letter in letters]
        try:
            with kafka.translated(f"writing to {self._settings.dead_letter_topic}"):
                async with asyncio.timeout(PUBLISH_TIMEOUT):
                    await self._send(written)
        except MessageSizeTooLargeError:
            raise MisconfiguredError(
                f"the dead-letter topic {self._settings.dead_letter_topic} refuses a letter that "
                f"fits {self._max_bytes} bytes, which it took when this worker started: "
                "run `last-sync topics create`"
            ) from None
        except (TransientError, asyncio.CancelledError):
            await self._drop_producer()
            raise
        return written

    async def close(self, tombstones: Sequence[Tombstone]) -> None:
        """Write the tombstones, each to its letter's partition, and wait as `publish` does."""
        topic = self._settings.dead_letter_topic
        try:
            with kafka.translated(f"writing to {topic}"):
                async with asyncio.timeout(PUBLISH_TIMEOUT):
                    if self._producer is None:
                        self._producer = await self._connected()
                    await _written(
                        self._producer, topic, ((p, key, None, more) for p, key, more in tombstones)
                    )
        except MessageSizeTooLargeError:
            raise MisconfiguredError(
                f"the dead-letter topic {topic} refuses a tombstone as too large: raise its "
                "max.message.bytes"
            ) from None
        except (TransientError, asyncio.CancelledError):
            await self._drop_producer()
            raise

    async def _send(self, letters: Sequence[DeadLetter]) -> None:
        if self._producer is None:
            self._producer = await self._connected()
        topic = self._settings.dead_letter_topic
        partitions = sorted(await self._producer.partitions_for(topic))
        records = (
            (partitions[letter.partition % len(partitions)], *letter.record()) for letter in letters
        )
        await _written(self._producer, topic, records)

    async def _connected(self) -> AIOKafkaProducer:
        producer = _Producer(
            **kafka.client_options(self._settings),
            acks="all",
            max_batch_size=MAX_BATCH,
            request_timeout_ms=int(PUBLISH_TIMEOUT * 1000),
        )
        await kafka.start(producer, self._settings)
        return producer

    async def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await kafka.stop(producer)


async def _written(producer: AIOKafkaProducer, topic: str, records: Iterable[Sent]) -> None:
    """Write in batches of our own making: a future for each record takes three times as long."""
    open_batches: dict[int, Any] = {}
    async with _acknowledged() as sent:
        for partition, key, value, headers in records:
            record = {"timestamp": None, "key": key, "value": value, "headers": headers}
            batch = open_batches.get(partition)
            if batch is None or batch.append(**record) is None:
                if batch is not None:
                    sent.append(await producer.send_batch(batch, topic, partition=partition))
                batch = open_batches[partition] = producer.create_batch()
                batch.append(**record)  # the first one always fits
        for partition, batch in open_batches.items():
            sent.append(await producer.send_batch(batch, topic, partition=partition))


@asynccontextmanager
async def _acknowledged() -> AsyncIterator[list[asyncio.Future[Any]]]:
    """Wait for what was sent in the block; where that is cut off, for nothing of it."""
    sent: list[asyncio.Future[Any]] = []
    try:
        yield sent
        await asyncio.gather(*sent)
    except BaseException:
        for future in sent:
            future.cancel()
        raise
