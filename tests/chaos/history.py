"""What happened in a run: records that the brokers acknowledged, looks at the store, letters.

A history is one file of JSON lines; `--keep` leaves it, with the workers' logs, for a closer look.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.oracle import Event, Fields

Origin = tuple[str, int, int]  # topic, partition, offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A record that was acknowledged; `reason` says why it is no event."""

    origin: Origin
    event: Event | None
    reason: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Connectors as a look at the store found them: those that changed since the look before.

    `whole`: all that were there.
    """

    connectors: Mapping[str, Fields]
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """An open dead letter: one key of one partition of the dead-letter topic."""

    origin: Origin
    reason: str
    digest: str


def digest(value: bytes | None) -> str:
    return "null" if value is None else sha256(value).hexdigest()


class History:
    """Appends to the run's file; `sent`, `reads` and `letters` give back what stands in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def add(self, entries: Iterable[Sent | Read | Letter]) -> None:
        self._file.writelines(
            json.dumps({"kind": type(entry).__name__, **_fields(entry)}) + "\n" for entry in entries
        )

    def close(self) -> None:
        self._file.close()

    def sent(self) -> list[Sent]:
        return [Sent(**_with_origin(entry)) for entry in self._of("Sent")]

    def reads(self) -> list[Read]:
        return [Read(**entry) for entry in self._of("Read")]

    def letters(self) -> list[Letter]:
        return [Letter(**_with_origin(entry)) for entry in self._of("Letter")]

    def _of(self, kind: str) -> Iterable[dict[str, Any]]:
        self._file.flush()
        with self._path.open(encoding="utf-8") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return  # half of it: it is still being written, or its writer was killed
                entry = json.loads(line)
                if entry.pop("kind") == kind:
                    yield entry


def _fields(entry: Sent | Read | Letter) -> dict[str, Any]:
    return {one.name: getattr(entry, one.name) for one in fields(entry)}


def _with_origin(entry: dict[str, Any]) -> dict[str, Any]:
    topic, partition, offset = entry["origin"]
    return {**entry, "origin": (topic, partition, offset)}
