"""One run: topics, a store, publishers, workers, someone who looks on, and the verdict at the end.

A scenario is a function that makes a `Run`, lets publishers and workers work, breaks something, and
gives the run's `Result`. What breaks is the scenario's own business: the rig knows of no faults.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.chaos.checker import Verdict, check
from tests.chaos.events import Item, Mix, Publisher
from tests.chaos.history import History, Letter, Read, Sent, digest
from tests.chaos.nursery import Member, Nursery
from tests.eventually import eventually
from tests.kafka import Kafka, Topics
from tests.oracle import Fields
from worker.errors import TransientError
from worker.stores import ConnectorStore, open_store

SESSION = 1_500  # milliseconds; a dead member blocks its group until its session ends
PATIENCE = 40.0  # seconds
LOOK = 1.0  # seconds between looks at the store
CHUNK = 100  # records that a publisher sends before it waits for the brokers


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a scenario found: a verdict, if there was something to check, and claims that failed."""

    name: str
    verdict: Verdict = field(default_factory=Verdict)
    facts: str = ""
    problems: Sequence[str] = ()
    not_run: str = ""  # why it cannot be run here

    @property
    def said(self) -> str:
        if self.not_run:
            return "NOT RUN"
        return "ok" if self.good else "NOT OK"

    @property
    def good(self) -> bool:
        return self.verdict.clean and not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """The services that runs share."""

    bootstrap: str
    folder: Path
    database: Callable[[], str]  # makes a PostgreSQL store, and gives its URL
    nursery: Nursery
    say: Callable[[str], None]

    def store(self, kind: str, name: str) -> str:
        """Give the URL of an empty store of this kind."""
        return self.database() if kind == "postgresql" else f"sqlite:///{self.folder}/{name}.db"


class Run:
    """A topic, a group and a store of its own; made by `running`."""

    def __init__(self, rig: Rig, name: str, store: str, mix: Mix, bootstrap: str) -> None:
        self.rig, self.name, self.mix = rig, name, mix
        self.kafka, self.topics = Kafka(bootstrap), Topics.unique()
        self.registered = mix.registered
        self.send_timeout, self.chunk = PATIENCE, CHUNK
        self.resets: dict[str, str] = {}  # when connectors were last reset
        self.unsure: list[Item] = []  # sent, and the brokers did not say what became of it
        self.history = History(rig.folder / f"{name}.history.jsonl")
        self.environ = {
            **{name: value for name, value in os.environ.items() if "LAST_SYNC" not in name},
            "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "LAST_SYNC_KAFKA_TOPIC": self.topics.source,
            "LAST_SYNC_KAFKA_DEAD_LETTER_TOPIC": self.topics.dlq,
            "LAST_SYNC_KAFKA_GROUP_ID": self.topics.group,
            "LAST_SYNC_KAFKA_SESSION_TIMEOUT_MS": str(SESSION),
            "LAST_SYNC_STORE_URL": store,
        }
        self.workers: list[Member] = []
        self.enough = asyncio.Event()  # publishers end, whatever was wanted

    @property
    def store(self) -> str:
        return self.environ["LAST_SYNC_STORE_URL"]

    def say(self, text: str) -> None:
        self.rig.say(f"{self.name}: {text}")

    def worker(self, *faults: str, **more: str) -> Member:
        environ = {**self.environ, **more}
        worker = self.rig.nursery.spawn("run", faults=faults, environ=environ)
        self.workers.append(worker)
        return worker

    async def register(self, connector_ids: Sequence[str]) -> None:
        async with self.opened() as store:
            await store.add(connector_ids)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ConnectorStore]:
        """Open the store, again while the machine is too busy for it to answer in time."""
        async with AsyncExitStack() as stack:
            yield await eventually(partial(self._tried, stack), PATIENCE)

    async def _tried(self, stack: AsyncExitStack) -> ConnectorStore | None:
        try:
            return await stack.enter_async_context(open_store(self.store))
        except TransientError:
            return None

    # --- publishing ----------------------------------------------------------------------------

    async def publish(
        self, wanted: int, *, publishers: int = 3, seed: int = 1, seconds: float = 0
    ) -> None:
        """Send this many records, as fast as can be or spread over that many seconds.

        What fails is `unsure`, and not sent again.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(publishers):
                share = (wanted + number) // publishers
                items = Publisher(self.mix, number, seed).items(share)
                group.create_task(self._publish(items, seconds * self.chunk / share))

    async def _publish(self, items: Iterator[Item], pause: float) -> None:
        async with self.producing() as producer:
            due = time.monotonic()
            while not self.enough.is_set() and (chunk := list(islice(items, self.chunk))):
                due += pause
                await self.send(producer, chunk)
                await asyncio.sleep(max(0, due - time.monotonic()))

    @asynccontextmanager
    async def producing(self) -> AsyncIterator[AIOKafkaProducer]:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.kafka.bootstrap,
            acks="all",
            linger_ms=2,
            request_timeout_ms=int(self.send_timeout * 1000),
        )
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def send(self, producer: AIOKafkaProducer, chunk: Sequence[Item]) -> None:
        done = await asyncio.gather(*(self._sent(producer, item) for item in chunk))
        self.history.add(filter(None, done))

    async def _sent(self, producer: AIOKafkaProducer, item: Item) -> Sent | None:
        try:
            promised = await producer.send(self.topics.source, item.value, key=item.key)
            one = await promised
        except KafkaError:
            self.unsure.append(item)
            return None
        return Sent(
            origin=(one.topic, one.partition, one.offset),
            event=item.event,
            reason=item.reason,
            digest=digest(item.value),
        )

    # --- looking on ----------------------------------------------------------------------------

    async def observe(self) -> None:
        """Note what changed in the store, while it answers, again and again until cancelled."""
        seen: dict[str, Fields] = {}
        async with self.opened() as store:
            while True:
                await asyncio.sleep(LOOK)
                try:
                    now = {found.id: dict(found.fields) async for found in store.connectors()}
                except TransientError:
                    continue
                changed = {name: fields for name, fields in now.items() if seen.get(name) != fields}
                self.history.add([Read(connectors=changed)])
                seen = now

    async def handled(self) -> int:
        """How many records the group has committed."""
        return sum((await self.kafka.committed(self.topics.group, self.topics.source)).values())

    async def disturb(self, worker: Member) -> None:
        """Let others join the worker's group, and leave it, until the worker is dead."""
        async with asyncio.timeout(PATIENCE):
            while worker.exit_code is None:
                other = self.worker("--slow", "1")  # there has to be work left
                await self._joined_or_dead(other, worker)
                other.signal(signal.SIGTERM)
                await other.ended()

    async def _joined_or_dead(self, other: Member, worker: Member) -> None:
        await eventually(lambda: worker.exit_code or '"partitions.assigned"' in other.stderr)

    async def lag(self) -> int:
        ends = await self.kafka.end_offsets(self.topics.source)
        return sum(ends.values()) - await self.handled()

    # --- the end -------------------------------------------------------------------------------

    async def drained(self, seconds: float = 60) -> None:
        """Wait until those that work now have committed everything."""

        async def done() -> bool:
            return await self.lag() == 0

        await eventually(done, seconds)

    async def drain(self, seconds: float = 120, **more: str) -> None:
        """Let a worker without faults finish what is left."""
        environ = {**self.environ, **more}
        worker = self.rig.nursery.spawn("run", "--drain", environ=environ)
        code = await worker.ended(seconds)
        if code or await self.lag():
            raise AssertionError(f"the drain ended with {code}: {worker.tail}")

    async def read_back(self) -> list[str]:
        """Note records that the brokers keep and did not acknowledge; give those that are gone."""
        sent, unsure = self.history.sent(), {digest(item.value): item for item in self.unsure}
        kept = {
            (self.topics.source, record.partition or 0, record.offset or 0): digest(record.value)
            for record in await self.kafka.read_all(self.topics.source)
        }
        known = {one.digest: (one.event, one.reason) for one in sent}
        known |= {key: (item.event, item.reason) for key, item in unsure.items()}
        unacknowledged = kept.keys() - {one.origin for one in sent}
        for origin in sorted(unacknowledged):
            event, reason = known[kept[origin]]
            self.history.add([Sent(origin=origin, event=event, reason=reason, digest=kept[origin])])
        self.say(f"{len(unacknowledged)} records kept that were not acknowledged")
        self.unsure.clear()
        return [f"gone: {one.origin}" for one in sent if kept.get(one.origin) != one.digest]

    async def verdict(self) -> Verdict:
        """Read store and letters as a person would, and check them against the history."""
        assert not self.unsure, "some records may be in the topic or not: read it back first"
        self.history.add([Read(connectors=await self.listed(), whole=True), *await self.letters()])
        verdict = await asyncio.to_thread(self._checked)
        self.say(f"{verdict.events} records, {verdict.letters} letters, {verdict.counts}")
        return verdict

    def _checked(self) -> Verdict:
        history = self.history
        return check(
            history.sent(), self.registered, history.reads(), history.letters(), self.resets
        )

    async def listed(self) -> dict[str, Fields]:
        environ = self.environ
        listing = self.rig.nursery.spawn("connectors", "list", "--json", environ=environ)
        assert await listing.ended(60) == 0, listing.tail
        documents = map(json.loads, listing.stdout.splitlines())
        return {document.pop("id"): document for document in documents}

    async def letters(self) -> list[Letter]:
        return await open_letters(self.kafka, self.topics.dlq)


async def open_letters(kafka: Kafka, topic: str) -> list[Letter]:
    opened: dict[tuple[int | None, bytes | None], Letter] = {}
    for record in await kafka.read_all(topic):
        if record.value is None:  # a tombstone
            opened.pop((record.partition, record.key), None)
            continue
        headers = {name: (value or b"").decode() for name, value in record.headers}
        field = {name.removeprefix("__dlq.errors."): headers[name] for name in headers}
        value = None if field.get("value_null") == "true" else record.value
        opened[record.partition, record.key] = Letter(
            origin=(field["topic"], int(field["partition"]), int(field["offset"])),
            reason=field["reason"],
            digest=digest(value),
        )
    return list(opened.values())


@asynccontextmanager
async def running(
    rig: Rig,
    name: str,
    store: str,
    mix: Mix | None = None,
    *,
    partitions: int = 12,
    bootstrap: str = "",
    observed: bool = True,
    registered: bool = True,
) -> AsyncIterator[Run]:
    """Make the topics, register the connectors, and look on until the end."""
    run = Run(rig, name, store, mix or Mix(), bootstrap or rig.bootstrap)
    await run.kafka.create(run.topics, partitions=partitions)
    if registered:
        await run.register(run.registered)
    looking = asyncio.create_task(run.observe() if observed else asyncio.sleep(0), name="observe")
    try:
        yield run
    except Exception as error:
        for worker in run.workers:
            if (code := worker.exit_code) is not None and code > 0:  # below it was killed
                error.add_note(f"a worker ended with {code}: {worker.tail}")
        raise
    finally:
        looking.cancel()
        await asyncio.wait({looking})
        run.history.close()
    if not looking.cancelled():
        looking.result()  # it saw trouble of its own
