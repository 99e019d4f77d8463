"""The test tools themselves: brokers that really stop, freeze and come back with their data."""

import asyncio
import signal
import subprocess
import sys

import pytest
from aiokafka.errors import KafkaError

from tests.brokers import Broker, BrokerFactory, NoBrokerError, find_brokers
from tests.conftest import ENVIRON
from tests.eventually import eventually
from tests.kafka import Kafka, Record, Topics

HELLO = Record(value=b"hello", key=b"k", headers=(("h", b"1"),), partition=2, timestamp=1_700_000)


async def test_records_are_read_back_as_they_were_produced(kafka: Kafka, topic: Topics) -> None:
    null = Record(value=None, partition=0, timestamp=5)
    await kafka.produce(topic.source, [HELLO, null])
    first, second = await kafka.read_all(topic.source)
    assert (first.value, first.key, first.headers, first.partition) == (None, None, (), 0)
    assert (second.value, second.key, second.headers) == (HELLO.value, HELLO.key, HELLO.headers)
    assert (second.partition, second.offset, second.timestamp) == (2, 0, HELLO.timestamp)
    assert await kafka.end_offsets(topic.source) == {0: 1, 1: 0, 2: 1, 3: 0}
    assert await kafka.committed(topic.group, topic.source) == {}


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_an_own_broker_comes_back_on_its_port_with_its_data(
    own_broker: Broker, end: str
) -> None:
    kafka, topics = Kafka(own_broker.bootstrap), Topics.unique()
    await kafka.create(topics)
    await kafka.produce(topics.source, [HELLO])
    await asyncio.to_thread(getattr(own_broker, end))
    with pytest.raises(KafkaError):
        await kafka.end_offsets(topics.source)
    await asyncio.to_thread(own_broker.start)
    assert [one.value for one in await kafka.read_all(topics.source)] == [HELLO.value]


async def test_a_frozen_broker_answers_again_once_it_goes_on(own_broker: Broker) -> None:
    kafka, topics = Kafka(own_broker.bootstrap), Topics.unique()
    await kafka.create(topics)
    await asyncio.to_thread(own_broker.pause)
    question = asyncio.create_task(kafka.end_offsets(topics.source))
    answered, _ = await asyncio.wait([question], timeout=1)
    assert not answered
    await asyncio.to_thread(own_broker.resume)
    assert await question == dict.fromkeys(range(4), 0)


async def test_a_frozen_broker_can_be_killed_and_started_again(own_broker: Broker) -> None:
    await asyncio.to_thread(own_broker.pause)
    await asyncio.to_thread(own_broker.kill)
    await asyncio.to_thread(own_broker.start)
    await Kafka(own_broker.bootstrap).create(Topics.unique())


async def test_a_broker_cuts_garbage_off_its_logs_and_keeps_its_data(own_broker: Broker) -> None:
    kafka, topics = Kafka(own_broker.bootstrap), Topics.unique()
    await kafka.create(topics)
    await kafka.produce(topics.source, [HELLO])
    await asyncio.to_thread(own_broker.kill)
    pattern = f"{topics.source}-*/*.log"
    assert await asyncio.to_thread(own_broker.alter, pattern, lambda log: log + b"garbage" * 9) == 4
    await asyncio.to_thread(own_broker.start)
    assert "Corruption found" in own_broker.log()
    assert [one.value for one in await kafka.read_all(topics.source)] == [HELLO.value]


def test_a_broker_that_does_not_start_shows_the_end_of_its_log(brokers: BrokerFactory) -> None:
    with (
        brokers(properties={"num.network.threads": "none"}) as broker,
        pytest.raises(NoBrokerError, match="none"),
    ):
        broker.start()


def test_a_machine_without_any_kafka_is_told_the_three_ways() -> None:
    nothing = {"DOCKER_HOST": "unix:///nowhere", "JAVA_HOME": "/nowhere"}
    said: list[str] = []
    with pytest.raises(NoBrokerError, match=r"LAST_SYNC_TEST_BOOTSTRAP.*Docker.*Java 17.*Maven"):
        find_brokers(nothing, said.append)
    assert [line.split(":")[0] for line in said] == ["no Kafka from docker", "no Kafka from jars"]


def test_a_forced_way_is_the_only_one_tried() -> None:
    said: list[str] = []
    forced = {"DOCKER_HOST": "unix:///nowhere", "LAST_SYNC_TEST_BROKER": "docker"}
    with pytest.raises(NoBrokerError, match="docker: cannot reach an engine"):
        find_brokers(forced, said.append)
    assert len(said) == 1


KILLED_WITH_A_BROKER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tests.brokers import find_brokers
broker = find_brokers(os.environ, print)()
broker.start()
print(broker.bootstrap, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_broker_ends_with_the_process_that_started_it(
    pytestconfig: pytest.Config, brokers: BrokerFactory
) -> None:
    started = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED_WITH_A_BROKER, str(pytestconfig.rootpath)],
        env=pytestconfig.stash[ENVIRON],  # the same way to a broker as this session
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert started.returncode == -signal.SIGKILL
    host, _, port = started.stdout.split()[-1].rpartition(":")

    async def is_gone() -> bool:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            return True
        writer.close()
        return False

    await eventually(is_gone)
