"""Dead letters as a work list, through the real program."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.acceptance.conftest import Stack
from tests.kafka import Record
from tests.programs import Finished

YEAR_AGO = "2025-01-01T00:00:00Z"


def event(connector: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "event_id": f"e-{connector}-{number}",
        "connector_id": connector,
        "occurred_at": f"2026-01-01T00:00:{number % 60:02}Z",
        "last_sync": {"last_indexed_document_count": number},
        **more,
    }


def record(value: Any, key: str, partition: int = 0, **more: Any) -> Record:
    encoded = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Record(value=encoded, key=key.encode(), partition=partition, **more)


async def dead_lettered(stack: Stack, records: Sequence[Record]) -> None:
    await stack.kafka.produce(stack.topics.source, list(records))
    await stack.drain(LAST_SYNC_FLOOD_SHARE="1")


async def dlq(stack: Stack, *arguments: str, code: int = 0, **more: Any) -> Finished:
    done = await stack.cli("dlq", *arguments, env=stack.env, **more)
    assert done.exit_code == code, f"{done.stdout}\n{done.stderr}"
    return done


async def listed(stack: Stack, *arguments: str) -> list[dict[str, Any]]:
    done = await dlq(stack, "list", "--json", *arguments)
    return [json.loads(line) for line in done.stdout.splitlines()]


async def replayed(stack: Stack, *arguments: str, code: int = 0) -> list[str]:
    done = await dlq(stack, "replay", "--yes", "--json", *arguments, code=code)
    return sorted(json.loads(line)["outcome"] for line in done.stdout.splitlines())


@pytest.fixture
async def filled(stack: Stack) -> Stack:
    """Dead-letter two events of an unknown connector, and two that are wrong."""
    await stack.register(["known"])
    wrong = event("known", 3, last_sync={"last_sync_status": "Completed"})
    other = event("unknown", 2, last_sync={"last_deleted_document_count": 2})
    await dead_lettered(
        stack,
        [
            record(event("unknown", 1), "unknown", 0),
            record(other, "unknown", 1),
            record(wrong, "known", 2),
            record(b"\xff{", "known", 3),
        ],
    )
    return stack


# list, show, stats


async def test_letters_are_listed_with_why_and_where_from(filled: Stack) -> None:
    letters = await listed(filled)
    assert [letter["reason"] for letter in letters].count("connector_not_found") == 2
    one = next(letter for letter in letters if letter["reason"] == "invalid_status")
    source = filled.topics.source
    assert one["id"].startswith(f"{filled.topics.group}/{source}/2/0@")
    assert {**one, "id": "", "timestamp": "", "failed_at": ""} == {
        "id": "",
        "reason": "invalid_status",
        "status": 400,
        "connector_id": "known",
        "topic": source,
        "partition": 2,
        "offset": 0,
        "timestamp": "",
        "failed_at": "",
        "message": 'last_sync.last_sync_status is "Completed": write it lower-case, "completed"',
    }
    assert [letter["failed_at"] for letter in letters] == sorted(
        letter["failed_at"] for letter in letters
    )
    text = (await dlq(filled, "list")).stdout
    assert text.splitlines()[0].split() == ["ID", "AGE", "CONNECTOR", "REASON", "MESSAGE"]
    assert len(text.splitlines()) == 5


async def test_filters_narrow_the_list(filled: Stack) -> None:
    narrowed = {
        "--reason connector_not_found": 2,
        "--reason connector_not_found --reason not_utf8": 3,
        "--connector unk*": 2,
        "--connector nothing*": 0,
        "--status 404": 2,
        "--status 400": 2,
        "--partition 1": 1,
        "--since 1h": 4,
        "--until 1h": 0,
        "--since 2099-01-01T00:00:00Z": 0,
        "--limit 3": 3,
        "--status 404 --partition 0": 1,
        "--topic elsewhere": 0,
        "--id nobody": 0,
    }
    found = await asyncio.gather(*(listed(filled, *filters.split()) for filters in narrowed))
    assert dict(zip(narrowed, map(len, found), strict=True)) == narrowed
    for wrong in ("yesterday", "2h30", "2026-01-01T00:00:00"):
        assert "is no time" in (await dlq(filled, "list", "--since", wrong, code=2)).stderr


async def test_a_letter_is_shown_with_everything(filled: Stack) -> None:
    (letter,) = await listed(filled, "--reason", "invalid_status")
    done = await dlq(filled, "show", letter["id"])
    for expected in (
        "invalid_status (400)",
        'last_sync.last_sync_status is "Completed"',
        "fix: ",
        f"from       {filled.topics.source}, partition 2, offset 0",
        '"last_sync_status": "Completed"',
        "connector now: {}",
        "a replay now: invalid (invalid_status)",
    ):
        assert expected in done.stdout
    (garbled,) = await listed(filled, "--partition", "3")
    shown = json.loads((await dlq(filled, "show", "--json", garbled["id"])).stdout)
    assert shown["value_base64"] == "/3s="
    missing = await dlq(filled, "show", "nobody", code=1)
    assert "there is no open letter 'nobody'" in missing.stderr


async def test_stats_count_by_reason_and_connector(filled: Stack) -> None:
    found = json.loads((await dlq(filled, "stats", "--json")).stdout)
    assert found["open"] == found["last_hour"] == 4
    assert found["by_reason"]["connector_not_found"] == 2
    assert found["by_connector"] == {"unknown": 2, "known": 1, "": 1}
    assert 0 <= found["p50_seconds"] <= found["oldest_seconds"] < 100
    assert "4 open letters, 4 in the last hour" in (await dlq(filled, "stats")).stdout


# replay


async def test_a_replay_settles_what_it_can_and_says_what_is_left(filled: Stack) -> None:
    await filled.register(["unknown"])
    done = await dlq(filled, "replay", "--all", "--yes", code=1)
    assert "applied                    2" in done.stderr
    assert "invalid                    2" in done.stderr
    assert "last-sync dlq edit ID" in done.stderr
    assert (await filled.stored())["unknown"] == {
        "last_deleted_document_count": 2,
        "last_indexed_document_count": 1,
    }
    assert {letter["status"] for letter in await listed(filled)} == {400}
    audit = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [line["event"] for line in audit] == ["dead_letter.resolved"] * 2
    assert {line["outcome"] for line in audit} == {"applied"}
    assert all(line["id"] and line["by"] and line["why"] == "replayed" for line in audit)


async def test_a_dry_run_writes_nothing_anywhere(filled: Stack) -> None:
    await filled.register(["unknown"])
    rows = filled.rows()
    ends = [await filled.kafka.end_offsets(t) for t in (filled.topics.source, filled.topics.dlq)]
    done = await dlq(filled, "replay", "--all", "--dry-run", "--json", code=1)
    outcomes = sorted(json.loads(line)["outcome"] for line in done.stdout.splitlines())
    assert outcomes == ["applied", "applied", "invalid", "invalid"]
    assert filled.rows() == rows
    assert ends == [
        await filled.kafka.end_offsets(t) for t in (filled.topics.source, filled.topics.dlq)
    ]


async def test_a_year_old_letter_pushes_nothing_back(stack: Stack) -> None:
    old = event("late", 1, occurred_at=YEAR_AGO)
    await dead_lettered(stack, [record(old, "late")])
    await stack.register(["late"])
    await dead_lettered(stack, [record(event("late", 9), "late")])
    assert await replayed(stack, "--all") == ["superseded"]
    assert (await stack.stored())["late"] == {"last_indexed_document_count": 9}
    assert await listed(stack) == []


async def test_a_replay_has_to_be_told_which_letters(filled: Stack) -> None:
    done = await dlq(filled, "replay", "--yes", code=2)
    assert "--all" in done.stderr
    done = await dlq(filled, "replay", "--all", code=2)
    assert "give --yes" in done.stderr


async def test_letters_of_another_store_are_refused_unless_it_is_named(filled: Stack) -> None:
    elsewhere = filled.folder / "other.db"
    filled.more = {"LAST_SYNC_STORE_URL": f"sqlite:///{elsewhere}"}
    await filled.register(["unknown"])
    done = await dlq(filled, "replay", "--status", "404", "--yes", code=1)
    assert "other_store                2" in done.stderr
    assert await filled.stored() == {"unknown": {}}
    (letter, _) = await listed(filled, "--status", "404")
    shown = json.loads((await dlq(filled, "show", letter["id"], "--json")).stdout)
    assert shown["replay"]["outcome"] == "other_store"
    allowed = ("--status", "404", "--store-id", shown["store"])
    assert "applied" in await replayed(filled, *allowed)
    assert await listed(filled, "--status", "404") == []


async def test_no_store_is_assumed(filled: Stack) -> None:
    filled.more = {"LAST_SYNC_STORE_URL": ""}
    done = await dlq(filled, "replay", "--all", "--yes", code=3)
    assert "no connector store is named" in done.stderr
    assert len(await listed(filled)) == 4


# discard


async def test_discarding_needs_a_reason_and_keeps_it(filled: Stack) -> None:
    assert "--reason-text" in (await dlq(filled, "discard", "--all", "--yes", code=2)).stderr
    done = await dlq(
        filled, "discard", "--status", "400", "--reason-text", "tests", "--by", "ann", "--yes"
    )
    assert "discarded 2 of 2 letters" in done.stderr
    assert {letter["status"] for letter in await listed(filled)} == {404}
    tombstones = [r for r in await filled.kafka.read_all(filled.topics.dlq) if r.value is None]
    for one in tombstones:
        headers = dict(one.headers)
        assert headers["__dlq.resolved.by"] == b"ann"
        assert headers["__dlq.resolved.how"] == b"discarded"
        assert headers["__dlq.resolved.reason"] == b"tests"
        assert headers["__dlq.resolved.at"]
    assert len(tombstones) == 2


# edit


async def test_an_edited_letter_is_applied_and_closed(filled: Stack) -> None:
    (letter,) = await listed(filled, "--reason", "invalid_status")
    shown = json.loads((await dlq(filled, "show", letter["id"], "--json")).stdout)
    shown["value"]["last_sync"]["last_sync_status"] = "completed"
    document = {"headers": shown["headers"], "value": shown["value"]}
    fixed = json.dumps(document, indent=2)
    (filled.folder / "fixed.json").write_text(fixed)
    done = await dlq(filled, "edit", letter["id"], "--file", "fixed.json", "--yes")
    assert '-      "last_sync_status": "Completed"' in done.stderr
    assert '+      "last_sync_status": "completed"' in done.stderr
    assert (await filled.stored())["known"] == {"last_sync_status": "completed"}
    assert letter["id"] not in [one["id"] for one in await listed(filled)]


async def test_an_edit_that_is_not_valid_changes_nothing(filled: Stack) -> None:
    (letter,) = await listed(filled, "--reason", "invalid_status")
    rows, ends = filled.rows(), await filled.kafka.end_offsets(filled.topics.dlq)
    documents = {
        '{"headers": [], "value": {"event_id": "e"}}': "nothing has changed",
        "not json": "not JSON",
        '{"headers": []}': "exactly one of",
        '{"headers": [], "value": {}, "extra": 1}': "unknown member 'extra'",
        '{"headers": [["a"]], "value": {}}': "has to be [name, value]",
        '{"value_base64": "%"}': "is not base64",
    }
    for text, says in documents.items():
        (filled.folder / "fixed.json").write_text(text)
        done = await dlq(filled, "edit", letter["id"], "--file", "fixed.json", "--yes", code=1)
        assert says in done.stderr
    assert (filled.rows(), await filled.kafka.end_offsets(filled.topics.dlq)) == (rows, ends)


async def test_the_editor_is_started_on_the_letter(filled: Stack) -> None:
    (letter,) = await listed(filled, "--reason", "invalid_status")
    editor = filled.folder / "editor.sh"
    editor.write_text('#!/bin/sh\nsed -i s/Completed/completed/ "$1"\n')
    editor.chmod(0o755)
    filled.more = {"EDITOR": str(editor)}
    await dlq(filled, "edit", letter["id"], "--yes")
    assert (await filled.stored())["known"] == {"last_sync_status": "completed"}
