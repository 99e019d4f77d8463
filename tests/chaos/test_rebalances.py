"""Wrong overlaps of two epochs are found in journals made by hand, and pauses are measured."""

from dataclasses import replace

import pytest

from tests.chaos.rebalances import Act, overlaps, pauses


def act(at: float, member: int, did: str, epoch: int, offset: int | None = None) -> Act:
    return Act(at=at, member=member, did=did, epoch=epoch, partition=0, offset=offset)


KEPT = [act(3, 1, "assigned", 2), act(4, 1, "fetched", 2, 10), act(5, 1, "committed", 2, 20)]
FIRST = [
    act(0, 1, "assigned", 1),
    act(1, 1, "fetched", 1, 0),
    act(1.5, 1, "applied", 1),
    act(1.9, 1, "committing", 1, 10),
    act(2, 1, "committed", 1, 10),
]
MOVED = [replace(one, member=2) for one in KEPT]


@pytest.mark.parametrize("second", [KEPT, MOVED])
def test_an_orderly_handover_has_no_findings(second: list[Act]) -> None:
    assert overlaps([*FIRST, *second]) == []


def test_a_commit_that_was_not_acknowledged_may_have_been_taken() -> None:
    unheard = act(2.5, 1, "committing", 1, 15)
    later = [MOVED[0], replace(MOVED[1], offset=15), MOVED[2]]
    assert overlaps([*FIRST, unheard, *later]) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([act(3.1, 1, "assigned", 2)], "two owners"),
        ([act(4.5, 1, "committed", 2, 20)], "another than its owner"),
        ([act(4.5, 2, "committed", 2, 9)], "went back"),
        ([act(4.5, 1, "applied", 1)], "still at it"),
    ],
)
def test_effects_of_a_former_owner_are_found(wrong: list[Act], says: str) -> None:
    (found,) = overlaps(sorted([*FIRST, *MOVED, *wrong], key=lambda one: one.at))
    assert says in found


@pytest.mark.parametrize("offset", [9, 11])
def test_an_owner_that_starts_elsewhere_is_found(offset: int) -> None:
    (found,) = overlaps([*FIRST, MOVED[0], replace(MOVED[1], offset=offset)])
    assert "not where the owners before it ended (10 to 10)" in found


def test_pauses_last_from_the_last_act_to_the_next() -> None:
    found = pauses([*FIRST, *KEPT])
    assert (found.retained, found.moved) == ([2], [])
    assert found.usual == [1, 1]
    found = pauses([*FIRST, *MOVED])
    assert (found.retained, found.moved) == ([], [2])


def test_a_partition_that_another_had_meanwhile_is_not_retained() -> None:
    other = act(2.5, 2, "assigned", 2)
    back = [replace(one, epoch=3) for one in KEPT]
    assert pauses([*FIRST, other, *back]).moved == [2]
