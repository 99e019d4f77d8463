"""A batch is opened up to a limit, and every record of it can be read."""

import gc
import gzip
import struct
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cramjam
import pytest
from aiokafka import TopicPartition
from aiokafka.record.default_records import DefaultRecordBase
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c, encode_varint

from schemas.updates import Update
from tests.hostile import CODECS, RawName, builder
from tests.kafka import Record
from worker import batches
from worker.batch import Batch
from worker.batches import OBJECT, Answer, Batches, Partition
from worker.errors import MisconfiguredError

MEBIBYTE = 1024 * 1024
BAD = RawName.of(b"\xff\xfe")


@pytest.fixture(autouse=True, params=[batches.SLICE, 1], ids=["slices", "singly"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SLICE", request.param)
    batches.make_room()


def fetched(raw: bytes) -> Partition:
    """Open what a broker answered, as the client does."""
    records = Batches(raw)
    return Partition(TopicPartition("topic", 3), records, [], 0, None, None, True, 1)


def batch(records: Sequence[Record], codec: str = "none") -> bytes:
    return bytes(builder(records, codec).build())


def compressed(data: bytes, codec: int) -> bytes:
    """A batch of two records whose compressed part is this, with a checksum that is right."""
    raw = bytearray(batch([small(0), small(1)])[: DefaultRecordBase.HEADER_STRUCT.size]) + data
    return signed(raw, codec)


def signed(raw: bytearray, attributes: int) -> bytes:
    """Set the attributes and the checksum over them and what follows."""
    begin = DefaultRecordBase.AFTER_LEN_OFFSET  # what the length counts
    struct.pack_into(">i", raw, begin - 4, len(raw) - begin)
    struct.pack_into(">h", raw, DefaultRecordBase.ATTRIBUTES_OFFSET, attributes)
    checked = bytes(raw[DefaultRecordBase.ATTRIBUTES_OFFSET :])
    struct.pack_into(">I", raw, DefaultRecordBase.CRC_OFFSET, calc_crc32c(checked))
    return bytes(raw)


def xerial(*blocks: bytes) -> bytes:
    framed = [struct.pack("!i", len(block)) + block for block in blocks]
    return b"\x82SNAPPY\x00" + struct.pack("!ii", 1, 1) + b"".join(framed)


def snappy(data: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(data))


DAMAGED: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "gzip, then garbage": (1, lambda data: gzip.compress(data) + b"garbage"),
    "gzip, cut off": (1, lambda data: gzip.compress(data)[:-8]),
    "gzip, spoilt": (1, lambda data: gzip.compress(data)[:12] + b"\xff" * 20),
    "snappy, then garbage": (2, lambda data: xerial(snappy(data)) + b"x"),
    "snappy, begun again": (2, lambda data: xerial(snappy(data)) * 2),
    "snappy, a block that leads back": (2, lambda data: xerial(snappy(data)) + b"\xff\xff\xff\xfc"),
    "lz4, cut off": (3, lambda data: bytes(cramjam.lz4.compress(data))[:-8]),
    "zstd, cut off": (4, lambda data: bytes(cramjam.zstd.compress(data))[:-8]),
}


def small(number: int, *names: str) -> Record:
    headers = [(name, b"x") for name in names]
    return Record(key=b"k", value=b"%d" % number, headers=headers)


@pytest.mark.parametrize("codec", CODECS)
def test_records_of_every_codec_come_as_they_were_written(codec: str) -> None:
    written = [small(number, "traceparent") for number in range(1_000)]
    found = list(fetched(batch(written, codec)))
    assert [(one.key, one.value, one.headers) for one in found] == [
        (one.key, one.value, tuple(one.headers)) for one in written
    ]
    assert [one.offset for one in found] == list(range(1_000))


@pytest.mark.parametrize("most", [1, 7, 500, 2_000])
def test_records_are_taken_some_at_a_time_and_the_position_is_that_of_the_next(most: int) -> None:
    batch_of = [Record(key=b"k", value=bytes(1_000)) for _ in range(1_000)]
    records, found = fetched(batch(batch_of)), 0
    while taken := records.take(most):
        assert len(taken) <= most
        assert [one.offset for one in taken] == list(range(found, found + len(taken)))
        found += len(taken)
        assert records.next_fetch_offset == found
    assert found == 1_000


@dataclass
class Assigned:
    """What an answer asks of the client's assignment, and of the state of its partition."""

    position: int = 0
    active: bool = True
    paused: bool = False

    def state_value(self, _: TopicPartition) -> "Assigned":
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


def answered(assigned: Assigned) -> Answer:
    records = fetched(batch([small(n) for n in range(10)]))
    return Answer(records._tp, assignment=assigned, partition_records=records, backoff=0)


def test_an_answer_is_handed_out_once_with_its_position() -> None:
    assigned = Assigned()
    answer = answered(assigned)
    for most, position in (3, 3), (7, 10):
        begin = assigned.position
        assert [one.offset for one in answer.getall(most)] == list(range(begin, position))
        assert assigned.position == position
        assert answer.has_more()
    assert answer.getall(1) == []
    assert not answer.has_more()


def test_an_answer_that_is_handed_out_whole_is_done_with() -> None:
    for most in None, 11:
        answer = answered(Assigned())
        assert len(answer.getall(most)) == 10
        assert not answer.has_more()


@pytest.mark.parametrize("gone", [{"active": False}, {"paused": True}, {"position": 5}])
def test_an_answer_of_what_is_no_longer_wanted_is_dropped(gone: dict[str, Any]) -> None:
    assigned = Assigned()
    answer = answered(assigned)
    answer.getall(3)
    for name, value in gone.items():
        setattr(assigned, name, value)
    assert answer.getall(3) == []
    assert not answer.has_more()


def test_a_large_record_takes_room_of_the_poll_that_gives_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "MAX_POLL", 1_000)
    batches.make_room()
    records = fetched(batch([small(0), Record(key=b"k", value=bytes(MEBIBYTE)), small(2)], "zstd"))
    assert len(records.take(1)) == 1
    assert batches.has_room()
    batches.make_room()
    assert [one.offset for one in records.take(10)] == [1]
    assert not batches.has_room()


@pytest.mark.parametrize(("begin", "given"), [(0, 250), (249, 34)])
def test_what_is_in_a_small_batch_takes_room_in_equal_shares(
    begin: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two slices, from the first record or from the last: a slice takes room as a whole."""
    raw = batch([Record(key=b"k", value=bytes(1_000)) for _ in range(250)])
    monkeypatch.setattr(batches, "SLICE", 256 * 1024)
    for bytes_each, left in (1_100, False), (1_300, True):
        monkeypatch.setattr(batches, "MAX_POLL", given * bytes_each)
        batches.make_room()
        partition = TopicPartition("topic", 3)
        records = Partition(partition, Batches(raw), [], begin, None, None, True, 1)
        records.take(250 - begin)
        assert batches.has_room() == left


def test_a_batch_is_taken_from_the_position_on() -> None:
    raw = batch([Record(key=b"k", value=bytes(1_000)) for _ in range(1_000)])
    again = Partition(TopicPartition("topic", 3), Batches(raw), [], 500, None, None, True, 1)
    assert [one.offset for one in again.take(None)] == list(range(500, 1_000))


@pytest.mark.parametrize("codec", CODECS)
def test_a_header_name_that_is_not_utf8_hides_no_record(codec: str) -> None:
    written = [small(0, "good"), small(1, BAD), small(2, BAD, "good"), small(3)]
    found = list(fetched(batch(written, codec)))
    assert [one.value for one in found] == [b"0", b"1", b"2", b"3"]
    names = [[name for name, _ in one.headers] for one in found]
    assert names == [["good"], ["\ufffd\ufffd"], ["\ufffd\ufffd", "good"], []]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_batch_that_expands_beyond_the_limit_is_named_and_never_whole_in_memory(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = batch([Record(key=b"k", value=bytes(MEBIBYTE)) for _ in range(40)], codec)
    monkeypatch.setattr(batches, "MAX_BATCH", 4 * MEBIBYTE)
    tracemalloc.start()
    try:
        with pytest.raises(MisconfiguredError) as caught:
            list(fetched(raw))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MEBIBYTE
    assert "topic topic partition 3 offset 0: the batch up to offset 40 is larger" in str(
        caught.value
    )


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_batch_of_just_the_limit_is_opened(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [Record(key=b"k", value=bytes(MEBIBYTE)) for _ in range(3)]
    size = len(batch(records)) - len(batch([]))
    monkeypatch.setattr(batches, "MAX_BATCH", size)
    assert len(list(fetched(batch(records, codec)))) == 3


def spoilt() -> bytes:
    raw = bytearray(batch([small(0), small(1)]))
    raw[-1] ^= 1
    return bytes(raw)


def test_a_wrong_checksum_stops_the_worker_with_its_place() -> None:
    where = r"topic topic partition 3 offset 0: the batch up to offset 2 is damaged .*Invalid CRC"
    with pytest.raises(MisconfiguredError, match=where):
        list(fetched(spoilt()))


def test_what_stands_before_a_damaged_batch_is_read_before_the_worker_stops() -> None:
    raw = bytearray(spoilt())
    struct.pack_into(">q", raw, 0, 2)
    records = fetched(batch([small(0), small(1)]) + raw)
    assert [one.value for one in records] == [b"0", b"1"]
    again = Partition(records._tp, Batches(bytes(raw)), [], 2, None, None, True, 1)
    with pytest.raises(
        MisconfiguredError, match="partition 3 offset 2: the batch up to offset 4 is damaged"
    ):
        list(again)


def old(magic: int, codec: int, size: int) -> bytes:
    """What clients wrote before Kafka 0.11."""
    made = LegacyRecordBatchBuilder(magic, codec, 100 * MEBIBYTE)
    made.append(0, 1_000, b"k", bytes(size))
    return bytes(made.build())


@pytest.mark.parametrize("size", [1, 40 * MEBIBYTE])
@pytest.mark.parametrize("codec", [0, 1, 2])
@pytest.mark.parametrize("magic", [0, 1])
def test_a_message_of_an_old_format_is_not_opened_and_named_with_its_place(
    magic: int, codec: int, size: int
) -> None:
    raw = old(magic, codec, size)
    where = rf"topic topic partition 3 offset 0: a message in format v{magic}, and"
    tracemalloc.start()
    try:
        with pytest.raises(MisconfiguredError, match=where):
            list(fetched(raw))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEBIBYTE


def test_bytes_too_few_for_a_batch_stop_the_worker_with_their_place() -> None:
    with pytest.raises(MisconfiguredError, match=r"partition 3 offset 0: .* is damaged"):
        list(fetched(struct.pack(">qi", 0, 3) + b"abc"))


@pytest.mark.parametrize("codec", [5, 6, 7])
def test_a_codec_that_there_is_not_stops_the_worker_with_its_place(codec: int) -> None:
    with pytest.raises(MisconfiguredError, match=r"partition 3 offset 0: .* or damaged"):
        list(fetched(compressed(b"anything", codec)))


@pytest.mark.timeout(10)
@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_compression_stops_the_worker_with_its_place_and_is_not_taken_for_an_outage(
    how: str,
) -> None:
    codec, damaged = DAMAGED[how]
    records = batch([small(0), small(1)])[DefaultRecordBase.HEADER_STRUCT.size :]
    with pytest.raises(MisconfiguredError, match=r"partition 3 offset 0: .* or damaged"):
        list(fetched(compressed(damaged(records), codec)))


@pytest.mark.parametrize("kind", [0, 1], ids=["abort", "commit"])
def test_the_marker_of_a_transaction_is_passed(kind: int) -> None:
    marker = Record(key=struct.pack(">hh", 0, kind), value=bytes(6))
    raw = bytearray(batch([marker]))
    flags = DefaultRecordBase.CONTROL_MASK | DefaultRecordBase.TRANSACTIONAL_MASK
    records = fetched(signed(raw, flags))
    assert list(records) == []
    assert records.next_fetch_offset == 1


def test_a_marker_that_the_log_cleaner_has_emptied_is_passed() -> None:
    flags = DefaultRecordBase.CONTROL_MASK | DefaultRecordBase.TRANSACTIONAL_MASK
    empty = bytearray(batch([small(0)])[: DefaultRecordBase.HEADER_STRUCT.size])
    struct.pack_into(">i", empty, len(empty) - 4, 0)  # records
    records = fetched(signed(empty, flags))
    assert list(records) == []
    assert records.next_fetch_offset == 1


def test_a_marker_that_says_nothing_stops_the_worker_with_its_place() -> None:
    raw = bytearray(batch([Record(value=b"", key=None)]))
    flags = DefaultRecordBase.CONTROL_MASK | DefaultRecordBase.TRANSACTIONAL_MASK
    with pytest.raises(MisconfiguredError, match="offset 0: the marker before offset 1 does not"):
        list(fetched(signed(raw, flags)))


def test_more_records_than_offsets_stop_the_worker_with_their_place() -> None:
    raw = bytearray(batch([small(0), small(1)]))
    struct.pack_into(">i", raw, DefaultRecordBase.ATTRIBUTES_OFFSET + 2, 0)  # the last was 0
    with pytest.raises(MisconfiguredError, match="up to offset 1 says that it has 2 records"):
        list(fetched(signed(raw, 0)))


def numbered(*deltas: int) -> bytes:
    """A batch in which records say of themselves that they stand so far behind its begin."""
    records = b"".join(record(delta) for delta in deltas)
    raw = bytearray(batch([small(n) for n in range(len(deltas))]))
    return signed(raw[: DefaultRecordBase.HEADER_STRUCT.size] + records, 0)


def record(delta: int) -> bytes:
    content = bytearray(b"\0\0")  # attributes, time
    encode_varint(delta, content.append)
    content += b"\x02k\x02v\0"  # key, value, no header
    size = bytearray()
    encode_varint(len(content), size.append)
    return bytes(size + content)


@pytest.mark.parametrize(
    "deltas", [(0, 1, 5_000), (2**31 - 1, 0, 2), (2, 1, 0), (0, 0, 0), (-7, 0, 9)]
)
def test_no_record_is_hidden_by_its_offset_or_lies_outside_of_its_batch(
    deltas: Sequence[int],
) -> None:
    assert [one.offset for one in fetched(numbered(*deltas))] == [0, 1, 2]


def test_offsets_that_compaction_has_left_stay() -> None:
    raw = bytearray(numbered(1, 4))
    struct.pack_into(">i", raw, DefaultRecordBase.ATTRIBUTES_OFFSET + 2, 5)  # the last was 5
    assert [one.offset for one in fetched(signed(raw, 0))] == [1, 4]


def test_one_poll_gives_no_more_than_there_is_room_for_and_the_next_goes_on() -> None:
    raw = batch([Record(key=b"k", value=bytes(MEBIBYTE)) for _ in range(40)], "zstd")
    first, second = fetched(raw), fetched(raw)
    found = list(first)
    assert len(found) * MEBIBYTE < batches.MAX_POLL + MEBIBYTE
    assert first.next_fetch_offset == found[-1].offset + 1
    assert list(second) == []  # the room is one for all partitions
    assert second.next_fetch_offset == 0
    batches.make_room()
    rest = Partition(first._tp, Batches(raw), [], len(found), None, None, True, 1)
    assert [one.offset for one in rest] == list(range(len(found), 40))  # what was given is free


def in_parts(parts: int, name: bytes = b"sync_cursor") -> bytes:
    """An event with a cursor of so many."""
    cursor = b"[" + b",".join([b"[]"] * parts) + b"]"
    head = b'{"event_id": "e", "connector_id": "c", "occurred_at": "2026-01-01T00:00:00Z", '
    return head + b'"last_sync": {"' + name + b'": {"a": ' + cursor + b"}}}"


@pytest.mark.parametrize("name", [b"sync_cursor", rb"sync\u005fcursor"], ids=["plain", "escaped"])
@pytest.mark.parametrize(("parts", "events"), [(100, 4_000), (300_000, 40)])
def test_what_is_read_takes_no_more_than_there_is_room_for(
    name: bytes, parts: int, events: int
) -> None:
    """A cursor of a megabyte becomes 25 in Python."""
    raw = batch([Record(key=b"c", value=in_parts(parts, name))] * events, "zstd")
    given = Batch.of({TopicPartition("topic", 3): fetched(raw).take(None)})
    assert not batches.has_room()
    tracemalloc.start()
    try:
        for _ in given.reading():
            pass
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(given.records) < events
    assert all(isinstance(read, Update) for read in given.reads)
    assert kept < batches.MAX_POLL


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_each_batch_of_an_answer_is_looked_at_for_cursors_of_its_own(codec: str) -> None:
    cursor = Record(key=b"c", value=in_parts(100))
    answer = Batches(b"".join(batch([one], codec) for one in (small(0), cursor, small(0))))
    answer.tp = TopicPartition("topic", 3)
    (before,), (found,), (after,) = (answer.next_batch() for _ in range(3))
    assert before.size == after.size
    assert found.size > 200 * OBJECT


def test_a_usual_cursor_leaves_room_for_a_whole_batch() -> None:
    records = [Record(key=b"c", value=in_parts(1))] * 22_000
    assert len(fetched(batch(records, "zstd")).take(None)) == 22_000
    assert batches.has_room()


@pytest.mark.parametrize("kind", ["key", "value", "name", "header", "headers"])
def test_whatever_a_record_is_large_by_takes_room(kind: str) -> None:
    large: dict[str, Record] = {
        "key": Record(key=bytes(MEBIBYTE), value=b""),
        "value": Record(key=b"", value=bytes(MEBIBYTE)),
        "name": Record(key=b"", value=b"", headers=[("n" * MEBIBYTE, b"")]),
        "header": Record(key=b"", value=b"", headers=[("n", bytes(MEBIBYTE))]),
        "headers": Record(key=b"", value=b"", headers=[("n", b"")] * 10_000),
    }
    found = list(fetched(batch([large[kind]] * 40, "zstd")))
    assert len(found) <= 33
    assert not batches.has_room()


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_record_of_too_many_headers_is_named_and_none_of_them_made(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_HEADERS", 200_000)
    bomb = Record(key=b"k", value=b"v", headers=[("", b"")] * 200_001)
    raw = batch([small(0), bomb], codec)
    tracemalloc.start()
    try:
        with pytest.raises(MisconfiguredError) as caught:
            fetched(raw).take(None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * MEBIBYTE
    found = "offset 0: the batch up to offset 2 has a record of 200001 headers, and last-sync reads"
    assert found in str(caught.value)


def test_a_record_of_just_so_many_headers_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_HEADERS", 1_000)
    records = [Record(key=None, value=None, headers=[("n", b"")] * 1_000), small(1)]
    assert len(fetched(batch(records)).take(None)) == 2
    records[0] = Record(key=None, value=None, headers=[("n", b"")] * 1_001)
    with pytest.raises(MisconfiguredError, match="has a record of 1001 headers"):
        fetched(batch(records)).take(None)


def lying(length: int, *names: str) -> bytes:
    """A batch of two records with such a header; the second one says that its value is so long."""
    raw = batch([small(0, *names), small(1, *names)])
    honest = number(1) + b"1" + number(len(names))
    begin = raw.rindex(honest)
    changed = raw[:begin] + number(length) + raw[begin + 1 :]
    at = DefaultRecordBase.HEADER_STRUCT.size
    second = at + 1 + raw[at] // 2
    size = number(raw[second] // 2 + len(changed) - len(raw))
    return signed(bytearray(changed[:second] + size + changed[second + 1 :]), 0)


def number(value: int) -> bytes:
    written = bytearray()
    encode_varint(value, written.append)
    return bytes(written)


@pytest.mark.parametrize("length", [2, 100, 2**31, 2**40, 2**62, 2**63 - 60, 2**63 - 1])
@pytest.mark.parametrize("names", [(), ("good",), (BAD,)], ids=["none", "good", "bad"])
def test_a_length_that_points_beyond_the_batch_stops_the_worker_with_its_place(
    names: Sequence[str], length: int
) -> None:
    records = fetched(lying(length, *names))
    assert [one.value for one in records] == [b"0"]
    again = Partition(records._tp, Batches(lying(length, *names)), [], 1, None, None, True, 1)
    with pytest.raises(MisconfiguredError, match="offset 1: the batch up to offset 2 is damaged"):
        list(again)


def test_a_damaged_batch_leaves_nothing_to_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        assert len(fetched(lying(100)).take(None)) == 1
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_what_is_dropped_of_what_was_fetched_is_gone_at_once() -> None:
    gc.disable()
    try:
        dropped = fetched(batch([small(n) for n in range(1_000)]))
        assert len(dropped.take(1)) == 1
        left = weakref.ref(dropped)
        del dropped
        assert left() is None
    finally:
        gc.enable()


def test_records_before_a_header_name_that_is_not_utf8_are_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Millions may stand before it, and the event loop waits."""
    read = []
    read_one = batches._Lenient._read_msg

    def counted(self: batches._Lenient) -> Any:
        read.append(self)
        return read_one(self)

    monkeypatch.setattr(batches._Lenient, "_read_msg", counted)
    found = list(fetched(batch([*(small(n) for n in range(1_000)), small(1_000, BAD)])))
    assert [one.value for one in found] == [b"%d" % n for n in range(1_001)]
    assert len(read) == 1


def test_a_time_beyond_all_times_behind_a_header_name_that_is_not_utf8_is_not_handed_out() -> None:
    raw = bytearray(batch([small(0, BAD), small(1)]))
    struct.pack_into(">q", raw, DefaultRecordBase.ATTRIBUTES_OFFSET + 6, 2**63 - 1)  # the first's
    at = DefaultRecordBase.HEADER_STRUCT.size
    later = at + 1 + raw[at] // 2 + 2  # how much later the second is
    raw[later] = 2
    records = fetched(signed(raw, 0))
    assert [one.timestamp for one in records] == [2**63 - 1]
