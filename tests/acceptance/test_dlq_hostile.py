"""Letters whose bytes would steer a terminal or break a screen, and records that are no letters."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from schemas.dead_letter import DeadLetter
from tests.acceptance.conftest import Stack
from tests.acceptance.test_dlq import dlq, listed
from tests.kafka import Record

STEERING = "\x1b[31m\x9b32m\x07\x7f\u202e\u2028"
HARMLESS = r"\u001b[31m\u009b32m\u0007\u007f\u202e\u2028"
LONG = 200_000  # bytes, more than any letter of ours has in its key


def letter(stack: Stack, **more: Any) -> DeadLetter:
    ours = DeadLetter(
        group=stack.topics.group,
        topic=stack.topics.source,
        partition=0,
        offset=0,
        timestamp_ms=1_700_000_000_000,
        key=b"k",
        value=b"{}",
        headers=(),
        reason="invalid_id",
        status=400,
        message="a message",
        connector_id=None,
        failed_at=datetime.now(UTC),
        store="a store",
    )
    return replace(ours, **more)


async def written(stack: Stack, *letters: DeadLetter) -> None:
    await stack.register(["known"])
    records = [
        Record(key=key, value=value, headers=headers, partition=0)
        for key, value, headers in (one.fitted(1_000_000).record() for one in letters)
    ]
    await stack.kafka.produce(stack.topics.dlq, records)


def assert_harmless(text: str) -> None:
    bad = [c for c in text if not c.isprintable() and c != "\n"]
    assert not bad, bad


async def test_no_control_character_of_a_letter_reaches_a_screen(stack: Stack) -> None:
    evil = letter(
        stack,
        group=STEERING,
        reason=STEERING,
        message=STEERING,
        connector_id=STEERING,
        store=STEERING,
        headers=((STEERING, STEERING.encode()),),
        value=json.dumps({STEERING: STEERING}, ensure_ascii=False).encode(),
    )
    await written(stack, evil, replace(evil, offset=1, value=STEERING.encode()))
    (first, second) = await listed(stack)
    assert first["id"].startswith(HARMLESS)
    screens = [
        ("list",),
        ("list", "--json"),
        ("stats",),
        ("stats", "--json"),
        ("show", first["id"]),
        ("show", second["id"], "--json"),
    ]
    for screen in screens:
        done = await dlq(stack, *screen)
        assert_harmless(done.stdout + done.stderr)
    for command in (("--dry-run",), ("--yes",)):
        done = await dlq(stack, "replay", "--all", *command, code=1)
        assert_harmless(done.stdout + done.stderr)
    stack.more = {"LAST_SYNC_LOG_FORMAT": "pretty"}
    discard = ("discard", "--reason-text", STEERING, "--yes", "--id", first["id"])
    done = await dlq(stack, *discard, "--id", second["id"])
    assert_harmless(done.stdout + done.stderr)
    assert await listed(stack) == []


async def test_a_value_that_utf8_cannot_say_is_shown_and_edited(stack: Stack) -> None:
    await written(stack, letter(stack, value=b'{"a": "\\ud800"}'))
    (one,) = await listed(stack)
    await dlq(stack, "show", one["id"])
    shown = json.loads((await dlq(stack, "show", one["id"], "--json")).stdout)
    assert shown["value"] == {"a": "\ud800"}
    stack.more = {"EDITOR": "sed -i 's/^{$/{ /'"}  # a change of white space alone
    edited = await dlq(stack, "edit", one["id"], "--yes", "--store-id", "a store", code=1)
    assert "the edited event would be invalid (lone_surrogate)" in edited.stderr


async def test_records_that_are_no_letters_are_listed_shown_and_discarded_by_id(
    stack: Stack,
) -> None:
    key, _, headers = letter(stack).fitted(1_000_000).record()
    strays = [
        Record(key=b"\x1b[31m\xff", value=b"no headers"),
        Record(key=b"k" * LONG, value=b"a long key"),
        Record(key=b"", value=b"an empty key"),
        Record(key=b"a 'quoted'; key", value=b"\x00", headers=[("x", None)]),
        Record(key=b"another", value=b"of another key", headers=headers),
        Record(key=key, value=b"twice", headers=[*headers, *headers], partition=1),
        Record(key=key, value=b"no time", headers=without(headers, "failed_at"), partition=2),
    ]
    await stack.kafka.produce(
        stack.topics.dlq, [replace(one, partition=one.partition or 0) for one in strays]
    )
    await stack.register(["known"])
    found = await listed(stack)
    assert [one["reason"] for one in found] == ["unreadable"] * len(strays)
    assert all(one["message"].startswith("not a letter of last-sync: ") for one in found)
    text = (await dlq(stack, "list")).stdout
    assert len(text) < 2 * LONG  # one wide row does not widen the others
    for one in found:
        if len(one["id"]) < LONG:  # an argument has its limits
            assert "unreadable" in (await dlq(stack, "show", one["id"])).stdout
    ids = [word for one in found if len(one["id"]) < LONG for word in ("--id", one["id"])]
    await dlq(stack, "discard", *ids, "--reason-text", "a test", "--yes")
    assert [len(one["id"]) for one in await listed(stack)] == [LONG]
    await dlq(stack, "discard", "--reason", "unreadable", "--reason-text", "a test", "--yes")
    assert await listed(stack) == []


def without(headers: Any, name: str) -> list[tuple[str, bytes | None]]:
    return [(each, value) for each, value in headers if not each.endswith(name)]
