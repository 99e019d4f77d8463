"""The open letters are read from a real broker."""

import asyncio

from tests.kafka import Kafka, Topics
from worker.open_letters import OpenLetters
from worker.settings import Settings


async def seconds_to_read(settings: Settings) -> float:
    async with OpenLetters.opened(settings) as letters:
        began = asyncio.get_running_loop().time()
        assert await letters.table() == []
        return asyncio.get_running_loop().time() - began


async def test_nothing_waits_behind_a_fetch_at_the_end_of_the_topic(kafka: Kafka) -> None:
    """The broker would keep such a fetch for half a second, and what is asked next with it."""
    topic = Topics.unique()
    await kafka.create(topic, partitions=1)
    settings = Settings(
        kafka_bootstrap_servers=kafka.bootstrap,
        kafka_topic=topic.source,
        kafka_dead_letter_topic=topic.dlq,
    )
    assert min([await seconds_to_read(settings) for _ in range(3)]) < 0.4
