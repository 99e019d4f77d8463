"""How a connector is kept in a row of a SQL table.

The values stand in columns of their own, for people with a SQL prompt. The stamps stand in one
column, as JSON grouped by stamp, for most fields were set by the same event:

    {"stamps": [[1731165188231000, 4, "event-id", "digest", ["last_sync_status", …]], …]}

A value of NULL is a cleared one where an event's stamp holds the field. It is no value where a
reset's stamp does, and where the field is among `"absent"`: a reset took the value, but the event's
stamp is later than the reset's and stayed.
"""

import json
from typing import Any

from sqlalchemy import BigInteger, Column, MetaData, Table, Text

from schemas.last_sync import LAST_SYNC_FIELDS
from worker.merge import RESET_RANK, Stamp, State

_COUNTS = frozenset({"last_deleted_document_count", "last_indexed_document_count"})

CONNECTORS = Table(
    "connectors",
    MetaData(),
    Column("id", Text, primary_key=True),
    *(Column(field, BigInteger if field in _COUNTS else Text) for field in LAST_SYNC_FIELDS),
    Column("stamps", Text, nullable=False),
    Column("deleted_at", Text),
)

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def row_of(connector_id: str, state: State, deleted_at: str | None) -> tuple[Any, ...]:
    """Give the row's values in the order of the table's columns."""
    values = dict(state.fields)
    cursor = values.get("sync_cursor")
    if cursor is not None:
        values["sync_cursor"] = _json(cursor)
    return (connector_id, *map(values.get, LAST_SYNC_FIELDS), _stamps_text(state), deleted_at)


def state_of(row: Any) -> State:
    """Read the state back from a row with all columns of the table."""
    _, *values, stamps_text, deleted_at = row
    kept = json.loads(stamps_text)
    columns = dict(zip(LAST_SYNC_FIELDS, values, strict=True))
    if columns["sync_cursor"] is not None:
        columns["sync_cursor"] = json.loads(columns["sync_cursor"])
    absent = kept.get("absent", ())
    fields: dict[str, Any] = {}
    stamps: dict[str, Stamp] = {}
    for at, rank, event_id, digest, names in kept["stamps"]:
        stamp = Stamp(at, rank, event_id, digest)
        for name in names:
            stamps[name] = stamp
            if rank < RESET_RANK and name not in absent:
                fields[name] = columns[name]
    return State(fields=fields, stamps=stamps, deleted=deleted_at is not None)


def _stamps_text(state: State) -> str:
    groups: dict[Stamp, list[str]] = {}
    for name, stamp in state.stamps.items():
        groups.setdefault(stamp, []).append(name)
    kept: dict[str, Any] = {"stamps": [(*stamp, names) for stamp, names in groups.items()]}
    if len(state.fields) < len(state.stamps):
        absent = [
            name
            for name, stamp in state.stamps.items()
            if name not in state.fields and stamp.rank < RESET_RANK
        ]
        if absent:
            kept["absent"] = absent
    return _json(kept)
