"""Ends a process whose loop makes no steps any more, even when the event loop itself hangs."""

import os
import threading
import time
from typing import Self

from worker.errors import StalledError
from worker.logs import get_logger

log = get_logger(__name__)


class Watchdog:
    """Counts completed steps of the loop: a poll, an attempt, a tick of a hold, a commit."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last = time.monotonic()
        self._closed = threading.Event()

    def step(self) -> None:
        self._last = time.monotonic()

    @property
    def silent(self) -> float:
        """Seconds since the last step."""
        return time.monotonic() - self._last

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.seconds / 4)):
            silent = self.silent
            if silent > self.seconds:
                log.critical(
                    "watchdog.stalled",
                    seconds=round(silent, 1),
                    text="the loop has made no step; ending the process for a fresh start, "
                    "nothing that was not done is committed",
                )
                os._exit(StalledError.exit_code)
