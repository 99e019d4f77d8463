"""What merging needs to know of an event, read from its bytes in one pass.

Almost every record is a plain event with known fields only, whose times are in UTC. It is validated
by the rules of the models, into dicts instead of models, straight from the bytes, and its times
stay text; all else is left to `decode`.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from schemas import cloud_events
from schemas.cloud_events import PLAIN, Headers
from schemas.document import parse, storable
from schemas.last_sync import (
    JOB_TIMES,
    LAST_SYNC_TIMES,
    TERMINAL,
    LastSync,
    SyncJob,
    job_fields,
    ready,
)
from schemas.reasons import Invalid
from schemas.scalars import EVERYDAY_TIME, utc_text
from schemas.sync_finished import RANK, SKEW_US, SyncFinished, decode, microseconds, payload_rank

_TIMES = frozenset(("occurred_at", *JOB_TIMES, *LAST_SYNC_TIMES))


class Facts(NamedTuple):
    """An event as the merge sees it; times are microseconds since the epoch."""

    event_id: str
    connector_id: str
    occurred_at: int
    at: int  # then rank and event id decide which event is later
    rank: int
    fields: dict[str, JsonValue]  # what it sets, ready for JSON, in the order of their names


def facts(value: bytes | None, headers: Headers = (), *, now: int) -> Facts | Invalid:
    """Give the facts of the event that `decode` would find, or what it would say is wrong."""
    plain = not headers or cloud_events.frame(headers) is PLAIN
    if value and plain and (common := _common(value, now)):
        return common
    event = decode(value, headers, now=now)
    return event if isinstance(event, Invalid) else facts_of(event)


def facts_of(event: SyncFinished) -> Facts:
    occurred_at = microseconds(event.occurred_at)
    return Facts(
        event.event_id, event.connector_id, occurred_at, event.at, event.rank, event.fields()
    )


def _common(value: bytes, now: int) -> Facts | None:
    """Give the facts of an event without anything unusual; None leaves the verdict to `decode`."""
    try:
        event = _validate(value)
    except ValidationError:
        return None
    job, payload = event.get("job"), event.get("last_sync")
    carried = payload if job is None else job
    if not carried or (job is not None and payload is not None):
        return None
    happened = utc_text(event["occurred_at"])
    at = occurred_at = _microseconds(happened)
    strings = _strings(carried, happened)
    # A name that is unknown or repeated, or a quote inside of a string, would make it more.
    quotes = 2 * (len(event) + 3 + len(carried) + strings)
    if not strings or at - now > SKEW_US or (value.count(b'"') != quotes and not _storable(value)):
        return None
    if job is None:
        rank, fields = payload_rank(carried), ready(carried)
    else:
        started, status = job.get("started_at"), job["status"]
        if started is not None and (status not in TERMINAL or started > happened):
            at = _microseconds(started)
        rank, fields = RANK[status], job_fields(job, happened)
    return Facts(event["event_id"], event["connector_id"], occurred_at, at, rank, fields)


def _storable(value: bytes) -> bool:
    """Look into the parts that validation did not look into."""
    try:
        return storable(parse(value))
    except ValueError:
        return False


def _strings(carried: dict[str, Any], happened: str) -> int:
    """Count the strings, and write times in one form; 0 for a cursor, or too late a time."""
    strings = 0
    for name, value in carried.items():
        kind = type(value)
        if kind is str:
            strings += 1
            if name in _TIMES:
                carried[name] = moment = utc_text(value)
                if moment > happened and _microseconds(moment) - _microseconds(happened) > SKEW_US:
                    return 0
        elif kind is dict:
            return 0
    return strings


def _microseconds(text: str) -> int:
    return microseconds(datetime.fromisoformat(text))


def _dict_of(model: type[BaseModel], **nested: CoreSchema) -> CoreSchema:
    fields = model.model_fields
    rules = {name: nested.get(name) or field.metadata[0].core for name, field in fields.items()}
    return core_schema.typed_dict_schema(
        {
            name: core_schema.typed_dict_field(
                _everyday(rule) if name in _TIMES else rule, required=fields[name].is_required()
            )
            for name, rule in rules.items()
        },
        extra_behavior=model.model_config.get("extra", "ignore"),
    )


def _everyday(rule: CoreSchema) -> CoreSchema:
    nullable = rule["type"] == "nullable"
    return core_schema.nullable_schema(EVERYDAY_TIME) if nullable else EVERYDAY_TIME


_validate: Callable[[bytes], dict[str, Any]] = SchemaValidator(
    _dict_of(
        SyncFinished,
        job=core_schema.nullable_schema(_dict_of(SyncJob)),
        last_sync=core_schema.nullable_schema(_dict_of(LastSync)),
    )
).validate_json
