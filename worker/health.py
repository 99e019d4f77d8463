"""What probes are told: /livez, whether the worker works; /readyz, whether it gets anywhere."""

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from worker.errors import LastSyncError
from worker.metrics import Cause, Metrics
from worker.stores.base import MergingStore
from worker.watchdog import Watchdog

LOOK_AT_STORE = 5.0  # seconds between looks
STORE_TIMEOUT = 3.0  # seconds for one look
ALIVE_SHARE = 0.5  # of the watchdog's time: an orchestrator hears of it before the process ends
NOBODY = "last-sync-worker-probe"  # a connector to ask for; it does not matter whether it exists


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    ok: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    cause: Cause
    text: str


class Health:
    """What the loop is doing. The loop says it, and asks it back; probes read it."""

    def __init__(self, *, metrics: Metrics, watchdog: Watchdog, stop: asyncio.Event) -> None:
        self.metrics = metrics
        self.held: Hold | None = None
        self._watchdog = watchdog
        self._stop = stop
        self._joined = False
        self._assigned: int | None = None  # None between two assignments
        self._topic_size = 0  # partitions
        self._store_trouble: str | None = None

    # --- what the loop says ------------------------------------------------------------------

    def assigned(self, partitions: Collection[object], *, of: int) -> None:
        """The group has given this member some of the topic's partitions, or none of them."""
        self._joined, self._assigned, self._topic_size = True, len(partitions), of
        self.metrics.assigned(len(partitions))

    def revoked(self) -> None:
        self._assigned = None
        self.metrics.revoked()

    def hold(self, cause: Cause, text: str) -> None:
        if self.held is None or self.held.cause != cause:
            self.release()
            self.metrics.hold_began(cause)
        self.held = Hold(cause=cause, text=text)

    def release(self) -> None:
        if self.held is not None:
            self.metrics.hold_ended(self.held.cause)
        self.held = None

    async def watch(self, store: MergingStore) -> None:
        """Look at the store now and then: without events nothing else does."""
        while True:
            self._store_trouble = await _trouble(store)
            await asyncio.sleep(LOOK_AT_STORE)

    # --- what probes are told ----------------------------------------------------------------

    def live(self) -> Verdict:
        """Whether the loop makes steps; a hold is one, after every attempt."""
        silent, limit = self._watchdog.silent, self._watchdog.seconds
        if silent > limit * ALIVE_SHARE:
            return Verdict(
                ok=False,
                text=f"the loop has made no step for {silent:.0f} s; "
                f"after {limit:.0f} s the process ends by itself",
            )
        return Verdict(ok=True, text="the loop makes steps")

    def ready(self) -> Verdict:
        """Whether events that come now would be handled now."""
        troubles = list(self._troubles())
        if troubles:
            return Verdict(ok=False, text="; ".join(troubles))
        if not self._assigned:
            return Verdict(
                ok=True,
                text=f"standing by: the topic has {self._topic_size} partitions, "
                "and the group has more members than that",
            )
        return Verdict(ok=True, text=f"partitions assigned: {self._assigned} of {self._topic_size}")

    def _troubles(self) -> Iterator[str]:
        if self._stop.is_set():
            yield "stopping"
        elif not self._joined:
            yield "starting: it has not joined the group yet"
        elif self._assigned is None:
            yield "rebalancing: it waits for its partitions"
        elif not self._topic_size:
            yield "the brokers know of no partitions of the topic"
        if self.held is not None:
            yield f"holding ({self.held.cause}): {self.held.text}"
        if self._store_trouble is not None and (self.held is None or self.held.cause != "store"):
            yield f"the store cannot be reached: {self._store_trouble}"


async def _trouble(store: MergingStore) -> str | None:
    try:
        async with asyncio.timeout(STORE_TIMEOUT):
            await store.get(NOBODY)
    except TimeoutError:
        return f"it did not answer within {STORE_TIMEOUT:.0f} s"
    except LastSyncError as error:
        return str(error)
    return None
