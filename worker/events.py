"""Files of events, one a line, as `validate` and `publish` read them."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import jiter

from schemas.sync_finished import Invalid, SyncFinished, decode

CLOUDEVENTS = ("content-type", b"application/cloudevents+json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One event of a file, and what the worker would make of it."""

    number: int
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    judged: SyncFinished | Invalid


def lines(data: bytes) -> Iterator[Line]:
    """Judge each event: a line each, or one document that fills the whole file.

    A line with a `specversion` is taken for a CloudEvent in structured mode, as its publisher
    would mark it with a header.
    """
    now = time.time_ns() // 1000
    for number, value in _split(data):
        headers = (CLOUDEVENTS,) if _is_cloudevent(value) else ()
        judged = decode(value, headers, now=now)
        yield Line(number=number, value=value, headers=headers, judged=judged)


def _split(data: bytes) -> Iterable[tuple[int, bytes]]:
    if b"\n" in data.strip() and isinstance(_parsed(data), dict):
        return [(1, data)]
    numbered = enumerate(data.splitlines(), start=1)
    return [(number, line) for number, line in numbered if line.strip()]


def _is_cloudevent(value: bytes) -> bool:
    document = _parsed(value)
    return isinstance(document, dict) and "specversion" in document


def _parsed(value: bytes) -> object:
    try:
        return jiter.from_json(value)
    except ValueError:
        return None
