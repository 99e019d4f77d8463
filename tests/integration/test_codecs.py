"""Events reach the store whatever codec they were compressed with, and by whose code."""

import asyncio
import json

import pytest
from confluent_kafka import Producer

from tests.kafka import Kafka, Record, Topics
from tests.programs import Cli

CODECS = ["gzip", "snappy", "lz4", "zstd"]
WRITERS = ["aiokafka", "librdkafka", "java"]
EVENTS = 100  # of each writer: enough for batches that compression makes smaller


def event(writer: str, number: int) -> bytes:
    job = {"job_type": "full", "status": "completed", "indexed_document_count": number}
    return json.dumps(
        {
            "event_id": f"{writer}-{number}",
            "connector_id": writer,
            "occurred_at": f"2024-11-09T15:13:08.{number:06d}Z",
            "job": job,
        }
    ).encode()


def events(writer: str) -> list[bytes]:
    return [event(writer, number) for number in range(EVENTS)]


def librdkafka(bootstrap: str, topic: str, codec: str) -> None:
    producer = Producer(
        {"bootstrap.servers": bootstrap, "compression.type": codec, "linger.ms": 50}
    )
    for value in events("librdkafka"):
        producer.produce(topic, value=value, partition=1)
    assert producer.flush(10) == 0


@pytest.mark.parametrize("codec", CODECS)
async def test_compressed_events_are_applied(kafka: Kafka, cli: Cli, codec: str) -> None:
    topics = Topics.unique()
    # What comes uncompressed the broker compresses itself, in Java; the rest it keeps as it is.
    await kafka.create(topics, configs={"compression.type": codec})
    plain = [Record(value=value, partition=0) for value in events("java")]
    await kafka.produce(topics.source, plain)
    await asyncio.to_thread(librdkafka, kafka.bootstrap, topics.source, codec)
    compressed = [Record(value=value, partition=2) for value in events("aiokafka")]
    await kafka.produce(topics.source, compressed, compression=codec)

    env = {
        "LAST_SYNC_STORE_URL": "sqlite:///store.db",
        "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
        "LAST_SYNC_KAFKA_TOPIC": topics.source,
        "LAST_SYNC_KAFKA_GROUP_ID": topics.group,
    }
    for command in (["connectors", "add", *WRITERS], ["run", "--drain"]):
        done = await cli(*command, env=env)
        assert done.exit_code == 0, done
    listed = await cli("connectors", "list", "--json", env=env)
    counts = {
        one["id"]: one["last_indexed_document_count"]
        for one in map(json.loads, listed.stdout.splitlines())
    }
    assert counts == dict.fromkeys(WRITERS, EVENTS - 1)
    assert await kafka.read_all(topics.dlq) == []
