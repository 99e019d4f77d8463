"""All that `run` needs is looked at."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from worker import kafka, topics
from worker.app.stores import opened_for_merging
from worker.errors import LastSyncError
from worker.settings import Settings
from worker.topics import Verdict

COORDINATOR_RETRY = 0.2  # seconds


async def check(settings: Settings) -> list[Verdict]:
    """Everything that `run` needs, each with a verdict; changes nothing but an empty store."""
    kafka_verdicts, store_verdict = await asyncio.gather(
        _check_kafka(settings), _check_store(settings)
    )
    understood = Verdict(name="settings", ok=True, text="understood")
    return [understood, *kafka_verdicts, store_verdict]


async def _check_kafka(settings: Settings) -> list[Verdict]:
    try:
        async with kafka.admin(settings) as admin:
            reached = Verdict(
                name="broker", ok=True, text=f"reached {settings.kafka_bootstrap_servers}"
            )
            found = await topics.describe(admin, settings)
            group = await _check_group(admin, settings, found.source)
            return [reached, *topics.verdicts(found, settings), group]
    except LastSyncError as error:
        return [Verdict(name="broker", ok=False, text=str(error))]


async def _check_group(
    admin: AIOKafkaAdminClient, settings: Settings, source: topics.Topic | None
) -> Verdict:
    count = source.partitions if source else 1
    partitions = [TopicPartition(settings.kafka_topic, n) for n in range(count)]
    try:
        with kafka.translated(f"using the group {settings.kafka_group_id}"):
            async with asyncio.timeout(kafka.CONNECT_TIMEOUT):
                offsets = await group_offsets(admin, settings, partitions)
    except LastSyncError as error:
        return Verdict(name="group", ok=False, text=str(error))
    known = sum(offset >= 0 for offset in offsets.values())
    text = f"group {settings.kafka_group_id} has committed offsets of {known} partitions"
    return Verdict(name="group", ok=True, text=text)


async def _check_store(settings: Settings) -> Verdict:
    try:
        async with opened_for_merging(settings) as store:
            return Verdict(name="store", ok=True, text=await store.describe())
    except LastSyncError as error:
        return Verdict(name="store", ok=False, text=str(error))


async def group_offsets(
    admin: AIOKafkaAdminClient, settings: Settings, partitions: Sequence[TopicPartition]
) -> Mapping[TopicPartition, int]:
    """The committed offset of each partition, or -1."""
    while True:
        # A cluster that has had no group yet has no coordinator. One that is still reading what
        # groups have committed refuses as a whole, and aiokafka gives no partition then.
        with suppress(GroupCoordinatorNotAvailableError):
            found = await admin.list_consumer_group_offsets(
                settings.kafka_group_id, partitions=partitions
            )
            if len(found) == len(partitions):
                return {tp: committed.offset for tp, committed in found.items()}
        await asyncio.sleep(COORDINATOR_RETRY)
