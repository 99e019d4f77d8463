"""The flood breaker: a wrong store or a bad release must not bury the dead-letter topic."""

from collections import deque
from collections.abc import Hashable, Sequence
from itertools import chain, islice

Seen = tuple[Hashable, bool]  # a connector, and whether its event would be dead-lettered


class Breaker:
    """Watches the last events, by distinct connector, so that one chatty connector is only one."""

    def __init__(self, *, window: int, minimum: int, share: float) -> None:
        self._passed: deque[Seen] = deque(maxlen=window)
        self._window, self._minimum, self._share = window, minimum, share

    def trips(self, batch: Sequence[Seen]) -> tuple[int, int] | None:
        """The bad and all connectors of the window with this batch, when too many are bad.

        A connector is bad when its newest event in the window would be dead-lettered.
        """
        if not any(bad for _, bad in batch):
            return None
        every = len(self._passed) + len(batch)
        newest = dict(islice(chain(self._passed, batch), max(0, every - self._window), None))
        bad = sum(newest.values())
        if len(newest) < self._minimum or bad <= self._share * len(newest):
            return None
        return bad, len(newest)

    def passed(self, batch: Sequence[Seen]) -> None:
        """Remember a batch whose letters are written."""
        self._passed.extend(batch)
