"""Open letters of any content: read as a table, shown, and replayed twice against a store."""

import asyncio
import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiokafka import TopicPartition

from schemas.dead_letter import MIN_RECORD
from schemas.reasons import REASONS
from tests.fuzz.inputs import Run, Target, of_record, record
from tests.fuzz.targets import decode, letters
from tests.test_pipeline import Record
from worker import letter_lines
from worker import letter_screens as screens
from worker.letter_document import LetterDocument
from worker.open_letters import OpenLetter, OpenLetters
from worker.pipeline import OUTCOMES
from worker.replay import OTHER_STORE, RESOLVING, Replay, Result, Signature
from worker.selection import UNREADABLE
from worker.stores.memory import MemoryStore

KNOWN = "my-connector"
NOT_TRIED = ("too_large", UNREADABLE, OTHER_STORE)


class Topic:
    """A dead-letter topic of one partition: as its reader sees it, and its closer."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records, self._position, self._at = records, 0, TopicPartition("t.dlq", 0)
        self.closed: list[bytes] = []

    def assignment(self) -> set[TopicPartition]:
        return {self._at}

    async def beginning_offsets(self, _: object) -> Mapping[TopicPartition, int]:
        return {self._at: 0}

    async def end_offsets(self, _: object) -> Mapping[TopicPartition, int]:
        return {self._at: len(self._records)}

    def pause(self, *_: object) -> None: ...

    def resume(self, *_: object) -> None: ...

    def seek(self, _: object, offset: int) -> None:
        self._position = offset

    async def position(self, _: object) -> int:
        return self._position

    async def getmany(self, **_: object) -> Mapping[TopicPartition, Sequence[Record]]:
        found, self._position = self._records[self._position :], len(self._records)
        return {self._at: found}

    async def close(self, tombstones: Sequence[tuple[int, bytes, Any]]) -> None:
        self.closed += [key for _, key, _ in tombstones]


@contextmanager
def opened() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        yield lambda data: runner.run(replayed(record(data)._replace(partition=0, offset=0)))


async def replayed(read: Record) -> None:
    topic, store = Topic([read]), MemoryStore()
    await store.add([KNOWN])
    table = await OpenLetters(topic, "t.dlq").table()
    if read.value is None:
        assert not table
        return
    (letter,) = table
    await can_be_shown(letter, OpenLetters(topic, "t.dlq"))
    results = [await outcome(topic, store, letter) for _ in range(2)]
    assert topic.closed == [letter.key for result in results if result.resolved]
    if results[0].outcome == "applied":
        assert results[1].outcome == "duplicate"
    else:
        assert results[0].outcome == results[1].outcome


async def outcome(topic: Topic, store: MemoryStore, letter: OpenLetter) -> Result:
    closing: Any = topic
    replay = Replay(
        letters=OpenLetters(topic, "t.dlq"),
        store=store,
        topic=closing,
        signature=Signature(by="somebody", why="to see"),
        other_stores=[letter.store],
        batch_size=10,
        stop=asyncio.Event(),
    )
    ((result,),) = [results async for results in replay.run([letter])]
    foreseen = [results async for results in replace(replay, topic=None).run([letter])]
    assert foreseen[0][0].outcome in {result.outcome, "duplicate"}
    assert result.outcome in {*OUTCOMES, *NOT_TRIED}
    assert result.resolved is (result.outcome in RESOLVING)
    assert screens.outcome_text(result).isprintable()
    return result


async def can_be_shown(letter: OpenLetter, letters: OpenLetters) -> None:
    assert all(text.isprintable() for text in letter_lines.lines([letter]))
    whole = await letters.whole(letter)
    assert (whole is None) is (letter.reason == UNREADABLE)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        screens.show(screens.shown(letter, whole), whole, None)
        letter_lines.show_stats(letter_lines.stats([letter], datetime.now(UTC)))
    assert said.getvalue().replace("\n", "").isprintable()
    if whole is not None:
        document = LetterDocument.of(whole)
        again = LetterDocument.parsed(document.text())
        assert again.document == document.document
        assert again.edited().headers == whole.headers


def seeds() -> list[bytes]:
    found = []
    for each in REASONS.values():
        letter = letters.letter_of(Record(each.value, headers=each.headers))
        found.append(of_record(*letter.fitted(MIN_RECORD).record()))
    return found


TARGET = Target(opened=opened, seeds=seeds(), words=[*letters.WORDS, *decode.WORDS])
