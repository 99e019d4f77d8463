"""How a connector is kept in a row of a SQL table.

The values stand in columns of their own, for people with a SQL prompt. The stamps stand in one
column, as JSON grouped by stamp, for most fields were set by the same event:

    {"stamps": [[1731165188231000, 4, "event-id", "digest", ["last_sync_status", …]], …]}

A value of NULL is a cleared one where an event's stamp holds the field. It is no value where a
reset's stamp does, and where the field is among `"absent"`: a reset took the value, but the event's
stamp is later than the reset's and stayed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import BigInteger, Boolean, Column, MetaData, Table, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from schemas.last_sync import LAST_SYNC_FIELDS, LAST_SYNC_TIMES
from worker.merge import RESET_RANK, Stamp, State
from worker.stores.base import Registration

# SQLite keeps as text what PostgreSQL has types for, and compares text by code point anyway.
ID = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
TIME = Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
JSON = Text().with_variant(postgresql.JSON(), "postgresql")

_TYPES: dict[str, TypeEngine[Any]] = {
    "last_deleted_document_count": BigInteger(),
    "last_indexed_document_count": BigInteger(),
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

_PLACES = {column.name: place for place, column in enumerate(STATE)}


def row_of(connector_id: str, state: State, deleted_at: str | None) -> Row:
    *values, cursor = map(state.fields.get, LAST_SYNC_FIELDS)
    cursor_text = None if cursor is None else to_json(cursor).decode()
    return (connector_id, *values, cursor_text, _stamps_text(state), deleted_at)


def state_of(row: Row) -> State:
    """Read the state back from a row that begins with the columns of STATE."""
    kept = from_json(row[_PLACES["stamps"]])
    present: list[str] = []
    stamps: dict[str, Stamp] = {}
    for at, rank, event_id, digest, names in kept["stamps"]:
        stamps.update(dict.fromkeys(names, Stamp(at, rank, event_id, digest)))
        if rank < RESET_RANK:
            present += names
    absent = kept.get("absent", ())
    fields = {name: row[_PLACES[name]] for name in present if name not in absent}
    if cursor_text := fields.get("sync_cursor"):
        fields["sync_cursor"] = from_json(cursor_text)
    return State(fields=fields, stamps=stamps, deleted=row[_PLACES["deleted_at"]] is not None)


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
