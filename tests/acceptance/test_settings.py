"""Settings that cannot work: one clear line, exit 3, in under ten seconds."""

import asyncio
import time

import pytest

from tests.acceptance.conftest import Stack
from tests.kafka import Topics

WITHIN = 10.0  # seconds


async def refused(stack: Stack, **env: str) -> str:
    began = time.monotonic()
    done = await stack.cli("run", env={**stack.env, **env})
    took = time.monotonic() - began
    assert done.exit_code == 3, done.stderr
    assert took < WITHIN
    (line,) = done.stderr.splitlines()
    assert done.stdout == ""
    return line


async def test_no_store_named(stack: Stack) -> None:
    line = await refused(stack, LAST_SYNC_STORE_URL="")
    assert "LAST_SYNC_STORE_URL" in line
    assert "sqlite:///last-sync.db" in line


async def test_no_broker_there(stack: Stack) -> None:
    line = await refused(stack, LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
    assert "127.0.0.1:9" in line
    assert "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS" in line


async def test_a_broker_that_never_answers(stack: Stack) -> None:
    """From its first connection on: how long Python takes to start is the machine's."""
    connected: list[tuple[float, asyncio.StreamWriter]] = []

    async def never_answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append((time.monotonic(), writer))

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        done = await stack.cli(
            "run", env={**stack.env, "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS": address}
        )
        took = time.monotonic() - connected[0][0]
        for _, writer in connected:
            writer.close()
            await writer.wait_closed()
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert address in line
    assert took < WITHIN - 1  # in which it starts


@pytest.mark.parametrize("policy", ["delete", "compact,delete"])
async def test_a_dead_letter_topic_that_forgets(stack: Stack, policy: str) -> None:
    await stack.kafka.create_topic(
        f"{stack.topics.dlq}.bad",
        configs={"cleanup.policy": policy, "max.message.bytes": "2000000"},
    )
    line = await refused(stack, LAST_SYNC_KAFKA_DEAD_LETTER_TOPIC=f"{stack.topics.dlq}.bad")
    assert f"cleanup.policy={policy}" in line
    assert "last-sync topics create" in line


async def test_a_dead_letter_topic_that_takes_too_little(stack: Stack) -> None:
    await stack.kafka.create_topic(
        f"{stack.topics.dlq}.bad",
        configs={"cleanup.policy": "compact", "max.message.bytes": "1048588"},
    )
    line = await refused(stack, LAST_SYNC_KAFKA_DEAD_LETTER_TOPIC=f"{stack.topics.dlq}.bad")
    assert "1048588" in line
    assert "last-sync topics create" in line


async def test_missing_topics_and_the_command_that_makes_them(stack: Stack) -> None:
    stack.topics = Topics.unique()
    line = await refused(stack)
    assert f"topic {stack.topics.source} does not exist" in line
    assert "last-sync topics create" in line
    made = await stack.cli("topics", "create", "--partitions", "3", env=stack.env)
    assert made.exit_code == 0
    assert (await stack.cli("topics", "check", env=stack.env)).exit_code == 0
    await stack.drain()
    again = await stack.cli("topics", "create", "--partitions", "9", env=stack.env)
    assert "exists" in again.stdout
    assert len(await stack.kafka.end_offsets(stack.topics.source)) == 3


async def test_topics_create_sets_a_wrong_policy_right_and_keeps_the_rest(stack: Stack) -> None:
    stack.topics = Topics.unique()
    await stack.kafka.create_topic(stack.topics.source, partitions=2)
    await stack.kafka.create_topic(
        stack.topics.dlq, configs={"cleanup.policy": "delete", "segment.bytes": "1234567"}
    )
    assert (await stack.cli("topics", "check", env=stack.env)).exit_code == 3
    done = await stack.cli("topics", "create", env=stack.env)
    assert "cleanup.policy=compact" in done.stdout
    assert (await stack.cli("topics", "check", env=stack.env)).exit_code == 0
    assert (await stack.kafka.configs(stack.topics.dlq))["segment.bytes"] == "1234567"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://localhost", "redis://localhost"),
        ("sqlite:////no/such/folder/s.db", "/no/such/folder"),
        ("sqlite:////proc/version", "/proc"),
        ("sqlite:////tmp", "directory"),
        ("nonsense", "nonsense"),
    ],
)
async def test_a_store_that_cannot_be_opened(stack: Stack, url: str, said: str) -> None:
    assert said in await refused(stack, LAST_SYNC_STORE_URL=url)


async def test_a_misspelt_variable(stack: Stack) -> None:
    line = await refused(stack, LAST_SYNC_KAFKA_TOPC="x")
    assert "LAST_SYNC_KAFKA_TOPC" in line
    assert "LAST_SYNC_KAFKA_TOPIC?" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LAST_SYNC_BATCH_SIZE", "many"),
        ("LAST_SYNC_FLOOD_SHARE", "2"),
        ("LAST_SYNC_KAFKA_SECURITY_PROTOCOL", "SSH"),
    ],
)
async def test_a_value_that_is_none(stack: Stack, name: str, value: str) -> None:
    assert (await refused(stack, **{name: value})).startswith(f"last-sync: {name}='{value}'")


async def test_sasl_without_a_user(stack: Stack) -> None:
    line = await refused(stack, LAST_SYNC_KAFKA_SECURITY_PROTOCOL="SASL_PLAINTEXT")
    assert "LAST_SYNC_KAFKA_SASL_USERNAME is not set" in line


async def test_check_gives_each_a_verdict_and_exits_3_on_a_bad_one(stack: Stack) -> None:
    good = await stack.cli("check", env=stack.env)
    assert good.exit_code == 0
    assert [line.split()[0] for line in good.stdout.splitlines()] == ["ok"] * 7
    bad = await stack.cli(
        "check", "--json", env={**stack.env, "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}
    )
    assert bad.exit_code == 3
    assert '"name": "broker", "ok": false' in bad.stdout
    assert '"name": "store", "ok": true' in bad.stdout
