"""A cluster that is not all there yet, as the client that looks at topics finds it."""

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import GroupLoadInProgressError
from aiokafka.protocol.commit import OffsetFetchRequest

from tests.kafka import Topics
from worker import kafka, topics
from worker.app import checks
from worker.errors import TransientError
from worker.settings import Settings


@pytest.fixture
def settings(bootstrap: str, topic: Topics) -> Settings:
    return Settings(
        kafka_bootstrap_servers=bootstrap,
        kafka_topic=topic.source,
        kafka_dead_letter_topic=topic.dlq,
    )


def leave_out_brokers(monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Have so many answers list no broker, as one gives that does not know of itself yet."""
    send, left = AIOKafkaConnection.send, [times]

    async def sent(self: Any, request: Any, *more: Any, **options: Any) -> Any:
        answer = await send(self, request, *more, **options)
        if hasattr(answer, "brokers") and left[0] > 0:
            left[0] -= 1
            answer.brokers, answer.controller_id = [], -1
        return answer

    monkeypatch.setattr(AIOKafkaConnection, "send", sent)


async def test_a_broker_that_does_not_list_itself_yet_is_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_brokers(monkeypatch, 4)
    async with kafka.admin(settings) as admin:
        found = await topics.describe(admin, settings)
    assert found.source is not None
    assert found.source.name == settings.kafka_topic


async def test_a_cluster_that_lists_no_broker_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_brokers(monkeypatch, float("inf"))
    with pytest.raises(TransientError) as raised:
        async with kafka.admin(settings):
            pass
    assert f"cannot use Kafka at {settings.kafka_bootstrap_servers}" in str(raised.value)
    assert "it answers, and lists no broker; it may be starting" in str(raised.value)


async def test_a_coordinator_that_is_still_reading_is_asked_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, left = AIOKafkaConnection.send, [3]

    async def sent(self: Any, request: Any, *more: Any, **options: Any) -> Any:
        answer = await send(self, request, *more, **options)
        if isinstance(request, OffsetFetchRequest) and left[0] > 0:
            left[0] -= 1
            answer.error_code, answer.topics = GroupLoadInProgressError.errno, []
        return answer

    monkeypatch.setattr(AIOKafkaConnection, "send", sent)
    partitions = [TopicPartition(settings.kafka_topic, number) for number in range(4)]
    async with kafka.admin(settings) as admin:
        offsets = await checks.group_offsets(admin, settings, partitions)
    assert offsets == dict.fromkeys(partitions, -1)
    assert left == [0]
