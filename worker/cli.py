"""The command line: parse, call app, print, exit code."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, BinaryIO, NoReturn, get_args

import click
import structlog
from pydantic import JsonValue, TypeAdapter, ValidationError

from schemas.last_sync import LAST_SYNC_FIELDS
from schemas.scalars import ConnectorSyncStatus, Identifier, JobType
from schemas.sync_finished import Invalid, SyncFinished
from worker import app, events, logs, probe, settings
from worker.dlq import dlq
from worker.errors import LastSyncError, MisconfiguredError
from worker.options import (
    CANNOT_START,
    FAILED,
    PROGRAM,
    as_json,
    broker_settings,
    completed,
    example,
    flag,
    kafka_settings,
    loaded,
    put,
    run_async,
    say,
    setting,
    store_setting,
)
from worker.settings import Settings, variable
from worker.stores import Connector, Difference
from worker.text import json_text, printable
from worker.topics import Verdict


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 100,
    },
    epilog=example(
        "last-sync topics create\n"
        "last-sync connectors add my-connector --store sqlite:///last-sync.db\n"
        "last-sync run --store sqlite:///last-sync.db"
    ),
)
@click.version_option(package_name="last-sync-worker", prog_name=PROGRAM)
def cli() -> None:
    """Sync-finished events on Kafka become connector last-sync stats, or dead letters.

    Settings come from options, LAST_SYNC_… environment variables, and a .env file, in this order.
    Exit codes: 0 done, 1 failed, 2 usage, 3 cannot start, 4 offsets lost, 5 watchdog.
    """


@cli.command(epilog=example("last-sync run --store sqlite:///last-sync.db --drain"))
@flag("--drain", is_flag=True, help="Stop once the present end of the topic is passed.")
@kafka_settings
@store_setting
@setting("--batch-size", "batch_size")
@setting("--flood-share", "flood_share")
@setting("--log-level", "log_level")
@setting("--log-format", "log_format")
def run(*, drain: bool, **given: Any) -> None:
    """Read events, apply them to the store, and write dead letters, until stopped."""
    run_async(app.run(loaded(given), drain=drain))


@cli.command(epilog=example("last-sync api --store sqlite:///last-sync.db"))
@store_setting
@setting("--host", "api_host")
@setting("--port", "api_port")
@setting("--log-level", "log_level")
@setting("--log-format", "log_format")
def api(**given: Any) -> None:
    """Serve Elasticsearch's connector API over the store, until stopped."""
    run_async(app.api(loaded(given)))


@cli.command(
    epilog=example("last-sync check --store sqlite:///last-sync.db\nlast-sync check --live")
)
@flag("--live", is_flag=True, help="Ask the running worker instead.")
@kafka_settings
@store_setting
@as_json
def check(*, live: bool, as_json: bool, **given: Any) -> None:
    """Look at everything that run needs, and give each a verdict.

    With --live, ask /livez and /readyz of the worker at LAST_SYNC_HEALTH_HOST and _PORT, as a
    container's health check. The exit code is 0 when it is live: one that holds is not ready, and
    a restart would not help it.
    """
    if live:
        report_live(loaded(given), as_json=as_json)
    else:
        report_verdicts(run_async(app.check(loaded(given))), as_json=as_json)


def report_live(settings: Settings, *, as_json: bool) -> None:
    if settings.health_port is None:
        raise MisconfiguredError(
            f"{variable('health_port')} is not set: without a port the worker serves no health"
        )
    found = probe.ask(settings.health_host, settings.health_port)
    healthy = probe.healthy(found)
    if as_json:
        checks = [{"name": name, "ok": ok, "text": text} for name, (ok, text) in found.items()]
        put({"ok": healthy, "checks": checks})
    else:
        click.echo("\n".join(probe.lines(found)))
    if not healthy:
        sys.exit(FAILED)


def report_verdicts(found: Sequence[Verdict], *, as_json: bool) -> None:
    good = all(verdict.ok for verdict in found)
    if as_json:
        checks = [{"name": v.name, "ok": v.ok, "text": v.text} for v in found]
        put({"ok": good, "checks": checks})
    else:
        for verdict in found:
            click.echo(f"{'ok ' if verdict.ok else 'BAD'} {verdict.name}: {verdict.text}")
    if not good:
        sys.exit(CANNOT_START)


@cli.command(epilog=example("last-sync validate events.ndjson"))
@click.argument("file", type=click.File("rb"), default="-")
@as_json
def validate(file: BinaryIO, *, as_json: bool) -> None:
    """Say, offline, what the worker would make of each event in FILE (or stdin).

    One event a line, plain or a structured CloudEvent; or one JSON document.
    """
    bad = total = 0
    for line in events.lines(file.read()):
        total += 1
        bad += isinstance(line.judged, Invalid)
        if as_json:
            put({"line": line.number, **judged_json(line.judged)})
        else:
            click.echo(f"line {line.number}: {judged_text(line.judged)}")
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


@cli.command(
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
    shell_complete=completed(get_args(JobType)),
)
@flag(
    "--status",
    help="Its job's status, for example completed.",
    shell_complete=completed(get_args(ConnectorSyncStatus)),
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
    job = {name: value for name, value in given.items() if name not in Settings.model_fields}
    configured = loaded({name: value for name, value in given.items() if name not in job})
    data = typed_event(connector_id, job) if connector_id else read_input(file)
    found = list(events.lines(data))
    refused = [] if unchecked else [line for line in found if isinstance(line.judged, Invalid)]
    for line in refused:
        say(f"not sent, line {line.number}: {judged_text(line.judged)}")
    records = [to_send(line) for line in found if line not in refused]
    sent = run_async(app.publish(configured, records)) if records else 0
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


def to_send(line: events.Line) -> app.Message:
    known = line.judged.connector_id
    return known.encode() if known else None, line.value, line.headers


@cli.group(epilog=example("last-sync topics create --partitions 12 --replication-factor 3"))
def topics() -> None:
    """Make and check the two topics."""


@topics.command("create", epilog=example("last-sync topics create --partitions 12"))
@flag(
    "--partitions", type=click.IntRange(1), help="Of new topics; by default the broker's default."
)
@flag(
    "--replication-factor",
    type=click.IntRange(1),
    help="Of new topics; by default the broker's default.",
)
@kafka_settings
@as_json
def topics_create(
    *, partitions: int | None, replication_factor: int | None, as_json: bool, **given: Any
) -> None:
    """Make the topics, or set right what is wrong; existing ones are never repartitioned."""
    done = run_async(
        app.create_topics(
            loaded(given), partitions=partitions, replication_factor=replication_factor
        )
    )
    if as_json:
        put({"done": done})
    else:
        click.echo("\n".join(done))


@topics.command("check", epilog=example("last-sync topics check --json"))
@kafka_settings
@as_json
def topics_check(*, as_json: bool, **given: Any) -> None:
    """Check that both topics exist and that the dead-letter topic is compacted and large enough."""
    report_verdicts(run_async(app.check_topics(loaded(given))), as_json=as_json)


@cli.group(epilog=example("last-sync store upgrade --store postgresql://localhost/last_sync"))
def store() -> None:
    """Bring the connector store's schema up to date, and verify what is in it."""


@store.command("upgrade", epilog=example("last-sync store upgrade"))
@store_setting
@as_json
def store_upgrade(*, as_json: bool, **given: Any) -> None:
    """Make the schema, or bring it up to date; safe to run by many at once, and again."""
    described = run_async(app.upgrade_store(loaded(given)))
    if as_json:
        put({"store": described})
    else:
        click.echo(described)


@store.command("verify", epilog=example("last-sync store verify --repair"))
@flag("--repair", is_flag=True, help="Put the winning values again.")
@store_setting
@as_json
def store_verify(*, repair: bool, as_json: bool, **given: Any) -> None:
    """Find connectors that do not hold what the events say, where a store keeps this twice.

    That is Elasticsearch: a writer that was killed between its two writes leaves such a thing.
    """
    found = 0

    async def main() -> None:
        nonlocal found
        async for difference in app.verify_store(loaded(given), repair=repair):
            found += 1
            if as_json:
                put({**asdict(difference), "repaired": repair})
            else:
                click.echo(difference_text(difference, repair=repair))

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


@cli.group(epilog=example("last-sync connectors list --store sqlite:///last-sync.db"))
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
    wanted = [checked_id(text) for text in ids or typed_ids()]
    added = run_async(app.add_connectors(loaded(given), wanted))
    for connector_id, new in zip(wanted, added, strict=True):
        if as_json:
            put({"id": connector_id, "added": new})
        else:
            click.echo(f"{connector_id}: {'registered' if new else 'is registered, unchanged'}")


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
    try:
        return TypeAdapter(Identifier).validate_python(text)
    except ValidationError:
        raise click.BadParameter(
            f"{text[:80]!r} cannot be a connector id: it has to be 1 to 512 bytes of UTF-8 "
            "without control characters, and not . or ..",
            param_hint="ID",
        ) from None


@connectors.command("list", epilog=example("last-sync connectors list --json"))
@store_setting
@as_json
def connectors_list(*, as_json: bool, **given: Any) -> None:
    """List the connectors that are registered, with their last-sync stats."""
    show = connector_json if as_json else connector_line

    async def main() -> None:
        heading = "" if as_json else f"{HEADING}\n"  # not before the store is there
        async for connector in app.connectors(loaded(given)):
            click.echo(heading + show(connector))
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
    return {name: connector.fields[name] for name in LAST_SYNC_FIELDS if name in connector.fields}


@connectors.command("show", epilog=example("last-sync connectors show my-connector --json"))
@click.argument("connector_id", metavar="ID")
@store_setting
@as_json
def connectors_show(*, connector_id: str, as_json: bool, **given: Any) -> None:
    """Show one connector's last-sync stats."""
    found = run_async(app.connector(loaded(given), connector_id))
    if found is None:
        raise LastSyncError(f"connector {connector_id!r} is not registered in this store")
    if as_json:
        click.echo(connector_json(found))
        return
    click.echo(found.id)
    for name, value in ordered(found).items():
        text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
        click.echo(f"  {name:<38} {printable(text)}")


@connectors.command("delete", epilog=example("last-sync connectors delete my-connector"))
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@store_setting
@as_json
def connectors_delete(*, ids: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Delete connectors; events for them become dead letters until they are registered again."""
    deleted = run_async(app.delete_connectors(loaded(given), ids))
    for connector_id, done in zip(ids, deleted, strict=True):
        if as_json:
            put({"id": connector_id, "deleted": done})
        else:
            click.echo(f"{printable(connector_id)}: {'deleted' if done else 'is not registered'}")
    if not all(deleted):
        sys.exit(FAILED)


cli.add_command(dlq)


def documents_that_begin(_: click.Context, __: click.Parameter, typed: str) -> list[str]:
    from schemas.generate import documents  # noqa: PLC0415 - as below

    return [name for name in documents() if name.startswith(typed)]


@cli.command(epilog=example("last-sync schema sync-finished > sync-finished.schema.json"))
@click.argument("name", required=False, shell_complete=documents_that_begin)
def schema(name: str | None) -> None:
    """Print a JSON Schema or the AsyncAPI document by NAME; without one, all of them by name."""
    from schemas.generate import documents  # noqa: PLC0415 - built from the models on demand

    found = documents()
    if name is not None and name not in found:
        raise click.BadParameter(f"{name!r} is none of {', '.join(found)}", param_hint="NAME")
    shown = found if name is None else found[name]
    click.echo(json.dumps(shown, indent=2, ensure_ascii=False))


@cli.command(epilog=example("last-sync demo"))
def demo() -> None:
    """Tell the whole story in seconds, on an embedded broker and a store of its own."""
    from worker import demo as story  # noqa: PLC0415 - its broker is an extra

    run_async(story.tell(loaded({})))


def main() -> NoReturn:
    """Run the program; every foreseeable failure is one line on stderr."""
    logs.configure()
    try:
        cli.main(prog_name=PROGRAM, auto_envvar_prefix=settings.PREFIX.rstrip("_"))
    except LastSyncError as error:
        say(f"{PROGRAM}: {error}")
        sys.exit(error.exit_code)
    except Exception:  # noqa: BLE001 - the last resort, logged whole
        structlog.get_logger(__name__).critical("worker.crashed", exc_info=True)
        say(f"{PROGRAM}: an error that nobody foresaw, please report it with the lines above")
        sys.exit(FAILED)
    sys.exit(0)


if __name__ == "__main__":
    main()
