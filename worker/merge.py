"""The merge rule: which event's value each field of a connector holds.

Per connector and field the store keeps the value and the stamp of the event that set it; an event
wins a field when its stamp is greater. Merging is therefore commutative, associative and
idempotent: the state is a function of the set of merged events, not of their order or number.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from uuid import uuid4

from pydantic import JsonValue

from schemas.last_sync import LAST_SYNC_FIELDS
from schemas.updates import Stamp, Update, digest, normalised

PUT_RANK = 1  # its time decides: it is later than all that it takes the place of
RESET_RANK = 5  # above every status, so that a reset beats the events of its own microsecond


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one update.

    `detail` says why the store rejected it. `reused` is true when a field that the update touches
    was held by the same event id with other content: two events of one name, a publisher's bug.
    The greater digest decides, the same way everywhere.
    """

    name: Literal["applied", "duplicate", "superseded", "connector_not_found", "rejected"]
    detail: str = ""
    reused: bool = False


APPLIED = Outcome("applied")
DUPLICATE = Outcome("duplicate")
SUPERSEDED = Outcome("superseded")
CONNECTOR_NOT_FOUND = Outcome("connector_not_found")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One connector as the store keeps it; a deleted one stays as a tombstone.

    A field in `fields` with the value None was cleared by an event; one not in `fields` was never
    set, or was reset. A reset leaves the stamps.
    """

    fields: Mapping[str, JsonValue]
    stamps: Mapping[str, Stamp]
    deleted: bool = False


def fold(state: State | None, updates: Iterable[Update]) -> tuple[State | None, list[Outcome]]:
    """Merge updates of one connector, in their order; None is a connector nobody registered.

    The state comes back as the same object when no update won anything.
    """
    outcomes = []
    for update in updates:
        state, outcome = merge(state, update)
        outcomes.append(outcome)
    return state, outcomes


def fold_batch(
    states: Mapping[str, State], updates: Iterable[Update]
) -> tuple[dict[str, State], list[Outcome]]:
    """Merge updates of any connectors, in their order, into the connectors' states.

    Gives the states that changed, by connector id, and the outcome of each update.
    """
    changed: dict[str, State] = {}
    outcomes = []
    for update in updates:
        connector_id = update.connector_id
        before = changed.get(connector_id) or states.get(connector_id)
        after, outcome = merge(before, update)
        if after is not None and after is not before:
            changed[connector_id] = after
        outcomes.append(outcome)
    return changed, outcomes


def merge(state: State | None, update: Update) -> tuple[State | None, Outcome]:
    """Let the update win the fields that it may; a state that it does not change stays itself."""
    if state is None or state.deleted:
        return state, CONNECTOR_NOT_FOUND
    stamp = update.stamp
    wins = equal = reused = False
    won = []
    seen: Stamp | Literal["none"] | None = "none"
    for field in update.fields:
        held = state.stamps.get(field)
        if held is not seen:  # most fields share one stamp: compare it once
            seen = held
            wins = held is None or held < stamp
            if held is not None:
                equal = equal or held == stamp
                reused = reused or (held[2] == stamp[2] and held[3] != stamp[3])
        if wins:
            won.append(field)
    if not won:
        outcome = DUPLICATE if equal else SUPERSEDED
        return state, replace(outcome, reused=True) if reused else outcome
    fields = update.fields
    gained = fields if len(won) == len(fields) else {field: fields[field] for field in won}
    after = State(
        fields={**state.fields, **gained},
        stamps={**state.stamps, **dict.fromkeys(won, stamp)},
    )
    return after, replace(APPLIED, reused=True) if reused else APPLIED


def registered(state: State | None) -> State:
    """Make the connector live; one that is live already comes back as the same object.

    A first registration sets no stamps, so that events older than it still merge; registering a
    deleted one again keeps its stamps, so that late events of the former life lose.
    """
    if state is None:
        return State(fields={}, stamps={})
    return replace(state, deleted=False) if state.deleted else state


def register_batch(
    states: Mapping[str, State], connector_ids: Sequence[str]
) -> tuple[dict[str, State], list[bool]]:
    """Register connectors; gives the states that changed, and for each id whether it did."""
    changed: dict[str, State] = {}
    answers = []
    for connector_id in connector_ids:
        before = states.get(connector_id)
        new = connector_id not in changed and (before is None or before.deleted)
        answers.append(new)
        if new:
            changed[connector_id] = registered(before)
    return changed, answers


def deleted(state: State, now: int) -> State:
    """Reset the connector at `now`, in microseconds since the epoch, and leave a tombstone.

    The values go; every field, also one never set, keeps the greater of its own stamp and now.
    """
    reset = Stamp(now, RESET_RANK, "", "")
    stamps = {field: max(state.stamps.get(field, reset), reset) for field in LAST_SYNC_FIELDS}
    return State(fields={}, stamps=stamps, deleted=True)


def delete_batch(
    states: Mapping[str, State], connector_ids: Sequence[str], now: int
) -> tuple[dict[str, State], list[bool]]:
    """Reset live connectors; gives the states that changed, and for each id whether it did."""
    changed: dict[str, State] = {}
    answers = []
    for connector_id in connector_ids:
        before = states.get(connector_id)
        live = before is not None and not before.deleted and connector_id not in changed
        answers.append(live)
        if before is not None and live:
            changed[connector_id] = deleted(before, now)
    return changed, answers


def put(
    state: State, connector_id: str, fields: Mapping[str, JsonValue], now: int
) -> tuple[State, bool]:
    """Set fields of a live connector whatever its stamps, as a request to Elasticsearch's API does.

    The new stamp is later than those it takes the place of, and not before `now` (microseconds
    since the epoch): events from before lose, later ones win. Also tells whether a value changed.
    """
    if not fields:
        return state, False
    given = dict(fields)
    if "sync_cursor" in given:
        given["sync_cursor"] = _merged(state.fields.get("sync_cursor"), given["sync_cursor"])
    held = [state.stamps[field].at for field in given if field in state.stamps]
    at = max([now, *(each + 1 for each in held)])
    stamp = Stamp(at, PUT_RANK, f"put {uuid4()}", digest(connector_id, given))
    changed = any(
        field not in state.fields or normalised(state.fields[field]) != normalised(value)
        for field, value in given.items()
    )
    after = State(
        fields={**state.fields, **given}, stamps={**state.stamps, **dict.fromkeys(given, stamp)}
    )
    return after, changed


def _merged(old: JsonValue, new: JsonValue) -> JsonValue:
    """As Elasticsearch updates an object: key by key, at every depth."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
