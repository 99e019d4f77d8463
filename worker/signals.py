"""SIGTERM and SIGINT: the first asks for an orderly stop, the second kills."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from worker.logs import get_logger

log = get_logger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping() -> Iterator[asyncio.Event]:
    """An event that the first signal sets; the signals then have their default effect again."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def handle(number: signal.Signals) -> None:
        stop.set()
        for each in SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        log.info("worker.stopping", signal=number.name)

    for each in SIGNALS:
        loop.add_signal_handler(each, handle, each)
    try:
        yield stop
    finally:
        for each in SIGNALS:
            loop.remove_signal_handler(each)
