"""Dead letters as a work list, through the real program."""

import asyncio
import json
import os
import re
import shlex
import stat
from typing import Any

import pytest

from tests.acceptance.conftest import Stack, dead_lettered, event, record
from tests.programs import Finished

YEAR_AGO = "2025-01-01T00:00:00Z"


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
    for wrong in ("yesterday", "2h30", "2026-01-01T00:00:00", "999999w", "²h", ""):
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
    filled.more = {"LAST_SYNC_STORE_URL": "postgresql://127.0.0.1:1/none"}
    alone = await dlq(filled, "show", letter["id"], code=3)
    assert '"last_sync_status": "Completed"' in alone.stdout
    assert "store postgresql://127.0.0.1:1/none" in alone.stderr
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
    assert f"last-sync dlq edit {filled.topics.group}/{filled.topics.source}/" in done.stderr
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


async def test_a_store_that_is_not_there_is_refused_and_not_made(filled: Stack) -> None:
    typo = filled.folder / "typo.db"
    filled.more = {"LAST_SYNC_STORE_URL": f"sqlite:///{typo}"}
    (letter, *_) = await listed(filled)
    for command in (
        ("replay", "--all", "--dry-run"),
        ("replay", "--all", "--yes"),
        ("edit", letter["id"], "--file", "/dev/null"),
        ("show", letter["id"]),
    ):
        done = await dlq(filled, *command, code=3)
        assert "there is no such file" in done.stderr
    assert not typo.exists()


async def test_a_rate_is_letters_a_second(filled: Stack) -> None:
    for rate in ("10", "10/s"):
        await dlq(filled, "replay", "--status", "404", "--dry-run", "--rate", rate, code=1)
    for wrong in ("0", "-1", "nan", "inf", "1e-300", "10/m"):
        done = await dlq(filled, "replay", "--all", "--dry-run", "--rate", wrong, code=2)
        assert "is no rate" in done.stderr


async def test_the_commands_of_a_summary_work_as_they_stand(filled: Stack) -> None:
    """Given as options what the environment has elsewhere, so that each has to be repeated."""
    env, store = filled.env, filled.env["LAST_SYNC_STORE_URL"]
    given = (
        "--bootstrap-servers",
        env["LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS"],
        "--dead-letter-topic",
        filled.topics.dlq,
        "--store",
        store,
    )
    done = await filled.cli("dlq", "replay", "--all", "--yes", *given)
    assert done.exit_code == 1
    assert re.search(r"connector_not_found +2\n  invalid +2\n", done.stderr)
    commands = re.findall(r"^  (last-sync .*)$", done.stderr, re.MULTILINE)
    kinds = [" ".join(command.split()[1:3]) for command in commands]
    assert kinds == [
        "connectors add",
        "dlq replay",
        "dlq discard",
        "dlq show",
        "dlq edit",
        "dlq discard",
    ]
    add, replay, _, show, edit, discard = (shlex.split(command)[1:] for command in commands)
    assert (await filled.cli(*add)).stdout == "unknown: registered\n"
    assert "applied                    2" in (await filled.cli(*replay, "--yes")).stderr
    shown = await filled.cli(*show)
    assert "a replay now: invalid" in shown.stdout
    fixed = {"value": event("known", 3)}
    (filled.folder / "fixed.json").write_text(json.dumps(fixed))
    assert (await filled.cli(*edit, "--file", "fixed.json", "--yes")).exit_code == 0
    assert len(await listed(filled)) == 1
    again = await filled.cli(*discard, "--yes")
    assert "resolved already" in again.stderr


async def test_a_password_is_not_in_the_commands_of_a_summary(stack: Stack) -> None:
    await dead_lettered(stack, [record(b"{", "x")])
    url = "elasticsearch+http://ann:s3cret@127.0.0.1:1"
    done = await dlq(stack, "replay", "--all", "--yes", "--store", url, code=3)
    assert "into the store elasticsearch+http://***@127.0.0.1:1" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


async def test_an_id_that_is_not_open_is_said(filled: Stack) -> None:
    for command in (("replay",), ("discard", "--reason-text", "a test")):
        done = await dlq(filled, *command, "--id", "nobody", "--yes")
        assert "there is no open letter 'nobody'" in done.stderr
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


async def test_a_dry_run_of_a_discard_writes_nothing(filled: Stack) -> None:
    ends = await filled.kafka.end_offsets(filled.topics.dlq)
    arguments = ("discard", "--status", "404", "--reason-text", "a test", "--dry-run")
    done = await dlq(filled, *arguments)
    assert done.stdout.count(": would be discarded\n") == 2
    assert "would discard 2 of 2 letters" in done.stderr
    assert await filled.kafka.end_offsets(filled.topics.dlq) == ends


async def test_the_audit_is_written_whatever_the_log_level(filled: Stack) -> None:
    filled.more = {"LAST_SYNC_LOG_LEVEL": "error"}
    done = await dlq(filled, "discard", "--all", "--reason-text", "a test", "--yes")
    assert done.stderr.count('"event": "dead_letter.resolved"') == 4


async def test_a_reason_or_name_too_long_for_a_tombstone_is_refused(filled: Stack) -> None:
    for more in (("--reason-text", "x" * 5000), ("--reason-text", "x", "--by", "x" * 5000)):
        done = await dlq(filled, "discard", "--all", "--yes", *more, code=2)
        assert "at most 4096 bytes" in done.stderr
    assert len(await listed(filled)) == 4


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
        '{"value_text": 1}': "value_text has to be a text",
        json.dumps({"value": event("nobody", 1)}): "would be connector_not_found",
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


async def test_what_was_typed_is_kept_when_it_cannot_be_used(filled: Stack) -> None:
    (letter,) = await listed(filled, "--reason", "invalid_status")
    editor = filled.folder / "editor.sh"
    editor.write_text('#!/bin/sh\nsed -i s/Completed/complete/ "$1"\n')
    editor.chmod(0o755)
    filled.more = {"EDITOR": str(editor), "TMPDIR": str(filled.folder)}
    done = await dlq(filled, "edit", letter["id"], "--yes", code=1)
    assert 'last_sync_status is "complete"' in done.stderr
    (kept,) = filled.folder.glob("last-sync-*.json")
    assert f"--file {kept}" in done.stderr
    kept.write_text(kept.read_text().replace("complete", "completed"))
    await dlq(filled, "edit", letter["id"], "--yes", "--file", str(kept))
    assert (await filled.stored())["known"] == {"last_sync_status": "completed"}


@pytest.mark.parametrize(
    ("editor", "says"),
    [
        ("false", "Editing failed"),
        ("true", "nothing was edited"),
        ("no-such-editor", "Editing failed"),
        ("", "there is no terminal: set EDITOR"),
    ],
)
async def test_an_editor_that_fails_or_changes_nothing_changes_nothing(
    filled: Stack, editor: str, says: str
) -> None:
    (letter,) = await listed(filled, "--reason", "invalid_status")
    rows, ends = filled.rows(), await filled.kafka.end_offsets(filled.topics.dlq)
    filled.more = {"EDITOR": editor, "VISUAL": ""}
    done = await dlq(filled, "edit", letter["id"], "--yes", code=1 if editor else 2)
    assert says in done.stderr
    assert (filled.rows(), await filled.kafka.end_offsets(filled.topics.dlq)) == (rows, ends)


async def test_an_edit_of_another_stores_letter_is_refused_before_it_is_typed(
    filled: Stack,
) -> None:
    (letter,) = await listed(filled, "--reason", "invalid_status")
    filled.more = {"LAST_SYNC_STORE_URL": f"sqlite:///{filled.folder}/other.db", "EDITOR": "true"}
    await filled.register(["known"])
    done = await dlq(filled, "edit", letter["id"], "--yes", code=1)
    assert "give --store-id" in done.stderr
    assert "nothing was edited" not in done.stderr


@pytest.mark.parametrize(("to", "code", "kept"), [("completed", 0, 0), ("complete", 1, 1)])
async def test_what_an_editor_is_given_is_its_owners_alone_and_is_removed(
    filled: Stack, to: str, code: int, kept: int
) -> None:
    """What cannot be used is kept, as docs/operations.md says, and is the owner's alone as well."""
    (letter,) = await listed(filled, "--reason", "invalid_status")
    editor, folder = filled.folder / "editor.sh", filled.folder / "tmp"
    folder.mkdir()
    editor.write_text(f'#!/bin/sh\nstat -c %a "$1" > mode\nsed -i s/Completed/{to}/ "$1"\n')
    editor.chmod(0o755)
    filled.more = {"EDITOR": str(editor), "TMPDIR": str(folder)}
    before = os.umask(0)
    try:
        await dlq(filled, "edit", letter["id"], "--yes", code=code)
    finally:
        os.umask(before)
    assert (filled.folder / "mode").read_text() == "600\n"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()]
    assert modes == [0o600] * kept
