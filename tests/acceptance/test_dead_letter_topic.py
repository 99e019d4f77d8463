"""A dead-letter topic that takes nothing: nothing is committed past the record."""

from tests.acceptance.conftest import Stack
from tests.kafka import Record

BROKEN = b"{" + b" " * 200_000


async def test_a_topic_that_refuses_the_letter_stops_the_worker_with_the_offset_uncommitted(
    stack: Stack,
) -> None:
    worker = stack.worker()
    await worker.says("worker.started", 30)
    await stack.kafka.alter(stack.topics.dlq, {"max.message.bytes": "1000"})
    await stack.kafka.produce(
        stack.topics.source, [Record(value=BROKEN, key=b"a", partition=0, timestamp=1)]
    )
    assert await worker.ended(20) == 3
    assert "last-sync topics create" in worker.stderr.splitlines()[-1]
    assert not (await stack.committed()).get(0)
    assert (await stack.cli("topics", "create", env=stack.env)).exit_code == 0
    await stack.drain()
    letters = await stack.letters()
    name = f"{stack.topics.group}/{stack.topics.source}/0/0@1".encode()
    assert letters == {name: ("invalid_json", 400, BROKEN)}
    assert (await stack.committed())[0] == 1


async def test_a_topic_that_is_gone_is_waited_for(stack: Stack) -> None:
    worker = stack.worker()
    await worker.says("worker.started", 30)
    await stack.kafka.delete_topic(stack.topics.dlq)
    await stack.kafka.produce(stack.topics.source, [Record(value=b"{", key=b"a", partition=0)])
    await worker.says("batch.held", 40)
    assert not (await stack.committed()).get(0)
    assert (await stack.cli("topics", "create", env=stack.env)).exit_code == 0
    await stack.drained()
    assert len(await stack.letters()) == 1
