"""The open letters: the dead-letter topic read as a table, whose rows go when they are resolved."""

import asyncio
import gc
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.dead_letter import TOO_LARGE, About, DeadLetter, Failure, Original
from worker import batches, kafka
from worker.errors import LastSyncError, TransientError
from worker.selection import UNREADABLE
from worker.settings import Settings
from worker.text import escaped

MESSAGE = 500  # characters of a message that the table keeps; the letter itself has all of it
POLL = 500  # milliseconds
FETCH_WAIT = 10  # milliseconds that a broker keeps a fetch that finds nothing
STALLED = 30.0  # seconds without a record, before the end
MOST_BYTES = 4 * 1024 * 1024  # of originals that are worked on at once
KEPT_BYTES = 52 * 1024 * 1024  # of originals that the table keeps
OBJECT = 150  # bytes that an original takes beside what is in it, and each of its headers
AT_ONCE = 100  # records taken from the client's buffers: of more, the first leave the CPU's caches
EARLIEST = datetime.min.replace(tzinfo=UTC)
COLLECTED = 1_000_000  # new objects after which cycles are looked for; Python's own default is 700

Progress = Callable[[int, int], None]  # records read, of how many


class OpenLetter(NamedTuple):
    """An open letter, and where it stands in the dead-letter topic.

    `original` is there if it was asked for and there was room. A tuple, because there may be very
    many: a frozen dataclass takes four times as long to make.
    """

    own_partition: int  # where the letter's own record lies: letters sort by it
    own_offset: int
    key: bytes
    reason: str
    status: int
    topic: str
    failed_at: datetime | None
    store: str
    message: str
    connector_id: str | None
    partition: int
    offset: int
    timestamp_ms: int
    original: Original | None = None  # the last one: `table` puts it there

    @property
    def id(self) -> str:
        """Made anew each time: of 100,000 letters they take 8 MB."""
        return escaped(self.key.decode(errors="backslashreplace"))

    @property
    def replayable(self) -> bool:
        return self.reason not in {TOO_LARGE, UNREADABLE}


class OpenLetters:
    """Reads the dead-letter topic from its beginning to its end of now, as often as asked."""

    def __init__(self, client: AIOKafkaConsumer, topic: str) -> None:
        self._client, self._topic = client, topic

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings) -> AsyncIterator[Self]:
        client = kafka.consumer(
            settings,
            settings.dead_letter_topic,  # all of its partitions: there is no group
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            # What is asked of the broker next waits behind the fetch: Kafka's 500 ms, at every end.
            fetch_max_wait_ms=FETCH_WAIT,
        )
        with _collecting_seldom():
            async with kafka.started(client, settings):
                yield cls(client, settings.dead_letter_topic)

    async def table(
        self,
        progress: Progress = lambda _, __: None,
        *,
        keep: Callable[[OpenLetter], bool] | None = None,
    ) -> list[OpenLetter]:
        """The open letters, those that failed last at the end.

        A record with a key opens a letter, or opens it again; a tombstone closes it. Those to
        `keep` come with their originals, up to KEPT_BYTES.
        """
        open_letters: dict[int, dict[bytes | None, OpenLetter]] = defaultdict(dict)
        room = KEPT_BYTES
        async for partition, records in self._scan(progress=progress):
            rows = open_letters[partition]
            for record in records:
                if (before := rows.pop(record.key, None)) and before.original:
                    room += _size(before.original)
                if record.value is None:
                    continue
                letter = _indexed(record)
                if original := letter.original:
                    if keep and room > 0 and keep(letter):
                        room -= _size(original)
                    else:
                        letter = OpenLetter(*letter[:-1])  # a quarter of `_replace`
                rows[record.key] = letter
        by_place = chain.from_iterable(open_letters[each].values() for each in sorted(open_letters))
        return sorted(by_place, key=lambda letter: letter.failed_at or EARLIEST)

    async def with_originals(
        self, wanted: Iterable[OpenLetter], size: int
    ) -> AsyncIterator[list[OpenLetter]]:
        """The wanted letters with their originals, `size` at a time, or fewer that are large.

        First those that were kept, all of a connector together: it is then read and written once.
        One that was not is read again, and left out if it is gone; one partition after the other,
        as a connector's letters are usually all in one. An unreadable letter has no original.
        """
        batch: list[OpenLetter] = []
        room = MOST_BYTES
        async for letters in self._completed(wanted):
            for letter in letters:
                batch.append(letter)
                room -= _read_size(letter.original) if letter.original else OBJECT
                if room < 0 or len(batch) == size:
                    yield batch
                    batch, room = [], MOST_BYTES
        if batch:
            yield batch

    async def _completed(self, wanted: Iterable[OpenLetter]) -> AsyncIterator[Iterable[OpenLetter]]:
        known: dict[str | None, list[OpenLetter]] = defaultdict(list)
        others: list[OpenLetter] = []
        for letter in wanted:
            if letter.original or letter.reason == UNREADABLE:
                known[letter.connector_id].append(letter)
            else:
                others.append(letter)
        yield chain.from_iterable(known.values())
        async for records in self._records(others):
            yield [
                letter._replace(original=Original.of(one.value, one.headers))
                for letter, one in records
            ]

    async def whole(self, letter: OpenLetter) -> DeadLetter | None:
        """The letter itself; None where it is unreadable."""
        async for [(_, record)] in self._records([letter]):
            if letter.reason == UNREADABLE:
                return None
            return DeadLetter.from_record(record.key, record.value, record.headers)
        raise LastSyncError(f"letter {letter.id} was resolved meanwhile")

    async def _records(
        self, wanted: Iterable[OpenLetter]
    ) -> AsyncIterator[list[tuple[OpenLetter, Any]]]:
        by_offset: dict[int, dict[int, OpenLetter]] = defaultdict(dict)
        for letter in wanted:
            by_offset[letter.own_partition][letter.own_offset] = letter
        for partition, found in by_offset.items():
            async for _, records in self._scan({partition: (min(found), max(found) + 1)}):
                # Each once: of a topic that gets more partitions meanwhile, all comes again.
                if some := [(found.pop(one.offset), one) for one in records if one.offset in found]:
                    yield some

    async def _scan(
        self,
        ranges: Mapping[int, tuple[int, int]] | None = None,
        progress: Progress = lambda _, __: None,
    ) -> AsyncIterator[tuple[int, Sequence[Any]]]:
        """The records of the ranges of offsets, by partition; of everything where none is given."""
        left = await self._positioned(ranges)
        total, done = sum(end - begin for begin, end in left.values()), 0
        reached, moved = {tp: begin for tp, (begin, _) in left.items()}, time.monotonic()
        while left:
            batches.make_room()
            with kafka.translated(f"reading {self._topic}"):
                found = await self._client.getmany(timeout_ms=POLL, max_records=AT_ONCE)
            for partition, records in found.items():
                begin, end = left.get(partition, (0, 0))
                inside = [record for record in records if begin <= record.offset < end]
                done += len(inside)
                if inside:
                    yield partition.partition, inside
            progress(min(done, total), total)
            # Compaction leaves gaps: it is the position that says where the end is.
            positions = {tp: await self._client.position(tp) for tp in left}
            if found or positions != reached:
                reached, moved = positions, time.monotonic()
            elif time.monotonic() > moved + STALLED:
                raise TransientError(
                    f"Kafka gave no record of {self._topic} for {STALLED:g} s, before its end:"
                    " check the brokers, and run this again"
                )
            for tp, position in positions.items():
                if position >= left[tp][1]:
                    self._client.pause(tp)
                    del left[tp]
        progress(total, total)

    async def _positioned(
        self, ranges: Mapping[int, tuple[int, int]] | None
    ) -> dict[TopicPartition, tuple[int, int]]:
        assigned = sorted(self._client.assignment())
        if ranges is None:
            with kafka.translated(f"reading {self._topic}"):
                async with asyncio.timeout(STALLED):
                    begins = await self._client.beginning_offsets(assigned)
                    ends = await self._client.end_offsets(assigned)
            ranges = {tp.partition: (begins[tp], ends[tp]) for tp in assigned}
        wanted = {tp: ranges[tp.partition] for tp in assigned if tp.partition in ranges}
        left = {tp: (begin, end) for tp, (begin, end) in wanted.items() if begin < end}
        self._client.pause(*(tp for tp in assigned if tp not in left))
        self._client.resume(*left)
        for tp, (begin, _) in left.items():
            self._client.seek(tp, begin)
        return left


@contextmanager
def _collecting_seldom() -> Iterator[None]:
    """Letters are many small objects and no cycles: looking for some took a quarter of the time."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(COLLECTED, *before[1:])
    try:
        yield
    finally:
        gc.freeze()  # what was made since counts as looked at: the next object would have it done
        gc.set_threshold(*before)
        gc.unfreeze()


def _size(original: Original) -> int:
    size = OBJECT + len(original.value or b"")
    for name, content in original.headers:
        size += OBJECT + len(name) + len(content or b"")
    return size


def _read_size(original: Original) -> int:
    return _size(original) + batches.cursor_size(original.value or b"")


def _indexed(record: Any) -> OpenLetter:
    try:
        failure, partition, offset, timestamp_ms, message, connector_id, original = About.read(
            record.key, record.value, record.headers
        )
    except ValueError as error:
        return _unreadable(record, error)
    row = (
        record.partition,
        record.offset,
        record.key,
        *_shown(failure),
        _kept(message if len(message) <= MESSAGE else f"{message[:MESSAGE]}…"),
        connector_id and _kept(connector_id),
        partition,
        offset,
        timestamp_ms,
        original,
    )
    return tuple.__new__(OpenLetter, row)


@lru_cache(maxsize=32)
def _shown(failure: Failure) -> tuple[str, int, str, datetime, str]:
    return (
        _kept(failure.reason),
        failure.status,
        _kept(failure.topic),
        failure.failed_at,
        _kept(failure.store),
    )


@lru_cache(maxsize=50_000)
def _kept(text: str) -> str:
    """Safe to print and to paste, and kept once: many letters say the same."""
    return sys.intern(escaped(text))


def _unreadable(record: Any, error: ValueError) -> OpenLetter:
    return OpenLetter(
        own_partition=record.partition,
        own_offset=record.offset,
        key=record.key or b"",
        reason=UNREADABLE,
        status=400,
        message=escaped(f"not a letter of last-sync: {error}"),
        connector_id=None,
        topic="",
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        failed_at=None,
        store="",
    )
