"""A letter as a document: whatever its bytes are, it can be written, read, and is the same."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.dead_letter import DeadLetter
from worker.errors import LastSyncError
from worker.letter_document import LetterDocument
from worker.text import escaped, json_text, printable


def letter(value: bytes | None, *headers: tuple[str, bytes | None]) -> DeadLetter:
    return DeadLetter(
        group="g",
        topic="t",
        partition=0,
        offset=0,
        timestamp_ms=0,
        key=None,
        value=value,
        headers=headers,
        reason="invalid_id",
        status=400,
        message="m",
        connector_id=None,
        failed_at=datetime.now(UTC),
        store="s",
    )


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "value",
    [
        b'{"a": "\\ud800", "b": 1.5}',
        b'{"a": "\xc2\x9b\x7f"}',
        b'{"a": 1.0}',
        b"[1, null, true]",
        b'""',
    ],
)
def test_json_stands_as_json_and_comes_back_the_same(value: bytes) -> None:
    text = LetterDocument.of(letter(value)).text()
    text.encode()
    assert strict(text)["value"] == json.loads(value)
    edited = LetterDocument.parsed(text).edited().value
    assert json.loads(edited.decode()) == json.loads(value)


@pytest.mark.parametrize(
    "value",
    [
        b'{"a": 1e400}',
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"[" * 400 + b"]" * 400,
        b"[" * 10_000 + b"]" * 10_000,
        b"9" * 6_000,
        b"{not json\x1b[31m",
        b"\x00\xff",
        b"",
    ],
    ids=["infinite", "nan", "twice", "deep", "abysmal", "long", "text", "bytes", "empty"],
)
def test_what_json_cannot_say_comes_back_byte_for_byte(value: bytes) -> None:
    text = LetterDocument.of(letter(value)).text()
    strict(text)
    assert text.replace("\n", "").isprintable()
    assert LetterDocument.parsed(text).edited().value == value


def test_headers_come_back_as_they_were() -> None:
    headers = (("a", b"text"), ("b", None), ("c", b"\xff"), ("d", b"\xed\xa0\x80"), ("a", b""))
    text = LetterDocument.of(letter(b"{}", *headers)).text()
    assert LetterDocument.parsed(text).edited().headers == headers


def test_a_text_that_is_none_is_refused() -> None:
    with pytest.raises(LastSyncError, match="value_text has to be a text"):
        LetterDocument.parsed('{"value_text": null}').edited()


def test_text_from_outside_cannot_steer_a_terminal() -> None:
    steering = "é\x1b\x9b\x7f\u202e\U000e0001\ud800"
    assert printable(steering) == "é" + "\N{REPLACEMENT CHARACTER}" * 6
    assert escaped(steering) == r"é\u001b\u009b\u007f\u202e\udb40\udc01\ud800"
    assert json.loads(json_text([steering])) == [steering]
    assert json_text({"a": [1]}, indent=1) == '{\n "a": [\n  1\n ]\n}'
