"""`validate` and `publish`: events of a file."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from schemas.reasons import Invalid
from worker.options import (
    FAILED,
    PROGRAM,
    as_json,
    broker_settings,
    completed,
    example,
    flag,
    loaded,
    out,
    put,
    run_async,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from schemas.sync_finished import SyncFinished
    from worker.app.publishing import Message
    from worker.events import Line


@click.command(epilog=example("last-sync validate events.ndjson"))
@click.argument("file", type=click.File("rb"), default="-")
@as_json
def validate(file: BinaryIO, *, as_json: bool) -> None:
    """Say, offline, what the worker would make of each event in FILE (or stdin).

    One event a line, plain or a structured CloudEvent; or one JSON document.
    """
    from worker import events

    bad = total = 0
    for line in events.lines(file.read()):
        total += 1
        bad += isinstance(line.judged, Invalid)
        if as_json:
            put({"line": line.number, **judged_json(line.judged)})
        else:
            out(f"line {line.number}: {judged_text(line.judged)}")
    say(f"{total} events, {bad} invalid")
    if bad or not total:
        sys.exit(FAILED)


def judged_json(judged: SyncFinished | Invalid) -> dict[str, JsonValue]:
    if isinstance(judged, Invalid):
        return {
            "valid": False,
            "reason": judged.reason,
            "path": judged.path,
            "message": judged.message,
        }
    return {"valid": True, "connector_id": judged.connector_id, "fields": judged.fields()}


def judged_text(judged: SyncFinished | Invalid) -> str:
    if isinstance(judged, Invalid):
        return f"invalid ({judged.reason}): {judged.message}"
    return f"ok, sets {', '.join(sorted(judged.fields()))} of {judged.connector_id}"


def job_types() -> Sequence[str]:
    from schemas.scalars import JOB_TYPES

    return JOB_TYPES


def statuses() -> Sequence[str]:
    from schemas.scalars import STATUSES

    return STATUSES


@click.command(
    epilog=example(
        "last-sync publish events.ndjson\n"
        "last-sync publish --connector-id my-connector --job-type full --status completed"
    )
)
@click.argument("file", type=click.File("rb"), required=False)
@flag("--connector-id", help="Publish one event: for this connector.")
@flag(
    "--job-type",
    help="Its job's type: full, incremental or access_control.",
    shell_complete=completed(job_types),
)
@flag(
    "--status",
    help="Its job's status, for example completed.",
    shell_complete=completed(statuses),
)
@flag("--error", help="Its job's error text.")
@flag("--scheduled-at", help="When the job was due (RFC 3339).")
@flag("--started-at", help="When the job started (RFC 3339).")
@flag("--completed-at", help="When the job ended (RFC 3339).")
@flag("--indexed", "indexed_document_count", type=int, help="Documents indexed.")
@flag("--deleted", "deleted_document_count", type=int, help="Documents deleted.")
@flag("--occurred-at", help="When the status changed (RFC 3339); by default now.")
@flag("--event-id", help="By default a new UUID.")
@flag("--unchecked", is_flag=True, help="Send invalid events too, as they are.")
@broker_settings
@as_json
def publish(
    *, file: BinaryIO | None, connector_id: str | None, unchecked: bool, as_json: bool, **given: Any
) -> None:
    """Send events from FILE (or stdin), one a line, or one from options; wait for the brokers."""
    from worker import events
    from worker.app import publishing
    from worker.settings import Settings

    job = {name: value for name, value in given.items() if name not in Settings.model_fields}
    configured = loaded({name: value for name, value in given.items() if name not in job})
    data = typed_event(connector_id, job) if connector_id else read_input(file)
    found = list(events.lines(data))
    refused = [] if unchecked else [line for line in found if isinstance(line.judged, Invalid)]
    for line in refused:
        say(f"not sent, line {line.number}: {judged_text(line.judged)}")
    records = [to_send(line) for line in found if line not in refused]
    sent = run_async(publishing.publish(configured, records)) if records else 0
    if as_json:
        put({"published": sent, "refused": len(refused)})
    noun = "event" if sent == 1 else "events"
    say(f"{sent} {noun} acknowledged by {configured.kafka_topic}, {len(refused)} refused")
    if refused or not sent:
        sys.exit(FAILED)


def read_input(file: BinaryIO | None) -> bytes:
    if file is not None:
        return file.read()
    if sys.stdin.isatty():
        raise click.UsageError("name a FILE, pipe events in, or describe one with --connector-id")
    return sys.stdin.buffer.read()


def typed_event(connector_id: str, options: Mapping[str, Any]) -> bytes:
    """The event as typed, for the same judgement as one from a file."""
    job = {name: value for name, value in options.items() if value is not None}
    occurred_at = job.pop("occurred_at", None) or job.get("completed_at") or now_text()
    event_id = job.pop("event_id", None) or f"{PROGRAM}-{datetime.now(UTC).timestamp():.6f}"
    event = {
        "event_id": event_id,
        "connector_id": connector_id,
        "occurred_at": occurred_at,
        "job": job,
    }
    return json.dumps(event).encode()


def now_text() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def to_send(line: Line) -> Message:
    known = line.judged.connector_id
    return known.encode() if known else None, line.value, line.headers
