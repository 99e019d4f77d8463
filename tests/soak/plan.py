"""How long a soak is, what it publishes, and when each event is due."""

import time
from dataclasses import dataclass
from datetime import timedelta

from aiokafka.partitioner import murmur2

from tests.chaos.events import START, Mix
from tests.oracle import Event

PARTITIONS = 24  # each is checked by itself at the end, in memory
LETTERS = 0.005  # of what is published: half of it malformed, half for unknown connectors
PROBE_EVERY = 100  # of so many events one is a probe, whose way into the store is timed
PROBED = 16  # connectors that probes take turns with


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    minutes: float = 60.0
    warm_up: float = 20.0  # minutes
    rounds: int = 5  # of all faults, in the warm-up: memory has to have been where they take it
    every: float = 180.0  # seconds from one fault to the next, after the warm-up
    period: float = 60.0  # seconds over which delays are summed up; quiet, or not
    rate: int = 2_000  # events a second
    connectors: int = 10_000
    store: str = "postgresql"
    broken: bool = False  # the worker leaks on purpose

    @property
    def seconds(self) -> float:
        return self.minutes * 60

    @property
    def settled(self) -> float:
        """Seconds until what is measured counts."""
        return self.warm_up * 60

    @property
    def window(self) -> float:
        """Seconds of a line in the table."""
        return self.seconds / 12

    @property
    def mix(self) -> Mix:
        return Mix(connectors=self.connectors, poison=LETTERS / 2, unknown=LETTERS / 2)

    @property
    def registered(self) -> list[str]:
        return [*self.mix.registered, *(probed(number) for number in range(PROBED))]


@dataclass(slots=True, kw_only=True)
class Schedule:
    """Open loop: an event is due at its time, whatever became of those before it.

    Times are of the monotonic clock, which all processes of a machine share.
    """

    begin: float
    rate: int

    @property
    def now(self) -> float:
        """Seconds since the begin."""
        return time.monotonic() - self.begin

    def due(self, event: int) -> float:
        """Seconds from the begin to when this event is to be sent."""
        return event / self.rate

    def probe_due(self, number: int) -> float:
        return self.due(number * PROBE_EVERY)


def probed(number: int) -> str:
    """Name the connector of the probe."""
    return f"probe-{number % PROBED:02}"


def probe(number: int) -> Event:
    """Make the event that sets its connector's count to the probe's number."""
    at = START + timedelta(seconds=number)
    return {
        "event_id": f"probe-{number}",
        "connector_id": probed(number),
        "occurred_at": at.isoformat().replace("+00:00", "Z"),
        "last_sync": {"last_sync_status": "completed", "last_indexed_document_count": number},
    }


def partition_of(connector: str) -> int:
    """Give the partition into which Kafka's clients put the connector's records."""
    return int((murmur2(connector.encode()) & 0x7FFFFFFF) % PARTITIONS)
