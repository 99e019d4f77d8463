"""Which letters are meant."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the options of commands are made without what reads letters
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from worker.open_letters import OpenLetter

UNREADABLE = "unreadable"  # the reason of a record that is no letter of this project


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which open letters are meant: those that every filter given lets through."""

    ids: Collection[str] = ()
    reasons: Collection[str] = ()
    connectors: Sequence[str] = ()  # glob patterns
    statuses: Collection[int] = ()
    topics: Collection[str] = ()
    partitions: Collection[int] = ()
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None  # the oldest of those

    def of(self, letters: Sequence[OpenLetter]) -> list[OpenLetter]:
        return [letter for letter in letters if self.lets_through(letter)][: self.limit]

    def lets_through(self, letter: OpenLetter) -> bool:
        failed_at = letter.failed_at
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.reasons or letter.reason in self.reasons)
            and (not self.statuses or letter.status in self.statuses)
            and (not self.topics or letter.topic in self.topics)
            and (not self.partitions or letter.partition in self.partitions)
            and (not self.connectors or self._names(letter.connector_id or ""))
            and (self.since is None or (failed_at is not None and failed_at >= self.since))
            and (self.until is None or (failed_at is not None and failed_at < self.until))
        )

    def _names(self, connector_id: str) -> bool:
        return any(fnmatchcase(connector_id, pattern) for pattern in self.connectors)
