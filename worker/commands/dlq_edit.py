"""`dlq edit`: a letter is mended by hand, applied and closed."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from worker.commands.letter_options import by, confirmed, store_ids
from worker.commands.letters import confirm, foresee, one, opened, signed
from worker.errors import LastSyncError
from worker.options import (
    PROGRAM,
    as_json,
    broker_only,
    example,
    flag,
    loaded,
    put,
    run_async,
    say,
    store_setting,
)
from worker.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.open_letters import OpenLetter
    from worker.replay import Edited, Result


@click.command(
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
    from worker.app import replays
    from worker.letter_document import LetterDocument
    from worker.letter_screens import outcome_text, result_json
    from worker.replay import OTHER_STORE

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
        return await replays.edit(
            configured, same, edited, signature, other_stores=store_ids, dry_run=dry_run
        )

    result = run_async(main())
    if as_json:
        put(result_json(result))
    say(f"{result.letter.id}: {result.outcome}, and closed")


def applicable(result: Result) -> Result:
    from worker.letter_screens import outcome_text

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
        import tempfile

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
    import difflib

    for line in difflib.unified_diff(
        before.splitlines(), after.splitlines(), "the letter", "edited", lineterm=""
    ):
        say(printable(line))
