"""What merging needs to know of an event, read from its bytes in one pass.

Almost every record is a plain event with known fields only. It is validated by the rules of the
models, into dicts instead of models, straight from the bytes; all else is left to `decode`.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from schemas import cloud_events
from schemas.cloud_events import PLAIN, Headers
from schemas.document import parse, storable
from schemas.last_sync import TERMINAL, LastSync, SyncJob, job_fields, ready
from schemas.reasons import Invalid
from schemas.sync_finished import (
    RANK,
    SKEW,
    SKEW_US,
    SyncFinished,
    decode,
    microseconds,
    payload_rank,
)


class Facts(NamedTuple):
    """An event as the merge sees it."""

    event_id: str
    connector_id: str
    occurred_at: datetime
    at: int  # microseconds since the epoch; then rank and event id decide which event is later
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
    return Facts(
        event.event_id, event.connector_id, event.occurred_at, event.at, event.rank, event.fields()
    )


def _common(value: bytes, now: int) -> Facts | None:
    """Give the facts of an event without anything unusual; None leaves the verdict to `decode`."""
    try:
        event = _validate(value)
    except ValidationError:
        return None
    occurred_at: datetime = event["occurred_at"]
    job, payload = event.get("job"), event.get("last_sync")
    carried = payload if job is None else job
    if not carried or (job is not None and payload is not None):
        return None
    at = microseconds(occurred_at)
    strings = _strings(carried.values(), occurred_at)
    # A name that is unknown or repeated, or a quote inside of a string, would make it more.
    quotes = 2 * (len(event) + 3 + len(carried) + strings)
    if not strings or at - now > SKEW_US:
        return None
    if value.count(b'"') != quotes and not _storable(value):
        return None
    if job is None:
        rank, fields = payload_rank(carried), ready(carried)
    else:
        started_at, status = job.get("started_at"), job["status"]
        if started_at is not None and (status not in TERMINAL or started_at > occurred_at):
            at = microseconds(started_at)
        rank, fields = RANK[status], job_fields(job, occurred_at)
    return Facts(event["event_id"], event["connector_id"], occurred_at, at, rank, fields)


def _storable(value: bytes) -> bool:
    """Look into the parts that validation did not look into."""
    try:
        return storable(parse(value))
    except ValueError:
        return False


def _strings(values: Iterable[Any], occurred_at: datetime) -> int:
    """Count the values that are strings in JSON; 0 where there is a cursor, or too late a time."""
    strings = 0
    for value in values:
        kind = type(value)
        if kind is str:
            strings += 1
        elif kind is datetime:
            if value > occurred_at and value - occurred_at > SKEW:
                return 0
            strings += 1
        elif kind is dict:
            return 0
    return strings


def _dict_of(model: type[BaseModel], **nested: CoreSchema) -> CoreSchema:
    fields = model.model_fields
    rules = {name: nested.get(name) or field.metadata[0].core for name, field in fields.items()}
    return core_schema.typed_dict_schema(
        {
            name: core_schema.typed_dict_field(rule, required=fields[name].is_required())
            for name, rule in rules.items()
        },
        extra_behavior=model.model_config.get("extra", "ignore"),
    )


_validate: Callable[[bytes], dict[str, Any]] = SchemaValidator(
    _dict_of(
        SyncFinished,
        job=core_schema.nullable_schema(_dict_of(SyncJob)),
        last_sync=core_schema.nullable_schema(_dict_of(LastSync)),
    )
).validate_json
