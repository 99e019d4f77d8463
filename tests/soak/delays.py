"""How long a probe takes from when it was due to be sent until a reader of the store sees it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.soak.plan import PROBED, Schedule, probed
from worker.errors import TransientError
from worker.stores import ConnectorStore, open_store

LOOK = 0.005  # seconds between looks: what a delay may seem too long by


@dataclass(slots=True, kw_only=True)
class Watcher:
    """Sees probes arrive. Those that a look finds passed by newer ones arrived with it."""

    schedule: Schedule
    probes: int
    delays: list[tuple[float, float]] = field(default_factory=list)  # when due; seconds it took
    awaited: list[int] = field(default_factory=lambda: list(range(PROBED)))  # by connector

    @property
    def behind(self) -> float:
        """Seconds by which the oldest probe that is due and not there is late; 0 without one."""
        oldest = min(self.awaited)
        if oldest >= self.probes:
            return 0.0
        return max(0.0, self.schedule.now - self.schedule.probe_due(oldest))

    async def watch(self, store_url: str) -> None:
        async with open_store(store_url) as store:
            while min(self.awaited) < self.probes:
                for place in self._due():
                    await self._look(store, place)
                await asyncio.sleep(LOOK)

    def _due(self) -> Iterator[int]:
        now = self.schedule.now
        for place, number in enumerate(self.awaited):
            if number < self.probes and self.schedule.probe_due(number) <= now:
                yield place

    async def _look(self, store: ConnectorStore, place: int) -> None:
        try:
            found = await store.get(probed(place))
        except TransientError:  # it is away, or frozen: what arrived is seen later
            return
        now = self.schedule.now
        count = found.fields.get("last_indexed_document_count", -1) if found else -1
        assert isinstance(count, int)
        while self.awaited[place] <= count:
            due = self.schedule.probe_due(self.awaited[place])
            self.delays.append((due, now - due))
            self.awaited[place] += PROBED
