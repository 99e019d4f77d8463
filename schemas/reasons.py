"""Why a record cannot be applied: one code for each reason, its meaning and its fix."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Invalid:
    """The first thing that is wrong with a record.

    `path` names the field (`job.started_at`, `headers.ce_time`; empty: the whole value);
    `connector_id` stands where it could be read and is itself valid.
    """

    reason: str
    path: str
    message: str
    connector_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One reason code; `value` and `headers` are a record that is refused for it."""

    meaning: str
    fix: str
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    status: Literal[400, 404] = 400


REASONS: dict[str, Reason] = {}
