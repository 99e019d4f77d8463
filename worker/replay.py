"""Working off dead letters: which ones, what became of each, and how it is closed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from schemas.dead_letter import TOO_LARGE, resolution_headers
from schemas.sync_finished import Invalid
from schemas.updates import Update
from worker import pipeline
from worker.dead_letters import DeadLetterTopic
from worker.errors import TransientError
from worker.logs import audit, get_logger
from worker.merge import Outcome
from worker.open_letters import OpenLetter
from worker.retry import backoff
from worker.selection import UNREADABLE
from worker.stores import MergingStore

Done = TypeVar("Done")

RESOLVING = ("applied", "superseded", "duplicate")  # the outcomes that close a letter
OTHER_STORE = "other_store"
PATIENCE = 30.0  # seconds that a batch is tried again while store or brokers are away

log = get_logger(__name__)


class Result(NamedTuple):
    """What became of one letter, or would become of it."""

    letter: OpenLetter
    outcome: str  # of the pipeline, or why the letter was not tried
    reason: str  # the code of what is wrong now, else of what was
    message: str = ""

    @property
    def resolved(self) -> bool:
        return self.outcome in RESOLVING


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Who resolves letters, and why; it stands in each tombstone and in the audit log."""

    by: str
    why: str


class Letters(Protocol):
    def with_originals(
        self, wanted: Sequence[OpenLetter], size: int
    ) -> AsyncIterator[list[OpenLetter]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Runs letters through the pipeline's steps against a store, and closes those it settles.

    The letter is applied first and closed then: a crash in between repeats a harmless merge.
    Without a `topic` nothing is written: each result is what would be.
    """

    letters: Letters
    store: MergingStore
    topic: DeadLetterTopic | None
    signature: Signature
    other_stores: Collection[str] = ()  # whose letters may be replayed here
    batch_size: int
    rate: int | None = None  # letters a second
    stop: asyncio.Event

    async def run(self, wanted: Sequence[OpenLetter]) -> AsyncIterator[list[Result]]:
        """Results batch by batch, until the end or the wish to stop."""
        size = min(self.batch_size, self.rate) if self.rate else self.batch_size
        async for batch in self.letters.with_originals(wanted, size):
            if self.stop.is_set():
                return
            began = time.monotonic()
            results = await patiently(partial(self._settle, batch), self.stop)
            if self.topic is not None:
                settled = [(result.letter, result.outcome) for result in results if result.resolved]
                await patiently(partial(close, self.topic, settled, self.signature), self.stop)
            yield results
            if self.rate is not None:
                await wait(self.stop, began + len(batch) / self.rate - time.monotonic())

    async def _settle(self, batch: Sequence[OpenLetter]) -> list[Result]:
        now, stores = now_us(), {self.store.store_id, *self.other_stores}
        read = [self._read(letter, stores, now) for letter in batch]
        updates = [one for one in read if isinstance(one, Update)]
        decide = self.store.preview if self.topic is None else self.store.apply
        outcomes = iter(await decide(updates))
        return [
            verdict(letter, next(outcomes) if isinstance(one, Update) else one)
            for letter, one in zip(batch, read, strict=True)
        ]

    def _read(
        self, letter: OpenLetter, stores: Collection[str], now: int
    ) -> Update | Invalid | Result:
        """The update, or why there is none."""
        if letter.original is None:
            return Result(letter=letter, outcome=UNREADABLE, reason=letter.reason)
        if letter.reason == TOO_LARGE:
            return Result(
                letter=letter,
                outcome=TOO_LARGE,
                reason=TOO_LARGE,
                message="the letter holds only the beginning of the record: discard it",
            )
        if letter.store not in stores:
            return other_store(letter, self.store.store_id)
        return pipeline.read(letter.original, now)


def verdict(letter: OpenLetter, found: Outcome | Invalid | Result) -> Result:
    if isinstance(found, Outcome):
        name = found.name
        return Result(letter, name, letter.reason if name in RESOLVING else name, found.detail)
    if isinstance(found, Invalid):
        return Result(letter=letter, outcome="invalid", reason=found.reason, message=found.message)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A record as a person wrote it in place of a letter's."""

    value: bytes
    headers: tuple[tuple[str, bytes | None], ...]


async def apply_edited(
    letters: Sequence[OpenLetter],
    edited: Edited,
    store: MergingStore,
    topic: DeadLetterTopic | None,
    *,
    signature: Signature,
    other_stores: Collection[str],
) -> Result:
    """Apply what was edited, and close the letters of this id if it won; else nothing changes.

    There are several where the dead-letter topic got more partitions. A duplicate won before:
    it is the same edit after a crash. Without a `topic` the result is what would be.
    """
    letter = letters[0]
    if letter.store not in {store.store_id, *other_stores}:
        return other_store(letter, store.store_id)
    read = pipeline.read(edited, now_us())
    decide = store.preview if topic is None else store.apply
    found = read if isinstance(read, Invalid) else (await decide([read]))[0]
    result = verdict(letter, found)
    if topic is not None and result.outcome in {"applied", "duplicate"}:
        await close(topic, [(each, "edited") for each in letters], signature)
    return result


def other_store(letter: OpenLetter, store_id: str) -> Result:
    return Result(
        letter=letter,
        outcome=OTHER_STORE,
        reason=letter.reason,
        message=f"it failed against the store {letter.store}; to use it on this one, {store_id},"
        f" give --store-id {letter.store}",
    )


async def close(
    topic: DeadLetterTopic,
    resolved: Sequence[tuple[OpenLetter, str]],
    signature: Signature,
) -> None:
    """Write the tombstones, wait for them, and leave an audit line for each."""
    if not resolved:
        return
    now = datetime.now(UTC)
    headers = {
        how: resolution_headers(signature.by, how, now, signature.why)
        for how in {how for _, how in resolved}
    }
    await topic.close([(one.own_partition, one.key, headers[how]) for one, how in resolved])
    columns: dict[str, list[str | None]] = {
        "id": [letter.id for letter, _ in resolved],
        "outcome": [how for _, how in resolved],
        "reason": [letter.reason for letter, _ in resolved],
        "connector_id": [letter.connector_id for letter, _ in resolved],
        "store": [letter.store for letter, _ in resolved],
    }
    audit("dead_letter.resolved", columns, by=signature.by, why=signature.why)


async def patiently(step: Callable[[], Awaitable[Done]], stop: asyncio.Event) -> Done:
    """Try the step again while store or brokers are away; each repetition changes nothing."""
    deadline = time.monotonic() + PATIENCE
    for delay in backoff():
        try:
            return await step()
        except TransientError as error:
            if stop.is_set() or time.monotonic() + delay > deadline:
                raise
            log.warning("replay.held", waiting_for=str(error), retry_in=round(delay, 2))
        await wait(stop, delay)
    raise AssertionError  # the back-off has no end


async def wait(stop: asyncio.Event, seconds: float) -> None:
    """Wait so long, or until the wish to stop."""
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await stop.wait()
    except TimeoutError:
        pass


def now_us() -> int:
    return time.time_ns() // 1000
