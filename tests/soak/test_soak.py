"""What the soak publishes, samples and does, without the hour."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import pytest
from aiokafka.partitioner import DefaultPartitioner

from tests.brokers import HOST, free_port
from tests.chaos.checker import check
from tests.chaos.events import Item
from tests.chaos.history import Letter, Read, Sent, digest
from tests.kafka import Kafka, Record, Topics
from tests.oracle import expected
from tests.probes import Probes
from tests.soak.faults import moments
from tests.soak.onlooker import Reads
from tests.soak.plan import PARTITIONS, PROBE_EVERY, PROBED, Plan, Schedule, partition_of, probed
from tests.soak.proof import prove
from tests.soak.publisher import REASON, items
from tests.soak.samples import sample

PLAN = Plan(connectors=200)


def test_every_hundredth_record_is_a_probe_of_the_next_connector() -> None:
    found = [item.event for item in islice(items(PLAN.connectors), 3_000)]
    probes = [event for event in found[::PROBE_EVERY] if event]
    assert [event["connector_id"] for event in probes] == [probed(n) for n in range(30)]
    assert all(event["last_sync"]["last_indexed_document_count"] == n
               for n, event in enumerate(probes))  # fmt: skip


def test_a_share_of_what_is_published_can_never_be_applied() -> None:
    known = set(PLAN.registered)
    kinds = Counter(
        "poison" if item.reason else "unknown"
        for item in islice(items(PLAN.connectors), 40_000)
        if not item.event or item.event["connector_id"] not in known
    )
    assert kinds["poison"] / 40_000 == pytest.approx(0.0025, abs=0.0015)
    assert kinds["unknown"] / 40_000 == pytest.approx(0.0025, abs=0.002)


def test_partitions_are_those_that_the_client_chooses() -> None:
    choose, every = DefaultPartitioner(), list(range(PARTITIONS))
    for name in PLAN.registered:
        assert partition_of(name) == choose(name.encode(), every, every)


def test_an_event_is_due_at_its_time() -> None:
    schedule = Schedule(begin=0, rate=2_000)
    assert schedule.due(2_000) == 1
    assert schedule.probe_due(20) == 1


def test_every_fault_comes_five_times_in_the_warm_up_and_then_at_a_steady_pace() -> None:
    found = list(islice(moments(Plan(), 7), 40))
    assert max(found[:35]) < 1_200
    assert found[35] == 1_380
    assert {round(b - a) for a, b in pairwise(found[35:])} == {180}


def test_what_was_read_is_kept_by_partition(tmp_path: Path) -> None:
    fields = {name: {"last_sync_error": name} for name in PLAN.registered}
    reads = Reads(tmp_path)
    reads.add(fields)
    reads.close()
    texts = [path.read_text() for path in sorted(tmp_path.iterdir())]
    assert len(texts) == PARTITIONS
    assert all(name in texts[partition_of(name)] for name in fields)


async def test_a_sample_is_what_the_kernel_says_of_the_process() -> None:
    found = await sample(Schedule(begin=0, rate=1), os.getpid(), Probes(port=free_port()))
    assert found.rss > found.private > 1
    assert found.threads >= 1
    assert found.fds == pytest.approx(len(os.listdir("/proc/self/fd")), abs=2)  # noqa: PTH208 - async
    assert (found.lag, found.events) == (None, None)  # nobody answers at the port


def test_the_checker_takes_a_stream_of_probes() -> None:
    found = [item for item in islice(items(10), PROBE_EVERY * PROBED) if item.event]
    events = [item.event for item in found if item.event]
    registered = Plan(connectors=10).registered
    sent = (
        Sent(origin=(HOST, 0, n), event=item.event, reason="", digest=digest(item.value))
        for n, item in enumerate(found)
        if item.event and item.event["connector_id"] in registered
    )
    reads = [Read(connectors=expected(events, registered))]
    assert check(sent, registered, reads, []).clean


@pytest.fixture
async def published(kafka: Kafka) -> Topics:
    """Publish a little of what a soak publishes."""
    topics = Topics.unique()
    await kafka.create(topics, partitions=PARTITIONS)
    await kafka.produce(topics.source, (record(item) for item in islice(items(20), 2_000)))
    return topics


def record(item: Item) -> Record:
    headers = [(REASON, item.reason.encode())] if item.reason else []
    return Record(key=item.key, value=item.value, headers=headers)


async def test_what_stands_in_the_topic_is_what_store_and_letters_are_held_to(
    kafka: Kafka, published: Topics, tmp_path: Path
) -> None:
    registered = Plan(connectors=20).registered
    written = await kafka.read_all(published.source)
    letters = [found for one in written if (found := letter(one, published.source, registered))]
    events = [json.loads(one.value or b"") for one in written if not one.headers]
    reads = Reads(tmp_path)
    reads.add(expected(events, registered))
    reads.close()
    judge = partial(prove, kafka.bootstrap, published.source, tmp_path)
    sound = await asyncio.to_thread(judge, registered, letters)
    assert (sound.clean, sound.events, sound.letters) == (True, 2_000, len(letters))
    wrong = await asyncio.to_thread(judge, [*registered, "unread"], letters[1:])
    assert (len(wrong.missing_letters), len(wrong.lost)) == (1, 1)


def letter(record: Record, topic: str, registered: Sequence[str]) -> Letter | None:
    """Give the letter that the record has to have."""
    reason = dict(record.headers).get(REASON) or b""
    if not reason and (record.key or b"").decode() not in registered:
        reason = b"connector_not_found"
    origin = (topic, record.partition or 0, record.offset or 0)
    return (
        Letter(origin=origin, reason=reason.decode(), digest=digest(record.value))
        if reason
        else None
    )
