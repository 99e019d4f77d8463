"""The kinds of value a field may hold, each with its reason code and its JSON Schema."""

from dataclasses import dataclass
from datetime import UTC, datetime
from operator import methodcaller
from typing import Annotated, Any, Literal, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, JsonValue
from pydantic_core import CoreSchema, SchemaSerializer, core_schema

from schemas.reasons import REASONS

ConnectorSyncStatus = Literal[
    "canceling", "canceled", "completed", "error", "in_progress", "pending", "suspended"
]
JobType = Literal["full", "incremental", "access_control"]

STATUSES: tuple[str, ...] = get_args(ConnectorSyncStatus)
JOB_TYPES: tuple[str, ...] = get_args(JobType)

MAX_COUNT = 2**63 - 1
MAX_ID_BYTES = 512

# Most times are in UTC: `datetime.fromisoformat` is the fastest way there. It knows the calendar
# but takes more than RFC 3339 does, so the patterns leave it nothing else to decide.
_DATE_TIME = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
)
_IN_UTC = rf"^{_DATE_TIME}(?:Z|[+-]00:00)$"
_WITH_OFFSET = rf"^{_DATE_TIME}(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$"
# The same for the years from 1000 on and for whole days of the calendar only, so that such text is
# a time for certain.
_DAY = (
    r"(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29)"
)
_EVERYDAY = rf"^{_DAY}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|\+00:00)$"
_ASCII_ID = r"^(?:\.*[ -\-/-~][ -~]*|\.{3,})$"
_ID = r"^(?:\.*[^.\p{Cc}]\P{Cc}*|\.{3,})$"
_TEXT = r"^[^\x00]*$"

TIME_JSON: dict[str, Any] = {
    "type": "string",
    "format": "date-time",
    "pattern": (
        "^(?!0000)[0-9]{4}-"
        "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
        "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|[12][0-9]))"
        "[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]+)?"
        "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$"
    ),
}
COUNT_JSON: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": MAX_COUNT}
STATUS_JSON: dict[str, Any] = {"enum": list(STATUSES)}
ID_JSON: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_BYTES,
    "pattern": "^(?!\\.{1,2}$)[^\\u0000-\\u001f\\u007f-\\u009f]+$",
}
TEXT_JSON: dict[str, Any] = {"type": "string", "pattern": "^[^\\u0000]*$"}
OBJECT_JSON: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Rule:
    """How pydantic validates a field, and what the JSON Schema says of it."""

    core: CoreSchema
    json: dict[str, Any]

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return self.core

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.json)


def _rule(reason: str, core: CoreSchema, json: dict[str, Any]) -> Rule:
    """Make every failure of `core` one error whose type is the reason code."""
    fix = REASONS[reason].fix
    return Rule(
        core_schema.custom_error_schema(core, custom_error_type=reason, custom_error_message=fix),
        json,
    )


def _nullable(rule: Rule) -> Rule:
    json = {"anyOf": [rule.json, {"type": "null"}]}
    return Rule(core_schema.nullable_schema(rule.core), json)


def _within_bytes(text: str) -> str:
    if len(text.encode()) > MAX_ID_BYTES:
        raise ValueError
    return text


def _text(pattern: str, max_length: int | None = None) -> CoreSchema:
    return core_schema.str_schema(pattern=pattern, max_length=max_length, strict=True)


_moment = core_schema.datetime_schema(
    microseconds_precision="truncate",
    tz_constraint="aware",
    ge=datetime.min.replace(tzinfo=UTC),
    le=datetime.max.replace(tzinfo=UTC),
)
_time = core_schema.union_schema(
    [
        core_schema.no_info_after_validator_function(datetime.fromisoformat, _text(_IN_UTC)),
        core_schema.no_info_after_validator_function(
            methodcaller("astimezone", UTC),
            core_schema.chain_schema(
                [
                    core_schema.union_schema(
                        [_text(_WITH_OFFSET), core_schema.is_instance_schema(datetime)]
                    ),
                    _moment,
                ]
            ),
        ),
    ],
    mode="left_to_right",
)
EVERYDAY_TIME: CoreSchema = _text(_EVERYDAY)  # stays text
_identifier = core_schema.union_schema(
    [
        _text(_ASCII_ID, MAX_ID_BYTES),
        core_schema.no_info_after_validator_function(_within_bytes, _text(_ID, MAX_ID_BYTES)),
    ],
    mode="left_to_right",
)
_object = core_schema.dict_schema(core_schema.str_schema(strict=True), strict=True)

TIME = _rule("invalid_time", _time, TIME_JSON)
COUNT = _rule("invalid_count", core_schema.int_schema(ge=0, le=MAX_COUNT, strict=True), COUNT_JSON)
STATUS = _rule("invalid_status", core_schema.literal_schema(list(STATUSES)), STATUS_JSON)
JOB_TYPE = _rule(
    "invalid_job_type", core_schema.literal_schema(list(JOB_TYPES)), {"enum": list(JOB_TYPES)}
)
ID = _rule("invalid_id", _identifier, ID_JSON)
TEXT = _rule("invalid_text", _text(_TEXT), TEXT_JSON)
OBJECT = _rule("invalid_cursor", _object, OBJECT_JSON)

Time = Annotated[datetime, TIME]
Identifier = Annotated[str, ID]
Status = Annotated[ConnectorSyncStatus, STATUS]
Kind = Annotated[JobType, JOB_TYPE]

# In a payload a field is given or left out; `None` in Python stands for left out.
PayloadTime = Annotated[datetime | None, TIME]
PayloadCount = Annotated[int | None, COUNT]
PayloadStatus = Annotated[ConnectorSyncStatus | None, STATUS]
PayloadCursor = Annotated[dict[str, JsonValue] | None, OBJECT]
ErrorText = Annotated[str | None, _nullable(TEXT)]

# In a job `null` means left out.
JobTime = Annotated[datetime | None, _nullable(TIME)]
JobCount = Annotated[int | None, _nullable(COUNT)]
JobId = Annotated[str | None, _nullable(ID)]
JobCursor = Annotated[dict[str, JsonValue] | None, _nullable(OBJECT)]

_FULL_LENGTH = len("2024-11-09T15:13:08.231000Z")
_WHOLE_SECONDS = len("2024-11-09T15:13:08")
_text_of = SchemaSerializer(core_schema.datetime_schema()).to_python


def time_text(moment: datetime) -> str:
    """Write a time as UTC with six digits of fraction: `2024-11-09T15:13:08.231000Z`."""
    text: str = _text_of(moment, mode="json")  # three times as fast as `isoformat`
    if text[-1] == "Z":
        return text if len(text) == _FULL_LENGTH else f"{text[:-1]}.000000Z"
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def utc_text(text: str) -> str:
    """Give what `time_text` would of RFC 3339 text that ends in `Z` or `+00:00`."""
    moment = text[:-1] if text[-1] == "Z" else text[:-6]
    if len(moment) == _WHOLE_SECONDS:
        return moment + ".000000Z"
    return f"{moment:0<26.26}Z"
