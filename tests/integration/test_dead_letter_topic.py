"""Letters whose batch was given up are not sent later, by a producer that nobody waits for."""

import asyncio
from dataclasses import replace

from tests.brokers import Broker
from tests.eventually import eventually
from tests.integration.test_consumer import settings_for
from tests.kafka import Kafka, Topics
from tests.test_dead_letter import LETTER
from worker.dead_letters import MAX_BATCH, DeadLetterTopic

LARGE = b"x" * (MAX_BATCH // 2)  # so that each travels alone
ON_ITS_WAY, WAITING, LATER = (replace(LETTER, offset=n, value=LARGE) for n in range(3))


def senders() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if "_sender_routine" in str(task.get_coro())]


async def test_a_publish_that_is_cancelled_leaves_nobody_who_sends_its_letters(
    own_broker: Broker,
) -> None:
    kafka, topics = Kafka(own_broker.bootstrap), Topics.unique()
    await kafka.create(topics)
    async with DeadLetterTopic.opened(settings_for(kafka, topics), 2**20) as topic:
        await topic.publish([LETTER])
        assert len(senders()) == 1
        own_broker.pause()
        try:
            publishing = asyncio.create_task(topic.publish([ON_ITS_WAY, WAITING]))
            await eventually(lambda: topic._producer and topic._producer._sender._in_flight)
            publishing.cancel()
            await asyncio.wait({publishing})
            assert publishing.cancelled()
            assert senders() == []
        finally:
            own_broker.resume()
        assert await topic.publish([LATER]) == [LATER]
    kept = {(record.key or b"").decode() for record in await kafka.read_all(topics.dlq)}
    assert {LETTER.id, LATER.id} <= kept
    assert WAITING.id not in kept
