"""Apache Kafka itself lets in no batch that the worker would have to refuse, but for large ones."""

from collections.abc import Callable

import cramjam
import pytest
from aiokafka.errors import KafkaError
from aiokafka.record.default_records import DefaultRecordBase

from tests.kafka import Kafka, Topics
from tests.test_batches import BAD, batch, compressed, lying, old, signed, small, spoilt

TIMEOUT = 5_000  # milliseconds


class Built:
    """In the place of a batch's builder: bytes as they are."""

    def __init__(self, raw: bytes) -> None:
        self._raw = bytearray(raw)

    def build(self) -> bytearray:
        return self._raw

    def size(self) -> int:
        return len(self._raw)


async def send(kafka: Kafka, topic: str, raw: bytes) -> None:
    async with kafka._producer(request_timeout_ms=TIMEOUT) as producer:
        made = producer.create_batch()
        made._builder, made._relative_offset = Built(raw), 1  # or else it counts as empty
        await (await producer.send_batch(made, topic, partition=0))


def pressed(raw: bytes) -> bytes:
    head = DefaultRecordBase.HEADER_STRUCT.size
    return signed(bytearray(raw[:head]) + bytes(cramjam.zstd.compress(raw[head:])), 4)


REFUSED: dict[str, Callable[[], bytes]] = {
    "v0": lambda: old(0, 0, 3),
    "v1": lambda: old(1, 0, 3),
    "v1, compressed": lambda: old(1, 1, 3),
    "a wrong checksum": spoilt,
    "a codec that there is not": lambda: compressed(b"anything", 5),
    "a length that points beyond": lambda: lying(2**40, BAD),
    "the same, compressed": lambda: pressed(lying(2**40, BAD)),
    "damaged compression": lambda: compressed(b"anything", 4),
}


@pytest.mark.parametrize("how", REFUSED)
async def test_apache_kafka_refuses_a_batch_that_cannot_be_read(
    kafka: Kafka, topic: Topics, how: str
) -> None:
    with pytest.raises(KafkaError):
        await send(kafka, topic.source, REFUSED[how]())
    assert await kafka.end_offsets(topic.source) == dict.fromkeys(range(4), 0)


async def test_what_is_in_order_is_let_in_by_the_same_way(kafka: Kafka, topic: Topics) -> None:
    await send(kafka, topic.source, pressed(batch([small(0), small(1, BAD)])))
    assert (await kafka.end_offsets(topic.source))[0] == 2
