"""Making the topics, against a broker that is slow to tell of them."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from worker import topics
from worker.settings import Settings
from worker.topics import Topic, Topics


class SlowBroker:
    """Creates at once, and shows each new topic only when it is asked the second time."""

    def __init__(self) -> None:
        self.created: list[str] = []
        self.shown = False
        self._descriptions = self._slowly()

    async def create_topics(self, new: list[Any]) -> SimpleNamespace:
        self.created += [one.name for one in new]
        return SimpleNamespace(topic_errors=[(one.name, 0, None) for one in new])

    async def describe(self, *_: object) -> Topics:
        return next(self._descriptions)

    def _slowly(self) -> Iterator[Topics]:
        one = Topic(name="t", partitions=1, configs={"max.message.bytes": "1000"}, own={})
        nothing = Topics(source=None, dead_letters=None)
        half = Topics(source=one, dead_letters=None)
        yield from [nothing, nothing, half, half]
        self.shown = True
        yield Topics(source=one, dead_letters=one)


async def test_topics_create_ends_only_when_both_topics_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker: Any = SlowBroker()
    settings = Settings()
    monkeypatch.setattr(topics, "describe", broker.describe)
    done = await topics.create(broker, settings, partitions=None, replication_factor=None)
    assert broker.created == [settings.kafka_topic, settings.dead_letter_topic]
    assert broker.shown
    assert len(done) == 2
