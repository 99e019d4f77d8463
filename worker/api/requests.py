"""What Elasticsearch accepts in the bodies of the connector API, and how it reads it.

Sources: the recorded answers in `tests/data/elasticsearch-9.5-recorded.jsonl`, and the request
parsers of Elasticsearch's own connector actions. `storable` then refuses what the stores cannot
hold; each such deviation stands in docs/api.md.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from schemas.last_sync import ERROR_FIELDS, LAST_SYNC_FIELDS, LAST_SYNC_TIMES, MAX_ERROR_BYTES
from schemas.scalars import MAX_ID_BYTES, STATUSES, Identifier
from worker.api.errors import ElasticError, not_valid, suggestion, unparsable
from worker.stores.base import Registration

LAST_SYNC = "connector_update_last_sync_stats_request"
REGISTER = "connector_put_request"
MAX_DEPTH = 64  # of a document; deeper ones would be a burden to every reader of the store
MAX_LONG = 2**63
MAX_INDEX = 255  # bytes of an index name
MAX_OFFSET = timedelta(hours=18)  # of a time from UTC

# What has no end goes on to the end of the body: to look for it again at each quotation mark or
# slash would take hours.
_COMMENT = re.compile(r'("(?:[^"\\]++|\\.)*+"?)|/\*.*?(?:\*/|\Z)|//[^\n]*', re.DOTALL)
_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,9})?", re.ASCII)
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?"
    r"(?:Z|([+-])(\d\d)(?:(?P<colon>:?)(\d\d)(?:(?P=colon)(\d\d))?)?)?",
    re.ASCII,
)
# Four digits alone are a year to Elasticsearch, which it then refuses for want of a day.
_MILLISECONDS = re.compile(r"(?!-?\d{4}$)-?\d{1,18}(?:\.\d{0,6})?", re.ASCII)
KEYWORDS = {"language", "name", "service_type"}  # a description is split into words
NOTHING = object()  # a body of spaces and comments
_identifier = TypeAdapter(Identifier)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMATS = "strict_date_optional_time||epoch_millis"


# Text to JSON


def parsed(raw: bytes) -> Any:
    """Read JSON as leniently as Elasticsearch: comments, any Unicode encoding, and a tail."""
    try:
        text = raw.decode(json.detect_encoding(raw), "surrogatepass")
    except UnicodeDecodeError as error:
        raise unparsable(f"Invalid UTF-8 at byte {error.start}") from None
    text = _COMMENT.sub(lambda match: match[1] or " ", text).lstrip(" \t\r\n")
    if not text:
        return NOTHING
    _refuse_deep(text)
    try:
        return _decoder.raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise _unreadable(text, error) from None
    except ValueError as error:  # a number of thousands of digits
        raise unparsable(str(error)) from None


def _refuse_deep(text: str) -> None:
    """Before the parser, which has a limit of its own, another in each version of Python."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for sign in _BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(sign[0], 0)
        if depth > MAX_DEPTH:
            raise unparsable(f"Document nesting depth exceeds the maximum allowed ({MAX_DEPTH})")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise unparsable(f"Duplicate field '{name}'")
        found[name] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise unparsable(f"Non-standard token '{name}': enable `ALLOW_NON_NUMERIC_NUMBERS` to allow")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unreadable(text: str, error: json.JSONDecodeError) -> ElasticError:
    rest = text[error.pos :].lstrip(" \t\r\n").removeprefix(",").lstrip(" \t\r\n")
    if not rest or error.msg.startswith("Unterminated"):
        return ElasticError(400, "x_content_e_o_f_exception", "Unexpected end of file")
    wanted = {"Expecting property name": "was expecting double-quote to start field name"}
    expected = next((e for msg, e in wanted.items() if error.msg.startswith(msg)), error.msg)
    sign = rest[0]
    return unparsable(f"Unexpected character ('{sign}' (code {ord(sign)})): {expected}")


# JSON to fields

Reader = Callable[[str, Any], Any]  # gives the value of a field, or raises ValueError with why


def last_sync(body: Any) -> dict[str, JsonValue]:
    """The fields that a request sets, as Elasticsearch stores them; nulls are left out."""
    return _fields(LAST_SYNC, _LAST_SYNC, body)


def registration(body: Any) -> Registration:
    """What a request says of a connector."""
    fields = _fields(REGISTER, _REGISTER, body)
    for name, value in fields.items():
        if problem := unstorable(value):
            raise failed(REGISTER, name, problem)
    found = Registration(**fields)
    problems = []
    if found.index_name is not None and (problem := _index_problem(found.index_name)):
        reason = f"Invalid index name [{found.index_name}], {problem}"
        problems.append(f"[{found.index_name}] InvalidIndexNameException: {reason}")
    if found.is_native and not (found.index_name or "content-").startswith("content-"):
        problems.append(
            f"Index [{found.index_name}] is invalid. Index attached to an Elastic-managed"
            " connector must start with the prefix: [content-]"
        )
    if problems:
        raise not_valid(*problems)
    for name in KEYWORDS & fields.keys():
        _refuse_immense(name, fields[name])
    return found


class _TimeError(ValueError):
    """A text that is no date to Elasticsearch."""


def _fields(parser: str, rules: Mapping[str, tuple[set[str], Reader]], body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        found = "null" if body is NOTHING else _token(body)
        raise unparsable(f"[{parser}] Expected START_OBJECT but was: {found}")
    fields = {}
    for name, value in body.items():
        if name not in rules:
            raise unparsable(f"[{parser}] unknown field [{name}]{suggestion(name, rules)}")
        tokens, read = rules[name]
        if (token := _token(value)) not in tokens:
            raise unparsable(f"[{parser}] {name} doesn't support values of type: {token}")
        if value is None:
            continue
        try:
            fields[name] = read(name, value)
        except ValueError as error:
            kind = "date_time_parse" if isinstance(error, _TimeError) else "illegal_argument"
            raise failed(parser, name, str(error), f"{kind}_exception") from None
    return fields


def failed(
    parser: str, name: str, why: str, kind: str = "illegal_argument_exception"
) -> ElasticError:
    return unparsable(f"[{parser}] failed to parse field [{name}]", (kind, why))


def _token(value: Any) -> str:
    if value is None:
        return "VALUE_NULL"
    if isinstance(value, bool):
        return "VALUE_BOOLEAN"
    kinds: dict[type, str] = {list: "START_ARRAY", dict: "START_OBJECT", str: "VALUE_STRING"}
    return kinds.get(type(value), "VALUE_NUMBER")


def _status(_: str, value: str) -> str:
    if value.lower() not in STATUSES:
        raise ValueError(f"Unknown sync status [{value}].")
    return value.lower()


def _count(_: str, value: Any) -> int:
    """A number, or a text of one, cut to an integer; it has to fit into 64 bits."""
    if not _NUMBER.fullmatch(str(value)):
        raise ValueError(f'For input string: "{value}"')
    number = Decimal(value)  # of a float all its digits
    if number.adjusted() > 19 or not -MAX_LONG <= int(number) < MAX_LONG:  # noqa: PLR2004 - digits
        raise ValueError(f"Value [{value}] is out of range for a long")
    return int(number)


def _time(_: str, value: str) -> str:
    """`strict_date_optional_time||epoch_millis`, in UTC, with 3, 6 or 9 digits of a second."""
    if _MILLISECONDS.fullmatch(value):
        whole, nanoseconds = divmod(int(Decimal(value).scaleb(6)), 1_000_000_000)
        moment = _moved(_EPOCH, timedelta(seconds=whole), value)
        return _printed(moment, f"{nanoseconds:09}")
    match = _TIME.fullmatch(value)
    if match is None:
        raise _TimeError(f"failed to parse date field [{value}] with format [{_FORMATS}]")
    *parts, fraction, sign, hours, _, minutes, seconds = match.groups()
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in parts)
        local = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        offset = _offset(int(hours or 0), int(minutes or 0), int(seconds or 0))
    except ValueError as error:
        raise _TimeError(f"failed to parse date field [{value}]: {error}") from None
    moment = _moved(local, offset if sign == "-" else -offset, value)
    return _printed(moment, (fraction or "").ljust(9, "0"))


def _offset(hours: int, minutes: int, seconds: int) -> timedelta:
    offset = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    if max(minutes, seconds) > 59 or offset > MAX_OFFSET:  # noqa: PLR2004 - as on a clock
        raise ValueError(f"its offset must be in -{MAX_OFFSET}..+{MAX_OFFSET}")
    return offset


def _moved(moment: datetime, by: timedelta, value: str) -> datetime:
    try:
        return moment + by
    except OverflowError:
        raise ValueError(f"the time [{value}] lies outside the years 1 to 9999") from None


def _printed(moment: datetime, nanoseconds: str) -> str:
    """With three digits of a second, or as many more as it takes."""
    digits = nanoseconds.removesuffix("000").removesuffix("000")
    return f"{moment.replace(tzinfo=None).isoformat()}.{digits or '000'}Z"


def _boolean(_: str, value: Any) -> bool:
    known = {"true": True, "false": False, True: True, False: False}
    if value not in known:
        raise ValueError(f"Failed to parse value [{value}] as only [true] or [false] are allowed.")
    return known[value]


def _same(_: str, value: Any) -> Any:
    return value


_STRING, _NULL = "VALUE_STRING", "VALUE_NULL"
_LAST_SYNC: dict[str, tuple[set[str], Reader]] = {
    name: ({_STRING, _NULL}, _status) for name in LAST_SYNC_FIELDS
} | {
    **{name: ({_STRING, _NULL}, _same) for name in sorted(ERROR_FIELDS)},
    **{name: ({_STRING, _NULL}, _time) for name in LAST_SYNC_TIMES},
    "last_deleted_document_count": ({_STRING, "VALUE_NUMBER"}, _count),
    "last_indexed_document_count": ({_STRING, "VALUE_NUMBER"}, _count),
    "sync_cursor": ({"START_OBJECT", _NULL}, _same),
}
_REGISTER: dict[str, tuple[set[str], Reader]] = {
    "description": ({_STRING}, _same),
    "index_name": ({_STRING, _NULL}, _same),
    "is_native": ({_STRING, "VALUE_BOOLEAN"}, _boolean),
    "language": ({_STRING}, _same),
    "name": ({_STRING}, _same),
    "service_type": ({_STRING}, _same),
}


_INDEX_RULES: tuple[tuple[Callable[[str], Any], str], ...] = (
    (lambda name: not name, "must not be empty"),
    (
        lambda name: set(name) & set(' "*,/<>?\\|'),
        'must not contain the following characters [ , ", *, \\, <, |, ,, >, /, ?]',
    ),
    (lambda name: "#" in name, "must not contain '#'"),
    (lambda name: ":" in name, "must not contain ':'"),
    (lambda name: name[0] in "_-+", "must not start with '_', '-', or '+'"),
    (lambda name: len(name.encode("utf-8", "surrogatepass")) > MAX_INDEX, "name is too long"),
    (lambda name: name in {".", ".."}, "must not be '.' or '..'"),
)


def _index_problem(name: str) -> str | None:
    """What Elasticsearch says of an index name that it does not take."""
    return next((problem for broken, problem in _INDEX_RULES if broken(name)), None)


# Fields to what the stores hold


def storable(fields: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Write the fields as the merge rule keeps them; refuse what no store of ours can hold."""
    return {name: _stored(name, value) for name, value in fields.items()}


def _stored(name: str, value: Any) -> Any:
    if name in LAST_SYNC_TIMES:
        second, _, fraction = value.removesuffix("Z").partition(".")
        return f"{second}.{fraction[:6]:0<6}Z"
    if isinstance(value, int) and value < 0:
        raise failed(LAST_SYNC, name, f"[{value}] is negative: nothing can have been counted")
    if name in ERROR_FIELDS:
        _refuse_immense(name, value)
    if problem := unstorable(value):
        raise failed(LAST_SYNC, name, problem)
    return value


def _refuse_immense(name: str, text: str) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_ERROR_BYTES:
        raise ElasticError(
            400,
            "document_parsing_exception",
            f'Document contains at least one immense term in field="{name}" (whose UTF8 encoding'
            f" is longer than the max length {MAX_ERROR_BYTES}), all of which were skipped.",
        )


def unstorable(value: Any) -> str | None:
    """Why no store of ours can hold this value, or a part of it."""
    match value:
        case str():
            return _bad_text(value)
        case float() if value in {float("inf"), float("-inf")}:
            return "it contains a number that no float holds"
        case dict() | list():
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            return next(filter(None, (unstorable(part) for part in parts)), None)
    return None


def _bad_text(text: str) -> str | None:
    if "\0" in text:
        return "it contains NUL, which PostgreSQL cannot hold"
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return "it contains half of a surrogate pair, which is no Unicode"
    return None


def refuse_long(id_: str) -> None:
    size = len(id_.encode("utf-8", "surrogatepass"))
    if size > MAX_ID_BYTES:
        raise not_valid(
            f"id [{id_}] is too long, must be no longer than {MAX_ID_BYTES} bytes but was: {size}"
        )


def identifier(id_: str) -> str:
    """The id of a connector that is about to be made."""
    refuse_long(id_)
    if not possible(id_):
        raise not_valid(f"id {id_!r} must not be '.' or '..', or contain control characters")
    return id_


def possible(id_: str) -> bool:
    """Can a connector have this id? Events could not name others."""
    try:
        _identifier.validate_python(id_)
    except ValidationError:
        return False
    return True
