"""`dlq list`, `show` and `stats`: what only reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from worker.commands.letter_options import selected, selection, store_ids
from worker.commands.letters import foresee, one, opened
from worker.errors import LastSyncError
from worker.options import (
    as_json,
    broker_only,
    example,
    loaded,
    put,
    run_async,
    say,
    store_setting,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from worker.open_letters import OpenLetter
    from worker.replay import Result
    from worker.settings import Settings


@click.command("list", epilog=example("last-sync dlq list --reason invalid_status --since 2h"))
@selection
@broker_only
@as_json
def dlq_list(*, as_json: bool, **given: Any) -> None:
    """List the open letters, those that failed last at the end."""
    from worker.letter_lines import letter_json, lines

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


@click.command("show", epilog=example("last-sync dlq show ID --store sqlite:///last-sync.db"))
@click.argument("letter_id", metavar="ID")
@broker_only
@store_setting
@store_ids
@as_json
def dlq_show(*, letter_id: str, store_ids: Sequence[str], as_json: bool, **given: Any) -> None:
    """Show everything about a letter; with --store, the connector and what a replay would do."""
    from worker.letter_screens import show, shown

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


async def now(configured: Settings, letter: OpenLetter, foreseen: Result) -> dict[str, JsonValue]:
    """The connector's present state, and what a replay would do."""
    from worker.app import stores
    from worker.letter_screens import connector_json, result_json

    known = letter.connector_id
    found = await stores.connector(configured, known) if known else None
    return {"replay": result_json(foreseen), "connector": connector_json(found)}


@click.command("stats", epilog=example("last-sync dlq stats --json"))
@selection
@broker_only
@as_json
def dlq_stats(*, as_json: bool, **given: Any) -> None:
    """Count the open letters by reason and connector, with their ages."""
    from datetime import UTC, datetime

    from worker.letter_lines import show_stats, stats

    chosen = selected(given)

    async def main() -> None:
        async with opened(loaded(given)) as (_, table):
            document = stats(chosen.of(table), datetime.now(UTC))
        if as_json:
            put(document)
        else:
            show_stats(document)

    run_async(main())
