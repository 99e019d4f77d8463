"""The merge rule, by its algebra and against the brute force of `tests/oracle.py`."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.last_sync import LAST_SYNC_FIELDS
from schemas.updates import Stamp, Update
from schemas.updates import update as read_update
from tests import oracle
from worker.merge import (
    RESET_RANK,
    Outcome,
    State,
    delete_batch,
    deleted,
    fold,
    fold_batch,
    put,
    register_batch,
    registered,
)

NEW = State(fields={}, stamps={})
FIELDS = LAST_SYNC_FIELDS[:4]  # few, so that updates meet
START = datetime(2024, 11, 9, 15, 13, 8, tzinfo=UTC)


def update(
    at: int = 1, *, rank: int = 1, event_id: str = "", connector_id: str = "c", **fields: Any
) -> Update:
    return Update(connector_id, dict(sorted(fields.items())), at, rank, event_id or f"{at} {rank}")


updates = st.builds(
    lambda at, rank, event_id, fields: update(at, rank=rank, event_id=event_id, **fields),
    st.integers(1, 4),
    st.integers(0, 4),
    st.sampled_from("ab"),
    st.dictionaries(st.sampled_from(FIELDS), st.sampled_from([None, "x", 1]), min_size=1),
)
batches = st.lists(updates, max_size=8)


def states(history: Sequence[Update]) -> State:
    state, _ = fold(NEW, history)
    assert state is not None
    return state


# Requests to the API

puts = st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(["y", 2]), min_size=1)


@given(batches, puts, st.integers(0, 6))
def test_a_put_wins_over_every_event_before_it(
    history: list[Update], fields: dict[str, Any], now: int
) -> None:
    before = states(history)
    after, changed = put(before, "c", fields, now)
    assert after.fields == {**before.fields, **fields}
    assert changed == (after.fields != before.fields)
    untouched = before.stamps.keys() - fields.keys()
    assert {name: after.stamps[name] for name in untouched} == {
        name: before.stamps[name] for name in untouched
    }
    assert fold(after, history)[0] is after


@given(batches, puts, st.integers(0, 6), updates)
def test_a_later_event_wins_over_a_put(
    history: list[Update], fields: dict[str, Any], now: int, late: Update
) -> None:
    after, _ = put(states(history), "c", fields, now)
    latest = max(stamp.at for stamp in after.stamps.values())
    late = late._replace(at=latest + 1)
    state, (outcome,) = fold(after, [late])
    assert state is not None
    assert outcome.name == "applied"
    assert state.fields.items() >= late.fields.items()


def test_a_put_is_not_before_now_and_each_is_later_than_the_one_before() -> None:
    first, _ = put(NEW, "c", {"last_sync_status": "error"}, 7)
    second, changed = put(first, "c", {"last_sync_status": "error"}, 7)
    assert not changed
    assert [state.stamps["last_sync_status"].at for state in (first, second)] == [7, 8]


def test_an_empty_put_touches_nothing() -> None:
    assert put(NEW, "c", {}, 7) == (NEW, False)


def test_a_put_merges_the_cursor_key_by_key() -> None:
    state = states([update(sync_cursor={"a": {"b": 1, "c": [1]}, "d": {"e": 1}})])
    after, _ = put(state, "c", {"sync_cursor": {"a": {"c": [2]}, "d": 2}}, 7)
    assert after.fields["sync_cursor"] == {"a": {"b": 1, "c": [2]}, "d": 2}


# Outcomes


def test_an_unknown_connector_is_not_found_and_stays_unknown() -> None:
    assert fold(None, [update(last_sync_status="error")] * 2) == (
        None,
        [Outcome("connector_not_found")] * 2,
    )


def test_a_deleted_connector_is_not_found_and_stays_as_it_is() -> None:
    tombstone = deleted(NEW, 5)
    state, outcomes = fold(tombstone, [update(9, last_sync_status="error")])
    assert state is tombstone
    assert outcomes == [Outcome("connector_not_found")]


def test_winning_one_field_of_two_is_applied_and_leaves_the_other() -> None:
    state = states([update(5, last_sync_error="new")])
    state_after, outcomes = fold(
        state, [update(3, last_sync_error="old", last_sync_status="error")]
    )
    assert state_after is not None
    assert state_after.fields == {"last_sync_error": "new", "last_sync_status": "error"}
    assert outcomes == [Outcome("applied")]


def test_the_same_update_again_is_a_duplicate_while_it_holds_one_field() -> None:
    first = update(1, last_sync_error="x", last_sync_status="error")
    state = states([first, update(2, last_sync_error=None)])
    again, outcomes = fold(state, [first])
    assert again is state
    assert outcomes == [Outcome("duplicate")]


def test_the_same_update_again_is_superseded_once_it_holds_nothing() -> None:
    first = update(1, last_sync_error="x")
    assert fold(states([first, update(2, last_sync_error=None)]), [first])[1] == [
        Outcome("superseded")
    ]


def test_a_reused_event_id_with_other_content_is_told_whoever_wins() -> None:
    a, b = update(last_sync_error="a"), update(last_sync_error="b")
    for history in ([a, b], [b, a]):
        state, outcomes = fold(NEW, history)
        assert state is not None
        assert state.fields == max(a, b, key=lambda update: update.digest).fields
        assert [outcome.reused for outcome in outcomes] == [False, True]
    assert not fold(states([a]), [a])[1][0].reused


def test_a_cleared_error_is_a_value_and_a_field_never_set_is_none() -> None:
    assert states([update(last_sync_error=None)]).fields == {"last_sync_error": None}


@given(batches, batches)
def test_outcomes_are_those_of_the_definition(history: list[Update], batch: list[Update]) -> None:
    _, outcomes = fold(states(history), batch)
    before = list(history)
    for one, outcome in zip(batch, outcomes, strict=True):
        held = {
            field: max((u.stamp for u in before if field in u.fields), default=None)
            for field in one.fields
        }
        if any(stamp is None or one.stamp > stamp for stamp in held.values()):
            name = "applied"
        else:
            name = "duplicate" if one.stamp in held.values() else "superseded"
        assert outcome.name == name
        before.append(one)


# The algebra


@given(batches, st.randoms(use_true_random=False))
def test_order_does_not_matter(batch: list[Update], random: Any) -> None:
    shuffled = random.sample(batch, len(batch))
    assert states(shuffled) == states(batch)


@given(batches, batches, st.randoms(use_true_random=False))
def test_duplicates_do_not_matter(batch: list[Update], more: list[Update], random: Any) -> None:
    state = states(batch + more)
    again = random.choices(batch, k=5) if batch else []
    state_after, outcomes = fold(state, again)
    assert state_after is state
    assert {outcome.name for outcome in outcomes} <= {"duplicate", "superseded"}


@given(batches, st.lists(st.integers(0, 8)))
def test_batches_do_not_matter(batch: list[Update], cuts: list[int]) -> None:
    state: State | None = NEW
    outcomes: list[Outcome] = []
    for start, stop in pairwise([0, *sorted(cuts), len(batch)]):
        state, more = fold(state, batch[start:stop])
        outcomes += more
    assert (state, outcomes) == fold(NEW, batch)


@given(batches)
def test_each_field_holds_the_greatest_stamp_and_its_value(batch: list[Update]) -> None:
    state = states(batch)
    for field in FIELDS:
        made = sorted((u.stamp, json.dumps(u.fields[field])) for u in batch if field in u.fields)
        assert (field in state.stamps) == bool(made)
        if made:
            assert (state.stamps[field], json.dumps(state.fields[field])) == made[-1]


@given(batches, batches)
def test_fold_leaves_its_arguments_alone(history: list[Update], batch: list[Update]) -> None:
    state = states(history)
    before = (dict(state.fields), dict(state.stamps), [dict(u.fields) for u in batch])
    fold(state, batch)
    assert before == (dict(state.fields), dict(state.stamps), [dict(u.fields) for u in batch])


@given(st.lists(st.tuples(st.sampled_from("cdx"), updates)))
def test_a_mixed_batch_gives_each_connector_its_own(pairs: list[tuple[str, Update]]) -> None:
    batch = [u._replace(connector_id=id_) for id_, u in pairs]
    known = {"c": NEW, "d": states([update(2, last_sync_error="x")])}
    changed, outcomes = fold_batch(known, batch)
    for id_ in "cdx":
        state, alone = fold(known.get(id_), [u for u in batch if u.connector_id == id_])
        assert [o for u, o in zip(batch, outcomes, strict=True) if u.connector_id == id_] == alone
        assert changed.get(id_, known.get(id_)) == state
        assert (id_ in changed) == (state is not known.get(id_))


# Resets


def test_a_first_registration_lets_older_events_merge() -> None:
    assert fold(registered(None), [update(1, last_sync_error="x")])[1] == [Outcome("applied")]


def test_a_reset_clears_values_and_stamps_every_field() -> None:
    tombstone = deleted(states([update(1, last_sync_error="x")]), 5)
    assert tombstone.deleted
    assert tombstone.fields == {}
    assert tombstone.stamps == dict.fromkeys(LAST_SYNC_FIELDS, Stamp(5, RESET_RANK, "", ""))


def test_a_late_event_of_the_former_life_loses() -> None:
    reborn = registered(deleted(NEW, 5))
    for field in LAST_SYNC_FIELDS:
        late, new = update(5, rank=4), update(6, rank=0)
        assert fold(reborn, [late._replace(fields={field: 1})])[1] == [Outcome("superseded")]
        assert fold(reborn, [new._replace(fields={field: 1})])[1] == [Outcome("applied")]


def test_a_reset_does_not_lower_a_stamp_of_the_future() -> None:
    future = update(9, last_sync_error="x")
    reborn = registered(deleted(states([future]), 5))
    assert reborn.stamps["last_sync_error"] == future.stamp
    assert reborn.fields == {}
    assert fold(reborn, [update(7, last_sync_error="y")])[1] == [Outcome("superseded")]


def test_registering_again_keeps_the_stamps() -> None:
    tombstone = deleted(states([update(9, last_sync_error="x")]), 5)
    assert registered(tombstone) == State(fields={}, stamps=tombstone.stamps)


def test_registering_a_live_connector_changes_nothing() -> None:
    state = states([update(last_sync_error="x")])
    assert registered(state) is state
    assert register_batch({"c": state}, ["c", "d", "d"]) == ({"d": NEW}, [False, True, False])


def test_deleting_answers_which_were_live() -> None:
    known = {"c": NEW, "gone": deleted(NEW, 3)}
    changed, answers = delete_batch(known, ["c", "gone", "unknown", "c"], 5)
    assert changed == {"c": deleted(NEW, 5)}
    assert answers == [True, False, False, False]


@given(st.lists(st.one_of(updates, st.integers(1, 5), st.just("register"))))
def test_the_state_follows_from_the_events_and_resets(history: list[Update | int | str]) -> None:
    """A number deletes the connector at that time."""
    state: State | None = NEW
    live, stamps, values = True, dict[str, set[Stamp]](), dict[str, dict[Stamp, Any]]()
    for step in history:
        if isinstance(step, Update):
            state, _ = fold(state, [step])
            for field in step.fields if live else ():
                known = stamps.setdefault(field, set())
                if step.stamp not in known and (not known or step.stamp > max(known)):
                    values.setdefault(field, {})[step.stamp] = step.fields[field]
                known.add(step.stamp)
        elif isinstance(step, int) and state is not None and live:
            state, live = deleted(state, step), False
            values.clear()
            for field in LAST_SYNC_FIELDS:
                stamps.setdefault(field, set()).add(Stamp(step, RESET_RANK, "", ""))
        elif step == "register":
            state, live = registered(state), True
    assert state is not None
    assert state.stamps == {field: max(known) for field, known in stamps.items()}
    held = {f: v[state.stamps[f]] for f, v in values.items() if state.stamps[f] in v}
    assert state.fields == held


# Events

skew = st.timedeltas(timedelta(minutes=-5), timedelta(minutes=5))
times = st.timedeltas(timedelta(0), timedelta(microseconds=3)).map(lambda d: START + d)


def event(event_id: str, occurred_at: datetime, **content: Any) -> dict[str, Any]:
    raw = {"event_id": event_id, "connector_id": "c", "occurred_at": occurred_at.isoformat()}
    return raw | content


def read(raw: dict[str, Any]) -> Update:
    found = read_update(json.dumps(raw).encode(), now=2**53)
    assert isinstance(found, Update), found
    return found


jobs = st.fixed_dictionaries(
    {
        "job_type": st.sampled_from(["full", "incremental", "access_control"]),
        "status": st.sampled_from(
            ["pending", "in_progress", "suspended", "canceling", "canceled", "completed", "error"]
        ),
    },
    optional={
        "error": st.sampled_from([None, "", "boom", "é" * 20_000]),
        "scheduled_at": times.map(datetime.isoformat),
        "started_at": times.map(datetime.isoformat),
        "completed_at": st.sampled_from([None, "2024-11-09t16:13:08.1234567+01:00"]),
        "indexed_document_count": st.integers(0, 3),
        "deleted_document_count": st.none() | st.integers(0, 2**63 - 1),
        "sync_cursor": st.sampled_from([{"b": 1, "a": [2**70, 0.1, "ü"]}, {}, None]),
    },
)
payloads = st.dictionaries(st.sampled_from(LAST_SYNC_FIELDS), st.none(), min_size=1).map(
    lambda names: {name: SAMPLES[name] for name in names}
)
SAMPLES: dict[str, Any] = {
    "last_access_control_sync_error": "",
    "last_access_control_sync_scheduled_at": "2024-11-09T15:13:08Z",
    "last_access_control_sync_status": "canceling",
    "last_deleted_document_count": 0,
    "last_incremental_sync_scheduled_at": "2024-11-09T15:13:08-00:00",
    "last_indexed_document_count": 7,
    "last_sync_error": None,
    "last_sync_scheduled_at": "2024-11-09T15:13:08.5+05:30",
    "last_sync_status": "suspended",
    "last_synced": "2024-11-09T15:13:07.999999999Z",
    "sync_cursor": {"from": "…"},
}
events = st.builds(
    lambda event_id, at, connector_id, content: (
        event(event_id, at, **content) | {"connector_id": connector_id}
    ),
    st.sampled_from("ab"),
    times,
    st.sampled_from("cdx"),
    st.one_of(jobs.map(lambda job: {"job": job}), payloads.map(lambda p: {"last_sync": p})),
)


@given(st.lists(events, max_size=10))
def test_the_state_equals_the_oracle(raw: list[dict[str, Any]]) -> None:
    known = {"c": NEW, "d": NEW}
    changed, _ = fold_batch(known, [read(one) for one in raw])
    found = {name: dict(state.fields) for name, state in (known | changed).items()}
    assert found == oracle.expected(raw, known)


@given(events)
def test_an_events_stamp_is_the_oracles(raw: dict[str, Any]) -> None:
    assert tuple(read(raw).stamp) == oracle.stamp_of(raw)


@given(skew, skew, st.sampled_from(["completed", "error", "canceled"]), st.randoms())
def test_a_jobs_end_beats_its_start_under_any_clock_skew(
    at_start: timedelta, at_end: timedelta, status: str, random: Any
) -> None:
    job = {"job_type": "full", "started_at": START.isoformat()}
    earlier = [
        event(name, START + at_start, job=job | {"status": name})
        for name in ("pending", "in_progress", "suspended", "canceling")
    ]
    end = event("a", START + at_end, job=job | {"status": status})
    history = random.sample([*earlier, end], 5)
    assert states([read(one) for one in history]).fields["last_sync_status"] == status
