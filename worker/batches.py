"""How fetched batches are opened: none without a limit, and every record of them can be read.

aiokafka decompresses a batch whole, however large it becomes (a megabyte of zstd, 30 gigabytes),
and raises for ever at a header whose name is not UTF-8, which brokers let in. It has no setting for
either, so that three of its classes are replaced where it looks for them.
"""

import gzip
import io
import struct
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import cramjam
from aiokafka import TopicPartition, codec
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaError
from aiokafka.record.default_records import (
    DefaultRecordBase,
    DefaultRecordBatch,
    _DefaultRecordBatchPy,
    _DefaultRecordPy,
)
from aiokafka.record.memory_records import _MemoryRecordsPy
from aiokafka.record.util import decode_varint_py

from worker.errors import MisconfiguredError
from worker.records import Headers, Record

MAX_BATCH = 64 * 1024 * 1024  # bytes that a compressed batch may become
MAX_HEADERS = 512 * 1024  # of a record: each takes 200 bytes, with some in it
MAX_POLL = 32 * 1024 * 1024  # bytes of records that a batch may have, of all partitions together
SLICE = 256 * 1024  # bytes of records that are given together, or one record
OBJECT = 200  # bytes that a record, a header, or a part of a cursor takes beside what is in it
FIRST_GUESS = 8  # times the compressed size
FIRST_ROOM = 64 * 1024  # bytes
FORMAT = 2  # of batches: others have no headers, which letters and CloudEvents need
XERIAL_HEADER = 16  # bytes before the blocks of the framing that Java gives snappy
MARKER = 4  # bytes that the marker of a transaction has at least
INT64 = range(-(2**63), 2**63)

_CURSOR, _ESCAPE = b"sync_cursor", b"\\u"  # its name may be written so, too

_NO_ABORT = _DefaultRecordPy(0, 0, 0, struct.pack(">hh", 0, 1), None, [])
_HEADER = DefaultRecordBase.HEADER_STRUCT
_ATTRIBUTES = DefaultRecordBase.ATTRIBUTES_OFFSET
_CODEC = DefaultRecordBase.CODEC_MASK
_MAGIC = struct.calcsize(">qii")  # where a batch, or a message of old, says its format

# What the codecs raise. Most of it is an OSError, and would be taken for a broker that is away.
_DAMAGED = (cramjam.DecompressionError, OSError, EOFError, zlib.error, struct.error)
# What aiokafka raises at a batch, and where a length is nearly 2**63.
_UNREADABLE = (ValueError, KafkaError, OSError, struct.error, OverflowError, MemoryError)


class UnreadableError(ValueError):
    """A batch is larger than MAX_BATCH, or damaged, or of a format that is not read."""


def guard() -> None:
    """Let every consumer of this process open batches in this way."""
    fetcher.MemoryRecords = Batches
    fetcher.PartitionRecords = Partition
    fetcher.FetchResult = Answer


class _Room:
    """Bytes that the partitions may still give for this batch."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_POLL


_room = _Room()


def make_room() -> None:
    """Let the next poll give its share of records; to be called before each batch."""
    _room.left = MAX_POLL


def has_room() -> bool:
    return _room.left > 0


class _Slice(NamedTuple):
    """Some records of a batch. It has an offset as a record has one, for aiokafka to look at."""

    records: list[Record]
    size: int  # bytes

    @property
    def offset(self) -> int:
        return self.records[-1].offset


class Partition(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka ships no types for it
    """The fetched records of one partition, of which aiokafka handles a slice as it would a record.

    Thousands of records are a poll, and each may have a megabyte that took a kilobyte to send. What
    there is no more room for is fetched again, from the position that was reached.
    """

    def __init__(self, tp: TopicPartition, records: "Batches", *more: Any) -> None:
        self._left: list[Record] = []  # of the last slice
        super().__init__(tp, records, *more)
        records.tp = tp

    @property
    def next_fetch_offset(self) -> int:
        """Where what was not given begins."""
        return self._left[0].offset if self._left else self._reached

    @next_fetch_offset.setter
    def next_fetch_offset(self, offset: int) -> None:
        self._reached = offset

    def __next__(self) -> Record:
        for record in self.take(1):
            return record
        raise StopIteration

    def take(self, most: int | None) -> list[Record]:
        """Give so many records, or fewer where these are the last."""
        found, self._left = self._left, []
        while most is None or len(found) < most:
            more: list[Record] | None = next(self._records_iterator, None)
            if more is None:
                return found
            found += more
        self._left = found[most:]
        return found[:most]

    def _unpack_records(self) -> Iterator[list[Record]]:
        """Give an iterator that does not hold this, which holds it.

        What was fetched is megabytes, and is dropped at each pause and rebalance.
        """
        this: Any = weakref.proxy(self)
        return Partition._unpacked(this)

    def _unpacked(self) -> Iterator[list[Record]]:
        begin = self.next_fetch_offset
        slices = super()._unpack_records()
        try:
            # A slice that was taken from there counts as given.
            if _room.left > 0:
                for records in slices:
                    yield records
                    if _room.left <= 0:
                        return
        except _UNREADABLE as error:
            if self.next_fetch_offset > begin:
                return  # what stands before it is handled, and committed, first
            raise self._refused(error) from None

    def _consumer_record(self, tp: TopicPartition, part: _Slice) -> list[Record]:  # noqa: ARG002
        """Take room for what is given; the records before the position were given before."""
        _room.left -= part.size
        begin = self.next_fetch_offset
        if part.records[0].offset >= begin:
            return part.records
        return [record for record in part.records if record.offset >= begin]

    def _refused(self, error: Exception) -> MisconfiguredError:
        what = str(error)
        if not isinstance(error, UnreadableError):
            end = self._records.end
            batch = "a batch" if end is None else f"the batch up to offset {end}"
            what = f"{batch} is damaged ({error!r}), maybe on its way here alone: start again first"
        return MisconfiguredError(
            f"topic {self._tp.topic} partition {self._tp.partition} offset "
            f"{self.next_fetch_offset}: {what}; find out who wrote it. A group goes on behind "
            "it after kafka-consumer-groups.sh --reset-offsets --to-offset"
        )


class Answer(fetcher.FetchResult):  # type: ignore[misc]  # nor for this
    """What a broker answered of one partition."""

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> list[Record]:
        if not self.has_more() or not self.check_assignment(self._topic_partition):
            return []
        found: list[Record] = self._partition_records.take(max_records)
        self._update_position()
        if max_records is None or len(found) < max_records:
            self._partition_records = None
        return found


def cursor_size(value: bytes) -> int:
    """Bytes that an event's cursor takes when it is read, or more; no other field has parts.

    A megabyte of `[],` becomes 25.
    """
    if not _may_have_cursors(value):
        return 0
    begin = max(value.find(_CURSOR), 0)
    return OBJECT * sum(value.count(part, begin) for part in (b",", b"[", b"{"))


def _may_have_cursors(data: bytes, begin: int = 0, end: int | None = None) -> bool:
    """Look for any backslash first, which takes a twentieth of the time."""
    if data.find(_CURSOR, begin, end) >= 0:
        return True
    return data.find(b"\\", begin, end) >= 0 and data.find(_ESCAPE, begin, end) >= 0


def _length(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    length = len(key or b"") + len(value or b"")
    try:
        return length + sum(map(len, chain.from_iterable(headers)))  # type: ignore[arg-type]
    except TypeError:  # one has no content
        return length + sum(len(name) + len(content or b"") for name, content in headers)


class Batches(_MemoryRecordsPy):  # type: ignore[misc]  # final to the type checker alone
    """The batches of one answer of a broker."""

    tp: TopicPartition
    end: int | None = None  # of the last one, where that is known

    def next_batch(self) -> Any:
        raw, self.end = self._next_slice, None
        if raw is not None and len(raw) > _MAGIC and raw[_MAGIC] != FORMAT:
            raise UnreadableError(
                f"a message in format v{raw[_MAGIC]}, and last-sync reads v{FORMAT} alone (Kafka's "
                "since 0.11): remove the topic's message.format.version, publish what it has again"
            )
        end = self._pos  # of what is next
        batch = super().next_batch()
        self.end = batch.next_offset
        return _Batch(batch, raw, self._buffer, end, self.tp)


class _Batch:
    """What aiokafka's batch is, but for its records."""

    def __init__(
        self, batch: Any, raw: memoryview, answer: bytes, end: int, tp: TopicPartition
    ) -> None:
        self._batch, self._raw, self._tp = batch, raw, tp
        self._answer, self._end = answer, end  # where it ends there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        """Give the marker in a control batch, as aiokafka asks for it.

        The log cleaner may leave such a batch empty. Its transaction is gone with all it wrote.
        """
        marker = next(self._batch, _NO_ABORT)
        if len(marker.key or b"") < MARKER:
            raise UnreadableError(
                f"the marker before offset {self._batch.next_offset} does not say of what"
            )
        return marker

    def __iter__(self) -> Iterator[_Slice]:
        """Give the records at offsets of their own, within the batch.

        Brokers do not look at those of uncompressed records. One beyond the batch would be
        committed, and skip what others write there.
        """
        (count,) = struct.unpack_from(">i", self._raw, _HEADER.size - 4)
        begin, end = self._batch.base_offset, self._batch.next_offset
        if end - count < begin:
            raise UnreadableError(f"the batch up to offset {end} says that it has {count} records")
        codec_id = self._batch.compression_type
        raw: Any = self._raw
        if codec_id:
            raw = _decompressed(raw, codec_id, end)
            cursors = _may_have_cursors(raw)
        else:
            cursors = _may_have_cursors(self._answer, self._end - len(raw), self._end)
        if len(raw) > 2 * MAX_HEADERS:
            _check_headers(raw, count, end)
        return self._slices(raw, begin, count, cursors=cursors)

    def _slices(self, raw: Any, at: int, count: int, *, cursors: bool) -> Iterator[_Slice]:
        """Read on from offset `at`. In a small batch each record counts as the average."""
        most = self._batch.next_offset - count  # where the first one stands at the latest
        large = len(raw) > SLICE
        each = OBJECT if large else OBJECT + len(raw) // max(count, 1)
        topic, partition = self._tp
        records, done = DefaultRecordBatch(raw), 0
        found: list[Record] = []
        size = 0
        while True:
            try:
                for record in records:
                    if record.offset != at:
                        at = min(max(at, record.offset), most + done + len(found))
                    key, value, headers = record.key, record.value, tuple(record.headers)
                    more = each + OBJECT * len(headers)
                    if large or cursors:
                        more += cursor_size(value) if cursors and value else 0
                        more += _length(key, value, headers) if large else 0
                    if found and size + more > SLICE:
                        yield _Slice(found, size)
                        done += len(found)
                        found, size = [], 0
                    read = (topic, partition, at, record.timestamp, key, value, headers)
                    found.append(tuple.__new__(Record, read))
                    at += 1
                    size += more
            except UnicodeDecodeError:
                records = _Lenient(raw, done + len(found))
                continue
            except _UNREADABLE:
                if found:
                    yield _Slice(found, size)
                raise
            if found:
                yield _Slice(found, size)
            return


def _check_headers(raw: Any, records: int, end: int) -> None:
    """Refuse a batch with a record of too many headers, before any of them is made."""
    at = _HEADER.size
    with suppress(IndexError):  # cut off: reading the records tells it
        for _ in range(records):
            if not (byte := raw[at]) & 0x81:  # there may be millions whose length is one byte
                at += 1 + (byte >> 1)
                continue
            length, at = decode_varint_py(raw, at)
            if length > 2 * MAX_HEADERS and (count := _header_count(raw, at)) > MAX_HEADERS:
                raise UnreadableError(
                    f"the batch up to offset {end} has a record of {count} headers, and last-sync "
                    f"reads {MAX_HEADERS} at most"
                )
            at += max(length, 0)


def _header_count(raw: Any, at: int) -> int:
    """Read it of the record whose attributes stand there."""
    _, at = decode_varint_py(raw, at + 1)  # how much later than the first one
    _, at = decode_varint_py(raw, at)  # its place
    for _ in ("key", "value"):
        length, at = decode_varint_py(raw, at)
        at += max(length, 0)
    count: int = decode_varint_py(raw, at)[0]
    return count


def _decompressed(raw: memoryview, codec_id: int, next_offset: int) -> bytes:
    """The batch as it would be without compression."""
    header, data = bytearray(raw[: _HEADER.size]), bytes(raw[_HEADER.size :])
    (attributes,) = struct.unpack_from(">h", header, _ATTRIBUTES)
    struct.pack_into(">h", header, _ATTRIBUTES, attributes & ~_CODEC)
    try:
        return bytes(header) + _OPENED[codec_id](data)
    except (*_DAMAGED, OverflowError, KeyError):  # a codec that there is not
        raise UnreadableError(
            f"the batch up to offset {next_offset} is larger than {MAX_BATCH >> 20} MiB "
            f"decompressed ({len(data)} bytes before), or damaged"
        ) from None


def _gunzipped(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        found = file.read(MAX_BATCH + 1)
    _check(len(found))
    return found


def _unsnapped(data: bytes) -> bytes:
    """Snappy says beforehand how large each of its blocks will be."""
    _check(sum(map(cramjam.snappy.decompress_raw_len, _blocks(data))))
    return bytes(codec.snappy_decode(data))


def _blocks(data: bytes) -> Iterator[bytes]:
    if not codec._detect_xerial_stream(data):  # noqa: SLF001 - so that both agree what it is
        yield data
        return
    at = XERIAL_HEADER
    while at < len(data):
        (size,) = struct.unpack_from("!i", data, at)
        if size < 0:  # it would lead back, for ever
            raise struct.error
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _check(size: int) -> None:
    if size > MAX_BATCH:
        raise OverflowError


def _unpacked(algorithm: Any, data: bytes) -> bytes:
    """Neither lz4 nor zstd says how much it will be: try with room for more and more."""
    room = min(max(FIRST_ROOM, FIRST_GUESS * len(data)), MAX_BATCH)
    while True:
        found = bytearray(room)
        try:
            return bytes(memoryview(found)[: algorithm.decompress_into(data, found)])
        except cramjam.DecompressionError:
            if room == MAX_BATCH:
                raise
            room = min(FIRST_GUESS * room, MAX_BATCH)


_OPENED: dict[int, Callable[[bytes], bytes]] = {
    DefaultRecordBase.CODEC_GZIP: _gunzipped,
    DefaultRecordBase.CODEC_SNAPPY: _unsnapped,
    DefaultRecordBase.CODEC_LZ4: lambda data: _unpacked(cramjam.lz4, data),
    DefaultRecordBase.CODEC_ZSTD: lambda data: _unpacked(cramjam.zstd, data),
}


class _Text(bytearray):
    """Bytes whose parts decode with U+FFFD for what is not UTF-8, as in Kafka's own client."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Text(found) if isinstance(found, bytearray) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:  # noqa: ARG002
        return super().decode(encoding, "replace")


class _Lenient(_DefaultRecordBatchPy):  # type: ignore[misc]  # final to the type checker alone
    """The records behind so many, whatever the names of their headers are.

    aiokafka's quick `decode_varint` does not look where the bytes end: behind a length that points
    beyond, it reads other memory, or crashes the process.
    """

    _buffer: Any
    _pos: int

    def __init__(self, raw: Any, done: int) -> None:
        super().__init__(raw)
        for _ in range(done):  # millions of them, perhaps
            size, begin = decode_varint_py(self._buffer, self._pos)
            self._pos = begin + size
        self._next_record_index = done
        self._buffer = _Text(self._buffer)

    def _read_msg(self) -> Any:
        record = super()._read_msg(decode_varint_py)
        if record.timestamp not in INT64:
            raise ValueError(record.timestamp)
        return record
