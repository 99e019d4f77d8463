"""Events are sent to the topic."""

import asyncio
from collections.abc import Iterable, Sequence

from aiokafka import AIOKafkaProducer

from worker import kafka, topics
from worker.settings import Settings

Message = tuple[bytes | None, bytes, Sequence[tuple[str, bytes]]]  # key, value, headers

PUBLISH_TIMEOUT = 30.0  # seconds


async def publish(settings: Settings, messages: Iterable[Message]) -> int:
    """Send the messages, and return how many the brokers have acknowledged: all of them."""
    async with kafka.admin(settings) as admin:
        topics.required_source(await topics.describe(admin, settings), settings)
    producer = AIOKafkaProducer(
        **kafka.client_options(settings), acks="all", linger_ms=5, max_batch_size=131_072
    )
    async with kafka.started(producer, settings):
        with kafka.translated(f"publishing to {settings.kafka_topic}"):
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                sent = [
                    await producer.send(settings.kafka_topic, value, key=key, headers=[*headers])
                    for key, value, headers in messages
                ]
                await asyncio.gather(*sent)
    return len(sent)
