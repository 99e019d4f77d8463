"""The merge rule: which event's value each field of a connector holds.

Per connector and field the store keeps the value and the stamp of the event that set it; an event
wins a field when its stamp is greater. Merging is therefore commutative, associative and
idempotent: the state is a function of the set of merged events, not of their order or number.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import JsonValue


class Stamp(NamedTuple):
    """The total order of events; compared by code point, never by a database's collation."""

    at: int  # microseconds since the epoch
    rank: int
    event_id: str
    digest: str  # hexadecimal SHA-256 of connector id and touched fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The fields that one event sets on one connector.

    Values are ready for JSON: times are UTC text, `2024-11-09T15:13:08.231000Z`.
    """

    connector_id: str
    fields: Mapping[str, JsonValue]
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one update; `detail` says why the store rejected it."""

    name: Literal["applied", "duplicate", "superseded", "connector_not_found", "rejected"]
    detail: str = ""


APPLIED = Outcome("applied")
DUPLICATE = Outcome("duplicate")
SUPERSEDED = Outcome("superseded")
CONNECTOR_NOT_FOUND = Outcome("connector_not_found")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One connector as the store keeps it; a deleted one stays as a tombstone."""

    fields: Mapping[str, JsonValue]
    stamps: Mapping[str, Stamp]
    deleted: bool = False


def fold(state: State | None, updates: Iterable[Update]) -> tuple[State | None, list[Outcome]]:
    raise NotImplementedError


def registered(state: State | None) -> State:
    raise NotImplementedError


def deleted(state: State, now: int) -> State:
    raise NotImplementedError
