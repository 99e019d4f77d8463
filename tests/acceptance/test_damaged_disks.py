"""A broker's disk gives back what nobody wrote, or what was written before Kafka 0.11."""

import asyncio
import struct
from collections.abc import Callable

import pytest

from tests.acceptance.conftest import Stack, event, record
from tests.brokers import Broker
from tests.kafka import Kafka
from tests.test_batches import MEBIBYTE, old

OVERHEAD = struct.calcsize(">qi")  # before what a batch's length counts


def spoilt(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def second_in_old_format(data: bytes) -> bytes:
    """Gzip of 40 MiB, so that a broker that looked into it would show."""
    (length,) = struct.unpack_from(">i", data, OVERHEAD - 4)
    return data[: OVERHEAD + length] + struct.pack(">q", 1) + old(1, 1, 40 * MEBIBYTE)[8:]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (spoilt, "offset 1: the batch up to offset 2 is damaged"),
        (second_in_old_format, "offset 1: a message in format v1, and last-sync reads v2 alone"),
    ],
)
async def test_a_batch_that_cannot_be_read_ends_the_worker_with_its_place_once_all_before_is_done(
    stack: Stack, own_broker: Broker, change: Callable[[bytes], bytes], told: str
) -> None:
    stack.kafka = Kafka(own_broker.bootstrap)
    await stack.kafka.create(stack.topics)
    await stack.register(["a"])
    for number in (7, 8):
        await stack.kafka.produce(stack.topics.source, [record(event("a", number), "a")])
    await asyncio.to_thread(own_broker.stop)
    changed = await asyncio.to_thread(own_broker.alter, f"{stack.topics.source}-0/*.log", change)
    assert changed == 1
    await asyncio.to_thread(own_broker.start)
    done = await stack.cli("run", env=stack.env, timeout=60)
    assert done.exit_code == 3, done
    (line,) = done.stderr.splitlines()[-1:]
    assert f"topic {stack.topics.source} partition 0 {told}" in line
    assert "find out who wrote it. A group goes on behind it after" in line
    assert (await stack.committed())[0] == 1
    assert (await stack.stored())["a"] == {"last_indexed_document_count": 7}
