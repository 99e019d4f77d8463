"""A dead letter and its record: the original bytes, and headers that say what is wrong.

The first six headers are those of KIP-1191; the others are this project's. All of them begin with
`__dlq.errors.`, and numbers are decimal text.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Self

from pydantic import ValidationError
from pydantic_core import SchemaValidator

from schemas.last_sync import time_text
from schemas.scalars import TIME

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

# A record alone in an uncompressed batch, with every variable-length integer at its longest: the
# batch's header; the record's length, attributes, timestamp, offset, key, value, header count.
_RECORD_OVERHEAD = 61 + 5 + 1 + 10 + 5 + 5 + 5 + 5
_HEADER_OVERHEAD = 5 + 5

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_moment = SchemaValidator(TIME.core).validate_python


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

    def to_record(self, max_bytes: int) -> tuple[bytes, bytes, RecordHeaders]:
        """Give key, value and headers of `fitted(max_bytes)`."""
        return _record(self.fitted(max_bytes))

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
        if key is None or value is None:
            raise ValueError("the record has no key or no value: it is not a dead letter")
        ours = _OurHeaders(headers)
        null = ours.text_or_none("value_null") == "true"
        if null and value:
            raise ValueError(f"{PREFIX}value_null is true, but the record has a value")
        letter = cls(
            group=ours.text("group"),
            topic=ours.text("topic"),
            partition=ours.number("partition"),
            offset=ours.number("offset"),
            timestamp_ms=-1 if ours.raw("timestamp") == b"-1" else ours.number("timestamp"),
            key=ours.raw("key"),
            value=None if null else value,
            headers=tuple((n, v) for n, v in headers if not n.startswith(RESERVED)),
            reason=ours.text("reason"),
            status=ours.status(),
            message=ours.text("message"),
            connector_id=ours.text_or_none("connector_id"),
            failed_at=ours.moment("failed_at"),
            store=ours.text("store"),
            headers_dropped=ours.number_or_none("headers_dropped") or 0,
            value_size=ours.number_or_none("value_size"),
            value_sha256=ours.text_or_none("value_sha256"),
            key_size=ours.number_or_none("key_size"),
        )
        if letter.id.encode() != key:
            raise ValueError(f"the record's key is not {letter.id[:200]!r}, as its headers say")
        return letter


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
    return record_size(*_record(letter)) <= max_bytes


def _cut(letter: DeadLetter, max_bytes: int) -> DeadLetter:
    """Keep what fits, in this order: the value's beginning, the key's, the headers."""
    bare = _emptied(letter)
    room = max_bytes - record_size(*_record(bare))
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


def _record(letter: DeadLetter) -> tuple[bytes, bytes, RecordHeaders]:
    ours: dict[str, str | int | bytes | None] = {
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "group": letter.group,
        "delivery.count": 1,
        "message": _shortened(letter.message),
        "reason": letter.reason,
        "status": letter.status,
        "key": letter.key,
        "timestamp": letter.timestamp_ms,
        "connector_id": letter.connector_id,
        "failed_at": time_text(letter.failed_at),
        "store": letter.store,
        "value_null": "true" if letter.value is None else None,
        "headers_dropped": letter.headers_dropped or None,
        "value_size": letter.value_size,
        "value_sha256": letter.value_sha256,
        "key_size": letter.key_size,
    }
    headers = [(PREFIX + name, _bytes(value)) for name, value in ours.items() if value is not None]
    return letter.id.encode(), letter.value or b"", [*headers, *letter.headers]


class _OurHeaders:
    """The headers that a letter adds to the original ones, read strictly."""

    def __init__(self, headers: Headers) -> None:
        self._values: dict[str, bytes] = {}
        for name, value in headers:
            if name.startswith(PREFIX):
                if name in self._values or value is None:
                    raise ValueError(f"the header {name[:100]!r} is repeated or has no value")
                self._values[name] = value

    def raw(self, name: str) -> bytes | None:
        return self._values.get(PREFIX + name)

    def text_or_none(self, name: str) -> str | None:
        value = self.raw(name)
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the header {PREFIX}{name} is not UTF-8") from error

    def text(self, name: str) -> str:
        text = self.text_or_none(name)
        if text is None:
            raise ValueError(f"the header {PREFIX}{name} is missing: it is not a dead letter")
        return text

    def number_or_none(self, name: str) -> int | None:
        return None if self.raw(name) is None else self.number(name)

    def number(self, name: str) -> int:
        text = self.text(name)
        if not _NUMBER.fullmatch(text):
            raise ValueError(f"the header {PREFIX}{name} is {text[:40]!r}, not a decimal number")
        return int(text)

    def status(self) -> Literal[400, 404]:
        match self.number("status"):
            case 400:
                return 400
            case 404:
                return 404
            case other:
                raise ValueError(f"the header {PREFIX}status is {other}, not 400 or 404")

    def moment(self, name: str) -> datetime:
        text = self.text(name)
        try:
            moment: datetime = _moment(text)
        except ValidationError as error:
            raise ValueError(f"the header {PREFIX}{name} is {text[:40]!r}, no time") from error
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
