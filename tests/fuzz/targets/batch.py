"""Batches as brokers keep them: opened to their records, or refused with their place.

Brokers see to a batch's length, checksum and offset, so that these are right here; what it says of
itself and the records in it are a publisher's. Records are compressed after they were changed.
"""

import gzip
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import cramjam
from aiokafka import TopicPartition, codec
from aiokafka.record.default_records import DefaultRecordBase
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from tests.fuzz.inputs import GROWN, SEPARATOR, Run, Target, grown, joined, split
from tests.fuzz.records import Read, body, described, framed, number
from tests.hostile import CODECS, RawName, builder
from tests.kafka import Record
from worker import batches
from worker.batches import INT64, Batches, Partition
from worker.errors import MisconfiguredError

LIMIT = 8 * 1024  # bytes that a batch may become, instead of 64 MiB
OBJECT = 10  # bytes, instead of 200: a batch of thousands would be fetched a hundred times
TP = TopicPartition("t", 3)
BASE = 2**40  # the batch's offset

CODEC = {
    **{name.encode(): number for name, number in CODECS.items()},
    b"xerial": 2,
    **{b"%d" % number: number for number in (5, 6, 7)},  # there are none of these
}
COMPRESSED: Mapping[bytes, Callable[[bytes], Any]] = {
    b"gzip": lambda data: gzip.compress(data, 1),
    b"snappy": cramjam.snappy.compress_raw,
    b"xerial": codec.snappy_encode,
    b"lz4": codec.lz4_encode,
    b"zstd": codec.zstd_encode,
}
HEADER = DefaultRecordBase.HEADER_STRUCT
CHECKED = DefaultRecordBase.ATTRIBUTES_OFFSET  # where the checksum begins to count
FIELDS = struct.Struct(">hiqqqhii")  # the rest of the header, from the attributes on
LATER = DefaultRecordBase.TIMESTAMP_TYPE_MASK  # the time is the broker's
CONTROL = DefaultRecordBase.CONTROL_MASK


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What a batch says of itself."""

    attributes: int
    delta: int  # of the last record
    first: int  # a time, as the next
    last: int
    count: int

    @property
    def honest(self) -> bool:
        return self.delta >= self.count - 1 and not self.attributes & CONTROL


def run(data: bytes) -> None:
    how, _, rest = data.partition(SEPARATOR)
    if how == b"built":
        comes_as_it_was_built(rest)
    elif how == b"raw":
        once(grown(rest), 0)
    else:
        skip, _, rest = rest.partition(SEPARATOR)
        is_opened_or_refused(how, int(skip[:6]) if skip.isdigit() else 0, rest)


# What was opened


Opened = tuple[list[Any], int, MisconfiguredError | None]


def once(raw: bytes, position: int) -> Opened:
    """It ends in records, or in an error that says where."""
    batches.make_room()
    partition = Partition(TP, Batches(raw), [], position, None, None, True, 1)
    found: list[Any] = []
    try:
        while some := partition.take(3):
            found += some
            assert partition.next_fetch_offset > some[-1].offset
    except MisconfiguredError as error:
        refused = error
    else:
        return found, partition.next_fetch_offset, None
    reached = partition.next_fetch_offset
    assert not found
    assert reached <= position, "records before it are lost"
    assert str(refused).startswith(f"topic t partition 3 offset {reached}: ")
    assert str(refused).isprintable()
    return [], reached, refused


def opened(raw: bytes, position: int) -> Opened:
    """Fetch the bytes again and again, from the position that was reached, as the client does."""
    found, reached, error = once(raw, position)
    while reached != position and error is None:
        position = reached
        more, reached, error = once(raw, position)
        found += more
    offsets = [record.offset for record in found]
    assert offsets == sorted(set(offsets))
    return found, reached, error


def is_opened_or_refused(how: bytes, skip: int, rest: bytes) -> None:
    name = how.strip(b"=:")
    fields, records = laid_out(how, rest)
    begin = BASE + skip % (max(0, fields.delta) + 1)
    pressed = COMPRESSED.get(name) if not how.startswith(b"=") else None
    raw = batch(fields, bytes(pressed(records)) if pressed else records)
    found, reached, error = opened(raw, begin)
    assert all(begin <= record.offset <= BASE + fields.delta for record in found)
    assert error or reached == BASE + fields.delta + 1, "it would be fetched for ever"
    if CODEC.get(name):
        assert sum(map(size, found)) <= LIMIT
    if not fields.honest or (CODEC.get(name) and not (pressed and 0 < len(records) <= LIMIT)):
        return
    expected = described(records)
    if expected is None or len(expected) != fields.count:
        return
    if any(kept(record, fields)[0] not in INT64 for record in expected):
        return
    assert error is None, error
    deltas = [record.delta for record in expected]
    if deltas == sorted({delta for delta in deltas if 0 <= delta <= fields.delta}):
        expected = [record for record in expected if BASE + record.delta >= begin]
        assert [record.offset for record in found] == [BASE + record.delta for record in expected]
    elif begin != BASE:
        return
    assert [content(record) for record in found] == [kept(record, fields) for record in expected]


def size(record: Any) -> int:
    held = [record.key, record.value, *(value for _, value in record.headers)]
    return sum(len(part or b"") for part in held)


def content(record: Any) -> tuple[Any, ...]:
    return record.timestamp, record.key, record.value, record.headers


def kept(record: Read, fields: Fields) -> tuple[Any, ...]:
    time = fields.last if fields.attributes & LATER else fields.first + record.later
    return time, record.key, record.value, record.headers


def comes_as_it_was_built(rest: bytes) -> None:
    """By every codec, as the client itself writes it."""
    key, value, *flat = [*split(rest), None, None][: max(2, rest.count(SEPARATOR) + 1)]
    names = [(name or b"").decode(errors="replace") for name in flat[::2]]
    headers = tuple(zip(names, flat[1::2], strict=False))
    records = [
        Record(key=key, value=value, headers=headers, timestamp=7),
        Record(key=value, value=key, timestamp=0),
    ]
    sizes = [size(record) + sum(len(n.encode()) for n, _ in record.headers) for record in records]
    if sum(sizes) + 64 + 20 * len(headers) > LIMIT:
        return
    for name in CODECS:
        found, reached, error = opened(bytes(builder(records, name).build()), 0)
        assert (error, reached) == (None, 2)
        assert [content(record) for record in found] == [content(record) for record in records]


# What a batch is made of


def laid_out(how: bytes, rest: bytes) -> tuple[Fields, bytes]:
    """The header's fields, and the records; a count of none is taken for what is there."""
    head = rest[: FIELDS.size].ljust(FIELDS.size, b"\0")
    records = rest[FIELDS.size :]
    if how.endswith(b":"):
        records = b"".join(framed(part or b"") for part in split(records))
    else:
        records = grown(records)
    attributes, delta, first, last, _, _, _, count = FIELDS.unpack(head)
    attributes = attributes & ~DefaultRecordBase.CODEC_MASK | CODEC.get(how.strip(b"=:"), 0)
    if not count:
        count = len(described(records) or ())
        delta = max(delta, count - 1)
    return Fields(attributes=attributes, delta=delta, first=first, last=last, count=count), records


def batch(fields: Fields, records: bytes) -> bytes:
    rest = FIELDS.pack(
        fields.attributes, fields.delta, fields.first, fields.last, 7, 0, 0, fields.count
    )
    checked = rest + records
    length = HEADER.size - DefaultRecordBase.AFTER_LEN_OFFSET + len(records)
    return struct.pack(">qiibI", BASE, length, 0, 2, calc_crc32c(checked)) + checked


# Where to begin


def fields(attributes: int = 0, delta: int = 0, count: int = 0) -> bytes:
    return FIELDS.pack(attributes, delta, 1_000, 2_000, 0, 0, 0, count)


def seeds() -> Iterator[bytes]:
    large = GROWN + b"a" + GROWN
    bad = RawName.of(b"\xc3(")
    headers = (("traceparent", b"00"), ("empty", None))
    records = [body(0, b"k", b"v"), body(1, None, None, headers), body(2, b"k", b"", ((bad, b""),))]
    yield joined([b"built", b"key", b"value", b"name", b"text", b"", None])
    yield joined([b"built", None, large])
    for name in CODEC:
        yield joined([name + b":", b"0", fields() + records[0], *records[1:]])
        yield joined([name, b"1", fields(count=3, delta=5) + b"".join(map(framed, records))])
        yield joined([b"=" + name, b"0", fields(count=1) + compressed(name, framed(records[0]))])
        yield joined([name, b"0", fields() + GROWN + framed(records[0]) + GROWN])
    for name in (b"none:", b"zstd:"):  # what was found once: a length that points beyond the batch
        said = fields(count=2, delta=1) + body(0, b"k", b"", ((bad, b""),))
        yield joined([name, b"0", said, b"\0\0\x02" + number(2**40)])
    for attributes in (LATER, CONTROL, DefaultRecordBase.TRANSACTIONAL_MASK):
        yield joined([b"none:", b"0", fields(attributes) + body(0, bytes(4), bytes(6))])
    for magic in (0, 1):
        for kind in (0, 1, 2):
            made = LegacyRecordBatchBuilder(magic, kind, 1_000)
            made.append(0, 1_000, b"k", b"v")
            yield joined([b"raw", bytes(made.build())])
    honest = [Record(value=b"v", key=b"k", timestamp=1_000) for _ in range(2)]
    yield joined([b"raw", bytes(builder(honest, "none").build() * 2)])


def compressed(name: bytes, data: bytes) -> bytes:
    return bytes(COMPRESSED[name](data)) if name in COMPRESSED else data


WORDS: Sequence[bytes] = [
    *(name + end for name in CODEC for end in (b"", b":")),
    *(b"=" + name for name in CODEC),
    *map(number, (0, 1, -1, 2, 63, 64, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**63))),
    *(b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"\x80\x00", b"\x80", b"\0\0\0\0", b"\x20"),
    *(b"\xc3(", b"\xed\xa0\x80", b"\x02k", b"\x02v\0", b"\x04\x02k\x02v", b"\x02\x02n\x01"),
    *(b"\x82SNAPPY\0\0\0\0\1\0\0\0\1", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"),
    *(body(0, b"k", b"v"), body(1, None, None), body(-5, b"", b"x", (("n", b"y"),))),
    *(struct.pack(">q", value) for value in (0, -1, 2**63 - 1, -(2**63))),
    *(struct.pack(">i", value) for value in (1, -1, 2**31 - 1, -(2**31), -12, 14)),
    *(b"0", b"1", b"2", b"raw", b"built"),
]


@contextmanager
def small() -> Iterator[Run]:
    """With limits that an input reaches, and in proportion what each record counts for."""
    with patch.multiple(
        batches, MAX_BATCH=LIMIT, FIRST_ROOM=64, MAX_POLL=LIMIT // 2, OBJECT=OBJECT, SLICE=64
    ):
        yield run


TARGET = Target(opened=small, seeds=list(dict.fromkeys(seeds())), words=WORDS)
