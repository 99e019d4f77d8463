"""What a validation error means to the publisher: the first problem, its place, and its fix."""

from collections.abc import Callable, Mapping
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from schemas.document import MAX_SHOWN, escaped, named, shown
from schemas.last_sync import LAST_SYNC_FIELDS
from schemas.reasons import REASONS, Invalid
from schemas.scalars import JOB_TYPES, MAX_COUNT, MAX_ID_BYTES, STATUSES

_REASON_OF = {
    "missing": "missing_field",
    "extra_forbidden": "unknown_field",
    "model_type": "not_an_object",
}


def explained(error: ValidationError, paths: Mapping[str, str]) -> Invalid:
    """Explain the first of the errors; `paths` says where the event's fields stood."""
    first = error.errors(include_url=False)[0]
    steps = [str(step) for step in first["loc"]]
    context = first.get("ctx", {})
    path = context.get("path") or ".".join(map(escaped, steps))
    reason = _reason(first["type"], steps, first["input"])
    path = _placed(path, paths)
    return Invalid(reason, path, _message(reason, path, first["input"], steps, context))


def _reason(kind: str, steps: list[str], value: object) -> str:
    reason = _REASON_OF.get(kind, kind)
    if value is not None or kind not in REASONS:
        return reason
    if steps[0] == "last_sync":
        return "null_not_allowed"
    return "missing_field"


def _placed(path: str, paths: Mapping[str, str]) -> str:
    head, dot, tail = path.partition(".")
    return f"{paths.get(head, head)}{dot}{tail}"


def _message(
    reason: str, path: str, value: Any, steps: list[str], context: Mapping[str, Any]
) -> str:
    fix = REASONS[reason].fix
    if reason == "missing_field":
        return f"{path} is {'missing' if isinstance(value, dict) else shown(value)}: {fix}"
    if reason == "unknown_field":
        return f"last_sync has no field {shown(steps[-1])}: {_nearest(steps[-1])}"
    if reason == "time_after_event":
        return f"{path} is {context['found']}, more than 5 minutes after occurred_at: {fix}"
    if reason in _SENTENCES:
        return f"{_SENTENCES[reason]}: {fix}"
    if reason in _CHOICES:
        return f"{path} is {shown(value)}: {_choice(value, _CHOICES[reason]) or fix}"
    hint = _HINTS.get(reason, _no_hint)(value)
    return f"{named(path)} is {shown(value)}{hint}: {fix}"


def _nearest(name: str) -> str:
    near = get_close_matches(name[:MAX_SHOWN], LAST_SYNC_FIELDS, n=1)
    return f"write {near[0]}" if near else f"the fields are {', '.join(LAST_SYNC_FIELDS)}"


_SENTENCES = {
    "no_payload": "the event has neither job nor last_sync",
    "two_payloads": "the event has both job and last_sync",
    "empty_last_sync": "last_sync has no fields",
}


def _no_hint(_: object) -> str:
    return ""


def _id_hint(value: object) -> str:
    if not isinstance(value, str):
        return ", not a text"
    size = len(value.encode())
    return f", of {size} bytes" if size > MAX_ID_BYTES else ""


def _time_hint(value: object) -> str:
    if not isinstance(value, str):
        return ", not a text"
    try:
        moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        return ", no RFC 3339 time"
    if moment.tzinfo is None:
        return ", without an offset"
    if value[10:11] not in {"T", "t"}:
        return ", without the T between date and time"
    return ", no RFC 3339 time of the years 1 to 9999 in UTC"


def _count_hint(value: object) -> str:
    if isinstance(value, bool):
        return ", a boolean"
    if isinstance(value, str):
        return ", a text"
    if isinstance(value, float):
        return ", written as a decimal fraction or with an exponent"
    if isinstance(value, int):
        return ", below 0" if value < 0 else f", above {MAX_COUNT}"
    return ""


def _choice(value: object, choices: tuple[str, ...]) -> str:
    """Name the choice that was meant, if it can be told."""
    name = value.lower()[:MAX_SHOWN] if isinstance(value, str) else ""
    if name in choices:
        return f'write it lower-case, "{name}"'
    near = get_close_matches(name, choices, n=1)
    return f'write "{near[0]}" if that is meant, else one of {", ".join(choices)}' if near else ""


_CHOICES = {"invalid_status": STATUSES, "invalid_job_type": JOB_TYPES}
_HINTS: Mapping[str, Callable[[object], str]] = {
    "invalid_id": _id_hint,
    "invalid_time": _time_hint,
    "invalid_count": _count_hint,
}
