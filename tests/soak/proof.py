"""The chaos checker over millions of records: a partition at a time, for a key has one."""

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from tests.chaos.checker import KINDS, Verdict, check
from tests.chaos.history import History, Letter, Sent, digest
from tests.soak.onlooker import path_of
from tests.soak.plan import PARTITIONS, partition_of
from tests.soak.publisher import REASON


def prove(
    bootstrap: str,
    topic: str,
    folder: Path,
    registered: Collection[str],
    letters: Collection[Letter],
) -> Verdict:
    """Hold store and letters to what stands in the topic, in a process for each CPU."""
    connectors, of_partition = defaultdict(list), defaultdict(list)
    for name in registered:
        connectors[partition_of(name)].append(name)
    for letter in letters:
        of_partition[letter.origin[1]].append(letter)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        asked = [
            pool.submit(_checked, bootstrap, topic, n, folder, connectors[n], of_partition[n])
            for n in range(PARTITIONS)
        ]
        return _sum(one.result() for one in asked)


def _checked(
    bootstrap: str,
    topic: str,
    partition: int,
    folder: Path,
    registered: Collection[str],
    letters: Collection[Letter],
) -> Verdict:
    history = History(path_of(folder, partition))
    try:
        sent = map(_sent, _records(bootstrap, TopicPartition(topic, partition)))
        return check(sent, registered, history.reads(), letters)
    finally:
        history.close()


def _records(bootstrap: str, tp: TopicPartition) -> Iterator[ConsumerRecord]:
    """Read the partition from its beginning to where it ends now."""
    with asyncio.Runner() as runner:
        consumer = runner.run(_started(bootstrap, tp))
        try:
            end = runner.run(consumer.end_offsets([tp]))[tp]
            while runner.run(consumer.position(tp)) < end:
                yield from runner.run(consumer.getmany(tp, timeout_ms=500)).get(tp, ())
        finally:
            runner.run(consumer.stop())


async def _started(bootstrap: str, tp: TopicPartition) -> AIOKafkaConsumer:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([tp])
    return consumer


def _sent(record: ConsumerRecord) -> Sent:
    reason = dict(record.headers).get(REASON, b"").decode()
    return Sent(
        origin=(record.topic, record.partition, record.offset),
        event=None if reason else json.loads(record.value),
        reason=reason,
        digest=digest(record.value),
    )


def _sum(verdicts: Iterator[Verdict]) -> Verdict:
    whole = Verdict()
    for verdict in verdicts:
        whole.events += verdict.events
        whole.letters += verdict.letters
        for kind in KINDS:
            getattr(whole, kind).extend(getattr(verdict, kind))
    return whole
