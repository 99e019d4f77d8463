"""The proxy between a client and a real service does to the client what its modes say."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.brokers import free_port
from tests.conftest import BEHIND_PROXY, MakeBroker
from tests.kafka import Kafka, Record, Topics
from tests.proxy import Proxy

PATIENCE = 10.0  # seconds that an answer is waited for
SOON = 0.5  # seconds in which one would come


class Echo:
    """A service that answers with what it was asked, and remembers it."""

    def __init__(self) -> None:
        self.heard = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                self.heard += data
                writer.write(data)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    port = free_port()
    async with (
        await asyncio.start_server(echo, "127.0.0.1", port),
        Proxy(f"127.0.0.1:{port}") as proxy,
    ):
        yield proxy


class Caller:
    """A client of the echo service through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, text: bytes, within: float = PATIENCE) -> bytes:
        self._writer.write(text)
        async with asyncio.timeout(within):
            return await self.hear()

    async def hear(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read(100)

    def close(self) -> None:
        self._writer.close()


Connect = Callable[[], Awaitable[Caller]]


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        async def caller() -> Caller:
            streams = await asyncio.open_connection("127.0.0.1", proxy.port)
            return stack.enter_context(contextlib.closing(Caller(*streams)))

        yield caller


async def test_a_passing_proxy_gives_question_and_answer_through(connect: Connect) -> None:
    caller = await connect()
    assert await caller.ask(b"one") == b"one"


async def test_a_black_hole_keeps_connections_open_and_lets_go_later(
    proxy: Proxy, connect: Connect, echo: Echo
) -> None:
    old = await connect()
    assert await old.ask(b"one") == b"one"
    await proxy.switch("black_hole")
    new = await connect()
    for caller in (old, new):
        with pytest.raises(TimeoutError):
            await caller.ask(b"two", SOON)
    assert echo.heard == b"one"
    await proxy.switch("pass")
    assert [await old.hear(), await new.hear()] == [b"two", b"two"]


async def test_a_half_open_connection_delivers_questions_and_loses_answers(
    proxy: Proxy, connect: Connect, echo: Echo
) -> None:
    caller = await connect()
    await proxy.switch("half_open")
    with pytest.raises(TimeoutError):
        await caller.ask(b"one", SOON)
    assert echo.heard == b"one"
    assert (proxy.passed, proxy.lost) == (3, 3)


async def test_a_forgotten_connection_hears_nothing_any_more_and_new_ones_do(
    proxy: Proxy, connect: Connect, echo: Echo
) -> None:
    old = await connect()
    assert await old.ask(b"one") == b"one"
    await proxy.switch("forget")
    new = await connect()
    assert await new.ask(b"two") == b"two"
    with pytest.raises(TimeoutError):
        await old.ask(b"three", SOON)
    assert echo.heard == b"onetwothree"


async def test_a_reset_breaks_open_connections_and_new_ones(proxy: Proxy, connect: Connect) -> None:
    old = await connect()
    assert await old.ask(b"one") == b"one"
    await proxy.switch("reset")
    assert proxy.resets == 1
    with pytest.raises(ConnectionResetError):
        await old.hear()
    new = await connect()
    with pytest.raises(ConnectionResetError):
        await new.ask(b"one")


async def test_a_refusing_proxy_listens_again_at_the_same_port(
    proxy: Proxy, connect: Connect
) -> None:
    await proxy.switch("refuse")
    with pytest.raises(ConnectionRefusedError):
        await connect()
    await proxy.switch("pass")
    caller = await connect()
    assert await caller.ask(b"one") == b"one"


async def test_latency_delays_question_and_answer(proxy: Proxy, connect: Connect) -> None:
    proxy.latency = 0.1
    caller = await connect()
    asked = time.monotonic()
    assert await caller.ask(b"one") == b"one"
    assert time.monotonic() - asked >= 0.2


async def test_a_kafka_client_behind_the_proxy_stays_behind_it(make_broker: MakeBroker) -> None:
    port = free_port()
    broker = await asyncio.to_thread(make_broker, advertise=port)
    topics, direct = Topics.unique(), Kafka(broker.bootstrap)
    await direct.create(topics)
    async with Proxy(broker.address(BEHIND_PROXY), port=port) as proxy:
        producer = AIOKafkaProducer(bootstrap_servers=proxy.address, request_timeout_ms=1000)
        await producer.start()
        try:
            await producer.send_and_wait(topics.source, b"arrives", partition=0)
            await proxy.switch("black_hole")
            with pytest.raises(KafkaError):
                await producer.send_and_wait(topics.source, b"lost", partition=0)
        finally:
            await producer.stop()
    await direct.produce(topics.source, [Record(value=b"direct", partition=0)])
    assert [one.value for one in await direct.read_all(topics.source)] == [b"arrives", b"direct"]
