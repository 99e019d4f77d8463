"""The `connectors` commands."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from worker.errors import LastSyncError
from worker.options import FAILED, as_json, example, loaded, out, put, run_async, store_setting
from worker.text import json_text, printable

if TYPE_CHECKING:
    from pydantic import JsonValue

    from worker.stores import Connector


@click.group(epilog=example("last-sync connectors list --store sqlite:///last-sync.db"))
def connectors() -> None:
    """Register, list, show and delete connectors."""


@connectors.command(
    "add",
    epilog=example(
        "last-sync connectors add hr-wiki crm --store sqlite:///last-sync.db\n"
        "last-sync connectors add --store sqlite:///last-sync.db < ids.txt"
    ),
)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@store_setting
@as_json
def connectors_add(*, ids: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Register connectors (IDs also on stdin, one a line); live ones stay as they are."""
    from worker.app import stores

    wanted = [checked_id(text) for text in ids or typed_ids()]
    added = run_async(stores.add_connectors(loaded(given), wanted))
    for connector_id, new in zip(wanted, added, strict=True):
        if as_json:
            put({"id": connector_id, "added": new})
        else:
            out(f"{connector_id}: {'registered' if new else 'is registered, unchanged'}")


def typed_ids() -> list[str]:
    if sys.stdin.isatty():
        raise click.UsageError("name at least one ID, or pipe them in, one a line")
    data = sys.stdin.buffer.read()
    try:
        found = [line.strip("\r") for line in data.decode().split("\n")]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"ids on stdin have to be UTF-8: {error}") from None
    if not any(found):
        raise click.UsageError("no ID on stdin")
    return [line for line in found if line]


def checked_id(text: str) -> str:
    from pydantic import TypeAdapter, ValidationError

    from schemas.scalars import Identifier

    try:
        return TypeAdapter(Identifier).validate_python(text)
    except ValidationError:
        raise click.BadParameter(
            f"{text[:80]!r} cannot be a connector id: it has to be 1 to 512 bytes of UTF-8 "
            "without control characters, and not . or ..",
            param_hint="ID",
        ) from None


def encodable(text: str) -> str:
    """Refuse what came as other bytes than UTF-8; a store may hold ids that are not `checked`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise click.BadParameter(f"{text[:80]!r} is not UTF-8", param_hint="ID") from None
    return text


@connectors.command("list", epilog=example("last-sync connectors list --json"))
@store_setting
@as_json
def connectors_list(*, as_json: bool, **given: Any) -> None:
    """List the connectors that are registered, with their last-sync stats."""
    from worker.app import stores

    show = connector_json if as_json else connector_line

    async def main() -> None:
        heading = "" if as_json else f"{HEADING}\n"  # not before the store is there
        async for connector in stores.connectors(loaded(given)):
            out(heading + show(connector))
            heading = ""
        click.echo(heading, nl=False)

    run_async(main())


COLUMNS = "{:<36} {:<12} {:<27} {:>10} {:>10}  {}"
HEADING = COLUMNS.format("CONNECTOR", "STATUS", "LAST SYNCED", "INDEXED", "DELETED", "ERROR")


def connector_line(connector: Connector) -> str:
    fields = connector.fields
    shown = [
        fields.get(name)
        for name in (
            "last_sync_status",
            "last_synced",
            "last_indexed_document_count",
            "last_deleted_document_count",
        )
    ]
    error = str(fields.get("last_sync_error") or "").splitlines() or [""]
    cells = ["-" if cell is None else str(cell) for cell in shown]
    return COLUMNS.format(connector.id, *cells, printable(error[0])[:60]).rstrip()


def connector_json(connector: Connector) -> str:
    return json_text({"id": connector.id, **ordered(connector)})


def ordered(connector: Connector) -> dict[str, JsonValue]:
    """The fields that were set, in the contract's order and not in that of the events."""
    from schemas.last_sync import LAST_SYNC_FIELDS

    return {name: connector.fields[name] for name in LAST_SYNC_FIELDS if name in connector.fields}


@connectors.command("show", epilog=example("last-sync connectors show my-connector --json"))
@click.argument("connector_id", metavar="ID")
@store_setting
@as_json
def connectors_show(*, connector_id: str, as_json: bool, **given: Any) -> None:
    """Show one connector's last-sync stats."""
    from worker.app import stores

    found = run_async(stores.connector(loaded(given), encodable(connector_id)))
    if found is None:
        raise LastSyncError(f"connector {connector_id!r} is not registered in this store")
    if as_json:
        click.echo(connector_json(found))
        return
    out(found.id)
    for name, value in ordered(found).items():
        text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
        click.echo(f"  {name:<38} {printable(text)}")


@connectors.command("delete", epilog=example("last-sync connectors delete my-connector"))
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@store_setting
@as_json
def connectors_delete(*, ids: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Delete connectors; events for them become dead letters until they are registered again."""
    from worker.app import stores

    wanted = [encodable(text) for text in ids]
    deleted = run_async(stores.delete_connectors(loaded(given), wanted))
    for connector_id, done in zip(wanted, deleted, strict=True):
        if as_json:
            put({"id": connector_id, "deleted": done})
        else:
            out(f"{connector_id}: {'deleted' if done else 'is not registered'}")
    if not all(deleted):
        sys.exit(FAILED)
