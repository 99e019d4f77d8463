"""An Elasticsearch that takes its time, and sees how well it is kept busy.

It is the tests' own fake: what it answers is real, how fast is not. So it tells how many requests
an event takes, whether as many are in flight as may be, and what an event costs the client.
"""

import asyncio
import time
from typing import Any

from tests.elasticsearch import FakeElasticsearch

LATENCY = 0.02  # seconds; longer than the fake itself takes, so that it is what bounds the rate


class SlowElasticsearch(FakeElasticsearch):
    """Answers after `LATENCY` once told to; notes the updates that are in flight from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.begin(latency=0)

    def begin(self, latency: float = LATENCY) -> None:
        """Forget what was noted."""
        self.requests.clear()
        self._latency = latency
        self._in_flight, self._area = 0, 0.0
        self._began = self._moved_at = 0.0

    @property
    def in_flight(self) -> float:
        """Updates in flight on average, from the first one to the end of the last."""
        return self._area / (self._moved_at - self._began) if self._began else 0.0

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        an_update = scope["path"].endswith("/_last_sync")
        if an_update:
            self._move(1)
        try:
            await asyncio.sleep(self._latency)
            await super()._app(scope, receive, send)
        finally:
            if an_update:
                self._move(-1)

    def _move(self, by: int) -> None:
        now = time.perf_counter()
        self._began = self._began or now
        self._area += self._in_flight * (now - (self._moved_at or now))
        self._moved_at = now
        self._in_flight += by
