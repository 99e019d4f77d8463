"""The two topics: what they have to be like, whether they are, and making them so."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from worker import kafka
from worker.errors import MisconfiguredError
from worker.settings import Settings

HEADROOM = 64 * 1024  # bytes that a dead letter may be larger than its original
TOMBSTONE_RETENTION = 30 * 86_400_000  # milliseconds
REQUEST_TIMEOUT = 8.0  # seconds
DYNAMIC_TOPIC_CONFIG = 1  # Kafka's ConfigSource: set on the topic itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic as the broker describes it."""

    name: str
    partitions: int
    configs: Mapping[str, str]
    own: Mapping[str, str]  # the configs that were set on the topic itself

    @property
    def max_bytes(self) -> int:
        return int(self.configs["max.message.bytes"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One thing that `run` needs, and whether it is so."""

    name: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """The pair, each None where it does not exist."""

    source: Topic | None
    dead_letters: Topic | None

    @property
    def dead_letter_bytes(self) -> int:
        """The largest record that the dead-letter topic takes."""
        assert self.dead_letters is not None  # noqa: S101 - after `required`  # nosec B101
        return self.dead_letters.max_bytes


async def describe(admin: AIOKafkaAdminClient, settings: Settings) -> Topics:
    """Look at both topics. Raises MisconfiguredError where that is not allowed."""
    names = [settings.kafka_topic, settings.dead_letter_topic]
    with kafka.translated(f"describing the topics {' and '.join(names)}"):
        async with asyncio.timeout(REQUEST_TIMEOUT):
            found = [await _describe(admin, name) for name in names]
    return Topics(source=found[0], dead_letters=found[1])


async def require_dead_letters(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    """Look at the dead-letter topic alone, as those may who have no right to the other one.

    Raises MisconfiguredError unless it is there and keeps open letters.
    """
    name = settings.dead_letter_topic
    with kafka.translated(f"describing the topic {name}"):
        async with asyncio.timeout(REQUEST_TIMEOUT):
            found = await _describe(admin, name)
    verdict = _dead_letter_verdicts(Topics(source=None, dead_letters=found), settings)[0]
    if not verdict.ok:
        raise MisconfiguredError(verdict.text)


async def _describe(admin: AIOKafkaAdminClient, name: str) -> Topic | None:
    # The configs first: asking for the metadata of a topic that is not there can create it.
    wanted = ConfigResource(ConfigResourceType.TOPIC, name)
    (response,) = await admin.describe_configs([wanted])
    code, message, _, _, entries = response.resources[0]
    if not _exists(code, message or name):
        return None
    (topic,) = await admin.describe_topics([name])
    if not _exists(topic["error_code"], name):
        return None
    return Topic(
        name=name,
        partitions=len(topic["partitions"]),
        configs={entry[0]: entry[1] for entry in entries},
        own={entry[0]: entry[1] for entry in entries if entry[3] == DYNAMIC_TOPIC_CONFIG},
    )


def _exists(code: int, message: str) -> bool:
    error = for_code(code)
    if code and error is not UnknownTopicOrPartitionError:
        raise error(message)
    return not code


def verdicts(topics: Topics, settings: Settings) -> list[Verdict]:
    """What `run` checks about the topics before it reads anything."""
    return [_source_verdict(topics, settings), *_dead_letter_verdicts(topics, settings)]


def _source_verdict(topics: Topics, settings: Settings) -> Verdict:
    source = topics.source
    text = (
        f"topic {source.name} has {source.partitions} partitions"
        if source
        else f"topic {settings.kafka_topic} does not exist: run `last-sync topics create`"
    )
    return Verdict(name="topic", ok=source is not None, text=text)


def _dead_letter_verdicts(topics: Topics, settings: Settings) -> list[Verdict]:
    letters = topics.dead_letters
    if letters is None:
        text = (
            f"dead-letter topic {settings.dead_letter_topic} does not exist: "
            "run `last-sync topics create`"
        )
        return [Verdict(name="dead-letter topic", ok=False, text=text)]
    found = [_policy_verdict(letters)]
    if topics.source is not None:
        found.append(_size_verdict(letters, topics.source.max_bytes + HEADROOM))
    return found


def _policy_verdict(letters: Topic) -> Verdict:
    policy = letters.configs["cleanup.policy"]
    ok = policy == "compact"
    text = f"dead-letter topic {letters.name} has cleanup.policy={policy}"
    if not ok:
        text += ", which would delete open letters; it has to be compact: "
        text += "run `last-sync topics create`"
    return Verdict(name="dead-letter topic", ok=ok, text=text)


def _size_verdict(letters: Topic, needed: int) -> Verdict:
    ok = letters.max_bytes >= needed
    text = f"dead-letter topic {letters.name} takes records of {letters.max_bytes} bytes"
    if not ok:
        text += (
            f"; a letter may need {needed} (the source's max.message.bytes and {HEADROOM}): "
            "run `last-sync topics create`"
        )
    return Verdict(name="dead-letter size", ok=ok, text=text)


def required_source(topics: Topics, settings: Settings) -> None:
    verdict = _source_verdict(topics, settings)
    if not verdict.ok:
        raise MisconfiguredError(verdict.text)


def required(topics: Topics, settings: Settings) -> Topics:
    """The topics, if `run` may use them; else MisconfiguredError with the first bad verdict."""
    for verdict in verdicts(topics, settings):
        if not verdict.ok:
            raise MisconfiguredError(verdict.text)
    return topics


async def create(
    admin: AIOKafkaAdminClient,
    settings: Settings,
    *,
    partitions: int | None,
    replication_factor: int | None,
) -> list[str]:
    """Make what is missing and set right what is wrong; says what was done, a line each.

    Existing topics are never repartitioned: a connector's events would change partition.
    """
    before = await describe(admin, settings)
    done = []
    if before.source is None:
        await _create(admin, settings.kafka_topic, partitions, replication_factor, {})
        done.append(f"created topic {settings.kafka_topic}")
    else:
        done.append(f"topic {settings.kafka_topic} exists, left as it is")
    after = await _visible(admin, settings, lambda found: found.source is not None)
    assert after.source is not None  # noqa: S101 - created above  # nosec B101
    wanted = _dead_letter_configs(after.source)
    if before.dead_letters is None:
        await _create(
            admin,
            settings.dead_letter_topic,
            partitions or after.source.partitions,
            replication_factor,
            wanted,
        )
        await _visible(admin, settings, lambda found: found.dead_letters is not None)
        done.append(f"created dead-letter topic {settings.dead_letter_topic}")
    else:
        done.append(await _correct(admin, before.dead_letters, wanted))
    return done


async def _visible(
    admin: AIOKafkaAdminClient, settings: Settings, created: Callable[[Topics], bool]
) -> Topics:
    """A topic just created takes a moment to show in the brokers' metadata."""
    with kafka.translated("showing the new topic"):
        async with asyncio.timeout(REQUEST_TIMEOUT):
            while not created(found := await describe(admin, settings)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # no event to wait for: the brokers only answer
    return found


def _dead_letter_configs(source: Topic) -> dict[str, str]:
    return {
        "cleanup.policy": "compact",
        "max.message.bytes": str(source.max_bytes + HEADROOM),
        "delete.retention.ms": str(TOMBSTONE_RETENTION),
    }


async def _create(
    admin: AIOKafkaAdminClient,
    name: str,
    partitions: int | None,
    replication_factor: int | None,
    configs: Mapping[str, str],
) -> None:
    new = NewTopic(name, 1, 1, topic_configs=dict(configs))
    # -1 is the broker's own default, which the client's constructor does not take
    new.num_partitions, new.replication_factor = partitions or -1, replication_factor or -1
    with kafka.translated(f"creating the topic {name}"):
        async with asyncio.timeout(REQUEST_TIMEOUT):
            response = await admin.create_topics([new])
        _raise_first(
            [(entry[1], entry[2]) for entry in response.topic_errors],
            ignore=TopicAlreadyExistsError,
            what=f"cannot create the topic {name}",
        )


async def _correct(admin: AIOKafkaAdminClient, letters: Topic, wanted: Mapping[str, str]) -> str:
    """Set only what falls short; a larger limit than needed stays."""
    wrong = {
        name: value
        for name, value in wanted.items()
        if _falls_short(name, letters.configs[name], value)
    }
    if not wrong:
        return f"dead-letter topic {letters.name} exists and is right"
    # AlterConfigs replaces the topic's whole configuration: send back what was set before.
    resource = ConfigResource(
        ConfigResourceType.TOPIC, letters.name, configs={**letters.own, **wrong}
    )
    with kafka.translated(f"changing the configuration of {letters.name}"):
        async with asyncio.timeout(REQUEST_TIMEOUT):
            (response,) = await admin.alter_configs([resource])
        _raise_first(
            [(entry[0], entry[1]) for entry in response.resources],
            what=f"cannot change the topic {letters.name}",
        )
    changes = ", ".join(f"{name}={value}" for name, value in sorted(wrong.items()))
    return f"dead-letter topic {letters.name} exists, set {changes}"


def _falls_short(name: str, found: str, wanted: str) -> bool:
    if name == "cleanup.policy":
        return found != wanted
    return int(found) < int(wanted)


def _raise_first(
    answers: Sequence[tuple[int, Any]], *, what: str, ignore: type[Exception] | None = None
) -> None:
    for code, message in answers:
        error = for_code(code)
        if code and error is not ignore:
            if issubclass(error, kafka.NOT_ALLOWED):
                raise error(message)
            raise MisconfiguredError(f"{what}: {message or error.__name__}")
