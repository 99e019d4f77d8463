"""The end of a run that drains its topic."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiokafka import TopicPartition

from worker import kafka
from worker.errors import TransientError
from worker.logs import get_logger

log = get_logger(__name__)

CHECK = 0.3  # seconds between looks at the group's committed offsets
REQUEST_TIMEOUT = 5.0  # seconds


@dataclass(slots=True, kw_only=True)
class Drain:
    """Done when the group has committed up to the ends that the topic had at the start."""

    ends: Mapping[TopicPartition, int]
    group_offsets: Callable[[], Awaitable[Mapping[TopicPartition, int]]]
    _asked: float = 0.0

    async def done(self) -> bool:
        """Ask the broker, now and then: other members of the group work on their partitions."""
        if time.monotonic() - self._asked < CHECK:
            return False
        self._asked = time.monotonic()
        try:
            with kafka.translated("asking for the group's offsets"):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    committed = await self.group_offsets()
        except TransientError as error:
            log.warning("drain.held", waiting_for=str(error))
            return False
        return all(committed.get(tp, 0) >= end for tp, end in self.ends.items())
