"""The flood breaker: a wrong store or a bad release must not bury the dead-letter topic."""

from collections import deque
from collections.abc import Hashable, Sequence
from itertools import chain, islice

Seen = tuple[Hashable, bool]  # a connector, and whether its event would be dead-lettered


class Breaker:
    """Watches the last events, by distinct connector, so that one chatty connector is only one."""

    def __init__(self, *, window: int, minimum: int, share: float) -> None:
        self._passed: deque[Seen] = deque(maxlen=window)
        self.window, self._minimum, self._share = window, minimum, share

    def trips(self, batch: Sequence[Seen]) -> tuple[int, int] | None:
        """The bad and all connectors of the window with this batch, when too many are bad.

        A connector is bad when its newest event in the window would be dead-lettered. A batch that
        is larger than the window is looked at in parts, as if these came one after the other.
        """
        passed = self._passed.copy()
        for start in range(0, len(batch), self.window):
            part = batch[start : start + self.window]
            if any(bad for _, bad in part) and (flood := self._flood(passed, part)):
                return flood
            passed.extend(part)
        return None

    def _flood(self, passed: deque[Seen], part: Sequence[Seen]) -> tuple[int, int] | None:
        every = len(passed) + len(part)
        newest = dict(islice(chain(passed, part), max(0, every - self.window), None))
        bad = sum(newest.values())
        if len(newest) < self._minimum or bad <= self._share * len(newest):
            return None
        return bad, len(newest)

    def passed(self, batch: Sequence[Seen]) -> None:
        """Remember a batch whose letters are written; its last events, a window full, will do."""
        self._passed.extend(batch)
