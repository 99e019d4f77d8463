"""Waiting for what is going to happen, instead of sleeping and hoping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

POLL = 0.05  # seconds


async def takes_less(seconds: float, call: Callable[[], Awaitable[Any]]) -> None:
    """Fail where the call takes longer each of three times: a machine's other work only adds."""
    took: list[float] = []
    while len(took) < 3:
        began = time.monotonic()
        await call()
        took.append(time.monotonic() - began)
        if took[-1] < seconds:
            return
    raise AssertionError(f"{took} s, none of them below {seconds}")


async def eventually(condition: Callable[[], Any], timeout: float = 15) -> Any:  # noqa: ASYNC109  a test's patience is its caller's to say
    """Return the first true value of the condition, asked again and again until the timeout."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout} s {condition} still gives {value!r}")
        await asyncio.sleep(POLL)
