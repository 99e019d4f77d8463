"""`elasticsearch+http(s)://…`: Elasticsearch's own connectors, through its connector API.

The API has no compare-and-set, so the stamps live beside it, in the ledger. Every change takes the
same steps: read the ledger, change the connector, write the ledger on condition that it is still
as it was read. Who loses that condition starts again and puts the winning values once more, so
concurrent writers converge. The ledger is written also when nothing was won: the values that were
put may have been those of another moment.
"""

import asyncio
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

from elasticsearch import ConflictError
from pydantic import JsonValue
from pydantic_core import PydanticSerializationError, to_json

from schemas.updates import Update
from worker.errors import TransientError
from worker.merge import CONNECTOR_NOT_FOUND, Outcome, State, deleted, fold, fold_batch, registered
from worker.retry import backoff
from worker.stores import elastic_client, ledger
from worker.stores.base import Connector, Difference, ElasticsearchAccess
from worker.stores.connector_api import ConnectorApi
from worker.stores.elastic_client import RefusedError, named, translated
from worker.stores.ledger import Entry, Ledger

OPEN_TIMEOUT = 3.5  # seconds
AT_ONCE = 500  # connectors in one request to the ledger
MOST = 4_000  # seven seconds, where a server takes 20 ms for a request
CONTENTION_TIMEOUT = 15.0  # seconds that a call goes on losing to other writers
IN_FLIGHT = 4.0  # seconds that another writer may be between its two writes: twice two slices

# What one attempt says, and what it writes to the ledger; None: nothing was changed.
Attempt = tuple[Any, Entry | None]
EMPTY = State(fields={}, stamps={})


@asynccontextmanager
async def open_elasticsearch(
    url: str, access: ElasticsearchAccess
) -> AsyncIterator["ElasticsearchStore"]:
    """Connect, refuse a server that would do harm, and find or make the ledger."""
    async with elastic_client.connected(url, access) as client:
        api = ConnectorApi(client=client, url=url)
        with translated(url):
            async with asyncio.timeout(OPEN_TIMEOUT):
                version = await elastic_client.version(client, url)
                book = await ledger.opened(client, url, version)
                async for _ in api.connectors():
                    break  # they may be read
        yield ElasticsearchStore(
            api=api, book=book, version=version, concurrency=access.concurrency
        )


class ElasticsearchStore:
    """A `ConnectorStore` over the connector API and the ledger.

    It promises less than a database: a call changes each connector by itself, and others see one
    changed before the next. `docs/stores.md` lists the differences.
    """

    def __init__(self, *, api: ConnectorApi, book: Ledger, version: str, concurrency: int) -> None:
        self._api = api
        self._book = book
        self._version = version
        self._slots = asyncio.Semaphore(concurrency)
        self._leaves_time = asyncio.Event()
        self._leaves_time.set()

    @property
    def remote(self) -> bool:
        return True

    @property
    def leaves_time(self) -> asyncio.Event:
        return self._leaves_time

    @property
    def most(self) -> int:
        return MOST

    @property
    def store_id(self) -> str:
        return self._book.store_id

    async def apply(self, updates: Sequence[Update]) -> list[Outcome]:
        work = _by_connector(updates)
        merged = await self._change(
            work, lambda id_, entry: self._merge(id_, entry, [updates[n] for n in work[id_]])
        )
        outcomes: dict[int, Outcome] = {}
        for id_, places in work.items():
            found = merged[id_]
            if found is None:  # some of it was refused: each by itself shows which
                found = [await self._apply_alone(updates[n]) for n in places]
            outcomes.update(zip(places, found, strict=True))
        return [outcomes[n] for n in range(len(updates))]

    async def preview(self, updates: Sequence[Update]) -> list[Outcome]:
        live = {}
        for ids in _slices(_by_connector(updates)):
            entries = await self._load(ids)
            known = await self._each(ids, self._api.get)
            for id_ in ids:
                if known[id_] is not None:
                    live[id_] = replace(entries[id_].state or EMPTY, deleted=False)
        return fold_batch(live, updates)[1]

    async def add(self, connector_ids: Sequence[str]) -> list[bool]:
        made: dict[str, str | None] = {}
        mine = str(uuid4())
        answers = await self._change(
            dict.fromkeys(connector_ids), lambda id_, entry: self._register(id_, entry, mine, made)
        )
        return _first_only(connector_ids, answers)

    async def delete(self, connector_ids: Sequence[str]) -> list[bool]:
        gone: set[str] = set()
        answers = await self._change(
            dict.fromkeys(connector_ids), lambda id_, entry: self._delete(id_, entry, gone)
        )
        return _first_only(connector_ids, answers)

    async def get(self, connector_id: str) -> Connector | None:
        fields = await self._api.get(connector_id)
        return None if fields is None else Connector(id=connector_id, fields=fields)

    async def connectors(self) -> AsyncIterator[Connector]:
        # Elasticsearch sorts by index name, and two pages of it can overlap.
        found = {id_: fields async for id_, fields in self._api.connectors()}
        for id_ in sorted(found):
            yield Connector(id=id_, fields=found[id_])

    async def verify(self, *, repair: bool) -> AsyncIterator[Difference]:
        async for ids in self._book.pages():
            suspects = list(await self._differences(ids))
            if not suspects:
                continue
            await asyncio.sleep(IN_FLIGHT)
            found = await self._differences(suspects)
            if repair:
                await self._change(found, self._mend)
            for differences in found.values():
                for difference in differences:
                    yield difference

    async def describe(self) -> str:
        return (
            f"Elasticsearch {self._version}, ledger {ledger.INDEX} schema {ledger.SCHEMA},"
            f" store {self.store_id}"
        )

    async def _change(
        self,
        connector_ids: Iterable[str],
        attempt: Callable[[str, Entry], Awaitable[Attempt]],
    ) -> dict[str, Any]:
        """Bring an attempt for each connector to its end, and give what it said."""
        answers: dict[str, Any] = {}
        waiting = list(connector_ids)
        while waiting:
            lost, waiting = await self._attempt_each(waiting, attempt, answers)
            deadline, delays = time.monotonic() + CONTENTION_TIMEOUT, backoff()
            while lost:
                if time.monotonic() > deadline:
                    raise TransientError(
                        f"{named(self._book.url)}: other writers of connector {lost[0]!r} were"
                        f" quicker for {CONTENTION_TIMEOUT:g} s"
                    )
                await asyncio.sleep(next(delays))
                beaten, others = await self._attempt_each(lost, attempt, answers)
                lost = [*beaten, *others]
        return answers

    async def _attempt_each(
        self,
        connector_ids: Sequence[str],
        attempt: Callable[[str, Entry], Awaitable[Attempt]],
        answers: dict[str, Any],
    ) -> tuple[list[str], list[str]]:
        """Make one attempt for each, slice by slice, until some lose to another writer.

        A slice begins when the one before has no call left that waits for a place; two are under
        way at most. Gives who lost, and who was not begun: those who lost are to be tried again
        first, and alone, for among others they would lose again.
        """
        lost: list[str] = []
        begun = 0

        async def one(id_: str, entry: Entry) -> Attempt | None:
            try:
                return await attempt(id_, entry)
            except ConflictError:  # the API does not repeat its own lost races
                return None

        async def written(calls: Mapping[str, asyncio.Task[Attempt | None]]) -> None:
            made = {id_: await call for id_, call in calls.items()}
            won = {id_: said for id_, said in made.items() if said is not None}
            answers.update({id_: answer for id_, (answer, _) in won.items()})
            changes = {id_: entry for id_, (_, entry) in won.items() if entry is not None}
            beaten = await self._book.write(changes) if changes else set()
            lost.extend(id_ for id_ in calls if id_ not in won or id_ in beaten)

        async with _together() as group:
            writing: asyncio.Task[None] | None = None
            for ids in _slices(connector_ids):
                if lost:
                    break
                begun += len(ids)
                entries = await self._load(ids)
                calls = {id_: await self._placed(group, one, id_, entries[id_]) for id_ in ids}
                if writing:
                    await writing
                writing = group.create_task(written(calls))
            if writing:
                await writing
        return lost, [*connector_ids[begun:]]

    async def _each(
        self, ids: Iterable[str], call: Callable[[str], Coroutine[Any, Any, Any]]
    ) -> dict[str, Any]:
        """What the calls give, by id."""
        async with _together() as group:
            calls = {id_: await self._placed(group, call, id_) for id_ in ids}
        return {id_: call.result() for id_, call in calls.items()}

    async def _placed(
        self,
        group: asyncio.TaskGroup,
        call: Callable[..., Coroutine[Any, Any, Any]],
        id_: str,
        *more: Any,
    ) -> asyncio.Task[Any]:
        """Begin a call, when fewer are under way than the setting allows."""
        await self._slots.acquire()
        task = group.create_task(call(id_, *more), name=f"connector {id_}")
        task.add_done_callback(lambda _: self._slots.release())
        return task

    async def _load(self, connector_ids: Sequence[str]) -> dict[str, Entry]:
        return await self._book.load(connector_ids)

    async def _apply_alone(self, update: Update) -> Outcome:
        async def merge(id_: str, entry: Entry) -> Attempt:
            return await self._merge(id_, entry, [update])

        (found,) = (await self._change([update.connector_id], merge)).values()
        outcome: Outcome = found[0]
        return outcome

    async def _merge(self, id_: str, entry: Entry, updates: Sequence[Update]) -> Attempt:
        """The updates' outcomes, or None where some content was refused and it is not clear whose.

        All touched fields are put, with the values that win: another writer's too, which this or
        an earlier attempt may have overwritten.
        """
        state = entry.state or EMPTY
        if state.deleted and await self._api.get(id_) is None:
            return [CONNECTOR_NOT_FOUND] * len(updates), None
        after, outcomes = fold(replace(state, deleted=False), updates)
        assert after is not None  # noqa: S101 - it was none before  # nosec B101
        touched = {field for update in updates for field in update.fields}
        try:
            to_json([after.fields, after.stamps])
            there = await self._put(id_, {f: after.fields[f] for f in touched & {*after.fields}})
        except (PydanticSerializationError, RefusedError) as error:
            if len(updates) > 1:
                return None, None
            if await self._api.get(id_) is not None:
                return [Outcome("rejected", str(error))], None
            there = False
        if there:
            return outcomes, replace(entry, state=after)
        return [CONNECTOR_NOT_FOUND] * len(updates), _buried(entry)

    async def _put(self, id_: str, fields: Mapping[str, JsonValue]) -> bool:
        if fields:
            return await self._api.put_last_sync(id_, fields)
        return await self._api.get(id_) is not None

    async def _register(
        self, id_: str, entry: Entry, mine: str, made: dict[str, str | None]
    ) -> Attempt:
        """Whether this call made the connector; `made` keeps which registration it followed."""
        if await self._api.get(id_) is None:
            await self._api.register(id_)
            made[id_] = entry.registration
            # With a ledger document it is not the first life: late events of that one lose.
            former = _buried(entry) or entry
            return True, replace(former, state=registered(former.state), registration=mine)
        if id_ not in made:
            return False, None
        # Another writer was between; what it put, the registration may have replaced.
        state = replace(entry.state or EMPTY, deleted=False)
        await self._put(id_, state.fields)
        first = entry.registration == made[id_]
        registration = mine if first else entry.registration
        return first, replace(entry, state=state, registration=registration)

    async def _delete(self, id_: str, entry: Entry, gone: set[str]) -> Attempt:
        if await self._api.delete(id_):
            gone.add(id_)
        if id_ not in gone:
            return False, None
        return True, replace(entry, state=deleted(entry.state or EMPTY, _now()))

    async def _differences(self, ids: Sequence[str]) -> dict[str, list[Difference]]:
        """What the connectors hold that is not what the ledger says, by connector."""
        entries = await self._load(ids)
        expected = {
            id_: entry.state
            for id_, entry in entries.items()
            if entry.state is not None and not entry.state.deleted
        }
        found = await self._each(expected, self._api.get)
        compared = {id_: _compared(id_, found[id_], state) for id_, state in expected.items()}
        return {id_: differences for id_, differences in compared.items() if differences}

    async def _mend(self, id_: str, entry: Entry) -> Attempt:
        """Put the winning values again, or note that the connector is gone."""
        state = entry.state or EMPTY
        if state.deleted:
            return None, None
        return None, entry if await self._put(id_, state.fields) else _buried(entry)


@asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks of which the first error ends all, and is raised, unless a cancellation came, too."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - this is a coroutine  # nosec B101
    before = task.cancelling()
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        if task.cancelling() > before:  # the group prefers its own
            raise asyncio.CancelledError from errors
        first = errors.exceptions[0]
        raise first from first.__cause__


def _by_connector(updates: Sequence[Update]) -> dict[str, list[int]]:
    """The places of each connector's updates."""
    places: dict[str, list[int]] = {}
    for place, update in enumerate(updates):
        places.setdefault(update.connector_id, []).append(place)
    return places


def _slices(ids: Iterable[str]) -> Iterable[list[str]]:
    every = list(ids)
    return (every[start : start + AT_ONCE] for start in range(0, len(every), AT_ONCE))


def _first_only(ids: Sequence[str], answers: Mapping[str, bool]) -> list[bool]:
    """Each id's answer where it is named first; named again, nothing is left to do."""
    left = dict(answers)
    return [left.pop(id_, False) for id_ in ids]


def _buried(entry: Entry) -> Entry | None:
    """The entry of a connector that is gone; None where that was known, or it never was there."""
    if entry.state is None or entry.state.deleted:
        return None
    return replace(entry, state=deleted(entry.state, _now()))


def _now() -> int:
    return time.time_ns() // 1000


def _compared(id_: str, found: Mapping[str, Any] | None, state: State) -> list[Difference]:
    if found is None:
        return [Difference(connector_id=id_, field=None)]
    return [
        Difference(connector_id=id_, field=field, found=found.get(field), expected=value)
        for field, value in state.fields.items()
        if not _holds(found.get(field), value)
    ]


def _holds(found: JsonValue, expected: JsonValue) -> bool:
    """Whether a value is there; Elasticsearch keeps a cursor's former keys beside the new ones."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return all(_holds(found.get(key), value) for key, value in expected.items())
    return (found or None) == (expected or None) if expected in ("", None) else found == expected
