"""A dead letter and its record: the original bytes, and headers that say what is wrong.

The first six headers are those of KIP-1191; the others are this project's. All of them begin with
`__dlq.errors.`, and numbers are decimal text.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self, TypeVar

from pydantic import ValidationError
from pydantic_core import SchemaValidator

from schemas.scalars import TIME, time_text

PREFIX = "__dlq.errors."
RESOLVED = "__dlq.resolved."
RESERVED = "__dlq."  # original headers of this family would be taken for ours

MAX_ORIGINAL_HEADERS = 32 * 1024  # bytes of names and values
MAX_CUT_VALUE = 64 * 1024  # bytes of a value that does not fit
MAX_MESSAGE = 4 * 1024  # bytes: a store's own words can be long
MIN_RECORD = 128 * 1024  # bytes in which any letter fits, whatever Kafka let in
TOO_LARGE = "too_large"

Headers = Sequence[tuple[str, bytes | None]]
RecordHeaders = list[tuple[str, bytes | None]]
Read = TypeVar("Read")

# A record alone in an uncompressed batch, with every variable-length integer at its longest: the
# batch's header; the record's length, attributes, timestamp, offset, key, value, header count.
_RECORD_OVERHEAD = 61 + 5 + 1 + 10 + 5 + 5 + 5 + 5
_HEADER_OVERHEAD = 5 + 5

_NUMBER = "(?:0|[1-9][0-9]{0,18})"
_number_match = re.compile(_NUMBER.encode()).fullmatch
_place_match = re.compile(f"{_NUMBER}/{_NUMBER}@(?:{_NUMBER}|-1)".encode()).fullmatch
_time = SchemaValidator(TIME.core).validate_python

_USUAL = tuple(
    PREFIX + name
    for name in (
        *("topic", "partition", "offset", "group", "delivery.count", "message"),
        *("reason", "status", "key", "timestamp", "connector_id", "failed_at", "store"),
    )
)
_TOPIC, _PARTITION, _OFFSET, _GROUP, _DELIVERY_COUNT, _MESSAGE = _USUAL[:6]
_REASON, _STATUS, _KEY, _TIMESTAMP, _CONNECTOR_ID, _FAILED_AT, _STORE = _USUAL[6:]
_NAMES = frozenset(_USUAL)
_DISPENSABLE = {_DELIVERY_COUNT, _KEY, _CONNECTOR_ID}  # a letter can be read without
_VALUE_NULL, _HEADERS_DROPPED, _VALUE_SIZE, _VALUE_SHA256, _KEY_SIZE = (
    PREFIX + name
    for name in ("value_null", "headers_dropped", "value_size", "value_sha256", "key_size")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that cannot be applied as it is, with the reason.

    `key`, `value` and `headers` are the original record's. The last four fields say what is
    missing of it: how many headers were dropped, and the size of a value or key that was cut.
    """

    group: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    reason: str
    status: Literal[400, 404]
    message: str
    connector_id: str | None
    failed_at: datetime
    store: str
    headers_dropped: int = 0
    value_size: int | None = None
    value_sha256: str | None = None
    key_size: int | None = None

    @property
    def id(self) -> str:
        """Name the original record: the same record always gives the same letter."""
        return f"{self.group}/{self.topic}/{self.partition}/{self.offset}@{self.timestamp_ms}"

    def record(self) -> tuple[bytes, bytes, RecordHeaders]:
        """Give key, value and headers of the letter as it is."""
        ours: dict[str, str | int | bytes | None] = {
            _TOPIC: self.topic,
            _PARTITION: self.partition,
            _OFFSET: self.offset,
            _GROUP: self.group,
            _DELIVERY_COUNT: 1,
            _MESSAGE: _shortened(self.message),
            _REASON: self.reason,
            _STATUS: self.status,
            _KEY: self.key,
            _TIMESTAMP: self.timestamp_ms,
            _CONNECTOR_ID: self.connector_id,
            _FAILED_AT: time_text(self.failed_at),
            _STORE: self.store,
            _VALUE_NULL: "true" if self.value is None else None,
            _HEADERS_DROPPED: self.headers_dropped or None,
            _VALUE_SIZE: self.value_size,
            _VALUE_SHA256: self.value_sha256,
            _KEY_SIZE: self.key_size,
        }
        headers = [(name, _bytes(value)) for name, value in ours.items() if value is not None]
        return self.id.encode(), self.value or b"", [*headers, *self.headers]

    def fitted(self, max_bytes: int) -> "DeadLetter":
        """Give the letter as a record of `max_bytes` uncompressed can hold it.

        A letter that does not fit is cut and gets the reason `too_large`. `MIN_RECORD` bytes are
        enough for every letter; below that, one that cannot be cut further raises `ValueError`.
        """
        letter = _with_headers_that_ride_along(self)
        return letter if _fits(letter, max_bytes) else _cut(letter, max_bytes)

    @classmethod
    def from_record(cls, key: bytes | None, value: bytes | None, headers: Headers) -> Self:
        """Read a letter back.

        Raises `ValueError`, and nothing else, when the record is not a letter of this project:
        its text says what is missing or wrong.
        """
        about, ours = About.read(key, value, headers), _ours(headers)
        return cls(
            **about.failure._asdict(),
            partition=about.partition,
            offset=about.offset,
            timestamp_ms=about.timestamp_ms,
            message=about.message,
            connector_id=about.connector_id,
            key=ours.get(_KEY),
            value=about.original.value,
            headers=about.original.headers,
            headers_dropped=_if_there(_number, ours, _HEADERS_DROPPED) or 0,
            value_size=_if_there(_number, ours, _VALUE_SIZE),
            value_sha256=_if_there(_text, ours, _VALUE_SHA256),
            key_size=_if_there(_number, ours, _KEY_SIZE),
        )


class Failure(NamedTuple):
    """What the letters of a batch have in common that failed for the same reason."""

    group: str
    topic: str
    reason: str
    status: Literal[400, 404]
    failed_at: datetime
    store: str


class About(NamedTuple):
    """What a letter says of itself, and what it carries: a tuple, for there are very many."""

    failure: Failure
    partition: int
    offset: int
    timestamp_ms: int
    message: str
    connector_id: str | None
    original: "Original"

    @classmethod
    def read(cls, key: bytes | None, value: bytes | None, headers: Headers) -> Self:
        """Read it of a letter that `DeadLetter.from_record` can read; raises as that does."""
        if key is None or value is None:
            raise ValueError("the record has no key or no value: it is not a dead letter")
        names, values = zip(*headers) if len(headers) == len(_USUAL) else ((), ())  # noqa: B905 - pairs
        if names == _USUAL and None not in values:  # as most letters are written
            original = tuple.__new__(Original, (value, ()))
        else:
            values, original = _looked_up(value, headers), Original.of(value, headers)
        topic, partition, offset, group, _, message = values[:6]
        reason, status, _, timestamp, connector_id, failed_at, store = values[6:]
        failure = _failure(group, topic, reason, status, failed_at, store)
        place = b"%b/%b@%b" % (partition, offset, timestamp)
        if not _place_match(place):
            for name, raw in ((_PARTITION, partition), (_OFFSET, offset), (_TIMESTAMP, timestamp)):
                _number(name, raw)
        if key != b"%b/%b/%b" % (group, topic, place):
            letter_id = f"{failure.group}/{failure.topic}/{place.decode()}"
            raise ValueError(f"the record's key is not {letter_id[:200]!r}, as its headers say")
        said = (
            failure,
            int(partition),
            int(offset),
            int(timestamp),
            _text(_MESSAGE, message),
            None if connector_id is None else _text(_CONNECTOR_ID, connector_id),
            original,
        )
        return tuple.__new__(cls, said)  # half of what the class's own takes


class Original(NamedTuple):
    """What an event is read from: the value and headers of the record that a letter stands for."""

    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @classmethod
    def of(cls, value: bytes | None, headers: Headers) -> Self:
        """Take it out of a letter that `About.read` has read."""
        null = not value and (_VALUE_NULL, b"true") in headers
        rest = [header for header in headers if header[0] not in _NAMES]
        if rest:  # our names of today are taken out first, as most letters have no others
            rest = [header for header in rest if not header[0].startswith(RESERVED)]
        return cls(None if null else value, tuple(rest))


def _with_headers_that_ride_along(letter: DeadLetter) -> DeadLetter:
    room = MAX_ORIGINAL_HEADERS
    kept: list[tuple[str, bytes | None]] = []
    for name, value in letter.headers:
        if not name.startswith(RESERVED):
            room -= _size(name, value)
            if room >= 0:
                kept.append((name, value))
    dropped = letter.headers_dropped + len(letter.headers) - len(kept)
    return replace(letter, headers=tuple(kept), headers_dropped=dropped)


def _fits(letter: DeadLetter, max_bytes: int) -> bool:
    return record_size(*letter.record()) <= max_bytes


def _cut(letter: DeadLetter, max_bytes: int) -> DeadLetter:
    """Keep what fits, in this order: the value's beginning, the key's, the headers."""
    bare = _emptied(letter)
    room = max_bytes - record_size(*bare.record())
    if room < 0:
        raise ValueError(
            f"dead letter {letter.id[:200]} does not fit {max_bytes} bytes even without its "
            f"value: allow at least {MIN_RECORD} bytes a record"
        )
    value = letter.value and letter.value[: min(MAX_CUT_VALUE, room)]
    key = letter.key and letter.key[: room - len(value or b"")]
    whole_key = key == letter.key and letter.key_size is None
    cut = replace(bare, value=value, key=key, key_size=None if whole_key else bare.key_size)
    complete = replace(cut, headers=letter.headers, headers_dropped=letter.headers_dropped)
    return complete if _fits(complete, max_bytes) else cut


def _emptied(letter: DeadLetter) -> DeadLetter:
    value, key = letter.value, letter.key
    again = letter.reason == TOO_LARGE
    return replace(
        letter,
        key=key and b"",
        value=value and b"",
        headers=(),
        reason=TOO_LARGE,
        message=letter.message if again else f"{letter.reason}: {letter.message}",
        headers_dropped=letter.headers_dropped + len(letter.headers),
        value_size=len(value or b"") if letter.value_size is None else letter.value_size,
        value_sha256=letter.value_sha256 or hashlib.sha256(value or b"").hexdigest(),
        key_size=len(key or b"") if letter.key_size is None else letter.key_size,
    )


def _ours(headers: Headers) -> dict[str, bytes]:
    """By name; of the original headers, which may be repeated, whatever there is."""
    found = {name: value for name, value in headers if value is not None}
    if len(found) < len(headers):
        names = Counter(name for name, _ in headers if name.startswith(PREFIX))
        for name, count in names.items():
            if count > 1 or name not in found:
                raise ValueError(f"the header {name[:100]!r} is repeated or has no value")
    return found


def _looked_up(value: bytes, headers: Headers) -> tuple[Any, ...]:
    """The contents of the usual headers, wherever they stand; None for one that is not there."""
    ours = _ours(headers)
    for name in _USUAL:
        if name not in ours and name not in _DISPENSABLE:
            raise ValueError(f"the header {name} is missing: it is not a dead letter")
    if value and ours.get(_VALUE_NULL) == b"true":
        raise ValueError(f"{_VALUE_NULL} is true, but the record has a value")
    for name in (_HEADERS_DROPPED, _VALUE_SIZE, _KEY_SIZE):
        _if_there(_number, ours, name)
    for name in (_VALUE_NULL, _VALUE_SHA256):
        _if_there(_text, ours, name)
    return tuple(map(ours.get, _USUAL))


@lru_cache(maxsize=32)  # few, for anything may stand in a record that is no letter
def _failure(*values: bytes) -> Failure:
    group, topic, reason, status, failed_at, store = values
    return Failure(
        _text(_GROUP, group),
        _text(_TOPIC, topic),
        _text(_REASON, reason),
        _status(status),
        _moment(failed_at),
        _text(_STORE, store),
    )


def _if_there(
    read: Callable[[str, bytes], Read], ours: Mapping[str, bytes], name: str
) -> Read | None:
    return read(name, ours[name]) if name in ours else None


def _text(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the header {name} is not UTF-8") from error


def _number(name: str, raw: bytes) -> int:
    if not _number_match(raw):
        text = _text(name, raw)
        raise ValueError(f"the header {name} is {text[:40]!r}, not a decimal number")
    return int(raw)


def _status(raw: bytes) -> Literal[400, 404]:
    match raw:
        case b"404":
            return 404
        case b"400":
            return 400
        case _:
            raise ValueError(f"the header {_STATUS} is {_number(_STATUS, raw)}, not 400 or 404")


def _moment(raw: bytes) -> datetime:
    text = _text(_FAILED_AT, raw)
    try:
        moment: datetime = _time(text)
    except ValidationError as error:
        raise ValueError(f"the header {_FAILED_AT} is {text[:40]!r}, no time") from error
    return moment


def record_size(key: bytes, value: bytes, headers: Headers) -> int:
    """Count the bytes of an uncompressed batch with this record alone; never too few."""
    sizes = (_HEADER_OVERHEAD + _size(name, value) for name, value in headers)
    return _RECORD_OVERHEAD + len(key) + len(value) + sum(sizes)


def _size(name: str, value: bytes | None) -> int:
    return len(name.encode(errors="surrogatepass")) + len(value or b"")


def _bytes(value: str | int | bytes) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="backslashreplace")


def _shortened(text: str) -> str:
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= MAX_MESSAGE:
        return text
    return encoded[: MAX_MESSAGE - len("…".encode())].decode(errors="ignore") + "…"


def resolution_headers(by: str, how: str, at: datetime, reason: str) -> list[tuple[str, bytes]]:
    """Give the headers of the tombstone that closes a letter."""
    values = {"by": by, "how": how, "at": time_text(at), "reason": reason}
    return [(RESOLVED + name, _bytes(value)) for name, value in values.items()]
