"""The verdict on a run: what the history demands, against what the store and the letters show.

It shares no code with the worker: which event sets a field is decided by `tests/oracle.py`. The
last read of the history is the store at the end.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests import oracle
from tests.chaos.history import Letter, Origin, Read, Sent
from tests.oracle import Fields, Stamp

Field = tuple[str, str]  # connector, field
Claims = dict[Field, dict[str, list[Stamp]]]  # who may have set a value, written as JSON
KINDS = ("lost", "regressed", "wrong", "duplicate_letters", "missing_letters")


@dataclass(slots=True, kw_only=True)
class Verdict:
    """Findings, in words; a clean run has none.

    lost: a field that its newest event has not set. regressed: a field that was seen newer than it
    was seen later. wrong: a value that no event explains, a letter for a record that deserves
    none, or one with another reason or content. duplicate, missing letters: by their origin.
    """

    events: int = 0
    letters: int = 0
    lost: list[str] = field(default_factory=list)
    regressed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    duplicate_letters: list[str] = field(default_factory=list)
    missing_letters: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        return {kind: len(getattr(self, kind)) for kind in KINDS}

    @property
    def clean(self) -> bool:
        return not any(self.counts.values())


def check(
    sent: Iterable[Sent],
    registered: Collection[str],
    reads: Iterable[Read],
    letters: Collection[Letter],
    resets: Mapping[str, str] | None = None,
) -> Verdict:
    """Judge a run; of what was sent only the demands are kept, so it may come from a stream.

    Events from before their connector's last reset must not be seen in the store at the end.
    """
    verdict, known = Verdict(letters=len(letters)), set(registered)
    expected: dict[Origin, Letter] = {}
    claims: Claims = {}
    for entry in sent:
        verdict.events += 1
        if reason := _refusal(entry, known):
            expected[entry.origin] = Letter(origin=entry.origin, reason=reason, digest=entry.digest)
        elif entry.event:
            _claim(claims, entry.event)
    _check_letters(verdict, expected, letters)
    _check_store(verdict, claims, known, reads, resets or {})
    return verdict


def _refusal(entry: Sent, registered: Collection[str]) -> str:
    """Give the reason that its letter has to have; nothing for what has to be applied."""
    if entry.event and entry.event["connector_id"] not in registered:
        return "connector_not_found"
    return entry.reason


# --- letters -----------------------------------------------------------------------------------


def expected_letters(sent: Iterable[Sent], registered: set[str]) -> dict[Origin, Letter]:
    return {
        entry.origin: Letter(origin=entry.origin, reason=reason, digest=entry.digest)
        for entry in sent
        if (reason := _refusal(entry, registered))
    }


def _check_letters(
    verdict: Verdict, expected: Mapping[Origin, Letter], letters: Collection[Letter]
) -> None:
    times = Counter(letter.origin for letter in letters)
    verdict.duplicate_letters += [f"{n} letters of {at}" for at, n in times.items() if n > 1]
    verdict.missing_letters += [f"{letter}" for at, letter in expected.items() if at not in times]
    verdict.wrong += [
        f"{letter}, expected: {expected.get(letter.origin)}"
        for letter in letters
        if letter != expected.get(letter.origin)
    ]


# --- the store ---------------------------------------------------------------------------------


def _claim(claims: Claims, event: oracle.Event) -> None:
    stamp = oracle.stamp_of(event)
    for name, value in oracle.fields_of(event).items():
        made = claims.setdefault((event["connector_id"], name), {})
        made.setdefault(_key(value), []).append(stamp)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _check_store(
    verdict: Verdict,
    claims: Claims,
    registered: set[str],
    reads: Iterable[Read],
    resets: Mapping[str, str],
) -> None:
    seen: dict[Field, str] = {}
    floor: dict[Field, Stamp] = {}  # a field was once seen to be at least as new as this
    at_end: dict[str, Fields] = {}
    blamed: set[Field] = set()
    for read in reads:
        if read.whole:
            at_end.clear()
        at_end.update(read.connectors)
        for place, value in _values(read.connectors):
            if seen.get(place) != value:
                seen[place] = value
                _check_read(verdict, claims, floor, blamed, place, value)
    _check_end(verdict, _since(claims, resets), registered, at_end, blamed)


def _since(claims: Claims, resets: Mapping[str, str]) -> Claims:
    """Leave only what was claimed after the connector's reset, be it nothing."""
    ends = {name: oracle.microseconds(oracle.moment(at)) for name, at in resets.items()}
    return {
        place: {
            value: later
            for value, stamps in made.items()
            if (later := [stamp for stamp in stamps if stamp[0] > ends.get(place[0], -1)])
        }
        for place, made in claims.items()
    }


def _values(connectors: Mapping[str, Fields]) -> Iterable[tuple[Field, str]]:
    for connector, fields in connectors.items():
        for name, value in fields.items():
            yield (connector, name), _key(value)


def _check_read(
    verdict: Verdict,
    claims: Claims,
    floor: dict[Field, Stamp],
    blamed: set[Field],
    place: Field,
    value: str,
) -> None:
    setters = claims.get(place, {}).get(value)
    if setters is None:
        verdict.wrong.append(f"{place} was {value}, which no event says")
        blamed.add(place)
        return
    if place in floor and max(setters) < floor[place]:
        verdict.regressed.append(f"{place} was {value} after it had been newer")
        blamed.add(place)
    floor[place] = max(floor.get(place, min(setters)), min(setters))


def _check_end(
    verdict: Verdict,
    claims: Claims,
    registered: set[str],
    at_end: Mapping[str, Fields],
    blamed: set[Field],
) -> None:
    verdict.lost += [f"connector {name} is not there" for name in registered - at_end.keys()]
    verdict.wrong += [f"connector {name} is there" for name in at_end.keys() - registered]
    for place, made in claims.items():
        connector, name = place
        found = at_end.get(connector, {})
        if not made:
            if name in found and place not in blamed:
                verdict.regressed.append(f"{place} is {found[name]!r}, of before its reset")
            continue
        newest = max(made, key=lambda value: max(made[value]))
        if (name not in found or _key(found[name]) != newest) and place not in blamed:
            verdict.lost.append(f"{place} is {found.get(name)!r} and not {newest}")
