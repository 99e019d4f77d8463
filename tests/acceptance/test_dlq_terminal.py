"""The `dlq` commands as a person at a terminal meets them."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest

from tests.acceptance.conftest import Stack
from tests.acceptance.test_dlq import dlq, listed
from tests.programs import LAST_SYNC

COLUMNS = 130
QUESTION = b"[y/N]: "


async def typed(stack: Stack, answer: bytes, *arguments: str) -> tuple[int, str]:
    """Run the command on a terminal; exit code, and what stood on it."""
    return await asyncio.to_thread(_typed, stack, answer, arguments)


def _typed(stack: Stack, answer: bytes, arguments: tuple[str, ...]) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    with subprocess.Popen(
        [LAST_SYNC, "dlq", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=stack.folder,
        env={**os.environ, **stack.env, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        screen = b""
        with contextlib.suppress(OSError):  # how Linux says that the other side has closed
            while chunk := os.read(ours, 65_536):
                screen += chunk
                if answer and QUESTION in screen:
                    os.write(ours, answer)
                    answer = b""
        os.close(ours)
    return process.returncode, screen.decode().replace("\r\n", "\n")


async def test_messages_are_cut_to_the_width_below_a_progress_bar(filled: Stack) -> None:
    code, screen = await typed(filled, b"", "list")
    assert code == 0
    bar, _, table = screen.rpartition("\x1b[2K")
    assert "reading" in bar
    rows = [line for line in table.splitlines() if "connector_not_found" in line]
    assert len(rows) == 2
    assert all(len(row) <= COLUMNS or len(row.split("  ")[-1]) == 20 for row in rows)
    assert all(row.endswith("…") for row in rows)


async def test_a_person_is_asked_before_letters_are_replayed(filled: Stack) -> None:
    await filled.register(["unknown"])
    code, screen = await typed(filled, b"n\n", "replay", "--status", "404")
    assert code == 1
    assert f"into the store {filled.env['LAST_SYNC_STORE_URL']}, 2 letters" in screen
    assert "2 connector_not_found" in screen
    assert len(await listed(filled)) == 4
    code, screen = await typed(filled, b"y\n", "replay", "--status", "404")
    assert code == 0
    assert "applied                    2" in screen
    assert len(await listed(filled)) == 2


@pytest.mark.parametrize("how", [("--dry-run",), ("--dry-run", "--json"), ("--yes",)])
async def test_lines_stand_above_the_progress_bar(filled: Stack, how: tuple[str, ...]) -> None:
    await filled.register(["unknown"])
    code, screen = await typed(filled, b"", "replay", "--status", "404", *how)
    assert code == 0
    rows = re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", screen))
    lines = [row for row in rows if filled.topics.group in row]
    assert len(lines) == 2
    assert not [row for row in lines if "━" in row]


async def test_a_person_is_asked_before_letters_are_discarded(filled: Stack) -> None:
    discard = ("discard", "--status", "400", "--reason-text", "a test")
    code, _ = await typed(filled, b"\n", *discard)
    assert code == 1
    assert len(await listed(filled)) == 4
    code, screen = await typed(filled, b"y\n", *discard)
    assert code == 0
    assert "discarded 2 of 2 letters" in screen
    assert len(await listed(filled)) == 2


async def test_a_person_sees_the_difference_before_an_edit_is_applied(filled: Stack) -> None:
    (letter,) = await listed(filled, "--reason", "invalid_status")
    filled.more = {"EDITOR": "sed -i s/Completed/completed/", "TMPDIR": str(filled.folder)}
    code, screen = await typed(filled, b"n\n", "edit", letter["id"])
    assert code == 1
    assert screen.index('+      "last_sync_status": "completed"') < screen.index("Apply this")
    (kept,) = filled.folder.glob("last-sync-*.json")
    assert str(kept) in screen
    assert len(await listed(filled)) == 4
    await dlq(filled, "edit", letter["id"], "--file", str(kept), "--yes")
    assert len(await listed(filled)) == 3
