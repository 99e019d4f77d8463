"""Records that take long to read do not keep the event loop from its other work."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.reasons import Invalid
from schemas.updates import Update
from worker import batch, handling
from worker.batch import Batch
from worker.breaker import Breaker
from worker.handling import FloodError, Handler
from worker.merge import Outcome
from worker.pipeline import Origin
from worker.records import Record

BROKEN = b'{"x": [[], []'


def hand(count: int, value: bytes | None) -> Batch:
    return Batch(records=[Record("t", 0, n, 1, b"k", value, ()) for n in range(count)])


class Nothing:
    """A store that nothing reaches; it notes how often the loop had its turn before."""

    def __init__(self, turns: Callable[[], int]) -> None:
        self._turns = turns
        self.seen: list[int] = []

    async def apply(self, updates: Sequence[Update]) -> list[Outcome]:
        assert not updates
        self.seen.append(self._turns())
        return []


async def test_the_loop_has_its_turn_between_records_that_are_read_once_or_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handling, "BREATH", 0)
    monkeypatch.setattr(batch, "STEP_BYTES", len(BROKEN))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    store: Any = Nothing(lambda: turns)
    nobody: Any = SimpleNamespace()
    breaker = Breaker(window=1, minimum=1, share=0.5)
    origin = Origin(group="g", store="s")
    handler = Handler(origin=origin, store=store, letters=nobody, breaker=breaker, metrics=nobody)
    in_hand, beside = hand(50, BROKEN), asyncio.create_task(others())
    for _ in range(2):  # held, and tried again
        with suppress(FloodError):
            await handler.classify(in_hand)
    beside.cancel()
    first, second = store.seen
    assert first >= 49
    assert second - first >= 49
    assert {read.reason for read in in_hand.reads if isinstance(read, Invalid)} == {"invalid_json"}


@pytest.mark.parametrize("value", [b"1" * 10, None, b""])
def test_small_records_are_read_some_at_a_step_and_large_ones_one_by_one(
    value: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_hand = hand(250, value)
    assert [len(in_hand.reads) for _ in in_hand.reading()] == [100, 200, 250]
    monkeypatch.setattr(batch, "STEP_BYTES", 10 * 100 - 1)
    in_hand = hand(250, value)
    found = [len(in_hand.reads) for _ in in_hand.reading()]
    assert found == ([*range(1, 152), 250] if value else [100, 200, 250])
