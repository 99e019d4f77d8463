"""What no honest client writes, and brokers let in; and text that would steer a terminal."""

from collections.abc import Sequence
from typing import Any

from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from tests.kafka import Kafka, Record

# C0, C1, DEL, text direction, isolates, line separators: a terminal acts on them, or a reader is
# shown another text than there is.
STEERING = "\x1b[31m\x9b32m\x07\x7f\u202e\u2066\u2028\u2029\u0085"
HARMLESS = r"\u001b[31m\u009b32m\u0007\u007f\u202e\u2066\u2028\u2029\u0085"
IDS = [
    "'; DROP TABLE connectors; --",
    "a' OR '1'='1",
    "a/../../_security/user/x",
    "../_security",
    "..%2f..%2f",
    "%2e%2e",
    "...",
    "a?pretty#b",
    "a;b&c=d",
    "%00",
    "100%",
    "a\\b",
    "*",
    "_all",
    "_last_sync",
    "$(id)`id`",
    "{{7*7}} %s %(x)s {0}",
    '"},{"index":{}}',
    "\u0430dmin",  # begins with a Cyrillic letter
    "admin",
    "\uff0e\uff0e\uff0fx",  # full-width dots and slash
    "a\u202eb\u2028c",
    "\U0001f600 " * 100,
]
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
NO_LIMIT = 2**30  # bytes


class RawName(str):
    """A header's name that is sent as these bytes."""

    __slots__ = ("raw",)
    raw: bytes

    @classmethod
    def of(cls, raw: bytes) -> "RawName":
        name = cls(repr(raw))
        name.raw = raw
        return name

    def encode(self, *_: object) -> bytes:
        return self.raw


def builder(records: Sequence[Record], codec: str) -> Any:
    """All records in one batch, however large."""
    made = _DefaultRecordBatchBuilderPy(2, CODECS[codec], 0, -1, -1, 0, NO_LIMIT)
    for number, record in enumerate(records):
        made.append(number, record.timestamp, record.key, record.value, list(record.headers))
    return made


async def write(kafka: Kafka, topic: str, records: Sequence[Record], codec: str = "none") -> None:
    """Send the records in one batch to partition 0, unchecked by the client."""
    async with kafka._producer(max_request_size=NO_LIMIT) as producer:
        batch = producer.create_batch()
        batch._builder = builder([], codec)
        for one in records:
            batch.append(
                timestamp=one.timestamp, key=one.key, value=one.value, headers=list(one.headers)
            )
        await (await producer.send_batch(batch, topic, partition=0))


def assert_harmless(text: str) -> None:
    bad = [c for c in text if not c.isprintable() and c != "\n"]
    assert not bad, bad
