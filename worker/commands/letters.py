"""What the `dlq` commands share: reading the open letters, asking, and showing how far it is."""

from __future__ import annotations

import io
import sys
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, redirect_stderr
from typing import TYPE_CHECKING

import click

from worker.errors import LastSyncError
from worker.options import PROGRAM, say
from worker.text import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from typing import TextIO

    from schemas.dead_letter import DeadLetter
    from worker.open_letters import OpenLetter, OpenLetters
    from worker.replay import Result, Signature
    from worker.selection import Selection
    from worker.settings import Settings


@asynccontextmanager
async def opened(
    configured: Settings, *, keep: Callable[[OpenLetter], bool] | None = None
) -> AsyncIterator[tuple[OpenLetters, list[OpenLetter]]]:
    from worker.app.letters import dead_letters

    async with dead_letters(configured) as letters:
        with bar("reading", Counter()) as progress:
            table = await letters.table(progress, keep=keep)
        yield letters, table


def picked(chosen: Selection, table: Sequence[OpenLetter]) -> list[OpenLetter]:
    """Those of the selection; an id that is not open is said, for it may be a misspelt one."""
    some = chosen.of(table)
    if chosen.ids:
        there = {letter.id for letter in table}
        for letter_id in chosen.ids:
            if letter_id not in there:
                say(f"there is no open letter {letter_id!r}: resolved already, or misspelt")
    return some


async def one(
    letters: OpenLetters, table: Sequence[OpenLetter], letter_id: str
) -> tuple[OpenLetter, DeadLetter | None]:
    for letter in table:
        if letter.id == letter_id:
            return letter, await letters.whole(letter)
    raise LastSyncError(
        f"there is no open letter {letter_id!r}: `{PROGRAM} dlq list` shows those that are open"
    )


async def foresee(
    configured: Settings, letters: OpenLetters, letter: OpenLetter, store_ids: Sequence[str]
) -> Result:
    """What a replay of the letter would do now."""
    from worker.app import replays
    from worker.replay import Signature

    nobody = Signature(by="", why="")
    async for results in replays.replay(
        configured, letters, [letter], nobody, dry_run=True, other_stores=store_ids
    ):
        return results[0]
    raise LastSyncError(f"letter {letter.id} was resolved meanwhile")


def signed(by: str | None, why: str) -> Signature:
    """Who does it, and why; both have to fit a tombstone."""
    import socket

    from schemas.dead_letter import MAX_MESSAGE
    from worker.replay import Signature

    if not why.strip():
        raise click.BadParameter("say why the letters are discarded", param_hint="--reason-text")
    for text, hint in ((by or "", "--by"), (why, "--reason-text")):
        if len(text.encode(errors="replace")) > MAX_MESSAGE:
            raise click.BadParameter(f"write at most {MAX_MESSAGE} bytes", param_hint=hint)
    return Signature(by=by or f"{user()}@{socket.gethostname()}", why=why)


def user() -> str:
    import getpass
    import os

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return f"uid-{os.getuid()}"


def ask(wanted: Sequence[OpenLetter], what: str, *, yes: bool) -> None:
    """Show what is about to happen, and let a person decide."""
    reasons = Counter(letter.reason for letter in wanted)
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    say(printable(f"about to {what} {len(wanted)} letters: {parts or 'none'}"))
    if wanted and not yes:
        confirm("Go on?")


def confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: give --yes")
    click.confirm(question, abort=True, err=True)


@contextmanager
def bar(title: str, counts: Counter[str]) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal's stderr, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"))
    with (
        Progress(
            *columns,
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=False,
        ) as progress,
        redirect_stderr(_AboveTheBar(sys.stderr)),
    ):
        task = progress.add_task(title)

        def update(done: int, total: int) -> None:
            said = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            progress.update(task, completed=done, total=total, description=f"{title} {said}")

        yield update


class _AboveTheBar(io.TextIOBase):
    """Takes the bar off the terminal's last line before text is written there.

    rich's own stand-in for stderr lays out what it writes: audit lines of a batch take it seconds.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begun = stream, False

    def write(self, text: str) -> int:
        self._stream.write(text if self._begun else f"\r\x1b[2K{text}")
        self._begun = not text.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return True
