"""The worker: from its settings to the loop, and to its end."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from importlib.metadata import version

from aiokafka import AIOKafkaConsumer, TopicPartition

from worker import consumer, extras, health_server, kafka, memory, topics
from worker.app import checks, stores
from worker.breaker import Breaker
from worker.dead_letters import DeadLetterTopic
from worker.drain import Drain
from worker.handling import Handler
from worker.health import Health
from worker.logs import get_logger
from worker.metrics import Metrics
from worker.pipeline import Origin
from worker.settings import Settings, tracing_wanted
from worker.signals import stopping
from worker.stores import MergingStore
from worker.watchdog import Watchdog

log = get_logger(__name__)

JOIN_TIMEOUT = 60.0  # seconds; a group may first have to throw out members that died
CLEANUP_TIMEOUT = 4.0  # seconds
VERSION = version("last-sync-worker")
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
        store = await stack.enter_async_context(stores.opened_for_merging(settings))
        memory.settle()
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
    stack: AsyncExitStack, health: Health, store: MergingStore
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
    store: MergingStore,
    stop: asyncio.Event,
    watchdog: Watchdog,
    *,
    health: Health | None = None,
    trace: consumer.Trace = nullcontext,
    drain: bool = False,
    topics_checked: bool = True,
) -> None:
    """Be a member of the group, with this store, until `stop` is set or the topic is drained."""
    health = health or Health(metrics=Metrics(VERSION), watchdog=watchdog, stop=stop)
    max_bytes = KAFKA_DEFAULT_BYTES + topics.HEADROOM
    if topics_checked:
        async with kafka.admin(settings) as admin:
            found = topics.required(await topics.describe(admin, settings), settings)
        max_bytes = found.dead_letter_bytes
    async with AsyncExitStack() as stack:
        letters = await stack.enter_async_context(DeadLetterTopic.opened(settings, max_bytes))
        client = kafka.consumer(
            settings,
            group_id=settings.kafka_group_id,
            **consumer.client_options(settings.kafka_session_timeout_ms, remote=store.remote),
        )
        loop = consumer.Consumer(
            client=client,
            group=settings.kafka_group_id,
            batch_size=min(settings.batch_size, store.most),
            handler=Handler(
                origin=Origin(group=settings.kafka_group_id, store=store.store_id),
                store=store,
                letters=letters,
                breaker=_breaker(settings),
                metrics=health.metrics,
            ),
            watchdog=watchdog,
            stalled_after=settings.watchdog_seconds,
            health=health,
            trace=trace,
            stop=stop,
        )
        client.subscribe([settings.kafka_topic], listener=loop)
        stack.push_async_callback(kafka.leave, client)
        if not await _joined(client, settings, stop):
            return
        consumer.limit_prefetching(client)
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


async def _drain(stack: AsyncExitStack, settings: Settings, client: AIOKafkaConsumer) -> Drain:
    topic = settings.kafka_topic
    # First, or else the answer waits behind a fetch at the end of the topic.
    with kafka.translated(f"asking for the end of {topic}"):
        async with asyncio.timeout(kafka.CONNECT_TIMEOUT):
            partitions = client.partitions_for_topic(topic) or ()
            ends = await client.end_offsets([TopicPartition(topic, n) for n in partitions])
    admin = await stack.enter_async_context(kafka.admin(settings))

    async def group_offsets() -> Mapping[TopicPartition, int]:
        return await checks.group_offsets(admin, settings, list(ends))

    return Drain(ends=ends, group_offsets=group_offsets)
