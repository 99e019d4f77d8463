"""What someone who may write to the topic can send, against the real worker on a real broker."""

import json
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.acceptance.conftest import Stack, event, record
from tests.eventually import eventually
from tests.hostile import STEERING, RawName, assert_harmless, write
from tests.kafka import Record
from tests.programs import Spawned
from worker.batches import MAX_HEADERS

DEEP = b"[" * 100_000 + b"]" * 100_000
DIGITS = b"9" * 100_000
ROOM = 200  # MB that the worker may have at its peak, more than on honest events, and no more


def peak(worker: Spawned) -> int:
    """Megabytes that were resident at most."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def with_count(count: bytes) -> bytes:
    return json.dumps(event("known", 1)).encode().replace(b": 1}", b": " + count + b"}")


def good(number: int) -> bytes:
    return json.dumps(event("known", number)).encode()


HEADERS: dict[str, list[tuple[str, bytes | None]]] = {
    "10,000 headers": [(f"name-{n}", b"a value") for n in range(10_000)],
    "a header of 900 KB": [("name", b"x" * 900_000)],
    "a name that is not UTF-8": [(RawName.of(b"\xff\xfe"), b"x")],
    "headers that steer a terminal": [(STEERING, STEERING.encode())],
}
VALUES = {
    "too_deep": [DEEP, b'{"x": ' + DEEP + b"}"],
    "number_too_long": [b'{"x": ' + DIGITS + b"}"],
    "not_finite": [b'{"x": 1e999999}'],
    "invalid_count": [with_count(b"9223372036854775808"), with_count(b"1e2")],
    "invalid_json": [STEERING.encode(), b"{" * 10],
}


async def test_a_hostile_publisher_neither_stops_the_worker_nor_hides_a_record(
    stack: Stack,
) -> None:
    await stack.register(["known"])
    for headers in HEADERS.values():
        evil = [Record(key=b"k", value=b"no JSON", headers=headers)]
        await write(stack.kafka, stack.topics.source, evil)
    bad = [value for values in VALUES.values() for value in values]
    await write(stack.kafka, stack.topics.source, [Record(key=b"k", value=one) for one in bad])
    repeated = [("ce_id", b"1"), ("ce_id", b"2")] * 5_000
    await write(stack.kafka, stack.topics.source, [Record(value=good(1), headers=repeated)])
    await stack.kafka.produce(stack.topics.source, [record(good(7), "known")])
    worker = stack.worker(LAST_SYNC_LOG_FORMAT="pretty", LAST_SYNC_LOG_LEVEL="debug")
    await stack.drained()
    assert peak(worker) < ROOM
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0
    assert_harmless(worker.stderr)
    assert (await stack.stored())["known"] == {"last_indexed_document_count": 7}
    letters = await stack.kafka.read_all(stack.topics.dlq)
    reasons = [dict(letter.headers)["__dlq.errors.reason"] for letter in letters]
    wanted = [reason.encode() for reason, values in VALUES.items() for _ in values]
    assert reasons == [b"invalid_json"] * len(HEADERS) + wanted + [b"repeated_header"]
    dropped = [dict(letter.headers).get("__dlq.errors.headers_dropped") for letter in letters]
    assert dropped[1] == b"1"
    assert int(dropped[0] or 0) > 7_000
    assert letters[2].headers[-1] == ("\ufffd\ufffd", b"x")
    assert letters[3].headers[-1] == (STEERING, STEERING.encode())


async def test_values_that_take_long_to_read_do_not_cost_a_worker_its_membership(
    stack: Stack,
) -> None:
    slow = Record(key=b"k", value=b'{"x": [' + b"[]," * 300_000)
    await write(stack.kafka, stack.topics.source, [slow] * 34, "zstd")
    worker = stack.worker(LAST_SYNC_KAFKA_SESSION_TIMEOUT_MS="6000")
    await stack.drained()
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0
    assert "commit.dropped" not in worker.stderr
    assert worker.stderr.count('"partitions.assigned"') == 1
    letters = await stack.kafka.read_all(stack.topics.dlq)
    reasons = [dict(letter.headers)["__dlq.errors.reason"] for letter in letters]
    assert reasons == [b"invalid_json"] * 34


async def test_as_many_headers_as_may_be_become_a_letter_and_do_not_fill_memory(
    stack: Stack,
) -> None:
    crowded = Record(value=b"no JSON", headers=[("name", b"value")] * MAX_HEADERS)
    await write(stack.kafka, stack.topics.source, [crowded], "zstd")
    worker = stack.worker()
    await stack.drained()
    assert peak(worker) < 1.5 * ROOM
    (letter,) = await stack.kafka.read_all(stack.topics.dlq)
    assert int(dict(letter.headers)["__dlq.errors.headers_dropped"] or 0) > MAX_HEADERS - 10_000


async def test_cursors_of_very_many_parts_are_kept_and_do_not_fill_memory(stack: Stack) -> None:
    await stack.register(["known"])
    cursor: dict[str, list[list[object]]] = {"a": [[]] * 240_000}
    parts = event("known", 1, last_sync={"sync_cursor": cursor})
    records = [Record(key=b"k", value=json.dumps(parts).encode())] * 16
    await write(stack.kafka, stack.topics.source, records, "zstd")
    worker = stack.worker()
    await stack.drained()
    assert peak(worker) < ROOM
    assert await stack.stored() == {"known": {"sync_cursor": cursor}}


LARGE = [Record(value=good(2)[:-1] + b" " * 1_000_000 + b"}")] * 200
CROWDED = [Record(value=good(2), headers=[("", b"")] * 4_000_000)]


@pytest.mark.parametrize(
    ("codec", "bomb", "problem"),
    [
        pytest.param("gzip", LARGE, "up to offset 201 is larger", id="gzip"),
        pytest.param("zstd", LARGE, "up to offset 201 is larger", id="zstd"),
        pytest.param("zstd", CROWDED, "up to offset 2 has a record of 4000000", id="headers"),
    ],
)
async def test_a_compressed_bomb_stops_the_worker_with_its_place_and_does_not_fill_memory(
    stack: Stack, codec: str, bomb: list[Record], problem: str
) -> None:
    await stack.register(["known"])
    await stack.kafka.produce(stack.topics.source, [record(good(1), "known")])
    await write(stack.kafka, stack.topics.source, bomb, codec)
    worker = stack.worker()
    seen = [0]

    def ended() -> bool:
        with suppress(IndexError):  # a process that has ended has no memory
            seen.append(peak(worker))
        return worker.exit_code is not None

    await eventually(ended, 30)
    assert max(seen) < 2 * ROOM
    assert worker.exit_code == 3
    (line,) = worker.stderr.splitlines()[-1:]
    assert f"topic {stack.topics.source} partition 0 offset 1: the batch {problem}" in line
    assert (await stack.committed())[0] == 1
