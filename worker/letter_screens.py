"""How one letter is shown in full, and what a replay did or would do."""

from collections.abc import Iterator
from typing import Any

import click
from pydantic import JsonValue

from schemas.dead_letter import DeadLetter
from schemas.last_sync import LAST_SYNC_FIELDS
from schemas.reasons import REASONS
from worker.letter_document import LetterDocument
from worker.letter_lines import letter_json
from worker.open_letters import OpenLetter
from worker.options import say
from worker.replay import OTHER_STORE, Result
from worker.stores import Connector
from worker.text import json_text, printable


def shown(letter: OpenLetter, whole: DeadLetter | None) -> dict[str, Any]:
    known = REASONS.get(letter.reason)
    document: dict[str, Any] = {
        **letter_json(letter),
        "message": whole.message if whole else letter.message,
        "fix": known.fix if known else None,
        "store": letter.store,
    }
    if whole is not None:
        document |= {"group": whole.group, **LetterDocument.of(whole).document}
        if whole.value_size is not None:
            document |= {"value_size": whole.value_size, "value_sha256": whole.value_sha256}
        if whole.headers_dropped:
            document["headers_dropped"] = whole.headers_dropped
    return document


def connector_json(connector: Connector | None) -> dict[str, JsonValue] | None:
    if connector is None:
        return None
    fields = connector.fields
    return {name: fields[name] for name in LAST_SYNC_FIELDS if name in fields}


def show(document: dict[str, Any], whole: DeadLetter | None, foreseen: Result | None) -> None:
    click.echo(printable(f"{document['reason']} ({document['status']})"))
    click.echo(printable(f"  {document['message']}"))
    if document["fix"]:
        click.echo(f"  fix: {document['fix']}")
    for name, value in facts(document):
        click.echo(printable(f"  {name:<10} {value}"))
    if whole is not None:
        click.echo(json_text(LetterDocument.of(whole).document, indent=2))
    if foreseen is None:
        say("without a store (--store) there is no connector to show, and no replay to foresee")
        return
    now = document["connector"]
    state = "is not registered" if now is None else json_text(now)
    click.echo(printable(f"connector now: {state if document['connector_id'] else '-'}"))
    click.echo(f"a replay now: {outcome_text(foreseen)}")


def facts(document: dict[str, Any]) -> Iterator[tuple[str, object]]:
    yield "id", document["id"]
    yield "connector", document["connector_id"] or "-"
    place = f"{document['topic']}, partition {document['partition']}, offset {document['offset']}"
    yield "from", place
    yield "written", document["timestamp"] or "-"
    yield "failed", document["failed_at"] or "-"
    yield "group", document.get("group", "-")
    yield "store", document["store"] or "-"
    if "value_size" in document:
        yield "cut", f"the record's value had {document['value_size']} bytes"
        yield "sha256", document["value_sha256"]
    if "headers_dropped" in document:
        yield "dropped", f"{document['headers_dropped']} headers, too large together"


def result_json(result: Result) -> dict[str, JsonValue]:
    return {"id": result.letter.id, "outcome": result.outcome, "reason": result.reason}


def outcome_text(result: Result) -> str:
    """`applied`, or `invalid (the code): what is wrong`."""
    code = "" if result.resolved or result.reason == result.outcome else f" ({result.reason})"
    if result.outcome == OTHER_STORE:
        code = ""
    return printable(f"{result.outcome}{code}{': ' if result.message else ''}{result.message}")
