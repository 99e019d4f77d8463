"""Topics are made by `topics create`, and by nothing else."""

from pathlib import Path

import pytest

from tests.acceptance.conftest import Stack
from tests.conftest import MakeBroker
from tests.kafka import Kafka, Topics
from tests.programs import Cli, Spawn


@pytest.fixture
def bare(make_broker: MakeBroker, cli: Cli, spawn: Spawn, tmp_path: Path) -> Stack:
    """Work on a broker that makes a topic for whoever asks, as Kafka does by default."""
    broker = make_broker(properties={"auto.create.topics.enable": "true"})
    kafka, topics = Kafka(broker.bootstrap), Topics.unique()
    return Stack(kafka=kafka, topics=topics, cli=cli, spawn=spawn, folder=tmp_path)


async def test_no_command_makes_a_missing_topic_by_asking_for_it(bare: Stack) -> None:
    event = ("publish", "--connector-id", "a", "--job-type", "full", "--status", "completed")
    for arguments in [("check",), ("topics", "check"), ("run",), event]:
        done = await bare.cli(*arguments, env=bare.env)
        assert done.exit_code == 3
        assert "run `last-sync topics create`" in done.stdout + done.stderr
        assert not {bare.topics.source, bare.topics.dlq} & set(await bare.kafka.topics())
    assert (await bare.cli("topics", "create", env=bare.env)).exit_code == 0
    assert (await bare.kafka.configs(bare.topics.dlq))["cleanup.policy"] == "compact"
