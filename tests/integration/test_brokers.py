"""The test tools themselves: brokers that really stop, freeze and come back with their data."""

import asyncio

import pytest
from aiokafka.errors import KafkaError

from tests.brokers import Broker
from tests.kafka import Kafka, Record, Topics

HELLO = Record(value=b"hello", key=b"k", headers=(("h", b"1"),), partition=2, timestamp=1_700_000)


async def test_records_are_read_back_as_they_were_produced(kafka: Kafka, topic: Topics) -> None:
    null = Record(value=None, partition=0, timestamp=5)
    await kafka.produce(topic.source, [HELLO, null])
    first, second = await kafka.read_all(topic.source)
    assert (first.value, first.key, first.headers, first.partition) == (None, None, (), 0)
    assert (second.value, second.key, second.headers) == (HELLO.value, HELLO.key, HELLO.headers)
    assert (second.partition, second.offset, second.timestamp) == (2, 0, HELLO.timestamp)
    assert await kafka.end_offsets(topic.source) == {0: 1, 1: 0, 2: 1, 3: 0}
    assert await kafka.committed(topic.group, topic.source) == {}


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_an_own_broker_comes_back_on_its_port_with_its_data(
    own_broker: Broker, end: str
) -> None:
    kafka, topics = Kafka(own_broker.bootstrap), Topics.unique()
    await kafka.create(topics)
    await kafka.produce(topics.source, [HELLO])
    await asyncio.to_thread(getattr(own_broker, end))
    with pytest.raises(KafkaError):
        await kafka.end_offsets(topics.source)
    await asyncio.to_thread(own_broker.start)
    assert [one.value for one in await kafka.read_all(topics.source)] == [HELLO.value]
