"""Edited documents: refused with a sentence, or applied as the record that they describe."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from schemas.dead_letter import MIN_RECORD
from schemas.reasons import REASONS
from tests.fuzz.inputs import Run, Target
from tests.fuzz.mutations import TEXTS
from tests.fuzz.targets import decode, letters
from tests.fuzz.targets.replay import KNOWN, Topic
from tests.test_pipeline import Record
from worker.errors import LastSyncError
from worker.letter_document import LetterDocument
from worker.open_letters import OpenLetters
from worker.pipeline import OUTCOMES
from worker.replay import Edited, Signature, apply_edited
from worker.stores.memory import MemoryStore

WORDS = [
    *(
        b'"value":',
        b'"value_text":',
        b'"value_base64":',
        b'"headers":[',
        b'["ce_id","1"],',
        b"[[]]",
    ),
    *(
        b'{"base64":"/w=="}',
        b'{"base64":"\xc3\xa9"}',
        b"1e400",
        b"NaN",
        b"\xed\xa0\x80",
        b"[" * 300,
    ),
    *(json.dumps(text).encode() for text in TEXTS),
    *decode.WORDS,
]
REFUSED = Record(b"{}", partition=0, offset=0)


@contextmanager
def opened() -> Iterator[Run]:
    key, value, headers = letters.letter_of(REFUSED).fitted(MIN_RECORD).record()
    topic = Topic([REFUSED._replace(key=key, value=value, headers=headers)])
    with asyncio.Runner() as runner:
        yield lambda data: runner.run(applied(topic, data))


async def applied(topic: Topic, data: bytes) -> None:
    try:
        edited = LetterDocument.parsed(data.decode()).edited()
    except UnicodeDecodeError:  # which is said before anything else is looked at
        return
    except LastSyncError as error:
        can_be_printed(str(error))
        return
    await is_applied_whole_or_not_at_all(topic, edited)


def can_be_printed(text: str) -> None:
    assert text
    assert text.replace("\n", "").isprintable(), text


async def is_applied_whole_or_not_at_all(topic: Topic, edited: Edited) -> None:
    store, closing = MemoryStore(), Topic([])
    await store.add([KNOWN])
    table = await OpenLetters(topic, "t.dlq").table()
    outcomes = []
    for writing in (None, closing, closing):
        into: Any = writing
        result = await apply_edited(
            table,
            edited,
            store,
            into,
            signature=Signature(by="somebody", why="to see"),
            other_stores=[table[0].store],
        )
        outcomes.append(result.outcome)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] in OUTCOMES
    assert outcomes[2] == ("duplicate" if outcomes[1] == "applied" else outcomes[1])
    assert len(closing.closed) == (2 if outcomes[1] == "applied" else 0)


def seeds() -> list[bytes]:
    found = [b'{"value_text": "{", "headers": [["a", null], ["b", {"base64": "/w=="}]]}']
    for each in REASONS.values():
        letter = letters.letter_of(Record(each.value, headers=each.headers))
        found.append(LetterDocument.of(letter).text().encode())
    return found


TARGET = Target(opened=opened, seeds=seeds(), words=WORDS)
