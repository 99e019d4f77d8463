"""The open letters are read from a real broker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from itertools import count, groupby
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from schemas.dead_letter import DeadLetter, Original
from tests.eventually import takes_less
from tests.kafka import Kafka, Record, Topics
from worker import open_letters
from worker.errors import TransientError
from worker.open_letters import KEPT_BYTES, OBJECT, OpenLetter, OpenLetters
from worker.settings import Settings


def named(kafka: Kafka, topic: Topics) -> Settings:
    return Settings(
        kafka_bootstrap_servers=kafka.bootstrap,
        kafka_topic=topic.source,
        kafka_dead_letter_topic=topic.dlq,
    )


async def test_nothing_waits_behind_a_fetch_at_the_end_of_the_topic(kafka: Kafka) -> None:
    """The broker would keep such a fetch for half a second, and what is asked next with it."""
    topic = Topics.unique()
    await kafka.create(topic, partitions=1)
    async with OpenLetters.opened(named(kafka, topic)) as letters:
        await takes_less(0.4, letters.table)


def letter(number: int, connector_id: str, note: str = "") -> Record:
    key, value, headers = (
        DeadLetter(
            group="worker",
            topic="source",
            partition=0,
            offset=number,
            timestamp_ms=0,
            key=None,
            value=f"{number} {note}".encode(),
            headers=(("traceparent", b"00-1"),) if number % 2 else (),
            reason="connector_not_found",
            status=404,
            message="not registered",
            connector_id=connector_id,
            failed_at=datetime(2026, 1, 1, tzinfo=UTC),
            store="a store",
        )
        .fitted(1_000_000)
        .record()
    )
    return Record(key=key, value=value, headers=headers, partition=number % 2)


def closed(record: Record) -> Record:
    return Record(key=record.key, value=None, partition=record.partition)


# What is kept of the originals must not show: with no room they are all read again.
@pytest.mark.parametrize("room", [0, 20 * (OBJECT + 10), KEPT_BYTES])
async def test_an_original_is_the_same_kept_or_read_again(
    kafka: Kafka, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_letters, "KEPT_BYTES", room)
    topic = Topics.unique()
    await kafka.create(topic, partitions=2)
    first = [letter(number, f"c{number % 7}") for number in range(100)]
    again = [letter(number, f"c{number % 7}", "again") for number in range(50)]
    gone = [closed(record) for record in first[40:60]]
    await kafka.produce(topic.dlq, [*first, *again, *gone])
    async with OpenLetters.opened(named(kafka, topic)) as letters:
        table = await letters.table(keep=lambda one: one.connector_id != "c1")
        kept = [one for one in table if one.original]
        scans = Mock(wraps=letters._scan)
        monkeypatch.setattr(letters, "_scan", scans)
        found = [one async for batch in letters.with_originals(table, 9) for one in batch]
    expected = {
        number: Original.of(record.value, record.headers)
        for number, record in enumerate([*again[:40], *first[40:]])
        if number not in range(40, 60)
    }
    assert {one.offset: one.original for one in found} == expected
    assert len(found) == len(table) == len(expected)
    assert all(one.connector_id != "c1" for one in kept)
    together = [one.connector_id for one in found[: len(kept)]]
    assert [id_ for id_, _ in groupby(together)] == list(dict.fromkeys(together))
    # A partition after the other, for that is where a connector's letters meet.
    assert [list(ranges) for ((ranges,), _) in scans.call_args_list] == [[0], [1]]
    if room == 0:
        assert not kept
    elif room == KEPT_BYTES:
        assert len(kept) == sum(one.connector_id != "c1" for one in table)
    else:
        assert 10 <= len(kept) <= 21


async def test_what_is_read_again_is_given_once_however_often_it_comes(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does when the topic gets more partitions meanwhile."""
    topic = Topics.unique()
    await kafka.create(topic, partitions=2)
    await kafka.produce(topic.dlq, [letter(number, "c") for number in range(20)])
    async with OpenLetters.opened(named(kafka, topic)) as letters:
        table, scan = await letters.table(), letters._scan

        async def twice(ranges: dict[int, tuple[int, int]]) -> AsyncIterator[Any]:
            async for found in scan(ranges):
                yield found
                yield found

        monkeypatch.setattr(letters, "_scan", twice)
        found = [one async for batch in letters.with_originals(table, 9) for one in batch]
    assert sorted(one.offset for one in found) == list(range(20))


async def test_brokers_that_give_no_record_before_the_end_are_not_waited_for_for_ever(
    kafka: Kafka, topic: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(step=10)
    monkeypatch.setattr(open_letters, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    await kafka.produce(topic.dlq, [letter(0, "c")])

    async def nothing(**_: Any) -> dict[Any, Any]:
        return {}

    async with OpenLetters.opened(named(kafka, topic)) as letters:
        monkeypatch.setattr(letters._client, "getmany", nothing)
        async with asyncio.timeout(10):
            with pytest.raises(TransientError, match=f"no record of {topic.dlq} for 30 s"):
                await letters.table()


async def test_brokers_that_give_a_record_now_and_then_are_waited_for(
    kafka: Kafka, topic: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(open_letters, "time", SimpleNamespace(monotonic=lambda: now[0]))
    await kafka.produce(topic.dlq, [letter(number, "c") for number in range(4)])
    async with OpenLetters.opened(named(kafka, topic)) as letters:
        getmany, polls = letters._client.getmany, count()

        async def seldom(**options: Any) -> Any:
            now[0] += 0.4 * open_letters.STALLED
            found: dict[Any, Any] = {}
            if next(polls) % 2:
                while not found:
                    found = await getmany(**{**options, "max_records": 1})
            return found

        monkeypatch.setattr(letters._client, "getmany", seldom)
        table = await letters.table()
    assert sorted(one.offset for one in table) == list(range(4))
    assert next(polls) > 4  # so that it took longer than that


@pytest.mark.parametrize("keep", [None, lambda _: True], ids=["read again", "kept"])
async def test_headers_count_in_what_is_worked_on_at_once(
    kafka: Kafka, keep: Callable[[OpenLetter], bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_letters, "MOST_BYTES", 10 * OBJECT)
    topic = Topics.unique()
    await kafka.create(topic, partitions=2)
    await kafka.produce(topic.dlq, [letter(number, "c") for number in range(1, 80, 2)])
    async with OpenLetters.opened(named(kafka, topic)) as letters:
        table = await letters.table(keep=keep)
        sizes = [len(batch) async for batch in letters.with_originals(table, 100)]
    assert sizes == [5] * 8  # an object each for the letter and its one header


async def test_the_parts_of_a_cursor_count_in_what_is_worked_on_at_once(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_letters, "MOST_BYTES", 10 * OBJECT)
    cursor = '"sync_cursor": ' + "[" * 4
    topic = Topics.unique()
    await kafka.create(topic, partitions=2)
    await kafka.produce(topic.dlq, [letter(number, "c", cursor) for number in range(0, 80, 2)])
    async with OpenLetters.opened(named(kafka, topic)) as letters:
        table = await letters.table(keep=lambda _: True)
        sizes = [len(batch) async for batch in letters.with_originals(table, 100)]
    assert sizes == [2] * 20  # without them, nine at once
