"""Merging into rows, by the rules of `tests/test_merge.py`."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.updates import Update
from tests.test_merge import NEW, batches
from worker.merge import Outcome, State, deleted, fold, fold_batch, registered
from worker.stores import rows
from worker.stores.rows import Change, Merging, Row, merging_state_of, row_of

PLACES = {column.name: place for place, column in enumerate(rows.STATE)}


def row(state: State) -> tuple[Any, ...]:
    """As the database gives it to a merge."""
    written = row_of("c", state, "2026-01-01T00:00:00.000000Z" if state.deleted else None)
    return "c", written[PLACES["stamps"]], state.deleted


def merged_batch(batch: list[Update], *rows: Row) -> tuple[list[Change], list[Outcome]]:
    merging = Merging(batch)
    changes = [
        change
        for ids in merging.parts(1)
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


@given(lives, batches)
def test_a_row_merges_as_the_rules_say(
    life: list[list[Update] | int | str], batch: list[Update]
) -> None:
    before = lived(life)
    states, outcomes = fold_batch({"c": before}, batch)
    changes, found = merged_batch(batch, row(before))
    assert found == outcomes
    assert bool(changes) == bool(states)
    for columns, values in changes:
        *gained, stamps_text, connector_id = values
        change = dict(zip(columns, gained, strict=True))
        after = states["c"]
        assert connector_id == "c"
        known = merging_state_of(("c", stamps_text, after.deleted))
        assert known.stamps == after.stamps
        assert known.fields.keys() == after.fields.keys()
        kept = {name: value for name, value in before.fields.items() if name not in change}
        assert {**kept, **change} == after.fields


@given(st.lists(st.tuples(st.sampled_from("cd"), batches.filter(len).map(lambda b: b[0]))))
def test_events_of_connectors_that_have_no_row_are_not_found(
    pairs: list[tuple[str, Update]],
) -> None:
    batch = [u._replace(connector_id=id_) for id_, u in pairs]
    changes, outcomes = merged_batch(batch, row(NEW))
    assert len(changes) == ("c" in dict(pairs))
    for update, outcome in zip(batch, outcomes, strict=True):
        assert (outcome.name == "connector_not_found") == (update.connector_id == "d")
