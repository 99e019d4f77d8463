"""Where reading begins, where it ends, and what happens when the place is gone."""

import json

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from tests.acceptance import generator
from tests.acceptance.conftest import Stack
from tests.kafka import Record


def event(connector_id: str, number: int) -> bytes:
    payload = {"last_indexed_document_count": number}
    return json.dumps(
        {
            "event_id": f"e-{number}",
            "connector_id": connector_id,
            "occurred_at": f"2026-01-01T00:00:{number:02}Z",
            "last_sync": payload,
        }
    ).encode()


async def test_a_new_group_starts_at_the_beginning(stack: Stack) -> None:
    await stack.register(["a"])
    await stack.kafka.produce(stack.topics.source, [Record(value=event("a", 1), key=b"a")])
    await stack.drain()
    assert await stack.stored() == {"a": {"last_indexed_document_count": 1}}


async def test_records_deleted_before_they_were_read_stop_the_worker_with_4(stack: Stack) -> None:
    await stack.register(["a"])
    records = [Record(value=event("a", n), key=b"a", partition=0) for n in range(5)]
    await stack.kafka.produce(stack.topics.source, records)
    await stack.drain()
    await stack.kafka.produce(stack.topics.source, records)
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap)
    await admin.start()
    await admin.delete_records({TopicPartition(stack.topics.source, 0): RecordsToDelete(8)})
    await admin.close()
    done = await stack.cli("run", "--drain", env=stack.env)
    assert done.exit_code == 4
    last = done.stderr.splitlines()[-1]
    assert "offsets lost" in last
    assert "wants offset 5" in last
    assert "offsets 8 to 10" in last
    assert "--reset-offsets" in last


async def test_an_offset_beyond_the_end_of_the_topic_stops_the_worker_with_4(stack: Stack) -> None:
    await stack.register(["a"])
    await stack.kafka.produce(
        stack.topics.source, [Record(value=event("a", 1), key=b"a", partition=0)]
    )
    member = AIOKafkaConsumer(
        bootstrap_servers=stack.kafka.bootstrap,
        group_id=stack.topics.group,
        enable_auto_commit=False,
    )
    await member.start()
    place = TopicPartition(stack.topics.source, 0)
    member.assign([place])
    await member.commit({place: 99})
    await member.stop()
    done = await stack.cli("run", "--drain", env=stack.env)
    assert done.exit_code == 4
    assert "wants offset 99" in done.stderr
    assert "offsets 0 to 1" in done.stderr


async def test_a_topic_made_anew_is_read_from_its_beginning(stack: Stack) -> None:
    await stack.register(["a"])
    records = [Record(value=event("a", n), key=b"a", partition=0) for n in range(5)]
    await stack.kafka.produce(stack.topics.source, records)
    await stack.drain()
    await stack.kafka.delete_topic(stack.topics.source)
    await stack.kafka.create_topic(stack.topics.source, partitions=4)
    await stack.kafka.produce(
        stack.topics.source, [Record(value=event("a", 9), key=b"a", partition=0)]
    )
    await stack.drain()
    assert await stack.stored() == {"a": {"last_indexed_document_count": 9}}


@pytest.mark.parametrize("end", ["commit", "abort"])
async def test_a_drain_passes_the_marker_of_a_transaction_and_applies_no_aborted_event(
    stack: Stack, end: str
) -> None:
    await stack.register(["a"])
    producer = AIOKafkaProducer(
        bootstrap_servers=stack.kafka.bootstrap, transactional_id=stack.topics.group
    )
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait(stack.topics.source, event("a", 7), key=b"a", partition=0)
    await (producer.commit_transaction() if end == "commit" else producer.abort_transaction())
    await producer.stop()
    await stack.drain()
    assert (await stack.committed())[0] == 2  # the event and the marker
    assert await stack.stored() == {
        "a": {"last_indexed_document_count": 7} if end == "commit" else {}
    }


async def test_a_drain_of_an_empty_topic_ends(stack: Stack) -> None:
    await stack.drain()


async def test_a_drain_ends_under_continuing_load_at_the_end_of_its_start(stack: Stack) -> None:
    made = generator.topic(2_000, 50, seed=12, unknown=0, malformed=0)
    await stack.fill(made)
    ends = await stack.kafka.end_offsets(stack.topics.source)
    worker = stack.worker("--drain", LAST_SYNC_BATCH_SIZE="20")
    while worker.exit_code is None:
        await stack.kafka.produce(stack.topics.source, made.records[:50])
    assert worker.exit_code == 0, worker.stderr[-2000:]
    committed = await stack.committed()
    assert all(committed[partition] >= end for partition, end in ends.items())


async def test_a_drain_waits_for_the_partitions_of_another_member(stack: Stack) -> None:
    made = generator.topic(3_000, 50, seed=13, unknown=0, malformed=0)
    await stack.register(made.registered)
    other = stack.worker(LAST_SYNC_BATCH_SIZE="20")
    await other.says("partitions.assigned", 30)
    await stack.kafka.produce(stack.topics.source, made.records)
    await stack.drain()
    await stack.assert_true_to(made)
