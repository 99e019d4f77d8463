"""Merging into rows, by the rules of `tests/test_merge.py`."""

from collections.abc import Sequence
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.updates import Update
from tests.test_merge import FIELDS, NEW, batches, update
from worker.merge import Outcome, State, deleted, fold, fold_batch, registered
from worker.stores import rows
from worker.stores.rows import Change, Merging, Row, merging_state_of, row_of

PLACES = {name: place for place, name in enumerate(rows.STATE)}


def row(connector_id: str, state: State) -> tuple[Any, ...]:
    """As the database gives it to a merge."""
    gone = "2026-01-01T00:00:00.000000Z" if state.deleted else None
    return connector_id, row_of(connector_id, state, gone)[PLACES["stamps"]], state.deleted


def merged_batch(
    batch: list[Update], rows: Sequence[Row], size: int
) -> tuple[list[Change], list[Outcome]]:
    merging = Merging(batch)
    changes = [
        change
        for ids in merging.parts(size)
        for change in merging.changes(ids, [row for row in rows if row[0] in ids])
    ]
    return changes, merging.outcomes()


lives = st.lists(st.one_of(batches, st.integers(1, 5), st.just("register")), max_size=4)


def lived(life: list[list[Update] | int | str]) -> State:
    """A connector after batches, deletions and registrations."""
    state: State | None = NEW
    for step in life:
        if isinstance(step, list):
            state, _ = fold(state, step)
        elif isinstance(step, int):
            state = deleted(state or NEW, step)
        else:
            state = registered(state)
    return state or NEW


events = st.builds(
    lambda at, rank, event_id, fields: update(at, rank=rank, event_id=event_id, **fields),
    st.integers(1, 4),
    st.integers(3, 4),
    st.sampled_from("abcdefgh"),  # so many that most are no other event's
    st.dictionaries(st.sampled_from(FIELDS), st.sampled_from([None, "x", 1])),
)
batches_of_some = st.lists(
    st.builds(lambda id_, u: u._replace(connector_id=id_), st.sampled_from("ccdx"), events),
    max_size=10,
)


FIRST, SECOND = (update(1, event_id=id_, last_sync_error=id_) for id_ in "ab")
AGAIN = FIRST._replace(at=2, fields={"last_sync_error": "other"})


@settings(max_examples=300)
@example({"c": [[SECOND]], "d": []}, [FIRST], 1)  # of the same time
@example({"c": [[FIRST]], "d": []}, [AGAIN], 1)  # of the same id
@example({"c": [], "d": []}, [FIRST, AGAIN], 1)
@given(st.fixed_dictionaries({"c": lives, "d": lives}), batches_of_some, st.integers(1, 3))
def test_rows_merge_as_the_rules_say(
    lives: dict[str, list[list[Update] | int | str]], batch: list[Update], size: int
) -> None:
    """Of two connectors; a third has no row."""
    before = {id_: lived(life) for id_, life in lives.items()}
    states, outcomes = fold_batch(before, batch)
    rows = [row(id_, state) for id_, state in before.items()]
    changes, found = merged_batch(batch, rows, size)
    assert found == outcomes
    assert {values[-1] for _, values in changes} == states.keys()
    for columns, values in changes:
        *gained, stamps_text, connector_id = values
        change = dict(zip(columns, gained, strict=True))
        after = states[connector_id]
        known = merging_state_of((connector_id, stamps_text, after.deleted))
        assert known.stamps == after.stamps
        assert known.fields.keys() == after.fields.keys()
        held = before[connector_id].fields
        kept = {name: value for name, value in held.items() if name not in change}
        assert {**kept, **change} == after.fields


@example([[FIRST]], [SECOND._replace(connector_id="c", at=2)], [AGAIN._replace(at=3)])
@given(lives, batches_of_some, batches_of_some)
def test_rows_that_others_wrote_in_between_are_merged_again(
    life: list[list[Update] | int | str], others: list[Update], batch: list[Update]
) -> None:
    before = {id_: lived(life) for id_ in "cd"}
    after = {**before, **fold_batch(before, others)[0]}
    states, outcomes = fold_batch(after, batch)
    merging = Merging(batch)
    (ids,) = merging.parts(3) if batch else ([],)
    merging.changes(ids, [row(id_, before[id_]) for id_ in ids if id_ in before])
    changes = merging.changes(ids, [row(id_, after[id_]) for id_ in ids if id_ in after])
    assert merging.outcomes() == outcomes
    assert {values[-1] for _, values in changes} == states.keys()


class Compared(str):
    """An id that counts how often it is compared with another."""

    __slots__ = ()

    times = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return super().__eq__(other)


def test_many_events_of_one_connector_are_not_each_compared_with_each() -> None:
    many = [update(at, event_id=Compared(at), last_sync_error="x") for at in range(1, 1_001)]
    changes, found = merged_batch(many, [row("c", NEW)], 1)
    assert len(changes) == 1
    assert {outcome.name for outcome in found} == {"applied"}
    assert Compared.times < 10_000
