"""Letters: any record is one or is told why not, and what was written is what is read."""

from contextlib import nullcontext
from dataclasses import replace

from schemas.dead_letter import MAX_MESSAGE, MIN_RECORD, PREFIX, DeadLetter, Original, record_size
from schemas.reasons import REASONS, Invalid
from tests.fuzz.inputs import SEPARATOR, Target, joined, of_record, record
from tests.test_pipeline import AT, NOW, ORIGIN, Record
from worker import pipeline
from worker.merge import CONNECTOR_NOT_FOUND

NAMES = (
    *("topic", "partition", "offset", "group", "delivery.count", "message", "reason", "status"),
    *("key", "timestamp", "connector_id", "failed_at", "store"),
    *("value_null", "headers_dropped", "value_size", "value_sha256", "key_size", "new"),
)
WORDS = [
    *((PREFIX + name).encode() for name in NAMES),
    *(b"true", b"400", b"404", b"0", b"00", b"-1", b"9" * 19, b"9" * 20, b"\xfe", b"", b"a" * 600),
    *(b"invalid_id", b"too_large", b"g/t/3/7@99", b"2026-01-01T00:00:00.000000Z", b"1e5"),
    *(b"__dlq.", b"__dlq.resolved.by", b"ce_id", b"content-type", b"131072", b"700", b"\xc3"),
]


def letter_of(read: Record) -> DeadLetter:
    found = pipeline.read(read, NOW)
    verdict = found if isinstance(found, Invalid) else CONNECTOR_NOT_FOUND
    return pipeline.letter(read, found, verdict, ORIGIN, AT)


def run(data: bytes) -> None:
    room, _, rest = data.partition(SEPARATOR)
    read = record(rest)
    is_read_or_refused(read)
    comes_back(letter_of(read), int(room[:9]) if room.isdigit() else MIN_RECORD)


def is_read_or_refused(read: Record) -> None:
    try:
        letter = DeadLetter.from_record(read.key, read.value, read.headers)
    except ValueError:
        return
    assert letter.id.encode() == read.key
    assert Original(letter.value, letter.headers) == Original.of(read.value, read.headers)
    comes_back(letter, MIN_RECORD)


def comes_back(letter: DeadLetter, room: int) -> None:
    """It is read as it was written; in too little room it may be refused, and never too large."""
    if room < MIN_RECORD:
        try:
            letter.fitted(room).record()
        except ValueError:
            return
    key, value, headers = letter.fitted(room).record()
    assert record_size(key, value, headers) <= room
    back = DeadLetter.from_record(key, value, headers)
    expected = letter.fitted(room)
    if len(expected.message.encode()) > MAX_MESSAGE:  # of a letter that others wrote
        expected = replace(expected, message=back.message)
    assert back == expected
    assert back.fitted(room).record() == (key, value, headers)


def seeds() -> list[bytes]:
    found = []
    for each in REASONS.values():
        read = Record(each.value, headers=each.headers)
        key, value, headers = letter_of(read).fitted(MIN_RECORD).record()
        whole = of_record(key, value, headers)
        found += [b"131072" + SEPARATOR + whole, joined([b"900"]) + SEPARATOR + whole]
    return found


TARGET = Target(opened=lambda: nullcontext(run), seeds=seeds(), words=WORDS)
