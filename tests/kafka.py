"""What tests ask of a Kafka cluster: write records, read them all back, look at offsets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest

from tests.eventually import eventually
from worker import batches

PARTITIONS = 4
SOURCE_MAX_BYTES = 1_048_588  # Kafka's default for max.message.bytes
DEAD_LETTER_MAX_BYTES = SOURCE_MAX_BYTES + 65_536
RETENTION_OF_TOMBSTONES = 30 * 86_400_000  # milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """Names that no other test uses."""

    source: str
    dlq: str
    group: str

    @classmethod
    def unique(cls) -> "Topics":
        name = f"sync-finished.{uuid4().hex[:12]}"
        return cls(source=name, dlq=f"{name}.dlq", group=f"worker.{uuid4().hex[:12]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record to produce (the broker gives the offset), or one that was read."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int | None = None
    timestamp: int | None = None
    offset: int | None = None


class Kafka:
    """A cluster, named by its bootstrap address; each call opens its own client and closes it."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    async def create(
        self,
        topics: Topics,
        *,
        partitions: int = PARTITIONS,
        configs: Mapping[str, str] | None = None,
    ) -> None:
        """Make the source topic (with these configs) and the compacted one of its dead letters."""
        await self.create_topic(topics.source, partitions=partitions, configs=configs)
        await self.create_topic(
            topics.dlq,
            partitions=partitions,
            configs={
                "cleanup.policy": "compact",
                "max.message.bytes": str(DEAD_LETTER_MAX_BYTES),
                "delete.retention.ms": str(RETENTION_OF_TOMBSTONES),
            },
        )

    async def create_topic(
        self, name: str, *, partitions: int = 1, configs: Mapping[str, str] | None = None
    ) -> None:
        new = NewTopic(name, partitions, 1, topic_configs=dict(configs or {}))
        async with self._admin() as admin:
            # A broker that has just started may not have heard of itself.
            await eventually(admin._client.force_metadata_update)
            response = await admin.create_topics([new])
        for topic, code, *message in response.topic_errors:
            if code != 0:
                raise for_code(code)(f"{topic}: {message}")
        await self._shows(name)

    async def _shows(self, name: str) -> None:
        """Wait until the broker tells of the new topic, a moment after the controller made it."""
        async with self._admin() as admin:

            async def known() -> bool:
                (found,) = await admin.describe_topics([name])
                return not found["error_code"]

            await eventually(known)

    async def produce(
        self, topic: str, records: Iterable[Record], *, compression: str | None = None
    ) -> None:
        """Send the records in order and wait for every acknowledgement."""
        async with self._producer(
            compression_type=compression, linger_ms=5, max_request_size=DEAD_LETTER_MAX_BYTES
        ) as producer:
            acknowledgements = [await _send(producer, topic, record) for record in records]
            await asyncio.gather(*acknowledgements)

    async def read_all(self, topic: str) -> list[Record]:
        """Return every committed record up to the end offsets of now, by partition and offset."""
        records: list[Record] = []
        async with self._reader(topic) as consumer:
            ends = await consumer.end_offsets(consumer.assignment())
            while any([await consumer.position(one) < end for one, end in ends.items()]):
                batches.make_room()  # a worker in this process may have used up what there was
                polled = await consumer.getmany(timeout_ms=100)
                records += [_record(one) for found in polled.values() for one in found]
        return sorted(records, key=lambda one: (one.partition or 0, one.offset or 0))

    async def end_offsets(self, topic: str) -> dict[int, int]:
        async with self._reader(topic) as consumer:
            ends = await consumer.end_offsets(consumer.assignment())
        return {one.partition: end for one, end in ends.items()}

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return the group's committed offset of each partition that has one."""
        async with self._admin() as admin:
            found = await eventually(lambda: _committed(admin, group))
        return {
            partition: offset
            for name, partitions in found.topics
            for partition, offset, *_ in partitions
            if name == topic and offset >= 0
        }

    async def topics(self) -> list[str]:
        async with self._admin() as admin:
            return list(await admin.list_topics())

    async def delete_topic(self, name: str) -> None:
        """Delete the topic, and wait until the cluster has forgotten it."""
        async with self._admin() as admin:
            await admin.delete_topics([name])

            async def gone() -> bool:
                (found,) = await admin.describe_topics([name])
                return bool(found["error_code"])

            await eventually(gone)

    async def alter(self, topic: str, changes: Mapping[str, str]) -> None:
        async with self._admin() as admin:
            wanted = ConfigResource(ConfigResourceType.TOPIC, topic, configs=dict(changes))
            (response,) = await admin.alter_configs([wanted])
        assert not response.resources[0][0], response

    async def configs(self, topic: str) -> dict[str, str]:
        async with self._admin() as admin:
            wanted = ConfigResource(ConfigResourceType.TOPIC, topic)
            (response,) = await admin.describe_configs([wanted])
        return {entry[0]: entry[1] for entry in response.resources[0][4]}

    @asynccontextmanager
    async def _reader(self, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
        """Open a consumer of no group, which has every partition once it has started."""
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=self.bootstrap,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(consumer.stop)  # a client that did not start needs it too
            await consumer.start()
            yield consumer

    @asynccontextmanager
    async def _producer(self, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, **options)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(producer.stop)
            await producer.start()
            yield producer

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(admin.close)
            await admin.start()
            await eventually(lambda: _lists_brokers(admin))
            yield admin


async def _lists_brokers(admin: AIOKafkaAdminClient) -> bool:
    """Whether it knows whom to ask: a broker just thawed is fenced, and lists none for a while."""
    if not admin._client.cluster.brokers():
        await admin._client.force_metadata_update()
    return bool(admin._client.cluster.brokers())


async def _committed(admin: AIOKafkaAdminClient, group: str) -> Any:
    """Return the answer; None while a cluster still makes its offsets topic, or reads it again.

    aiokafka's own call would say then that nothing is committed.
    """
    try:
        coordinator = await admin.find_coordinator(group)
    except GroupCoordinatorNotAvailableError:
        return None
    response = await admin._send_request(OffsetFetchRequest(group, None), coordinator)
    return None if response.error_code else response


async def _send(producer: AIOKafkaProducer, topic: str, record: Record) -> Awaitable[Any]:
    if record.key is None and record.value is None:
        return await _send_empty(producer, topic, record)
    acknowledgement: Awaitable[Any] = await producer.send(
        topic,
        value=record.value,
        key=record.key,
        partition=record.partition,
        timestamp_ms=record.timestamp,
        headers=list(record.headers),
    )
    return acknowledgement


async def _send_empty(producer: AIOKafkaProducer, topic: str, record: Record) -> Awaitable[Any]:
    """Send what `send` refuses, though Kafka takes it: no key and no value."""
    batch = producer.create_batch()
    batch.append(key=None, value=None, timestamp=record.timestamp, headers=list(record.headers))
    sent: Awaitable[Any] = await producer.send_batch(batch, topic, partition=record.partition or 0)
    return sent


def _record(one: ConsumerRecord[bytes, bytes]) -> Record:
    return Record(
        value=one.value,
        key=one.key,
        headers=tuple(one.headers),
        partition=one.partition,
        timestamp=one.timestamp,
        offset=one.offset,
    )
