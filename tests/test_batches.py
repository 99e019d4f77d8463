"""A batch is opened up to a limit, and every record of it can be read."""

import tracemalloc
from collections.abc import Sequence

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException

from tests.hostile import CODECS, RawName, builder
from tests.kafka import Record
from worker import batches
from worker.batches import Batches, Partition
from worker.errors import MisconfiguredError

MEBIBYTE = 1024 * 1024
BAD = RawName.of(b"\xff\xfe")


def fetched(raw: bytes) -> Partition:
    """Open what a broker answered, as the client does."""
    records = Batches(raw)
    return Partition(TopicPartition("topic", 3), records, [], 0, None, None, True, 1)


def batch(records: Sequence[Record], codec: str = "none") -> bytes:
    return bytes(builder(records, codec).build())


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


def test_a_damaged_batch_is_still_told_by_its_checksum() -> None:
    raw = bytearray(batch([small(0), small(1)]))
    raw[-1] ^= 1
    with pytest.raises(CorruptRecordException):
        list(fetched(bytes(raw)))
