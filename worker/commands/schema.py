"""`schema`: the documents that are generated from the models."""

import json
from collections.abc import Iterable

import click

from worker.options import completed, example


def names() -> Iterable[str]:
    from schemas.generate import FILES

    return FILES


@click.command(epilog=example("last-sync schema sync-finished > sync-finished.schema.json"))
@click.argument("name", required=False, shell_complete=completed(names))
def schema(name: str | None) -> None:
    """Print a JSON Schema or the AsyncAPI document by NAME; without one, all of them by name."""
    from schemas.generate import documents

    found = documents()
    if name is not None and name not in found:
        raise click.BadParameter(f"{name!r} is none of {', '.join(found)}", param_hint="NAME")
    shown = found if name is None else found[name]
    click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
