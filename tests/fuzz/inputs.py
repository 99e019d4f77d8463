"""What an input is made of: parts, so laid out that mutated bytes are parts again."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from schemas.dead_letter import Headers
from tests.test_pipeline import Record

SEPARATOR = b"\xff"  # no byte of UTF-8, as the next one
NULL = b"\xfe"
GROWN = b"\xfd"  # what stands between two of them is repeated up to this size
SIZE = 64 * 1024  # bytes: what takes the square of the time takes seconds

MOST = 2  # seconds of the CPU that an input may take: on a busy machine a clock would blame it

Run = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A surface: what an input does to it, which raises where a promise is broken."""

    opened: Callable[[], AbstractContextManager[Run]]
    seeds: Sequence[bytes]
    words: Sequence[bytes]  # parts, or pieces of parts, that mean something there


def timed(run: Run) -> Run:
    def within(data: bytes) -> None:
        began = time.process_time()
        run(data)
        assert (took := time.process_time() - began) < MOST, f"it took {took:.1f} s"

    return within


def split(data: bytes) -> list[bytes | None]:
    return [None if part == NULL else grown(part) for part in data.split(SEPARATOR)]


def grown(part: bytes) -> bytes:
    before, mark, rest = part.partition(GROWN)
    unit, _, after = rest.partition(GROWN)
    return before + unit * (SIZE // max(1, len(unit))) + after if mark else part


def joined(parts: Iterable[bytes | None]) -> bytes:
    return SEPARATOR.join(NULL if part is None else part for part in parts)


def of_record(key: bytes | None, value: bytes | None, headers: Headers = ()) -> bytes:
    flat = [part for name, content in headers for part in (name.encode(), content)]
    return joined([value, key, *flat])


def record(data: bytes) -> Record:
    """A record as the client gives it: names of headers are text."""
    value, key, *flat = [*split(data), None][: max(2, data.count(SEPARATOR) + 1)]
    names = [(name or b"").decode(errors="replace") for name in flat[::2]]
    return Record(value, key=key, headers=tuple(zip(names, flat[1::2], strict=False)))
