"""The `store` commands."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from worker.options import (
    FAILED,
    as_json,
    example,
    flag,
    loaded,
    out,
    put,
    run_async,
    say,
    store_setting,
)
from worker.text import printable

if TYPE_CHECKING:
    from worker.stores import Difference


@click.group(epilog=example("last-sync store upgrade --store postgresql://localhost/last_sync"))
def store() -> None:
    """Bring the connector store's schema up to date, and verify what is in it."""


@store.command("upgrade", epilog=example("last-sync store upgrade"))
@store_setting
@as_json
def store_upgrade(*, as_json: bool, **given: Any) -> None:
    """Make the schema, or bring it up to date; safe to run by many at once, and again."""
    from worker.app import stores

    described = run_async(stores.upgrade_store(loaded(given)))
    if as_json:
        put({"store": described})
    else:
        out(described)


@store.command("verify", epilog=example("last-sync store verify --repair"))
@flag("--repair", is_flag=True, help="Put the winning values again.")
@store_setting
@as_json
def store_verify(*, repair: bool, as_json: bool, **given: Any) -> None:
    """Find connectors that do not hold what the events say, where a store keeps this twice.

    That is Elasticsearch: a writer that was killed between its two writes leaves such a thing.
    """
    from worker.app import stores

    found = 0

    async def main() -> None:
        nonlocal found
        async for difference in stores.verify_store(loaded(given), repair=repair):
            found += 1
            if as_json:
                put({**asdict(difference), "repaired": repair})
            else:
                out(difference_text(difference, repair=repair))

    run_async(main())
    say(f"{found} differences{', repaired' if repair and found else ''}")
    if found and not repair:
        sys.exit(FAILED)


def difference_text(difference: Difference, *, repair: bool) -> str:
    if difference.field is None:
        text = "the connector is gone, and its stats are kept"
    else:
        found, expected = (json.dumps(v) for v in (difference.found, difference.expected))
        text = f"{difference.field} is {found}, and the newest event says {expected}"
    return f"{printable(difference.connector_id)}: {text}{': repaired' if repair else ''}"
