"""Waiting before the next attempt."""

import asyncio
import random
from collections.abc import Iterator

FIRST = 0.1  # seconds
LONGEST = 5.0  # seconds; so that work resumes well within 10 s of a service's return


def backoff() -> Iterator[float]:
    """Seconds to wait, without end: exponential with full jitter, so that workers spread out."""
    ceiling = FIRST
    while True:
        yield random.uniform(0, ceiling)  # noqa: S311 - no secret depends on it  # nosec B311
        ceiling = min(LONGEST, ceiling * 2)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but not beyond the wish to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
