"""`dlq replay`: letters are run through the worker's own steps."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from worker.commands.letter_options import (
    Rate,
    by,
    confirmed,
    every,
    require_some,
    selected,
    selection,
    store_ids,
)
from worker.commands.letters import ask, bar, opened, picked, signed
from worker.errors import LastSyncError
from worker.options import (
    FAILED,
    PROGRAM,
    as_json,
    broker_only,
    example,
    flag,
    given_settings,
    loaded,
    run_async,
    say,
    setting,
    store_setting,
)
from worker.text import json_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.open_letters import OpenLetter
    from worker.replay import Result
    from worker.summary import Given


@click.command(
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
    from worker.app import replays
    from worker.stores import masked
    from worker.summary import Tally, summarize

    chosen = selected(given)
    require_some(chosen, everything=everything)
    configured = loaded(given)
    store = masked(configured.required_store_url())
    signature = signed(by, "replayed")
    pasted = given_options(store_ids)
    tally = Tally()
    wanted: list[OpenLetter] = []

    async def main() -> None:
        # Which letters are the oldest is known at the end; a few are soon read again.
        keep = chosen.lets_through if chosen.limit is None else None
        async with opened(configured, keep=keep) as (letters, table):
            some = picked(chosen, table)
            if not dry_run:
                ask(some, f"replay, into the store {store},", yes=yes)
            wanted.extend(some)
            with bar("replaying", tally.counts) as progress:
                async for results in replays.replay(
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


def given_options(store_ids: Sequence[str]) -> Given:
    from worker.stores import masked
    from worker.summary import Given

    found = given_settings()
    url = found.pop("store_url", None)
    kafka = [word for option in found.values() for word in option]
    if url and masked(url[1]) != url[1]:
        url = (url[0], "URL")  # it holds a password
    return Given(kafka=kafka, store=url or (), store_ids=store_ids)


def tell(result: Result, *, as_json: bool, dry_run: bool) -> None:
    from worker.letter_screens import outcome_text, result_json

    # Not by click, which would not see that a progress bar stands on the terminal.
    if as_json:
        sys.stdout.write(f"{json_text(result_json(result))}\n")
    elif dry_run:
        sys.stdout.write(f"{result.letter.id}: would be {outcome_text(result)}\n")
