"""`dlq discard`: letters are closed without being applied."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from worker.commands.letter_options import by, confirmed, every, require_some, selected, selection
from worker.commands.letters import ask, bar, opened, picked, signed
from worker.errors import LastSyncError
from worker.options import (
    FAILED,
    PROGRAM,
    as_json,
    broker_only,
    example,
    flag,
    loaded,
    put,
    run_async,
    say,
)

if TYPE_CHECKING:
    from worker.open_letters import OpenLetter


@click.command(
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
    from worker.app import replays

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
            async for count in replays.discard(configured, wanted, signature):
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


def tell_discarded(letter: OpenLetter, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        put({"id": letter.id, "outcome": "discarded", "reason": letter.reason})
    elif dry_run:
        click.echo(f"{letter.id}: would be discarded")
