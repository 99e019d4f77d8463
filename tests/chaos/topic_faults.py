"""What waiting cannot mend: records are gone, or no letter can be written. A person has to decide.

The worker stops with the code that operations are told to look for, and does so again however often
it is started. Then the trouble is mended, and nothing is missing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it has no __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.brokers import Broker, BrokerFactory
from tests.chaos.broker_faults import MIX, PARTITIONS, PATIENCE
from tests.chaos.checker import expected_letters
from tests.chaos.nursery import Member
from tests.chaos.rig import Result, Rig, Run, running
from tests.chaos.shutdowns import answers

SOUND = replace(MIX, poison=0, unknown=0)
FIRST, SECOND = 1_500, 1_500  # records before the fault and with it
STARTS = 2  # of a worker that must not go on
CANNOT_START, OFFSETS_LOST = 3, 4  # exit codes
TOO_FEW = "300"  # bytes; no letter is that small

Offsets = dict[TopicPartition, int]
Step = Callable[[], Awaitable[None]]


# --- offsets out of range ------------------------------------------------------------------------


async def deleted(rig: Rig) -> Result:
    """Retention takes records that nobody has read. They are sent again, and the offset is set."""
    name = "offsets-deleted"
    async with running(rig, name, rig.store("sqlite", name), MIX, partitions=PARTITIONS) as run:
        await run.publish(FIRST)
        await run.drain()
        run.mix = SOUND  # what is gone gets no letter
        await run.publish(SECOND, seed=2)
        ends = _by_partition(run, await run.kafka.end_offsets(run.topics.source))
        cut = {tp: end - SECOND // PARTITIONS // 4 for tp, end in ends.items()}
        await _delete(run, cut)
        gone = sum(cut.values()) - await run.handled()
        assert gone > 0
        problems = await _stops(run, OFFSETS_LOST, "offsets lost")
        await _decide(run, cut)
        await run.publish(SECOND, seed=2)
        await run.drain()
        facts = f"{gone} unread records deleted, exit 4 of {STARTS} workers, then sent again"
        return Result(name=name, verdict=await run.verdict(), facts=facts, problems=problems)


async def cut_off(rig: Rig, brokers: BrokerFactory) -> Result:
    """The brokers lose the end of the log, and with it offsets that were committed."""
    name = "offsets-cut-off"
    with brokers() as broker:
        await asyncio.to_thread(broker.start)
        async with running(
            rig,
            name,
            rig.store("sqlite", name),
            MIX,
            partitions=PARTITIONS,
            bootstrap=broker.bootstrap,
        ) as run:
            return await _cut_off(run, broker)


async def _cut_off(run: Run, broker: Broker) -> Result:
    await run.publish(FIRST)
    worker = run.worker()
    await worker.says("batch.done", PATIENCE)
    await run.drained(PATIENCE)
    before = await run.kafka.end_offsets(run.topics.source)
    await asyncio.to_thread(_lose_ends, broker, run.topics.source)
    problems = await _stopped(worker, OFFSETS_LOST, "offsets lost")
    await answers(run.handled)
    ends = await run.kafka.end_offsets(run.topics.source)
    gone = sum(before.values()) - sum(ends.values())
    assert gone > 0
    problems += await _stops(run, OFFSETS_LOST, "offsets lost")
    await _decide(run, _by_partition(run, ends))
    run.mix = SOUND  # offsets that had letters are used again
    await run.publish(SECOND, seed=2)
    await run.drain()
    facts = f"{gone} committed records lost by the broker, exit 4 of {STARTS + 1} workers"
    return Result(name=run.name, verdict=await run.verdict(), facts=facts, problems=problems)


def _lose_ends(broker: Broker, topic: str) -> None:
    """As after a power cut of a machine whose disk had not got that far."""
    broker.kill()
    assert broker.alter(f"{topic}-[0-9]/*.log", lambda log: log[: len(log) * 3 // 4])
    broker.start()


async def _delete(run: Run, before: Offsets) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=run.kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({tp: RecordsToDelete(at) for tp, at in before.items()})
    finally:
        await admin.close()


async def _decide(run: Run, offsets: Offsets) -> None:
    """Set the group's offsets, as `kafka-consumer-groups.sh --reset-offsets` does."""
    person = AIOKafkaConsumer(
        bootstrap_servers=run.kafka.bootstrap,
        group_id=run.topics.group,
        enable_auto_commit=False,
    )
    await person.start()
    try:
        person.assign(list(offsets))
        await person.commit(offsets)
    finally:
        await person.stop()


def _by_partition(run: Run, offsets: dict[int, int]) -> Offsets:
    return {TopicPartition(run.topics.source, number): at for number, at in offsets.items()}


# --- letters that cannot be written --------------------------------------------------------------


async def forbidden(rig: Rig, brokers: BrokerFactory) -> Result:
    """Somebody takes the right to write letters away, and gives it back."""
    name = "letters-forbidden"
    guard = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with brokers(properties=guard) as broker:
        await asyncio.to_thread(broker.start)
        async with running(
            rig,
            name,
            rig.store("sqlite", name),
            MIX,
            partitions=PARTITIONS,
            bootstrap=broker.bootstrap,
        ) as run:
            forbid, allow = partial(_forbid, run), partial(_allow, run)
            return await _unwritable(
                run, partial(asyncio.to_thread, forbid), partial(asyncio.to_thread, allow), "ACL"
            )


async def refused(rig: Rig) -> Result:
    """Somebody makes the topic too small for any letter; `topics create` makes it right."""
    name = "letters-refused"
    async with running(rig, name, rig.store("sqlite", name), MIX, partitions=PARTITIONS) as run:

        async def shrink() -> None:
            configs = {"cleanup.policy": "compact", "max.message.bytes": TOO_FEW}
            await run.kafka.alter(run.topics.dlq, configs)

        async def mend() -> None:
            mended = rig.nursery.spawn("topics", "create", environ=run.environ)
            assert await mended.ended(30) == 0, mended.tail

        return await _unwritable(run, shrink, mend, "last-sync topics create")


async def _unwritable(run: Run, spoil: Step, mend: Step, words: str) -> Result:
    """Good letters first; then poison arrives, and its letters cannot be written."""
    await run.publish(FIRST)
    worker = run.worker()
    await worker.says("batch.done", PATIENCE)
    await run.drained(PATIENCE)
    letters = len(await run.letters())
    await spoil()
    await run.publish(SECOND, seed=2)
    problems = await _stopped(worker, CANNOT_START, words)
    problems += await _stops(run, CANNOT_START, words)
    problems += await _passed_over(run)
    if len(await run.letters()) != letters:
        problems.append("letters were written all the same")
    await mend()
    await run.drain()
    facts = (
        f"exit 3 of {STARTS + 1} workers, {letters} letters all the while, the others when mended"
    )
    return Result(name=run.name, verdict=await run.verdict(), facts=facts, problems=problems)


def _forbid(run: Run) -> None:
    """Everybody may do all to the topic of letters, and nobody may write to it."""
    admin = AdminClient({"bootstrap.servers": run.kafka.bootstrap, "log_level": "3"})
    acls = [
        _acl(run, AclOperation.ALL, AclPermissionType.ALLOW),
        _acl(run, AclOperation.WRITE, AclPermissionType.DENY),
    ]
    for answer in admin.create_acls(acls).values():
        answer.result(10)


def _acl(run: Run, operation: AclOperation, permission: AclPermissionType) -> AclBinding:
    pattern = ResourcePatternType.LITERAL
    return AclBinding(
        ResourceType.TOPIC, run.topics.dlq, pattern, "User:*", "*", operation, permission
    )


def _allow(run: Run) -> None:
    admin = AdminClient({"bootstrap.servers": run.kafka.bootstrap, "log_level": "3"})
    every: tuple[Any, ...] = (None, None, AclOperation.ANY, AclPermissionType.ANY)
    found = AclBindingFilter(ResourceType.TOPIC, run.topics.dlq, ResourcePatternType.ANY, *every)
    for answer in admin.delete_acls([found]).values():
        answer.result(10)


async def _passed_over(run: Run) -> list[str]:
    """Records whose offset is committed, though their letter is not there."""
    committed = await run.kafka.committed(run.topics.group, run.topics.source)
    there = {letter.origin for letter in await run.letters()}
    deserve = expected_letters(run.history.sent(), set(run.registered)).keys()
    ahead = [at for at in deserve - there if at[2] < committed.get(at[1], 0)]
    assert deserve - there, "no letter is missing: the fault did not bite"
    return [f"committed past {at}, which has no letter" for at in ahead]


# --- a worker that must not go on ----------------------------------------------------------------


async def _stops(run: Run, code: int, words: str) -> list[str]:
    """However often it is started, and without a step forward."""
    handled, problems = await run.handled(), list[str]()
    for _ in range(STARTS):
        problems += await _stopped(run.worker(), code, words)
    if await run.handled() != handled:
        problems.append("something was committed")
    return problems


async def _stopped(worker: Member, code: int, words: str) -> list[str]:
    ended = await worker.ended(PATIENCE)
    said = worker.stderr.splitlines()[-1]
    return [] if ended == code and words in said else [f"exit code {ended}: {said}"]
