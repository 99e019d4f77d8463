"""The `last-sync dlq` commands: the open dead letters as a work list."""

import difflib
import getpass
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO

import click
from pydantic import JsonValue
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from schemas.dead_letter import MAX_MESSAGE, DeadLetter
from worker import app
from worker.errors import LastSyncError
from worker.letter_document import LetterDocument
from worker.letter_options import (
    Rate,
    by,
    confirmed,
    every,
    require_some,
    selected,
    selection,
    store_ids,
)
from worker.letter_screens import (
    connector_json,
    letter_json,
    lines,
    outcome_text,
    result_json,
    show,
    show_stats,
    shown,
    stats,
)
from worker.open_letters import OpenLetter, OpenLetters
from worker.options import (
    FAILED,
    PROGRAM,
    as_json,
    broker_only,
    example,
    flag,
    given_settings,
    loaded,
    put,
    run_async,
    say,
    setting,
    store_setting,
)
from worker.replay import OTHER_STORE, Edited, Result, Selection, Signature
from worker.settings import Settings
from worker.stores import masked
from worker.summary import Given, Tally, summarize
from worker.text import json_text, printable


@click.group(epilog=example("last-sync dlq list\nlast-sync dlq replay --status 404 --dry-run"))
def dlq() -> None:
    """See, replay, mend and discard the open dead letters."""


@dlq.command("list", epilog=example("last-sync dlq list --reason invalid_status --since 2h"))
@selection
@broker_only
@as_json
def dlq_list(*, as_json: bool, **given: Any) -> None:
    """List the open letters, those that failed last at the end."""
    chosen = selected(given)

    async def main() -> None:
        async with opened(loaded(given)) as (_, table):
            letters = chosen.of(table)
            if as_json:
                for letter in letters:
                    put(letter_json(letter))
            else:
                for line in lines(letters):
                    click.echo(line)
            say(f"{len(letters)} of {len(table)} open letters")

    run_async(main())


@dlq.command("show", epilog=example("last-sync dlq show ID --store sqlite:///last-sync.db"))
@click.argument("letter_id", metavar="ID")
@broker_only
@store_setting
@store_ids
@as_json
def dlq_show(*, letter_id: str, store_ids: Sequence[str], as_json: bool, **given: Any) -> None:
    """Show everything about a letter; with --store, the connector and what a replay would do."""
    configured = loaded(given)

    async def main() -> None:
        problem = None
        async with opened(configured) as (letters, table):
            letter, whole = await one(letters, table, letter_id)
            document, foreseen = shown(letter, whole), None
            try:
                if configured.store_url is not None:
                    foreseen = await foresee(configured, letters, letter, store_ids)
                    document |= await now(configured, letter, foreseen)
            except LastSyncError as error:  # the letter can be read without the store
                problem = error
        put(document) if as_json else show(document, whole, foreseen)
        if problem is not None:
            raise problem

    run_async(main())


@dlq.command("stats", epilog=example("last-sync dlq stats --json"))
@selection
@broker_only
@as_json
def dlq_stats(*, as_json: bool, **given: Any) -> None:
    """Count the open letters by reason and connector, with their ages."""
    chosen = selected(given)

    async def main() -> None:
        async with opened(loaded(given)) as (_, table):
            document = stats(chosen.of(table), datetime.now(UTC))
        if as_json:
            put(document)
        else:
            show_stats(document)

    run_async(main())


@dlq.command(
    "replay",
    epilog=example(
        "last-sync dlq replay --status 404 --dry-run --store sqlite:///last-sync.db\n"
        "last-sync dlq replay --connector 'hr-*' --yes --store sqlite:///last-sync.db"
    ),
)
@selection
@every
@flag("--dry-run", is_flag=True, help="Write nothing anywhere; say what would happen.")
@flag("--rate", type=Rate(), help="Most letters a second, as in 10/s.")
@confirmed
@by
@store_ids
@broker_only
@store_setting
@setting("--batch-size", "batch_size")
@as_json
def dlq_replay(
    *,
    everything: bool,
    dry_run: bool,
    rate: int | None,
    yes: bool,
    by: str | None,
    store_ids: Sequence[str],
    as_json: bool,
    **given: Any,
) -> None:
    """Run letters through the worker's own steps, and close those that it settles.

    They are applied to the store and never published again: no other consumer sees them, and
    newer stats are not pushed back. Safe to interrupt, and to run again.
    """
    chosen = selected(given)
    require_some(chosen, everything=everything)
    configured = loaded(given)
    store = masked(configured.required_store_url())
    signature = signed(by, "replayed")
    pasted = given_options(store_ids)
    tally = Tally()
    wanted: list[OpenLetter] = []

    async def main() -> None:
        async with opened(configured) as (letters, table):
            some = picked(chosen, table)
            if not dry_run:
                ask(some, f"replay, into the store {store},", yes=yes)
            wanted.extend(some)
            with bar("replaying", tally.counts) as progress:
                async for results in app.replay(
                    configured,
                    letters,
                    wanted,
                    signature,
                    dry_run=dry_run,
                    other_stores=store_ids,
                    rate=rate,
                ):
                    tally.add(results)
                    for result in results:
                        tell(result, as_json=as_json, dry_run=dry_run)
                    progress(tally.counts.total(), len(wanted))

    try:
        run_async(main())
    except LastSyncError as error:
        if not tally.counts:
            raise
        say(f"{PROGRAM}: {error}")
    summarize(tally, len(wanted), pasted, dry_run=dry_run)
    if tally.open or tally.counts.total() < len(wanted):
        sys.exit(FAILED)


@dlq.command(
    "discard", epilog=example("last-sync dlq discard --id ID --reason-text 'a test event' --yes")
)
@selection
@every
@flag("--reason-text", required=True, help="Why; it is kept with the tombstone and in the log.")
@flag("--dry-run", is_flag=True, help="Write nothing; say which letters would be discarded.")
@confirmed
@by
@broker_only
@as_json
def dlq_discard(
    *,
    everything: bool,
    reason_text: str,
    dry_run: bool,
    yes: bool,
    by: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Close letters without applying them."""
    chosen = selected(given)
    require_some(chosen, everything=everything)
    signature = signed(by, reason_text)
    configured = loaded(given)
    wanted: list[OpenLetter] = []
    done = 0

    async def main() -> None:
        nonlocal done
        async with opened(configured) as (_, table):
            some = picked(chosen, table)
        if not dry_run:
            ask(some, "discard", yes=yes)
        wanted.extend(some)
        if dry_run:
            done = len(wanted)
            return
        with bar("discarding", Counter()) as progress:
            async for count in app.discard(configured, wanted, signature):
                done += count
                progress(done, len(wanted))

    try:
        run_async(main())
    except LastSyncError as error:
        if not done:
            raise
        say(f"{PROGRAM}: {error}")
    for letter in wanted[:done]:
        tell_discarded(letter, as_json=as_json, dry_run=dry_run)
    say(f"{'would discard' if dry_run else 'discarded'} {done} of {len(wanted)} letters")
    if done < len(wanted):
        say("to go on, run the same command again")
        sys.exit(FAILED)


@dlq.command(
    "edit",
    epilog=example(
        "last-sync dlq edit ID --store sqlite:///last-sync.db\n"
        "last-sync dlq edit ID --file fixed.json --yes --store sqlite:///last-sync.db"
    ),
)
@click.argument("letter_id", metavar="ID")
@flag("--file", "file", type=click.File("rb"), help="The edited document, instead of $EDITOR.")
@confirmed
@by
@store_ids
@broker_only
@store_setting
@as_json
def dlq_edit(
    *,
    letter_id: str,
    file: BinaryIO | None,
    yes: bool,
    by: str | None,
    store_ids: Sequence[str],
    as_json: bool,
    **given: Any,
) -> None:
    """Mend a letter's value and headers, apply it, and close it; all of that or nothing."""
    configured = loaded(given)
    configured.required_store_url()
    signature = signed(by, "edited")

    async def main() -> Result:
        async with opened(configured) as (letters, table):
            letter, whole = await one(letters, table, letter_id)
            if whole is None or not letter.replayable:
                raise LastSyncError(
                    f"letter {letter.id} is {letter.reason}: it can only be discarded"
                )
            foreseen = await foresee(configured, letters, letter, store_ids)
        if foreseen.outcome == OTHER_STORE:
            raise LastSyncError(f"nothing has changed: {outcome_text(foreseen)}")
        same = [other for other in table if other.key == letter.key]
        with edited_text(LetterDocument.of(whole).text(), file, letter.id) as (before, after):
            edited = LetterDocument.parsed(after).edited()
            applicable(await edit(edited, same, dry_run=True))
            show_difference(before, after)
            if not yes:
                confirm("Apply this, and close the letter?")
            return applicable(await edit(edited, same, dry_run=False))

    async def edit(edited: Edited, same: Sequence[OpenLetter], *, dry_run: bool) -> Result:
        return await app.edit(
            configured, same, edited, signature, other_stores=store_ids, dry_run=dry_run
        )

    result = run_async(main())
    if as_json:
        put(result_json(result))
    say(f"{result.letter.id}: {result.outcome}, and closed")


def applicable(result: Result) -> Result:
    if result.outcome in {"applied", "duplicate"}:
        return result
    raise LastSyncError(f"nothing has changed: the edited event would be {outcome_text(result)}")


@contextmanager
def edited_text(before: str, file: BinaryIO | None, letter_id: str) -> Iterator[tuple[str, str]]:
    """The text before and after; what was typed into an editor is kept if it cannot be used."""
    if file is not None:
        try:
            after = file.read().decode()
        except UnicodeDecodeError as error:
            raise LastSyncError(f"the edited document is not UTF-8: {error}") from None
        yield before, after
        return
    after = typed(before)
    try:
        yield before, after
    except (LastSyncError, click.Abort) as error:
        with tempfile.NamedTemporaryFile(
            "w", prefix="last-sync-", suffix=".json", delete=False, encoding="utf-8"
        ) as kept:
            kept.write(after)
        say(f"what was typed is kept: {PROGRAM} dlq edit '{letter_id}' --file {kept.name}")
        raise error from None


def typed(before: str) -> str:
    if not (os.environ.get("VISUAL") or os.environ.get("EDITOR")) and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal: set EDITOR, or give --file")
    text = click.edit(before, extension=".json", require_save=False)
    if text is None or text == before:
        raise LastSyncError("nothing was edited, and nothing has changed")
    return text


def show_difference(before: str, after: str) -> None:
    for line in difflib.unified_diff(
        before.splitlines(), after.splitlines(), "the letter", "edited", lineterm=""
    ):
        say(printable(line))


# Reading


@asynccontextmanager
async def opened(configured: Settings) -> AsyncIterator[tuple[OpenLetters, list[OpenLetter]]]:
    async with app.dead_letters(configured) as letters:
        with bar("reading", Counter()) as progress:
            table = await letters.table(progress)
        yield letters, table


def picked(chosen: Selection, table: Sequence[OpenLetter]) -> list[OpenLetter]:
    """Those of the selection; an id that is not open is said, for it may be a misspelt one."""
    there = {letter.id for letter in table}
    for letter_id in chosen.ids:
        if letter_id not in there:
            say(f"there is no open letter {letter_id!r}: resolved already, or misspelt")
    return chosen.of(table)


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
    nobody = Signature(by="", why="")
    async for results in app.replay(
        configured, letters, [letter], nobody, dry_run=True, other_stores=store_ids
    ):
        return results[0]
    raise LastSyncError(f"letter {letter.id} was resolved meanwhile")


async def now(configured: Settings, letter: OpenLetter, foreseen: Result) -> dict[str, JsonValue]:
    """The connector's present state, and what a replay would do."""
    known = letter.connector_id
    found = await app.connector(configured, known) if known else None
    return {"replay": result_json(foreseen), "connector": connector_json(found)}


# Asking and telling


def signed(by: str | None, why: str) -> Signature:
    """Who does it, and why; both have to fit a tombstone."""
    if not why.strip():
        raise click.BadParameter("say why the letters are discarded", param_hint="--reason-text")
    for text, hint in ((by or "", "--by"), (why, "--reason-text")):
        if len(text.encode(errors="replace")) > MAX_MESSAGE:
            raise click.BadParameter(f"write at most {MAX_MESSAGE} bytes", param_hint=hint)
    return Signature(by=by or f"{user()}@{socket.gethostname()}", why=why)


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return f"uid-{os.getuid()}"


def given_options(store_ids: Sequence[str]) -> Given:
    found = given_settings()
    url = found.pop("store_url", None)
    kafka = [word for option in found.values() for word in option]
    if url and masked(url[1]) != url[1]:
        url = (url[0], "URL")  # it holds a password
    return Given(kafka=kafka, store=url or (), store_ids=store_ids)


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


def tell(result: Result, *, as_json: bool, dry_run: bool) -> None:
    # Not by click, which would not see that a progress bar stands on the terminal.
    if as_json:
        sys.stdout.write(f"{json_text(result_json(result))}\n")
    elif dry_run:
        sys.stdout.write(f"{result.letter.id}: would be {outcome_text(result)}\n")


def tell_discarded(letter: OpenLetter, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        put({"id": letter.id, "outcome": "discarded", "reason": letter.reason})
    elif dry_run:
        click.echo(f"{letter.id}: would be discarded")


@contextmanager
def bar(title: str, counts: Counter[str]) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal's stderr, and nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"))
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=not console.is_terminal,
    ) as progress:
        task: TaskID = progress.add_task(title)

        def update(done: int, total: int) -> None:
            said = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            progress.update(task, completed=done, total=total, description=f"{title} {said}")

        yield update
