"""The loop inside one process, on a real broker, with the store's steps pinned by events."""

import asyncio
import gc
import json
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import CommitFailedError, KafkaError, UnknownError

from schemas.reasons import Invalid
from schemas.updates import Update, update
from tests.brokers import Broker
from tests.conftest import MakeBroker
from tests.eventually import eventually
from tests.kafka import DEAD_LETTER_MAX_BYTES, SOURCE_MAX_BYTES, Kafka, Record, Topics
from worker import batch, batches, consumer, dead_letters, lookout, reader
from worker.app import running
from worker.batch import Batch
from worker.errors import LastSyncError, MisconfiguredError, StalledError, TransientError
from worker.merge import Outcome
from worker.reader import AHEAD_POLL
from worker.settings import Settings
from worker.stores import ConnectorStore, open_store
from worker.watchdog import Watchdog


def event(connector: str, number: int, **more: Any) -> Record:
    value = {
        "event_id": f"e-{number}",
        "connector_id": connector,
        "occurred_at": f"2026-01-01T00:00:{number % 60:02}Z",
        "last_sync": {"last_indexed_document_count": number, **more},
    }
    return Record(value=json.dumps(value).encode(), key=connector.encode(), partition=number % 4)


class Pinned:
    """A real store whose `apply` waits at a gate, or fails for as long as it is told to."""

    def __init__(self, store: ConnectorStore) -> None:
        self._store = store
        self.store_id, self.remote, self.most = store.store_id, store.remote, store.most
        self.leaves_time = asyncio.Event()
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.trouble: Exception | None = None
        self.attempts = 0
        self.seen: list[str] = []
        self.sizes: list[int] = []  # of batches
        self.preview, self.add, self.delete = store.preview, store.add, store.delete
        self.get, self.connectors, self.describe = store.get, store.connectors, store.describe
        self.verify = store.verify

    def be_remote(self) -> None:
        """As one does whose work is done by another process."""
        self.remote = True
        self.leaves_time.set()

    async def apply(self, updates: Sequence[Update]) -> list[Outcome]:
        self.attempts += 1
        self.entered.set()
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        self.seen += [update.event_id for update in updates]
        self.sizes.append(len(updates))
        return await self._store.apply(updates)


class Recorded(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka ships no types
    """The real client, which notes what the loop does with it."""

    made: list["Recorded"] = []  # noqa: RUF012 - emptied by each test's fixture
    mute = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.polls = self.cancelled_polls = 0
        self.listed_partitions = self.records = 0
        self.commit_error: Exception | None = None
        self.read_ahead_error: Exception | None = None
        self.read_on_error: Exception | None = None
        self.ends_unknown = False
        self.linger = 0.0  # seconds that an answer about ends takes
        self.made.append(self)

    async def getmany(self, *partitions: Any, **options: Any) -> Any:
        self.listed_partitions += len(partitions)
        try:
            if self.mute:
                await asyncio.sleep(0.05)
                return {}
            if self.read_ahead_error and options["timeout_ms"] == AHEAD_POLL * 1000:
                raise self.read_ahead_error
            if self.read_on_error and options["timeout_ms"] == 0:
                raise self.read_on_error
            polled = await super().getmany(*partitions, **options)
        except asyncio.CancelledError:
            self.cancelled_polls += 1
            raise
        else:
            self.records += sum(map(len, polled.values()))
            return polled
        finally:
            self.polls += 1

    async def end_offsets(self, partitions: Any) -> Any:
        if self.ends_unknown:
            await asyncio.Event().wait()
        await asyncio.sleep(self.linger)
        return await super().end_offsets(partitions)

    async def commit(self, offsets: Any = None) -> None:
        error, self.commit_error = self.commit_error, None
        if error is not None:
            raise error
        await super().commit(offsets)


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Name the worker's clients, in the order in which they were made."""
    monkeypatch.setattr("worker.kafka.AIOKafkaConsumer", Recorded)
    monkeypatch.setattr(Recorded, "made", [])
    return Recorded.made


@pytest.fixture
async def store() -> AsyncIterator[Pinned]:
    async with open_store("memory://") as real:
        await real.add(["a", "b", "c"])
        yield Pinned(real)


class Running:
    def __init__(self, task: asyncio.Task[None], stop: asyncio.Event) -> None:
        self.task, self.stop = task, stop


def settings_for(kafka: Kafka, topics: Topics, **more: Any) -> Settings:
    return Settings(
        kafka_bootstrap_servers=kafka.bootstrap,
        kafka_topic=topics.source,
        kafka_dead_letter_topic=topics.dlq,
        kafka_group_id=topics.group,
        **{"kafka_session_timeout_ms": 3000, **more},
    )


@asynccontextmanager
async def working(settings: Settings, store: Any) -> AsyncIterator[Running]:
    """A worker that runs as long as the block; its failure is the test's."""
    stop = asyncio.Event()
    watchdog = Watchdog(60)
    task = asyncio.create_task(running.consume(settings, store, stop, watchdog))
    try:
        yield Running(task, stop)
        stop.set()
        await asyncio.wait_for(task, 20)
    finally:
        stop.set()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def committed_all(kafka: Kafka, topics: Topics) -> Callable[[], Any]:
    async def reached() -> bool:
        ends = await kafka.end_offsets(topics.source)
        return {n: e for n, e in ends.items() if e} == {
            n: o for n, o in (await kafka.committed(topics.group, topics.source)).items() if o
        }

    return reached


async def until_committed(kafka: Kafka, topics: Topics, offsets: dict[int, int]) -> None:
    async def reached() -> bool:
        return await kafka.committed(topics.group, topics.source) == offsets

    await eventually(reached)


async def test_memory_goes_back_now_and_then_between_batches(
    kafka: Kafka, topic: Topics, store: Pinned, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[int] = []
    monkeypatch.setattr("worker.memory.give_back", lambda: stored.append(len(store.seen)))
    monkeypatch.setattr("worker.lookout.LOOK_AROUND", 0.2)
    await kafka.produce(topic.source, [event("a", n) for n in range(500)])
    began = time.monotonic()
    async with working(settings_for(kafka, topic, batch_size=1), store):
        await eventually(lambda: stored.count(500) >= 2, 60)
    assert any(0 < count < 500 for count in stored)
    assert len(stored) <= (time.monotonic() - began) / 0.2


async def test_a_holding_worker_keeps_polling_and_is_handed_no_successors(
    kafka: Kafka, topic: Topics, store: Pinned, clients: list[Recorded]
) -> None:
    store.trouble = TransientError("the store is away")
    await kafka.produce(topic.source, [event("a", 0)])
    async with working(settings_for(kafka, topic), store):
        await eventually(lambda: store.attempts >= 2)
        polls = clients[0].polls
        await kafka.produce(topic.source, [event("b", n) for n in range(1, 40)])
        await eventually(lambda: clients[0].polls >= polls + 3)
        assert clients[0].paused() == clients[0].assignment()
        assert store.seen == []
        assert not any((await kafka.committed(topic.group, topic.source)).values())
        store.trouble = None
        await eventually(committed_all(kafka, topic))
    assert sorted(store.seen) == sorted(f"e-{n}" for n in range(40))
    assert clients[0].listed_partitions == 0  # an empty list would mean all of them
    assert clients[0].cancelled_polls == 0
    assert await kafka.read_all(topic.dlq) == []


async def test_one_answer_waits_while_a_store_is_slow_however_many_partitions_there_are(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "FETCH", 4_096)
    store.gate.clear()
    await kafka.produce(topic.source, [event("a", n, last_sync_error="x" * 999) for n in range(80)])
    async with working(settings_for(kafka, topic), store):
        await store.entered.wait()
        await eventually(lambda: clients[0]._fetcher._records)
        await asyncio.sleep(1)  # ten times the client's own patience
        assert len(clients[0]._fetcher._records) == 1
        store.gate.set()
        await eventually(committed_all(kafka, topic))


async def test_a_batch_that_is_done_is_let_go_before_the_next_is_read(
    kafka: Kafka, topic: Topics, store: Pinned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches() -> list[Batch]:
        return [each for each in gc.get_objects() if type(each) is Batch]

    others = batches()  # left by other tests; held, so that none is collected meanwhile
    held: list[int] = []
    poll = reader.Reader.poll

    async def counting(self: reader.Reader, seconds: float) -> Any:
        held.append(len(batches()) - len(others))
        return await poll(self, seconds)

    monkeypatch.setattr(reader.Reader, "poll", counting)
    await kafka.produce(topic.source, [event("a", n) for n in range(8)])
    async with working(settings_for(kafka, topic, batch_size=2), store):
        await eventually(committed_all(kafka, topic))
    assert len(store.sizes) > 1
    assert set(held) == {0}


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Leave cycles alone, as the collector does for minutes."""
    gc.disable()
    yield
    gc.enable()


async def fetched_ahead(client: Recorded) -> Callable[[], bool]:
    """Wait for records beyond the batch in hand, and give whether any of them is in memory."""
    await eventually(lambda: len(client._fetcher._records) > 1)
    records = [weakref.ref(one._partition_records) for one in client._fetcher._records.values()]
    return lambda: any(one() is not None for one in records)


@pytest.mark.usefixtures("uncollected")
async def test_what_a_pause_drops_of_what_was_fetched_is_freed(
    kafka: Kafka, topic: Topics, store: Pinned, clients: list[Recorded]
) -> None:
    await kafka.produce(topic.source, [event("a", n) for n in range(40)])
    store.gate.clear()
    async with working(settings_for(kafka, topic, batch_size=1), store):
        await store.entered.wait()
        in_memory = await fetched_ahead(clients[0])
        assert in_memory()
        await eventually(lambda: not clients[0]._fetcher._records)
        assert not in_memory()
        store.gate.set()
        await eventually(committed_all(kafka, topic))


@pytest.mark.usefixtures("uncollected")
async def test_what_a_rebalance_drops_of_what_was_fetched_is_freed(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "SLOW", 60.0)  # nothing is paused
    await kafka.produce(topic.source, [event("a", n) for n in range(40)])
    store.gate.clear()
    settings = settings_for(kafka, topic, batch_size=1)
    async with working(settings, store):
        await store.entered.wait()
        in_memory = await fetched_ahead(clients[0])
        async with working(settings, store):
            await eventually(lambda: clients[0]._subscription.reassignment_in_progress)
            assert in_memory()
            store.gate.set()
            await eventually(committed_all(kafka, topic))
            assert not in_memory()


async def test_a_revocation_waits_for_the_batch_in_flight_and_its_commit(
    kafka: Kafka, topic: Topics, store: Pinned, clients: list[Recorded]
) -> None:
    await kafka.produce(topic.source, [event("a", n) for n in range(8)])
    store.gate.clear()
    async with open_store("memory://") as other:
        await other.add(["a"])
        second = Pinned(other)
        async with working(settings_for(kafka, topic), store):
            await store.entered.wait()
            async with working(settings_for(kafka, topic), second):
                await eventually(lambda: len(clients) == 2)
                await eventually(lambda: clients[0]._subscription.reassignment_in_progress)
                store.gate.set()
                await eventually(clients[1].assignment)
                await eventually(committed_all(kafka, topic))
    assert len(store.seen) == 8
    assert second.seen == []  # nothing was delivered twice
    assert [client.cancelled_polls for client in clients] == [0, 0]


async def test_while_a_remote_store_works_the_next_batch_is_read_and_not_committed(
    kafka: Kafka, topic: Topics, store: Pinned, clients: list[Recorded]
) -> None:
    store.be_remote()
    await kafka.produce(topic.source, [event("a", 4 * n) for n in range(6)])
    first = store.gate = asyncio.Event()
    async with working(settings_for(kafka, topic, batch_size=2), store):
        await store.entered.wait()
        await eventually(lambda: clients[0].records == 4)
        store.gate = asyncio.Event()
        first.set()
        await eventually(lambda: store.attempts == 2)
        await until_committed(kafka, topic, {0: 2, 1: 0, 2: 0, 3: 0})
        store.gate.set()
        await eventually(committed_all(kafka, topic))
    assert store.seen == [f"e-{4 * n}" for n in range(6)]


async def test_a_part_of_the_next_batch_is_read_while_the_disk_is_waited_for(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "AHEAD", 60.0)
    monkeypatch.setattr(reader, "AHEAD_POLLED", 2)
    read: list[bytes] = []

    def noted(value: bytes, *more: Any, **options: Any) -> Update | Invalid:
        read.append(value)
        return update(value, *more, **options)

    monkeypatch.setattr(batch, "update", noted)
    store.gate.clear()
    await kafka.produce(topic.source, [event("a", 4 * n) for n in range(15)])
    async with working(settings_for(kafka, topic, batch_size=16), store):
        await store.entered.wait()
        await kafka.produce(topic.source, [event("a", 4 * n) for n in range(15, 27)])
        await asyncio.sleep(0.2)
        assert clients[0].records == 15  # the store needs the processor
        store.leaves_time.set()
        await eventually(lambda: len(read) == 19)  # two at a time, until there are three
        await asyncio.sleep(0.2)
        assert clients[0].records == len(read) == 19
        store.gate.set()
        await eventually(committed_all(kafka, topic))
    assert store.sizes == [15, 12]
    assert store.seen == [f"e-{4 * n}" for n in range(27)]


async def test_a_few_records_are_no_reason_to_read_ahead(
    kafka: Kafka, topic: Topics, store: Pinned, clients: list[Recorded]
) -> None:
    store.be_remote()
    store.gate.clear()
    await kafka.produce(topic.source, [event("a", 0)])
    async with working(settings_for(kafka, topic, batch_size=32), store):
        await store.entered.wait()
        await kafka.produce(topic.source, [event("a", 4)])
        await asyncio.sleep(0.2)
        assert clients[0].records == 1
        store.gate.set()
        await eventually(committed_all(kafka, topic))


async def test_a_store_that_leaves_no_time_is_not_waited_for(
    kafka: Kafka, topic: Topics, store: Pinned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "SLOW", 60.0)
    await kafka.produce(topic.source, [event("a", 4 * n) for n in range(2)])
    async with working(settings_for(kafka, topic, batch_size=2), store):
        await eventually(committed_all(kafka, topic))


@pytest.mark.parametrize("slow", [60.0, 0.3])
async def test_what_is_read_ahead_and_what_fills_it_up_are_no_larger_than_a_poll(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
    slow: float,  # after so many seconds polls go on, and what they leave is fetched again
) -> None:
    monkeypatch.setattr(batches, "MAX_POLL", 1024 * 1024)
    monkeypatch.setattr(consumer, "SLOW", slow)
    monkeypatch.setattr(lookout, "LOOK_AROUND", 0.0)
    store.be_remote()
    store.gate.clear()
    await kafka.produce(topic.source, [event("a", 0)])
    async with working(settings_for(kafka, topic, batch_size=16), store):
        await store.entered.wait()
        large = {"last_sync_error": "x" * 300_000}
        await kafka.produce(topic.source, [event("a", 4 * n, **large) for n in range(1, 13)])
        await eventually(lambda: clients[0].records == 5)
        await eventually(lambda: slow > 1 or clients[0].paused())
        clients[0].linger = 0.3  # meanwhile more arrives
        store.gate.set()
        await eventually(committed_all(kafka, topic))
    assert store.sizes == [1, 4, 4, 4]


async def test_a_store_that_leaves_no_time_is_polled_beside_as_soon_as_others(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "SLOW", 4.0)
    store.gate.clear()
    await kafka.produce(topic.source, [event("a", 0)])
    async with working(settings_for(kafka, topic, batch_size=16), store):
        await store.entered.wait()
        began = asyncio.get_running_loop().time()
        await eventually(clients[0].paused)
        assert asyncio.get_running_loop().time() - began < 7.5
        store.gate.set()
        await eventually(committed_all(kafka, topic))


async def test_what_cannot_be_read_of_the_rest_of_a_batch_waits_for_what_was_read(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "AHEAD", 60.0)
    store.leaves_time.set()
    store.gate.clear()
    await kafka.produce(topic.source, [event("a", 0)])

    async def met_a_bomb() -> None:
        async with working(settings_for(kafka, topic, batch_size=8), store) as worker:
            await store.entered.wait()
            await kafka.produce(topic.source, [event("a", 4 * n) for n in range(1, 3)])
            await eventually(lambda: clients[0].records == 2)
            clients[0].read_on_error = MisconfiguredError("a bomb")
            store.gate.set()
            await worker.task

    with pytest.raises(MisconfiguredError, match="a bomb"):
        await met_a_bomb()
    assert store.sizes == [1, 1]
    assert await kafka.committed(topic.group, topic.source) == {0: 2, 1: 0, 2: 0, 3: 0}


async def test_a_batch_has_no_more_records_than_the_store_takes(
    kafka: Kafka, topic: Topics, store: Pinned
) -> None:
    store.most = 3
    await kafka.produce(topic.source, [event("a", 4 * n) for n in range(8)])
    async with working(settings_for(kafka, topic), store):
        await eventually(committed_all(kafka, topic))
    assert sum(store.sizes) == 8
    assert max(store.sizes) == 3


@pytest.mark.parametrize(
    ("more", "sizes"),
    [
        pytest.param({8: 9, 12: 17}, [1, 16, 4], id="full"),
        pytest.param({8: 9, 4: 13, 3: 13}, [1, 12, 3], id="three quarters"),
    ],
)
async def test_reading_ahead_goes_on_until_the_next_batch_is_full_enough(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
    more: dict[int, int],  # records published, and how many are read by then
    sizes: list[int],
) -> None:
    monkeypatch.setattr(reader, "AHEAD", 60.0)
    store.be_remote()
    store.gate.clear()
    await kafka.produce(topic.source, [event("a", 0)])
    async with working(settings_for(kafka, topic, batch_size=16), store):
        await store.entered.wait()
        for count, read in more.items():
            await kafka.produce(topic.source, [event("a", 4 * n) for n in range(count)])
            await eventually(lambda: clients[0].records == read)  # noqa: B023
        await eventually(lambda: clients[0]._fetcher._records)  # the rest is fetched, and stays
        store.gate.set()
        await eventually(committed_all(kafka, topic))
    assert store.sizes == sizes


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (MisconfiguredError("a bomb"), MisconfiguredError),
        (KafkaError("a bomb"), StalledError),
    ],
)
async def test_what_cannot_be_read_ahead_ends_the_worker_after_the_batch_in_flight(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    error: Exception,
    ending: type[LastSyncError],
) -> None:
    store.be_remote()
    store.gate.clear()

    async def met_a_bomb() -> None:
        async with working(settings_for(kafka, topic, batch_size=2), store) as worker:
            await eventually(lambda: clients and clients[0].polls)
            clients[0].read_ahead_error = error
            await kafka.produce(topic.source, [event("a", 4 * n) for n in range(2)])
            await store.entered.wait()
            await eventually(clients[0].paused)  # it goes on polling
            store.gate.set()
            await worker.task

    with pytest.raises(ending, match="a bomb"):
        await met_a_bomb()
    assert await kafka.committed(topic.group, topic.source) == {0: 2, 1: 0, 2: 0, 3: 0}


async def test_what_was_read_ahead_of_what_cannot_be_read_is_done_first(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "AHEAD", 60.0)
    monkeypatch.setattr(lookout, "LOOK_AROUND", 0.0)  # positions are looked at after each batch
    store.be_remote()
    store.gate.clear()
    await kafka.produce(topic.source, [event("a", 0)])

    async def met_a_bomb() -> None:
        async with working(settings_for(kafka, topic, batch_size=4), store) as worker:
            await store.entered.wait()
            await kafka.produce(topic.source, [event("a", 4 * n) for n in range(2)])
            await eventually(lambda: clients[0].records == 3)
            clients[0].read_ahead_error = MisconfiguredError("a bomb")
            await eventually(clients[0].paused)  # it was met
            store.gate.set()
            await worker.task

    with pytest.raises(MisconfiguredError, match="a bomb"):
        await met_a_bomb()
    assert store.sizes == [1, 2]
    assert await kafka.committed(topic.group, topic.source) == {0: 3, 1: 0, 2: 0, 3: 0}


async def test_a_revocation_drops_what_was_read_ahead_and_it_comes_again_once(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookout, "LOOK_AROUND", 0.0)  # positions are looked at after each batch
    store.be_remote()
    await kafka.produce(topic.source, [event("a", n) for n in range(8)])
    store.gate.clear()
    async with open_store("memory://") as other:
        await other.add(["a"])
        second = Pinned(other)
        async with working(settings_for(kafka, topic, batch_size=2), store):
            await store.entered.wait()
            await eventually(lambda: clients[0].records == 4)
            async with working(settings_for(kafka, topic), second):
                await eventually(lambda: len(clients) == 2)
                await eventually(lambda: clients[0]._subscription.reassignment_in_progress)
                store.gate.set()
                await eventually(committed_all(kafka, topic))
    assert sorted([*store.seen, *second.seen]) == sorted(f"e-{n}" for n in range(8))


async def test_a_revocation_does_not_wait_for_a_holding_batch_which_comes_again(
    kafka: Kafka, topic: Topics, store: Pinned, clients: list[Recorded]
) -> None:
    await kafka.produce(topic.source, [event("a", n) for n in range(8)])
    store.trouble = TransientError("the store is away")
    async with open_store("memory://") as other:
        await other.add(["a"])
        second = Pinned(other)
        async with working(settings_for(kafka, topic), store):
            await eventually(lambda: store.attempts >= 2)
            async with working(settings_for(kafka, topic), second):
                await eventually(lambda: len(second.seen) == 4, 15)  # its half of the partitions
                await eventually(clients[0].paused)  # holding again, after the rebalance
                store.trouble = None
                await eventually(committed_all(kafka, topic))
    assert sorted([*store.seen, *second.seen]) == sorted(f"e-{n}" for n in range(8))


async def test_a_batch_that_outlasts_the_revocation_is_abandoned_and_comes_again(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "REVOKE_BUDGET", 1.0)
    await kafka.produce(topic.source, [event("a", n) for n in range(8)])
    store.gate.clear()
    async with open_store("memory://") as other:
        await other.add(["a"])
        second = Pinned(other)
        async with working(settings_for(kafka, topic), store):
            await store.entered.wait()
            async with working(settings_for(kafka, topic), second):
                await eventually(lambda: len(second.seen) == 4, 15)
                store.gate.set()
                await eventually(committed_all(kafka, topic))
    assert sorted([*store.seen, *second.seen]) == sorted(f"e-{n}" for n in range(8))


async def test_a_commit_that_came_too_late_is_dropped_and_the_loop_goes_on(
    kafka: Kafka, topic: Topics, store: Pinned, clients: list[Recorded]
) -> None:
    async with working(settings_for(kafka, topic), store):
        await until_committed(kafka, topic, dict.fromkeys(range(4), 0))
        clients[0].commit_error = CommitFailedError()
        await kafka.produce(topic.source, [event("a", 0)])
        await eventually(lambda: store.seen == ["e-0"])
        await kafka.produce(topic.source, [event("a", 4)])
        await eventually(committed_all(kafka, topic))
    assert store.seen == ["e-0", "e-4"]


class Slow(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Keeps a rebalance waiting once it has partitions."""

    def __init__(self, released: asyncio.Event) -> None:
        self._released = released

    async def on_partitions_revoked(self, revoked: set[object]) -> None:
        if revoked:
            await self._released.wait()

    def on_partitions_assigned(self, assigned: object) -> None:
        pass


@asynccontextmanager
async def member(
    kafka: Kafka, topic: Topics, released: asyncio.Event
) -> AsyncIterator[AIOKafkaConsumer]:
    """Join the group, without waiting for it to let us in."""
    client = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap,
        group_id=topic.group,
        rebalance_timeout_ms=20_000,
        heartbeat_interval_ms=500,
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
    )
    client.subscribe([topic.source], listener=Slow(released))
    starting = asyncio.create_task(client.start())
    try:
        yield client
    finally:
        released.set()
        await starting
        await client.stop()


async def test_stop_while_a_rebalance_blocks_the_start_does_not_wait_for_it(
    kafka: Kafka, topic: Topics, store: Pinned, clients: list[Recorded]
) -> None:
    released = asyncio.Event()
    async with member(kafka, topic, released) as slow:
        await eventually(slow.assignment)
        stop, began = asyncio.Event(), asyncio.get_running_loop().time
        settings = settings_for(kafka, topic)
        work = asyncio.create_task(running.consume(settings, store, stop, Watchdog(60)))
        await eventually(lambda: clients and clients[0]._client.cluster.brokers())
        await eventually(lambda: slow._subscription.reassignment_in_progress)
        stop.set()
        before = began()
        await running._until_stopped(work, stop, grace=20)
        took = began() - before
    await clients[0]._client.close()  # given up half closed; a process would end here
    assert work.done()
    assert took < 5


async def test_a_member_that_stops_in_mid_rebalance_leaves_the_group_at_once(
    kafka: Kafka, topic: Topics, store: Pinned, clients: list[Recorded]
) -> None:
    settings = settings_for(kafka, topic, kafka_session_timeout_ms=30_000)
    released = asyncio.Event()
    released.set()
    async with working(settings, store) as worker, member(kafka, topic, released) as slow:
        await eventually(lambda: clients and len(clients[0].assignment()) == 2)
        await eventually(lambda: len(slow.assignment()) == 2)
        released.clear()
        async with member(kafka, topic, released) as third:
            await eventually(lambda: clients[0]._coordinator._performed_join_prepare)
            await eventually(lambda: slow._subscription.reassignment_in_progress)
            worker.stop.set()
            await asyncio.wait_for(worker.task, 3)
            released.set()
            await eventually(lambda: len(slow.assignment() | third.assignment()) == 4, 5)


async def test_a_consumer_that_stays_silent_before_waiting_records_is_given_up(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookout, "LOOK_AROUND", 0.2)
    settings = settings_for(kafka, topic, watchdog_seconds=1)
    work = asyncio.create_task(running.consume(settings, store, asyncio.Event(), Watchdog(60)))
    await eventually(lambda: clients and clients[0].assignment())
    await until_committed(kafka, topic, dict.fromkeys(range(4), 0))
    clients[0].mute = True
    polls = clients[0].polls
    await eventually(lambda: clients[0].polls > polls + 1)  # the last real poll is over
    await kafka.produce(topic.source, [event("a", 0)])
    with pytest.raises(StalledError, match="1 more records"):
        await asyncio.wait_for(work, 15)


async def test_a_consumer_that_never_learns_its_position_is_given_up(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookout, "LOOK_AROUND", 0.2)
    monkeypatch.setattr(Recorded, "mute", True)
    settings = settings_for(kafka, topic, watchdog_seconds=1)
    with pytest.raises(StalledError, match="4 partitions without a known position"):
        await asyncio.wait_for(running.consume(settings, store, asyncio.Event(), Watchdog(60)), 20)


async def test_a_partition_whose_end_cannot_be_had_does_not_keep_the_others_waiting(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookout, "LOOK_AROUND", 0.5)
    monkeypatch.setattr(lookout, "GLANCE", 0.2)
    async with working(settings_for(kafka, topic, batch_size=1), store):
        await eventually(lambda: clients and clients[0].assignment())
        await until_committed(kafka, topic, dict.fromkeys(range(4), 0))
        clients[0].ends_unknown = True
        await kafka.produce(topic.source, [event("a", n) for n in range(200)])
        await eventually(lambda: len(store.seen) == 200)
        clients[0].ends_unknown = False


async def test_an_idle_worker_at_the_end_of_its_topic_is_not_given_up(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookout, "LOOK_AROUND", 0.2)
    async with working(settings_for(kafka, topic, watchdog_seconds=1), store) as running:
        await eventually(lambda: clients and clients[0].polls > 6)
        assert not running.task.done()


async def limit(store: Any, *, pages: int) -> None:
    """Let the file that batches are merged into have so many pages."""
    await store._driver._merging.do(
        lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").close()
    )


async def test_a_full_disk_is_waited_for_and_makes_no_dead_letter(
    kafka: Kafka, topic: Topics, tmp_path: Path
) -> None:
    async with open_store(f"sqlite:///{tmp_path}/store.db") as real:
        await real.add(["a"])
        await limit(real, pages=1)  # SQLite takes it for as many as there are
        store = Pinned(real)
        await kafka.produce(topic.source, [event("a", 0, last_sync_error="x" * 20_000)])
        async with working(settings_for(kafka, topic), store):
            await eventually(lambda: store.attempts >= 3)
            assert not any((await kafka.committed(topic.group, topic.source)).values())
            await limit(real, pages=1_000_000)
            await eventually(committed_all(kafka, topic), 10)
        connector = await real.get("a")
    assert connector is not None
    assert connector.fields["last_sync_error"] == "x" * 20_000
    assert await kafka.read_all(topic.dlq) == []


async def test_the_letter_of_the_largest_record_fits_and_is_acknowledged(
    kafka: Kafka, topic: Topics, store: Pinned
) -> None:
    largest = b"{" + b"x" * (SOURCE_MAX_BYTES - 200)
    await kafka.produce(topic.source, [Record(value=largest, key=b"a", partition=0)])
    async with working(settings_for(kafka, topic), store):
        await eventually(committed_all(kafka, topic))
    (letter,) = await kafka.read_all(topic.dlq)
    assert letter.value == largest


async def test_nothing_is_committed_before_its_dead_letter_is_acknowledged(
    make_broker: MakeBroker, store: Pinned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "PUBLISH_TIMEOUT", 1.0)
    monkeypatch.setattr(lookout, "REQUEST_TIMEOUT", 1.0)
    broker = make_broker()
    kafka, topics = Kafka(broker.bootstrap), Topics.unique()
    await kafka.create(topics)
    await kafka.produce(topics.source, [Record(value=b"not an event", partition=0)])
    store.gate.clear()
    async with working(settings_for(kafka, topics), store):
        await store.entered.wait()
        broker.pause()
        store.gate.set()
        await until_held(broker, "writing to")
        broker.resume()
        await eventually(committed_all(kafka, topics), 20)
        letters = await kafka.read_all(topics.dlq)
    assert {letter.key for letter in letters} == {letters[0].key}
    assert letters[0].value == b"not an event"
    assert await kafka.committed(topics.group, topics.source) == {0: 1} | dict.fromkeys(
        (1, 2, 3), 0
    )


@pytest.mark.parametrize("failure", [UnknownError(), KafkaError("UnknownError()")], ids=repr)
async def test_what_a_broker_fails_at_without_saying_why_is_tried_again(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    clients: list[Recorded],
    monkeypatch: pytest.MonkeyPatch,
    failure: KafkaError,
) -> None:
    """As one does whose disk fills up in the middle of a write; each of the two fails once."""
    failures, send = [failure], dead_letters._Producer.send_batch

    async def refused(producer: Any, *of: Any, **more: Any) -> Any:
        if not failures:
            return await send(producer, *of, **more)
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(failures.pop())
        return answer

    monkeypatch.setattr(dead_letters._Producer, "send_batch", refused)
    async with working(settings_for(kafka, topic), store):
        await until_committed(kafka, topic, dict.fromkeys(range(4), 0))
        clients[0].commit_error = failure
        await kafka.produce(topic.source, [event("a", 0), Record(value=b"{", partition=1)])
        await eventually(committed_all(kafka, topic), 20)
        assert not failures
        assert clients[0].commit_error is None
    assert store.seen == ["e-0"]
    assert [letter.value for letter in await kafka.read_all(topic.dlq)] == [b"{"]


@pytest.mark.parametrize("failure", [UnknownError(), KafkaError("UnknownError()")], ids=repr)
async def test_a_group_that_fails_without_saying_why_ends_the_worker_for_a_fresh_start(
    kafka: Kafka,
    topic: Topics,
    store: Pinned,
    monkeypatch: pytest.MonkeyPatch,
    failure: KafkaError,
) -> None:
    """The client would send no heartbeat any more, and say so at each poll."""

    async def failed(_: Any) -> None:
        raise failure

    settings = settings_for(kafka, topic)
    work = asyncio.create_task(running.consume(settings, store, asyncio.Event(), Watchdog(60)))
    await until_committed(kafka, topic, dict.fromkeys(range(4), 0))
    monkeypatch.setattr(GroupCoordinator, "_do_heartbeat", failed)
    with pytest.raises(StalledError, match=f"{topic.group} failed .*UnknownError"):
        await asyncio.wait_for(work, 10)


async def test_a_commit_to_a_frozen_broker_is_tried_again_until_it_answers(
    make_broker: MakeBroker, store: Pinned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "COMMIT_TIMEOUT", 1.0)
    broker = make_broker()
    kafka, topics = Kafka(broker.bootstrap), Topics.unique()
    await kafka.create(topics)
    await kafka.produce(topics.source, [event("a", 0)])
    store.gate.clear()
    async with working(settings_for(kafka, topics), store):
        await store.entered.wait()
        broker.pause()
        store.gate.set()
        await until_held(broker, "committing offsets")
        broker.resume()
        await eventually(committed_all(kafka, topics), 20)
    assert await kafka.read_all(topics.dlq) == []


async def until_held(broker: Broker, doing: str) -> None:
    """Wait until the loop says that it holds for this."""
    held: list[str] = []
    warning = consumer.log.warning

    def heard(name: str, **values: Any) -> None:
        held.append(str(values.get("waiting_for")))
        warning(name, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumer.log, "warning", heard)
        await eventually(lambda: any(doing in text for text in held), 20)


def test_letters_of_the_largest_size_are_what_the_topic_takes() -> None:
    assert DEAD_LETTER_MAX_BYTES == SOURCE_MAX_BYTES + 64 * 1024


def test_the_client_is_told_what_the_loop_relies_on() -> None:
    options = consumer.client_options(10_000, remote=False)
    assert options["enable_auto_commit"] is False
    assert options["auto_offset_reset"] == "none"
    assert options["isolation_level"] == "read_committed"
    assert len(options["partition_assignment_strategy"]) == 1  # type: ignore[arg-type]
    assert options["rebalance_timeout_ms"] < 40_000  # type: ignore[operator]
    assert options["heartbeat_interval_ms"] == 1_000
    assert options["fetch_max_wait_ms"] == 100, "a busy partition waits so long for idle ones"
    assert consumer.client_options(1_500, remote=False)["heartbeat_interval_ms"] == 500


def test_an_answer_of_a_broker_can_be_of_one_partition_and_is_smaller_with_a_remote_store() -> None:
    here, there = (consumer.client_options(10_000, remote=remote) for remote in (False, True))
    for options in (here, there):
        assert options["max_partition_fetch_bytes"] == options["fetch_max_bytes"]
    assert there["fetch_max_bytes"] < here["fetch_max_bytes"]  # type: ignore[operator]
