"""The only composition root: settings in, running parts out."""

import asyncio
import gc
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from functools import partial
from importlib.metadata import version

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from worker import consumer, extras, health_server, kafka, stores, topics
from worker.breaker import Breaker
from worker.dead_letters import ANY_SIZE, DeadLetterTopic
from worker.errors import LastSyncError, MisconfiguredError
from worker.health import Health
from worker.metrics import Metrics
from worker.open_letters import OpenLetter, OpenLetters
from worker.pipeline import Origin
from worker.replay import Edited, Replay, Result, Signature, apply_edited, close, patiently
from worker.settings import Settings, tracing_wanted
from worker.signals import stopping
from worker.stores import (
    Connector,
    ConnectorStore,
    Difference,
    ElasticsearchAccess,
    open_store,
)
from worker.topics import Verdict
from worker.watchdog import Watchdog

Message = tuple[bytes | None, bytes, Sequence[tuple[str, bytes]]]  # key, value, headers

log = structlog.get_logger(__name__)

COORDINATOR_RETRY = 0.2  # seconds
PUBLISH_TIMEOUT = 30.0  # seconds
JOIN_TIMEOUT = 60.0  # seconds; a group may first have to throw out members that died
CLEANUP_TIMEOUT = 4.0  # seconds
VERSION = version("last-sync-worker")
COLLECT_AFTER = 50_000  # objects made since the last collection, less those gone by themselves
KAFKA_DEFAULT_BYTES = 1_048_588  # Kafka's default for max.message.bytes


async def run(settings: Settings, *, drain: bool = False, topics_checked: bool = True) -> None:
    """Run the worker until it is told to stop, or has drained the topic.

    `topics_checked=False` is for brokers that cannot describe their topics (the demo's).
    """
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(stopping())
        watchdog = stack.enter_context(Watchdog(settings.watchdog_seconds))
        health = Health(metrics=Metrics(VERSION), watchdog=watchdog, stop=stop)
        trace = await stack.enter_async_context(_tracing(settings))
        served = await _serve_health(stack, settings, health)
        store = await stack.enter_async_context(_open_store(settings))
        settle_memory()
        side = [*served, *(await _watch_store(stack, health, store) if served else [])]
        work = asyncio.create_task(
            consume(
                settings,
                store,
                stop,
                watchdog,
                health=health,
                trace=trace,
                drain=drain,
                topics_checked=topics_checked,
            ),
            name="worker",
        )
        await _until_stopped(work, stop, settings.shutdown_seconds, side)
    log.info("worker.stopped")


def settle_memory() -> None:
    """Spare the garbage collector what lives for ever, and what dies without it anyway.

    A batch in hand is thousands of objects without cycles; by default they are all looked at again
    and again, which takes a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 50)


async def _until_stopped(
    work: asyncio.Task[None],
    stop: asyncio.Event,
    grace: float,
    side: Sequence[asyncio.Task[None]] = (),
) -> None:
    """Let the work end by itself; end it after a wish to stop, or when a side task failed."""
    wish = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({work, wish, *side}, return_when=asyncio.FIRST_COMPLETED)
    wish.cancel()
    failed = [task for task in side if task.done()]
    if failed:
        log.error("worker.side_task_failed", task=failed[0].get_name())
        stop.set()
    await asyncio.wait({work}, timeout=grace)
    if not work.done():
        log.warning("worker.cut_short", text="what is in hand stays uncommitted")
        work.cancel()
        await asyncio.wait({work}, timeout=CLEANUP_TIMEOUT)
    for task in (work, *failed):
        if task.done() and not task.cancelled():
            task.result()


async def _serve_health(
    stack: AsyncExitStack, settings: Settings, health: Health
) -> list[asyncio.Task[None]]:
    if settings.health_port is None:
        return []
    serving = health_server.serving(
        settings.health_host,
        settings.health_port,
        health.metrics.registry,
        {"/livez": health.live, "/readyz": health.ready},
    )
    return [await stack.enter_async_context(serving)]


async def _watch_store(
    stack: AsyncExitStack, health: Health, store: ConnectorStore
) -> list[asyncio.Task[None]]:
    task = asyncio.create_task(health.watch(store), name="store-watch")

    async def end() -> None:
        task.cancel()
        await asyncio.wait({task})

    stack.push_async_callback(end)
    return [task]


@asynccontextmanager
async def _tracing(settings: Settings) -> AsyncIterator[consumer.Trace]:
    """Tracing as the standard variables ask for it; without them its library is not imported."""
    if not tracing_wanted():
        yield nullcontext
        return
    extras.require("otel", "tracing (asked for by OTEL_…, turned off by OTEL_SDK_DISABLED=true)")
    from worker import tracing  # noqa: PLC0415 - an extra

    async with tracing.opened(
        topic=settings.kafka_topic, group=settings.kafka_group_id, version=VERSION
    ) as traced:
        yield traced


async def consume(
    settings: Settings,
    store: ConnectorStore,
    stop: asyncio.Event,
    watchdog: Watchdog,
    *,
    health: Health | None = None,
    trace: consumer.Trace = nullcontext,
    drain: bool = False,
    topics_checked: bool = True,
) -> None:
    """Be a member of the group, with this store, until `stop` is set or the topic is drained."""
    max_bytes = KAFKA_DEFAULT_BYTES + topics.HEADROOM
    if topics_checked:
        async with kafka.admin(settings) as admin:
            found = topics.required(await topics.describe(admin, settings), settings)
        max_bytes = found.dead_letter_bytes
    async with AsyncExitStack() as stack:
        letters = await stack.enter_async_context(DeadLetterTopic.opened(settings, max_bytes))
        client = AIOKafkaConsumer(
            group_id=settings.kafka_group_id,
            **kafka.client_options(settings),
            **consumer.client_options(settings.kafka_session_timeout_ms),
        )
        loop = consumer.Consumer(
            client=client,
            origin=Origin(group=settings.kafka_group_id, store=store.store_id),
            store=store,
            letters=letters,
            breaker=_breaker(settings),
            batch_size=settings.batch_size,
            watchdog=watchdog,
            stalled_after=settings.watchdog_seconds,
            health=health or Health(metrics=Metrics(VERSION), watchdog=watchdog, stop=stop),
            trace=trace,
            stop=stop,
        )
        client.subscribe([settings.kafka_topic], listener=loop)
        stack.push_async_callback(kafka.leave, client)
        if not await _joined(client, settings, stop):
            return
        log.info(
            "worker.started",
            topic=settings.kafka_topic,
            group=settings.kafka_group_id,
            store=store.store_id,
        )
        await loop.run(await _drain(stack, settings, client) if drain else None)


async def _joined(client: AIOKafkaConsumer, settings: Settings, stop: asyncio.Event) -> bool:
    """Whether the group let this member in before it was told to stop."""
    joining = asyncio.create_task(
        kafka.start(client, settings, timeout=JOIN_TIMEOUT), name="kafka-start"
    )
    wish = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({joining, wish}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        wish.cancel()
        joining.cancel()
        await asyncio.wait({joining})
    if joining.cancelled():
        return False
    joining.result()
    return True


def _breaker(settings: Settings) -> Breaker:
    return Breaker(
        window=settings.flood_window, minimum=settings.flood_minimum, share=settings.flood_share
    )


async def _drain(
    stack: AsyncExitStack, settings: Settings, client: AIOKafkaConsumer
) -> consumer.Drain:
    topic = settings.kafka_topic
    admin = await stack.enter_async_context(kafka.admin(settings))
    with kafka.translated(f"asking for the end of {topic}"):
        async with asyncio.timeout(kafka.CONNECT_TIMEOUT):
            partitions = client.partitions_for_topic(topic) or ()
            ends = await client.end_offsets([TopicPartition(topic, n) for n in partitions])

    async def group_offsets() -> Mapping[TopicPartition, int]:
        return await _group_offsets(admin, settings, list(ends))

    return consumer.Drain(ends=ends, group_offsets=group_offsets)


async def _group_offsets(
    admin: AIOKafkaAdminClient, settings: Settings, partitions: Sequence[TopicPartition]
) -> Mapping[TopicPartition, int]:
    while True:
        try:
            found = await admin.list_consumer_group_offsets(
                settings.kafka_group_id, partitions=partitions
            )
            break
        except GroupCoordinatorNotAvailableError:  # of a cluster that has had no group yet
            await asyncio.sleep(COORDINATOR_RETRY)
    return {tp: committed.offset for tp, committed in found.items()}


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
                offsets = await _group_offsets(admin, settings, partitions)
    except LastSyncError as error:
        return Verdict(name="group", ok=False, text=str(error))
    known = sum(offset >= 0 for offset in offsets.values())
    text = f"group {settings.kafka_group_id} has committed offsets of {known} partitions"
    return Verdict(name="group", ok=True, text=text)


async def _check_store(settings: Settings) -> Verdict:
    try:
        async with _open_store(settings) as store:
            return Verdict(name="store", ok=True, text=await store.describe())
    except LastSyncError as error:
        return Verdict(name="store", ok=False, text=str(error))


async def check_topics(settings: Settings) -> list[Verdict]:
    async with kafka.admin(settings) as admin:
        return topics.verdicts(await topics.describe(admin, settings), settings)


async def create_topics(
    settings: Settings, *, partitions: int | None, replication_factor: int | None
) -> list[str]:
    async with kafka.admin(settings) as admin:
        return await topics.create(
            admin, settings, partitions=partitions, replication_factor=replication_factor
        )


async def publish(settings: Settings, messages: Iterable[Message]) -> int:
    """Send the messages, and return how many the brokers have acknowledged: all of them."""
    async with kafka.admin(settings) as admin:
        topics.required_source(await topics.describe(admin, settings), settings)
    producer = AIOKafkaProducer(
        **kafka.client_options(settings), acks="all", linger_ms=5, max_batch_size=131_072
    )
    async with kafka.started(producer, settings):
        with kafka.translated(f"publishing to {settings.kafka_topic}"):
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                sent = [
                    await producer.send(settings.kafka_topic, value, key=key, headers=[*headers])
                    for key, value, headers in messages
                ]
                await asyncio.gather(*sent)
    return len(sent)


def _open_store(
    settings: Settings, *, make: bool = True
) -> AbstractAsyncContextManager[ConnectorStore]:
    key = settings.elasticsearch_api_key
    access = ElasticsearchAccess(
        api_key=key.get_secret_value() if key else None,
        cafile=settings.elasticsearch_cafile,
        concurrency=settings.elasticsearch_concurrency,
    )
    return open_store(settings.required_store_url(), access, make=make)


@asynccontextmanager
async def dead_letters(
    settings: Settings, *, topics_checked: bool = True
) -> AsyncIterator[OpenLetters]:
    """The dead-letter topic, to be read as a table.

    `topics_checked=False` is for brokers that cannot describe their topics (the demo's).
    """
    if topics_checked:
        async with kafka.admin(settings) as admin:
            await topics.require_dead_letters(admin, settings)
    async with OpenLetters.opened(settings) as letters:
        yield letters


async def replay(
    settings: Settings,
    letters: OpenLetters,
    wanted: Sequence[OpenLetter],
    signature: Signature,
    *,
    dry_run: bool,
    other_stores: Collection[str] = (),
    rate: int | None = None,
) -> AsyncIterator[list[Result]]:
    """Run the letters against the store, and close those that it settles; or say what would be."""
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(stopping())
        store = await stack.enter_async_context(_open_store(settings, make=False))
        topic = None
        if not dry_run:
            topic = await stack.enter_async_context(DeadLetterTopic.opened(settings, ANY_SIZE))
        run = Replay(
            letters=letters,
            store=store,
            topic=topic,
            signature=signature,
            other_stores=other_stores,
            batch_size=settings.batch_size,
            rate=rate,
            stop=stop,
        )
        async for results in run.run(wanted):
            yield results


async def discard(
    settings: Settings, wanted: Sequence[OpenLetter], signature: Signature
) -> AsyncIterator[int]:
    """Close the letters without applying them; gives how many after each batch."""
    with stopping() as stop:
        async with DeadLetterTopic.opened(settings, ANY_SIZE) as topic:
            for start in range(0, len(wanted), settings.batch_size):
                if stop.is_set():
                    return
                batch = wanted[start : start + settings.batch_size]
                closed = [(letter, "discarded") for letter in batch]
                await patiently(partial(close, topic, closed, signature), stop)
                yield len(batch)


async def edit(
    settings: Settings,
    letters: Sequence[OpenLetter],
    edited: Edited,
    signature: Signature,
    *,
    other_stores: Collection[str],
    dry_run: bool,
) -> Result:
    """Apply an edited letter and close all of that id, or change nothing."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(_open_store(settings, make=False))
        topic = None
        if not dry_run:
            topic = await stack.enter_async_context(DeadLetterTopic.opened(settings, ANY_SIZE))
        return await apply_edited(
            letters, edited, store, topic, signature=signature, other_stores=other_stores
        )


async def api(settings: Settings) -> None:
    """Serve the connector API over a SQL store until told to stop."""
    extras.require("api", "the API")
    from worker.api.server import application  # noqa: PLC0415 - the extra `api`
    from worker.api.serving import serve  # noqa: PLC0415
    from worker.stores.sql import SqlStore  # noqa: PLC0415 - commands without a store do without

    with stopping() as stop:
        async with _open_store(settings) as store:
            if not isinstance(store, SqlStore):
                raise MisconfiguredError(
                    "the API keeps its connectors in a SQL store: set LAST_SYNC_STORE_URL to"
                    " sqlite:///path or postgresql://user@host/database"
                )
            app = application(store, settings.api_keys)
            await serve(app, settings.api_host, settings.api_port, stop)
    log.info("api.stopped")


async def upgrade_store(settings: Settings) -> str:
    """Bring the schema up to date, and describe the store."""
    await stores.upgrade_store(settings.required_store_url())
    async with _open_store(settings) as store:
        return await store.describe()


async def verify_store(settings: Settings, *, repair: bool) -> AsyncIterator[Difference]:
    """Find, and with `repair` mend, what a crash left behind."""
    async with _open_store(settings) as store:
        async for difference in store.verify(repair=repair):
            yield difference


async def add_connectors(settings: Settings, ids: Sequence[str]) -> list[bool]:
    async with _open_store(settings) as store:
        return await store.add(ids)


async def delete_connectors(settings: Settings, ids: Sequence[str]) -> list[bool]:
    async with _open_store(settings) as store:
        return await store.delete(ids)


async def connector(settings: Settings, connector_id: str) -> Connector | None:
    async with _open_store(settings) as store:
        return await store.get(connector_id)


async def connectors(settings: Settings) -> AsyncIterator[Connector]:
    async with _open_store(settings) as store:
        async for found in store.connectors():
            yield found
