"""What publishers send is what the checker takes it for."""

import time
from itertools import pairwise

import pytest

from schemas.sync_finished import Invalid, decode
from tests.chaos.events import Mix, Publisher

MIX = Mix(connectors=50, poison=0.2)


def test_events_are_valid_and_the_others_are_refused_for_the_reason_given() -> None:
    for item in Publisher(MIX, 0, seed=1).items(3_000):
        found = decode(item.value, (), now=time.time_ns() // 1000)
        assert (found.reason if isinstance(found, Invalid) else "") == item.reason, item


def test_the_same_seed_gives_the_same_records_and_another_publisher_gives_others() -> None:
    first, again, other = (list(Publisher(MIX, n, seed=1).items(500)) for n in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_the_share_of_poison_is_the_one_asked_for(share: float) -> None:
    items = list(Publisher(Mix(poison=share), 0, seed=1).items(10_000))
    assert sum(bool(item.reason) for item in items) / len(items) == pytest.approx(share, abs=0.02)


def test_records_come_late_twice_and_out_of_order() -> None:
    items = [item for item in Publisher(MIX, 0, seed=1).items(3_000) if item.event]
    at = [item.event["occurred_at"] for item in items if item.event]
    assert any(later < earlier for earlier, later in pairwise(at))
    assert len({item.value for item in items}) < len(items)
