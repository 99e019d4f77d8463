"""Letters whose batch was given up are not sent later, by a producer that nobody waits for."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.errors import NotEnoughReplicasError

from tests.brokers import Broker
from tests.eventually import eventually
from tests.integration.test_consumer import settings_for
from tests.kafka import Kafka, Topics
from tests.test_dead_letter import LETTER
from worker.dead_letters import MAX_BATCH, DeadLetterTopic
from worker.errors import MisconfiguredError

LARGE = b"x" * (MAX_BATCH // 2)  # so that each travels alone
ON_ITS_WAY, WAITING, LATER = (replace(LETTER, offset=n, value=LARGE) for n in range(3))


def tasks_of_the_producer() -> list[str]:
    names = [str(task.get_coro()) for task in asyncio.all_tasks()]
    return [name for name in names if "_sender" in name or "noted" in name or "Accum" in name]


def drop_connections(topic: DeadLetterTopic) -> None:
    assert topic._producer is not None
    for connection in list(topic._producer.client._conns.values()):
        connection.close()


@pytest.mark.parametrize("connected", [True, False])
async def test_a_publish_that_is_cancelled_leaves_nobody_who_sends_its_letters(
    own_broker: Broker, *, connected: bool
) -> None:
    kafka, topics = Kafka(own_broker.bootstrap), Topics.unique()
    await kafka.create(topics)
    async with DeadLetterTopic.opened(settings_for(kafka, topics), 2**20) as topic:
        await topic.publish([LETTER])
        assert tasks_of_the_producer()
        if not connected:
            drop_connections(topic)
        own_broker.pause()
        try:
            publishing = asyncio.create_task(topic.publish([ON_ITS_WAY, WAITING]))
            await eventually(lambda: topic._producer and topic._producer._sender._in_flight)
            publishing.cancel()
            await asyncio.wait({publishing})
            assert publishing.cancelled()
            assert tasks_of_the_producer() == []
        finally:
            own_broker.resume()
        assert await topic.publish([LATER]) == [LATER]
    kept = {(record.key or b"").decode() for record in await kafka.read_all(topics.dlq)}
    assert {LETTER.id, LATER.id} <= kept
    assert WAITING.id not in kept
    assert connected or ON_ITS_WAY.id not in kept


async def test_a_batch_that_is_given_up_between_two_tries_is_dropped_without_a_word(
    kafka: Kafka, topic: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any, **__: Any) -> None:
        raise NotEnoughReplicasError

    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    async with DeadLetterTopic.opened(settings_for(kafka, topic), 2**20) as letters:
        await letters.publish([LETTER])
        assert letters._producer is not None
        client = letters._producer.client
        monkeypatch.setattr(client, "send", refused)
        monkeypatch.setattr(client, "_maybe_wait_metadata", asyncio.Event().wait)
        publishing = asyncio.create_task(letters.publish([LATER]))
        waiting = letters._producer._message_accumulator._batches
        await eventually(lambda: any(one.retry_count for some in waiting.values() for one in some))
        publishing.cancel()
        await asyncio.wait({publishing})
    assert publishing.cancelled()
    assert said == []


async def test_letters_whose_time_the_brokers_refuse_say_so(kafka: Kafka, topic: Topics) -> None:
    await kafka.alter(topic.dlq, {"message.timestamp.before.max.ms": "0"})
    async with DeadLetterTopic.opened(settings_for(kafka, topic), 2**20) as letters:
        with pytest.raises(MisconfiguredError, match=f"{topic.dlq}.*InvalidTimestampError"):
            await letters.publish([LETTER] * 5_000)  # more than fit into their millisecond
