"""The permissions that docs/operations.md names for the `dlq` commands are all that they need."""

import asyncio
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it has no __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.acceptance.conftest import Stack, dead_lettered, event, record
from tests.acceptance.test_dlq import dlq, listed
from tests.brokers import Broker, BrokerFactory, Listener
from tests.kafka import Kafka

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
TABLE = PAGE.read_text().partition("## Permissions")[2].partition("## ")[0]
ROWS = dict(re.findall(r"^\| (`dlq .*?) \| (.*?) \|", TABLE, re.MULTILINE))
OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}
COMMANDS = {
    "`dlq list`, `stats`": [["list"], ["stats"]],
    "`dlq show`": [["show", "ID"]],
    "`dlq replay --dry-run`": [["replay", "--all", "--dry-run"]],
    "`dlq replay`, `dlq edit`": [
        ["replay", "--connector", "replayed", "--yes"],
        ["edit", "ID", "--file", "fixed.json", "--yes"],
    ],
    "`dlq discard`": [["discard", "--all", "--reason-text", "a test", "--yes"]],
}
Rights = set[tuple[str, str]]  # operation, the topic's name in the table
LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule"


def rights() -> dict[str, Rights]:
    """What each row of the table allows; `the same` is what the first one allows."""
    found: dict[str, Rights] = {}
    for name, text in ROWS.items():
        granted = set(next(iter(found.values()), set()) if "the same" in text else ())
        for operations, topic in re.findall(r"((?:\w+(?:, | and )?)+) on (the [-\w ]+)", text):
            words = [word for word in re.findall(r"\w+", operations) if word in OPERATIONS]
            granted |= set(product(words, [topic.strip()]))
        found[name] = granted
    return found


@pytest.fixture
def guarded(brokers: BrokerFactory) -> Iterator[Broker]:
    """A broker where a user may do what is allowed; who comes in without a name may do all."""
    users = " ".join(f'user_user{n}="secret"' for n in range(len(COMMANDS)))
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listener.name.login.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.login.plain.sasl.jaas.config": f"{LOGIN} required {users};",
    }
    listeners = [Listener(name="LOGIN", protocol="SASL_PLAINTEXT")]
    with brokers(listeners=listeners, properties=properties) as broker:
        broker.start()
        yield broker


def test_the_table_has_every_command() -> None:
    assert rights().keys() == COMMANDS.keys()


@pytest.mark.timeout(300)
async def test_the_dlq_commands_need_what_the_table_says_and_no_more(
    stack: Stack, guarded: Broker
) -> None:
    stack.kafka = Kafka(guarded.bootstrap)
    await stack.kafka.create(stack.topics)
    await dead_lettered(
        stack, [record(event("replayed", 1), "replayed"), record(b"{", "mended"), record(b"[", "x")]
    )
    await stack.register(["replayed", "mended"])
    (stack.folder / "fixed.json").write_text(json.dumps({"value": event("mended", 2)}))
    for number, (row, granted) in enumerate(rights().items()):
        (one, *_) = [one["id"] for one in await listed(stack) if one["reason"] == "invalid_json"]
        stack.more = credentials(guarded, f"user{number}")
        for missing in sorted(granted):
            await asyncio.to_thread(allow, guarded, stack, f"user{number}", granted - {missing})
            for command in COMMANDS[row][:1]:
                done = await stack.cli("dlq", *named(command, one), env=stack.env)
                assert done.exit_code == 3, (row, missing, done)
                assert "ACLs" in done.stderr
        await asyncio.to_thread(allow, guarded, stack, f"user{number}", granted)
        for command in COMMANDS[row]:
            await dlq(stack, *named(command, one), code=int("--dry-run" in command))
        stack.more = {}
    assert await listed(stack) == []


def named(command: list[str], letter_id: str) -> list[str]:
    return [letter_id if word == "ID" else word for word in command]


def credentials(broker: Broker, user: str) -> dict[str, str]:
    return {
        "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS": broker.address("LOGIN"),
        "LAST_SYNC_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "LAST_SYNC_KAFKA_SASL_USERNAME": user,
        "LAST_SYNC_KAFKA_SASL_PASSWORD": "secret",
    }


def allow(broker: Broker, stack: Stack, user: str, granted: Rights) -> None:
    """Grant the user exactly these rights."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    names = {"the dead-letter topic": stack.topics.dlq, "the topic": stack.topics.source}
    wanted = [acl(user, names[topic], OPERATIONS[operation]) for operation, topic in granted]
    any_acl = (AclOperation.ANY, AclPermissionType.ANY)
    of_user: tuple[Any, ...] = (None, ResourcePatternType.ANY, f"User:{user}", None, *any_acl)
    everything = AclBindingFilter(ResourceType.ANY, *of_user)
    for answer in admin.delete_acls([everything]).values():
        answer.result(10)
    for answer in admin.create_acls(wanted).values():
        answer.result(10)


def acl(user: str, topic: str, operation: AclOperation) -> AclBinding:
    return AclBinding(
        ResourceType.TOPIC,
        topic,
        ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        operation,
        AclPermissionType.ALLOW,
    )
