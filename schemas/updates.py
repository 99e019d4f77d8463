"""What an event asks for: fields to set, and the stamp that orders it, read in one pass.

Almost every record is a plain event with known fields only, whose times are in UTC. It is validated
by the rules of the models, into dicts instead of models, straight from the bytes, and its times
stay text; all else is left to `decode`.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import (
    CoreSchema,
    PydanticSerializationError,
    SchemaValidator,
    core_schema,
    to_json,
)

from schemas import cloud_events
from schemas.cloud_events import PLAIN, Headers
from schemas.document import parse, storable
from schemas.last_sync import (
    ERROR_FIELDS,
    JOB_TIMES,
    LAST_SYNC_TIMES,
    STATUS_FIELDS,
    TERMINAL,
    LastSync,
    SyncJob,
    job_fields,
    ready,
)
from schemas.reasons import Invalid
from schemas.scalars import EVERYDAY_TIME, utc_text
from schemas.sync_finished import (
    RANK,
    SKEW_US,
    SyncFinished,
    decode,
    microseconds,
    payload_rank,
)

_Names = tuple[tuple[str, ...], tuple[str, ...]]  # of times, and of other strings
_JOB: _Names = (JOB_TIMES, ("job_type", "status", "id", "error"))
_PAYLOAD: _Names = (LAST_SYNC_TIMES, (*ERROR_FIELDS, *STATUS_FIELDS))
_SECONDS = len("2024-11-09T15:13:08")
_TIMES = frozenset(("occurred_at", *JOB_TIMES, *LAST_SYNC_TIMES))

normalised = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


class Stamp(NamedTuple):
    """The total order of events; compared by code point, never by a database's collation."""

    at: int  # microseconds since the epoch
    rank: int
    event_id: str
    digest: str  # hexadecimal SHA-256 of connector id and touched fields


class Update(NamedTuple):
    """The fields that one event sets on one connector, and what orders it among the connector's.

    Values are ready for JSON, in the order of their names: times are UTC text,
    `2024-11-09T15:13:08.231000Z`.
    """

    connector_id: str
    fields: Mapping[str, JsonValue]
    at: int  # microseconds since the epoch
    rank: int
    event_id: str
    occurred_at: int = 0  # microseconds, to measure delays; the stamp alone orders events

    @property
    def digest(self) -> str:
        """Made anew each time: most events of a backlog are overtaken before it is needed."""
        content = self[:2]
        if "sync_cursor" in content[1]:  # which alone can hold floats: those are written otherwise
            return digest(*content)
        try:
            return sha256(to_json(content)).hexdigest()  # in a quarter of the time
        except PydanticSerializationError:  # a lone surrogate, which a store will refuse
            return digest(*content)

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.at, self.rank, self.event_id, self.digest)


def update(value: bytes | None, headers: Headers = (), *, now: int) -> Update | Invalid:
    """Give the update of the event that `decode` would find, or what it would say is wrong."""
    if value and (not headers or cloud_events.frame(headers) is PLAIN):
        common = _common(value, now)
        if common is not None:
            return common
    event = decode(value, headers, now=now)
    return event if isinstance(event, Invalid) else update_of(event)


def update_of(event: SyncFinished) -> Update:
    occurred_at = microseconds(event.occurred_at)
    return Update(
        event.connector_id, event.fields(), event.at, event.rank, event.event_id, occurred_at
    )


def digest(connector_id: str, fields: Mapping[str, JsonValue]) -> str:
    """Tell content apart. Stored stamps hold it, so it has to stay the same for ever."""
    text = normalised([connector_id, fields])
    return sha256(text.encode(errors="surrogatepass")).hexdigest()


def _common(value: bytes, now: int) -> Update | None:
    """Give the update of an event without anything unusual; None leaves the verdict to `decode`."""
    try:
        event = _validate(value)
    except ValidationError:
        return None
    job, payload = event.get("job"), event.get("last_sync")
    carried, names = (payload, _PAYLOAD) if job is None else (job, _JOB)
    if not carried or (job is not None and payload is not None):
        return None
    occurred = event["occurred_at"]
    at = occurred_at = _microseconds(occurred)
    second = occurred[:_SECONDS]  # up to there all times are written alike
    strings = _strings(carried, names, second + "~", at)  # which is after what may follow
    # A name that is unknown or repeated, or a quote inside of a string, would make it more.
    quotes = 2 * (len(event) + 3 + len(carried) + strings)
    if not strings or at - now > SKEW_US or (value.count(b'"') != quotes and not _storable(value)):
        return None
    if job is None:
        rank, fields = payload_rank(carried), ready(carried, utc_text)
    else:
        status, started = job["status"], job.get("started_at")
        if started is not None:
            if status not in TERMINAL:
                at = _microseconds(started)
            elif started > second:  # in the same second, or later
                at = max(at, _microseconds(started))
        rank, fields = RANK[status], job_fields(job, occurred, utc_text)
    found = (event["connector_id"], fields, at, rank, event["event_id"], occurred_at)
    return tuple.__new__(Update, found)  # half the time of its own constructor


def _strings(carried: dict[str, Any], names: _Names, end_of_second: str, at: int) -> int:
    """Count the strings; 0 for a cursor, or too late a time."""
    get = carried.get
    if get("sync_cursor") is not None:
        return 0
    times, texts = names
    strings = 0
    for name in times:
        if (text := get(name)) is not None:
            strings += 1
            if text > end_of_second and _microseconds(text) - at > SKEW_US:
                return 0
    for name in texts:
        if get(name) is not None:
            strings += 1
    return strings


def _storable(value: bytes) -> bool:
    """Look into the parts that validation did not look into."""
    try:
        return storable(parse(value))
    except ValueError:
        return False


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
    ),
    config=core_schema.CoreConfig(cache_strings="keys"),  # few values come again
).validate_json
