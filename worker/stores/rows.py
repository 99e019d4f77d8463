"""How a connector is kept in a row of a SQL table.

The values stand in columns of their own, for people with a SQL prompt. The stamps stand in one
column, as JSON grouped by stamp, for most fields were set by the same event:

    [[1731165188231000, 4, "event-id", "digest", 1864], …]

The last number has a bit for each field that the event set, see `BITS`: names would double a row,
and what is written decides how long a merge takes. A value of NULL is a cleared one where an
event's stamp holds the field. It is no value where a reset's stamp does, and where the field has a
bit in a sixth number too: a reset took the value, but the event's stamp is later, and stayed.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import repeat
from typing import Any

from pydantic_core import from_json, to_json

from schemas.last_sync import LAST_SYNC_FIELDS
from schemas.updates import Stamp, Update
from worker.merge import APPLIED, CONNECTOR_NOT_FOUND, RESET_RANK, Outcome, State, fold

TABLE = "connectors"
STORE_TABLE = "connector_store"
STATE = ("id", *LAST_SYNC_FIELDS, "stamps", "deleted_at")  # columns that hold a state
COUNTS = ("last_deleted_document_count", "last_indexed_document_count")

Row = Sequence[Any]  # values in the order of STATE, times as UTC text
Change = tuple[tuple[str, ...], Row]  # columns; their values in a row, then its stamps and its id

MERGING = f"{TABLE}.id, stamps, deleted_at IS NOT NULL"  # all of a state that merging reads
_GROUP = 5  # elements of a group without absent values
_NEVER = -(2**63)  # before every time
_APPLIED = repeat(APPLIED)
KEPT: Any = object()  # stands for a value that stays in its row as it is, and was not read

# They are in databases: a field that is new gets the next bit.
BITS = {
    name: 1 << place
    for place, name in enumerate(
        (
            "last_access_control_sync_error",
            "last_access_control_sync_scheduled_at",
            "last_access_control_sync_status",
            "last_deleted_document_count",
            "last_incremental_sync_scheduled_at",
            "last_indexed_document_count",
            "last_sync_error",
            "last_sync_scheduled_at",
            "last_sync_status",
            "last_synced",
            "sync_cursor",
        )
    )
}

_PLACES = {name: place for place, name in enumerate(STATE)}


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
    _, stamps_text, gone, *_ = row
    present, stamps = _read(stamps_text)
    return State(fields=dict.fromkeys(present, KEPT), stamps=stamps, deleted=gone)


class Merging:
    """A batch on its way into rows of MERGING, some connectors after others."""

    def __init__(self, updates: Sequence[Update]) -> None:
        self._updates = updates
        self._of = of = defaultdict[str, list[Update]](list)
        for update in updates:
            of[update[0]].append(update)  # its name would take twice as long
        self._others: dict[str, Iterator[Outcome]] = {}  # where not all was applied

    def parts(self, size: int) -> Iterator[list[str]]:
        """Give the connectors' ids, so many at once; in order, as everyone who locks them does."""
        ids = sorted(self._of)
        return (ids[start : start + size] for start in range(0, len(ids), size))

    def changes(self, ids: Collection[str], rows: Sequence[Row]) -> list[Change]:
        """Merge into the rows, which begin with MERGING, that there are of these connectors.

        Where a row was written by another in between, this is called again with it as it is now.
        """
        changes = []
        for row in rows:
            updates = self._of[row[0]]
            self._others.pop(row[0], None)
            change = _overtaken(row, updates)
            if change is None:
                change, outcomes = _folded(row, updates)
                self._others[row[0]] = iter(outcomes)
            if change is not None:
                changes.append(change)
        if len(rows) < len(ids):
            unknown = set(ids).difference(row[0] for row in rows)
            self._others |= dict.fromkeys(unknown, repeat(CONNECTOR_NOT_FOUND))
        return changes

    def outcomes(self) -> list[Outcome]:
        """Give the outcomes that `fold_batch` would."""
        if not self._others:
            return [APPLIED] * len(self._updates)
        others = self._others
        return [next(others.get(update.connector_id, _APPLIED)) for update in self._updates]


def one_shape(changes: Sequence[Change]) -> tuple[tuple[str, ...], Sequence[Row], bool]:
    """Give the columns that rows set, the rows, and whether they are `mixed`.

    Where rows gain different fields, each has all columns, and before its stamps the bits of those
    that it does gain. So a batch is one statement: there are a hundred ways to gain some fields.
    """
    shapes = {columns for columns, _ in changes}
    if len(shapes) == 1:
        return shapes.pop(), [row for _, row in changes], False
    rows = []
    for columns, row in changes:
        gained = dict(zip(columns, row, strict=False))  # stamps and id follow the values
        rows.append((*map(gained.get, LAST_SYNC_FIELDS), _bits(columns), *row[-2:]))
    return LAST_SYNC_FIELDS, rows, True


def assignment(column: str, new: str, bits: str | None) -> str:
    """Give the SQL that sets a column, in mixed rows if its bit is there."""
    if bits is None:
        return f"{column} = {new}"
    old = f"{TABLE}.{column}"
    return f"{column} = CASE WHEN {bits} & {BITS[column]} <> 0 THEN {new} ELSE {old} END"


def _overtaken(row: Row, updates: Sequence[Update]) -> Change | None:
    """Merge the shorter way where each update is later than all before it; else None.

    Such an update, and most are, wins all of its fields whatever they hold.
    """
    connector_id, stamps_text, gone, *_ = row
    if gone:
        return None
    groups = from_json(stamps_text, cache_strings=False)
    latest, known = _NEVER, set()
    for group in groups:
        if len(group) > _GROUP:
            return None  # `fold` tells what else it may be
        latest = max(latest, group[0])
        known.add(group[2])
    for _, fields, at, _, event_id, _ in updates:
        if at <= latest or event_id in known or not fields:
            return None
        latest = at
        known.add(event_id)
    gained = updates[-1].fields
    won = _bits(tuple(gained))
    stamps = [(*updates[-1].stamp, won)]  # the newest first
    for older in updates[-2::-1]:
        fields = older[1]
        if not fields.keys() <= gained.keys():
            bits = _bits(tuple(fields))
            stamps.append((*older.stamp, bits & ~won))
            gained = {**fields, **gained}
            won |= bits
    others = [(group, left) for group in reversed(groups) if (left := group[4] & ~won)]
    stamps += [(*group[:4], left) for group, left in others]
    stamps.reverse()
    return _change(connector_id, gained, to_json(stamps).decode())


def _folded(row: Row, updates: Sequence[Update]) -> tuple[Change | None, list[Outcome]]:
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


def _change(connector_id: str, gained: Mapping[str, Any], stamps_text: str) -> Change:
    if (cursor := gained.get("sync_cursor")) is not None:
        gained = {**gained, "sync_cursor": to_json(cursor).decode()}
    return tuple(gained), (*gained.values(), stamps_text, connector_id)


@cache  # of at most 2,048 sets of fields
def _bits(names: tuple[str, ...]) -> int:
    return sum(map(BITS.__getitem__, names))


@cache
def _names(bits: int) -> tuple[str, ...]:
    return tuple(name for name, bit in BITS.items() if bits & bit)


def _read(stamps_text: str) -> tuple[list[str], dict[str, Stamp]]:
    """Give the names of the fields that have a value, and the stamps of all that have one."""
    present: list[str] = []
    stamps: dict[str, Stamp] = {}
    for at, rank, event_id, digest, bits, *absent in from_json(stamps_text):
        stamps.update(dict.fromkeys(_names(bits), Stamp(at, rank, event_id, digest)))
        if rank < RESET_RANK:
            present += _names(bits & ~sum(absent))
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
    groups = []
    for *stamp, names in grouped(state.stamps):
        group = [*stamp, _bits(tuple(names))]
        absent = [name for name in names if name not in state.fields]
        if absent and stamp[1] < RESET_RANK:
            group.append(_bits(tuple(absent)))
        groups.append(group)
    return to_json(groups).decode()
