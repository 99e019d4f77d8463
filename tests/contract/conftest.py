"""The stores that the contract is tried on; a new store is one more `Place`."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest

from tests.elasticsearch import FakeElasticsearch, in_a_thread
from worker.stores import ConnectorStore, open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a store's data are; every opening of a shared place sees the same."""

    url: str
    shared: bool
    atomic: bool = True  # a call's changes are made all together or not at all
    lists_at_once: bool = False  # and not page by page, while it is read
    listed_within: float = 0  # seconds until a listing shows what changed
    empty_error: str | None = ""  # what an empty error text reads as
    many: int = 33_000  # connectors that one call can name in a test's time

    def open(self) -> AbstractAsyncContextManager[ConnectorStore]:
        return open_store(self.url)


@pytest.fixture
def memory() -> Place:
    return Place(url="memory://", shared=False)


@pytest.fixture
def sqlite(tmp_path: Path) -> Place:
    return Place(url=f"sqlite:///{tmp_path}/store.db", shared=True)


@pytest.fixture
def postgresql(database: str) -> Place:
    return Place(url=database, shared=True)


@pytest.fixture
def elasticsearch() -> Iterator[Place]:
    server = FakeElasticsearch()
    server.refresh_interval = 0.2
    with in_a_thread(server):
        yield Place(
            url=f"elasticsearch+{server.url}",
            shared=True,
            atomic=False,
            lists_at_once=True,
            listed_within=2,
            empty_error=None,
            many=1_200,
        )


@pytest.fixture(params=["memory", "sqlite", "postgresql", "elasticsearch"])
def place(request: pytest.FixtureRequest) -> Place:
    """Give an empty place of each kind."""
    place: Place = request.getfixturevalue(request.param)
    return place


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ConnectorStore]:
    async with place.open() as store:
        yield store


@pytest.fixture
async def other(place: Place, store: ConnectorStore) -> AsyncIterator[ConnectorStore]:
    """Give a second opening of the same data, as another process has it."""
    if not place.shared:
        yield store
        return
    async with place.open() as other:
        yield other


@dataclass(slots=True)
class Pin:
    """Stops the next call between its load and its write."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def on(self, store: Any) -> Iterator[None]:
        """Pin the store's next call that loads; `release` lets it go on."""
        parts = [store, getattr(store, "_driver", store)]
        loads = [part._load for part in parts]
        loop = asyncio.get_running_loop()

        def restore() -> None:
            for part, load in zip(parts, loads, strict=True):
                part._load = load

        async def wait() -> None:
            restore()
            self.reached.set()
            await self.release.wait()

        def pinned(load: Any) -> Any:
            async def pinned(*args: Any) -> Any:
                states = await load(*args)
                await wait()
                return states

            def pinned_in_a_thread(*args: Any) -> Any:
                rows = load(*args)
                asyncio.run_coroutine_threadsafe(wait(), loop).result()
                return rows

            return pinned if iscoroutinefunction(load) else pinned_in_a_thread

        for part, load in zip(parts, loads, strict=True):
            part._load = pinned(load)
        try:
            yield
        finally:
            self.release.set()


@dataclass(slots=True)
class CancelAtWait:
    """Runs a call and cancels it when it waits for the nth time."""

    call: Coroutine[Any, Any, Any]
    wait: int
    delay: float  # seconds from the beginning of that wait
    waits: int = 0

    async def run(self) -> None:
        await self

    def __await__(self) -> Generator[Any, Any, None]:
        task, step = asyncio.current_task(), partial(self.call.send, None)
        assert task is not None
        while True:
            try:
                future = step()
            except StopIteration:
                return
            self.waits += 1
            if self.waits == self.wait:
                asyncio.get_running_loop().call_later(self.delay, task.cancel)
            try:
                step = partial(self.call.send, (yield future))
            except BaseException as error:  # noqa: BLE001 - the call decides
                step = partial(self.call.throw, error)


@pytest.fixture
def pin() -> Pin:
    return Pin()
