"""Looking around: where the topic ends, how far this member is behind, and whether it is stuck."""

import asyncio
import time
from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError

from worker import kafka
from worker.errors import StalledError, TransientError
from worker.health import Health
from worker.lag import Lag
from worker.logs import get_logger
from worker.transactions import OpenTransactions

log = get_logger(__name__)

REQUEST_TIMEOUT = 5.0  # seconds
GLANCE = 2.0  # seconds that a look may keep records waiting
LOOK_AROUND = 5.0  # seconds between looks at the end of the topic


class Lookout:
    """Asks the brokers now and then, and raises when records wait and none arrives."""

    def __init__(
        self, client: AIOKafkaConsumer, *, health: Health, lag: Lag, stalled_after: float
    ) -> None:
        self._client, self._health, self._metrics = client, health, health.metrics
        self._lag, self._stalled_after = lag, stalled_after
        self._transactions = OpenTransactions(patience=stalled_after)
        self._looked = self._progressed = time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self._looked > LOOK_AROUND

    def progressed(self) -> None:
        self._progressed = time.monotonic()

    async def measure_lag(self, positions: Mapping[TopicPartition, int]) -> None:
        """While a batch is held nothing is fetched, and the topic grows unseen."""
        self._looked = time.monotonic()
        try:
            with kafka.translated("asking for the end of the topic"):
                async with asyncio.timeout(GLANCE):
                    self._see(await self._client.end_offsets(list(positions)), positions)
        except (TransientError, IllegalStateError) as error:
            log.warning("lag.unknown", error=str(error))

    async def look_at_the_end(
        self, positions: Mapping[TopicPartition, int], *, glance: bool
    ) -> None:
        """A consumer may stay silent after an outage of the whole cluster: notice it.

        One partition without a leader keeps the answer for all of them away, so that with records
        to go on with it is only glanced at.
        """
        try:
            await self._ask(positions, GLANCE if glance else REQUEST_TIMEOUT)
        finally:
            self._looked = time.monotonic()  # a look that took long is not due again at once

    async def _ask(self, positions: Mapping[TopicPartition, int], patience: float) -> None:
        try:
            with kafka.translated("asking for the end of the topic"):
                async with asyncio.timeout(patience):
                    ends = await self._client.end_offsets(list(positions) or self.partitions()[:1])
        except (TransientError, IllegalStateError) as error:
            self._health.hold("broker", str(error))
            log.warning("poll.held", waiting_for=str(error))
            return
        self._health.release()
        self._see(ends, positions)
        behind = sum(max(0, ends[tp] - position) for tp, position in positions.items())
        unknown = len(self._client.assignment() - positions.keys())
        silent = time.monotonic() - self._progressed
        if not behind and not unknown:
            self._progressed = time.monotonic()
            self._metrics.progressed()
        elif silent > self._stalled_after:
            raise StalledError(
                f"the topic has {behind} more records and {unknown} partitions without a known "
                f"position, but nothing arrived for {silent:.0f} s; ending the process for a "
                "fresh start"
            )

    def _see(
        self, stable: Mapping[TopicPartition, int], positions: Mapping[TopicPartition, int]
    ) -> None:
        """Note the ends of the partitions that are still ours, now that they are known.

        The consumer is asked for committed records alone, and told where these end. The lag counts
        what an open transaction keeps back, too, as Kafka's own tools do.
        """
        ours = positions.keys() & self._client.assignment()
        readable = {tp: stable[tp] for tp in ours}
        ends = {tp: max(end, self._client.highwater(tp) or 0) for tp, end in readable.items()}
        self._lag.seen(ends, {tp: positions[tp] for tp in ours})
        self._transactions.seen(readable, ends)

    def partitions(self) -> list[TopicPartition]:
        return [
            TopicPartition(topic, partition)
            for topic in self._client.subscription()
            for partition in self._client.partitions_for_topic(topic) or ()
        ]

    def fetched_ends(self) -> dict[TopicPartition, int]:
        """Where the partitions end, as the last fetch said."""
        ends = {tp: self._client.highwater(tp) for tp in self._client.assignment()}
        return {tp: end for tp, end in ends.items() if end is not None}
