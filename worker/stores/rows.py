"""How a connector is kept in a row of a SQL table.

The values stand in columns of their own, for people with a SQL prompt. The stamps stand in one
column, as JSON grouped by stamp, for most fields were set by the same event:

    {"stamps": [[1731165188231000, 4, "event-id", "digest", ["last_sync_status", …]], …]}

A value of NULL is a cleared one where an event's stamp holds the field. It is no value where a
reset's stamp does, and where the field is among `"absent"`: a reset took the value, but the event's
stamp is later than the reset's and stayed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import BigInteger, Boolean, Column, MetaData, Table, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from schemas.last_sync import LAST_SYNC_FIELDS, LAST_SYNC_TIMES
from worker.merge import (
    APPLIED,
    CONNECTOR_NOT_FOUND,
    RESET_RANK,
    Outcome,
    Stamp,
    State,
    Update,
    fold,
)
from worker.stores.base import Registration

# SQLite keeps as text what PostgreSQL has types for, and compares text by code point anyway.
ID = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
TIME = Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
JSON = Text().with_variant(postgresql.JSON(), "postgresql")

COUNTS = ("last_deleted_document_count", "last_indexed_document_count")

_TYPES: dict[str, TypeEngine[Any]] = {
    **dict.fromkeys(COUNTS, BigInteger()),
    "sync_cursor": JSON,
    **dict.fromkeys(LAST_SYNC_TIMES, TIME),
}

_METADATA = MetaData()

STORE = Table("connector_store", _METADATA, Column("id", Text, primary_key=True))
CONNECTORS = Table(
    "connectors",
    _METADATA,
    Column("id", ID, primary_key=True),
    *(Column(field, _TYPES.get(field, Text())) for field in LAST_SYNC_FIELDS),
    Column("stamps", JSON, nullable=False),
    Column("deleted_at", TIME),
    *(
        Column(field.name, Boolean() if field.name == "is_native" else ID)
        for field in fields(Registration)
    ),
)
REGISTRATION = [CONNECTORS.c[field.name] for field in fields(Registration)]
STATE = [column for column in CONNECTORS.c if column not in set(REGISTRATION)]

Row = Sequence[Any]  # values in the order of STATE, times as UTC text
Change = tuple[tuple[str, ...], Row]  # columns; their values in a row, then its stamps and its id

MERGING = [CONNECTORS.c.id, CONNECTORS.c.stamps, CONNECTORS.c.deleted_at.is_not(None)]
KEPT: Any = object()  # stands for a value that stays in its row as it is, and was not read

_PLACES = {column.name: place for place, column in enumerate(STATE)}


def row_of(connector_id: str, state: State, deleted_at: str | None) -> Row:
    *values, cursor = map(state.fields.get, LAST_SYNC_FIELDS)
    cursor_text = None if cursor is None else to_json(cursor).decode()
    return (connector_id, *values, cursor_text, _stamps_text(state), deleted_at)


def state_of(row: Row) -> State:
    """Read the state back from a row that begins with the columns of STATE."""
    present, stamps = _read(row[_PLACES["stamps"]])
    fields = {name: row[_PLACES[name]] for name in present}
    if cursor_text := fields.get("sync_cursor"):
        fields["sync_cursor"] = from_json(cursor_text)
    return State(fields=fields, stamps=stamps, deleted=row[_PLACES["deleted_at"]] is not None)


def merging_state_of(row: Row) -> State:
    """Read what merging takes from a row of the columns of MERGING; each value is `KEPT`."""
    _, stamps_text, gone = row
    present, stamps = _read(stamps_text)
    return State(fields=dict.fromkeys(present, KEPT), stamps=stamps, deleted=gone)


def merged_batch(
    rows: Iterable[Row], updates: Sequence[Update]
) -> tuple[list[Change], list[Outcome]]:
    """Merge updates into rows of MERGING; gives what changed, and the outcomes of `fold_batch`."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, update in enumerate(updates):
        places[update.connector_id].append(place)
    outcomes = [CONNECTOR_NOT_FOUND] * len(updates)
    changes = []
    for row in rows:
        mine = places[row[0]]
        change, found = _merged(row, [updates[place] for place in mine])
        if change is not None:
            changes.append(change)
        for place, outcome in zip(mine, found, strict=True):
            outcomes[place] = outcome
    return changes, outcomes


def _merged(row: Row, updates: Sequence[Update]) -> tuple[Change | None, list[Outcome]]:
    if overtaking := _overtaken(row, updates):
        return overtaking, [APPLIED] * len(updates)
    before = merging_state_of(row)
    after, outcomes = fold(before, updates)
    if after is None or after is before:
        return None, outcomes
    gained = {
        name: after.fields[name]
        for name in LAST_SYNC_FIELDS  # in one order, so that many rows share a statement
        if after.fields.get(name, KEPT) is not KEPT
    }
    return _change(row[0], gained, _stamps_text(after)), outcomes


def _overtaken(row: Row, updates: Sequence[Update]) -> Change | None:
    """Merge the shorter way where each update is later than all before it; else None.

    Such an update, and most are, wins all of its fields whatever they hold.
    """
    connector_id, stamps_text, gone = row
    kept = from_json(stamps_text)
    if gone or not updates or len(kept) > 1:
        return None
    groups: list[Sequence[Any]] = kept["stamps"]
    gained: Mapping[str, Any] = {}
    for update in updates:
        stamp, fields = update.stamp, update.fields
        names, rest = list(fields), []
        for group in groups:
            at, _, event_id, _, others = group
            if at >= stamp.at or event_id == stamp.event_id:  # `fold` tells what else it may be
                return None
            if others != names and (others := [name for name in others if name not in fields]):
                rest.append((*group[:4], others))
        if not names:
            return None
        groups = [*rest, (*stamp, names)]
        gained = {**gained, **fields} if gained else fields
    return _change(connector_id, gained, to_json({"stamps": groups}).decode())


def _change(connector_id: str, gained: Mapping[str, Any], stamps_text: str) -> Change:
    if (cursor := gained.get("sync_cursor")) is not None:
        gained = {**gained, "sync_cursor": to_json(cursor).decode()}
    return tuple(gained), (*gained.values(), stamps_text, connector_id)


def _read(stamps_text: str) -> tuple[list[str], dict[str, Stamp]]:
    """Give the names of the fields that have a value, and the stamps of all that have one."""
    kept = from_json(stamps_text)
    present: list[str] = []
    stamps: dict[str, Stamp] = {}
    for at, rank, event_id, digest, names in kept["stamps"]:
        stamps.update(dict.fromkeys(names, Stamp(at, rank, event_id, digest)))
        if rank < RESET_RANK:
            present += names
    if absent := kept.get("absent"):
        present = [name for name in present if name not in absent]
    return present, stamps


def grouped(stamps: Mapping[str, Stamp]) -> list[tuple[Any, ...]]:
    """The stamps, each once, followed by the list of its fields."""
    groups: dict[Stamp, list[str]] = {}
    last: Stamp | None = None
    for name, stamp in stamps.items():
        if stamp is not last:  # neighbours mostly share one: hash it once
            last = stamp
            names = groups.setdefault(stamp, [])
        names.append(name)
    return [(*stamp, names) for stamp, names in groups.items()]


def _stamps_text(state: State) -> str:
    kept: dict[str, Any] = {"stamps": grouped(state.stamps)}
    if absent := _absent(state):
        kept["absent"] = absent
    return to_json(kept).decode()


def _absent(state: State) -> list[str]:
    if len(state.fields) == len(state.stamps):
        return []
    bare = state.stamps.keys() - state.fields.keys()
    return sorted(name for name in bare if state.stamps[name].rank < RESET_RANK)
