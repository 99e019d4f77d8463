"""The `last-sync dlq` commands: the open dead letters as a work list."""

import difflib
import getpass
import json
import os
import re
import shutil
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

import click
from pydantic import JsonValue, ValidationError
from pydantic_core import SchemaValidator
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from schemas.dead_letter import DeadLetter
from schemas.last_sync import LAST_SYNC_FIELDS, time_text
from schemas.reasons import REASONS
from schemas.scalars import TIME
from worker import app
from worker.errors import LastSyncError
from worker.letter_document import LetterDocument
from worker.open_letters import UNREADABLE, OpenLetter, OpenLetters
from worker.options import (
    FAILED,
    PROGRAM,
    Decorated,
    as_json,
    broker_only,
    example,
    flag,
    loaded,
    printable,
    put,
    run_async,
    say,
    setting,
    store_setting,
)
from worker.replay import RESOLVING, Result, Selection, Signature
from worker.settings import Settings

SHOWN = 20  # letters that a summary names
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds
rfc3339 = SchemaValidator(TIME.core).validate_python
LEAST_MESSAGE = 20  # characters, however narrow the terminal


class Moment(click.ParamType[datetime]):
    """An RFC 3339 time, or how long ago."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        if match := re.fullmatch(r"(\d{1,6})([smhdw])", value):
            return datetime.now(UTC) - timedelta(seconds=int(match[1]) * UNITS[match[2]])
        try:
            found: datetime = rfc3339(value)
        except ValidationError:
            self.fail(
                f"{value!r} is no time: write 2024-11-09T15:13:08Z, or how long ago: 90s, 2h, 3d",
                param,
                ctx,
            )
        return found


def selection(command: Decorated) -> Decorated:
    """The filters; those given all have to let a letter through."""
    several = {"multiple": True, "metavar": "TEXT"}
    for decorator in (
        flag("--limit", type=click.IntRange(1), help="The oldest N of them."),
        flag("--id", "ids", help="Letters with this id (repeatable).", **several),
        flag("--partition", "partitions", type=int, multiple=True, help="Origin's partition."),
        flag("--topic", "topics", help="Origin's topic (repeatable).", **several),
        flag(
            "--status",
            "statuses",
            type=click.Choice(["404", "400"]),
            multiple=True,
            help="404: the connector is unknown; 400: the event is wrong.",
        ),
        flag("--until", type=Moment(), help="Failed before: RFC 3339, or 2h or 3d ago."),
        flag("--since", type=Moment(), help="Failed at or after: RFC 3339, or 2h or 3d ago."),
        flag("--connector", "connectors", help="Glob over connector ids (repeatable).", **several),
        flag("--reason", "reasons", help="Reason code (repeatable).", **several),
    ):
        command = decorator(command)
    return command


every = flag("--all", "everything", is_flag=True, help="All open letters.")
confirmed = flag("--yes", is_flag=True, help="Do not ask.")
by = flag("--by", help="Who resolves; by default user@host.")
store_ids = flag(
    "--store-id",
    "store_ids",
    multiple=True,
    metavar="UUID",
    help="Take letters that failed against this store, too (repeatable).",
)


def selected(given: dict[str, Any]) -> Selection:
    statuses = [int(status) for status in given.pop("statuses")]
    names = ("ids", "reasons", "connectors", "topics", "partitions", "since", "until", "limit")
    return Selection(statuses=statuses, **{name: given.pop(name) for name in names})


def require_some(chosen: Selection, *, everything: bool) -> None:
    given = replace(chosen, limit=None) != Selection(statuses=[])
    if given == everything:
        raise click.UsageError("say which letters: give filters or --id, or else --all")


def author(given: str | None) -> str:
    return given or f"{getpass.getuser()}@{socket.gethostname()}"


@click.group(epilog=example("last-sync dlq list\nlast-sync dlq replay --status 404 --dry-run"))
def dlq() -> None:
    """See, replay, mend and discard the open dead letters."""


@dlq.command("list", epilog=example("last-sync dlq list --reason invalid_status --since 2h"))
@selection
@broker_only
@as_json
def dlq_list(*, as_json: bool, **given: Any) -> None:
    """List the open letters, those that failed last at the end."""
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


@dlq.command("show", epilog=example("last-sync dlq show ID --store sqlite:///last-sync.db"))
@click.argument("letter_id", metavar="ID")
@broker_only
@store_setting
@store_ids
@as_json
def dlq_show(*, letter_id: str, store_ids: Sequence[str], as_json: bool, **given: Any) -> None:
    """Show everything about a letter; with --store, the connector and what a replay would do."""
    configured = loaded(given)

    async def main() -> None:
        async with opened(configured) as (letters, table):
            letter, whole = await one(letters, table, letter_id)
            connector, foreseen = None, None
            if configured.store_url is not None:
                if letter.connector_id:
                    connector = await app.connector(configured, letter.connector_id)
                async for results in app.replay(
                    configured, letters, [letter], Signature(by="", why=""), dry_run=True,
                    other_stores=store_ids,
                ):  # fmt: skip
                    (foreseen,) = results
        document = shown(letter, whole, foreseen)
        if configured.store_url is not None:
            fields = connector and {
                name: connector.fields[name]
                for name in LAST_SYNC_FIELDS
                if name in connector.fields
            }
            document["connector"] = fields
        put(document) if as_json else show(document, whole)

    run_async(main())


@dlq.command("stats", epilog=example("last-sync dlq stats --json"))
@selection
@broker_only
@as_json
def dlq_stats(*, as_json: bool, **given: Any) -> None:
    """Count the open letters by reason and connector, with their ages."""
    chosen = selected(given)

    async def main() -> None:
        async with opened(loaded(given)) as (_, table):
            document = stats(chosen.of(table), datetime.now(UTC))
        if as_json:
            put(document)
        else:
            show_stats(document)

    run_async(main())


@dlq.command(
    "replay",
    epilog=example(
        "last-sync dlq replay --status 404 --dry-run --store sqlite:///last-sync.db\n"
        "last-sync dlq replay --connector 'hr-*' --yes --store sqlite:///last-sync.db"
    ),
)
@selection
@every
@flag("--dry-run", is_flag=True, help="Write nothing anywhere; say what would happen.")
@flag("--rate", type=click.FloatRange(0, min_open=True), help="Most letters a second.")
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
    rate: float | None,
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
    chosen = selected(given)
    require_some(chosen, everything=everything)
    configured = loaded(given)
    configured.required_store_url()
    signature = Signature(by=author(by), why="replayed")
    counts: Counter[str] = Counter()
    open_still: list[Result] = []

    async def main() -> int:
        async with opened(configured) as (letters, table):
            wanted = chosen.of(table)
            if not dry_run:
                ask(wanted, "replay", yes=yes)
            with bar("replaying", counts) as progress:
                async for results in app.replay(
                    configured,
                    letters,
                    wanted,
                    signature,
                    dry_run=dry_run,
                    other_stores=store_ids,
                    rate=rate,
                ):
                    counts.update(result.outcome for result in results)
                    left = [result for result in results if not result.resolved]
                    open_still.extend(left[: max(0, SHOWN - len(open_still))])
                    for result in results:
                        tell(result, as_json=as_json, dry_run=dry_run)
                    progress(counts.total(), len(wanted))
        return len(wanted)

    total = run_async(main())
    summary(counts, total, open_still, dry_run=dry_run, as_json=as_json)
    if any(outcome not in RESOLVING for outcome in counts) or counts.total() < total:
        sys.exit(FAILED)


@dlq.command(
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
    chosen = selected(given)
    require_some(chosen, everything=everything)
    if not reason_text.strip():
        raise click.BadParameter("say why the letters are discarded", param_hint="--reason-text")
    configured = loaded(given)
    signature = Signature(by=author(by), why=reason_text)
    done = 0

    async def main() -> list[OpenLetter]:
        nonlocal done
        async with opened(configured) as (_, table):
            wanted = chosen.of(table)
        if dry_run:
            done = len(wanted)
            return wanted
        ask(wanted, "discard", yes=yes)
        with bar("discarding", Counter()) as progress:
            async for count in app.discard(configured, wanted, signature):
                done += count
                progress(done, len(wanted))
        return wanted

    wanted = run_async(main())
    for letter in wanted[:done]:
        if as_json:
            put({"id": letter.id, "outcome": "discarded", "reason": letter.reason})
        elif dry_run:
            click.echo(f"{letter.id}: would be discarded")
    say(f"{'would discard' if dry_run else 'discarded'} {done} of {len(wanted)} letters")
    if done < len(wanted):
        sys.exit(FAILED)


@dlq.command(
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
    configured = loaded(given)
    configured.required_store_url()
    signature = Signature(by=author(by), why="edited")

    async def main() -> Result:
        async with opened(configured) as (letters, table):
            letter, whole = await one(letters, table, letter_id)
        if whole is None or not letter.replayable:
            raise LastSyncError(f"letter {letter_id} is {letter.reason}: it can only be discarded")
        before = LetterDocument.of(whole).text()
        after = edited_text(before, file)
        document = LetterDocument.parsed(after)
        for line in difflib.unified_diff(
            before.splitlines(), after.splitlines(), "the letter", "edited", lineterm=""
        ):
            say(printable(line))
        if not yes:
            confirm("Apply this, and close the letter?")
        return await app.edit(configured, letter, document.edited(), signature, store_ids)

    result = run_async(main())
    if as_json:
        put(result_json(result))
    if result.outcome != "applied":
        raise LastSyncError(
            f"nothing has changed: the edited event would be {result.outcome}"
            f"{f' ({result.reason}): {result.message}' if result.message else ''}"
        )
    say(f"{letter_id}: applied, and closed")


def edited_text(before: str, file: BinaryIO | None) -> str:
    if file is not None:
        try:
            return file.read().decode()
        except UnicodeDecodeError as error:
            raise LastSyncError(f"the edited document is not UTF-8: {error}") from None
    if not (os.environ.get("VISUAL") or os.environ.get("EDITOR")) and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal: set EDITOR, or give --file")
    text = click.edit(before, extension=".json", require_save=False)
    if text is None or text == before:
        raise LastSyncError("nothing was edited, and nothing has changed")
    return text


# Reading


@asynccontextmanager
async def opened(configured: Settings) -> AsyncIterator[tuple[OpenLetters, list[OpenLetter]]]:
    async with app.dead_letters(configured) as letters:
        with bar("reading", Counter()) as progress:
            table = await letters.table(progress)
        yield letters, table


async def one(
    letters: OpenLetters, table: Sequence[OpenLetter], letter_id: str
) -> tuple[OpenLetter, DeadLetter | None]:
    for letter in table:
        if letter.id == letter_id:
            async for batch in letters.letters([letter], 1):
                return batch[0]
    raise LastSyncError(
        f"there is no open letter {letter_id!r}: `{PROGRAM} dlq list` shows those that are open"
    )


# Asking


def ask(wanted: Sequence[OpenLetter], what: str, *, yes: bool) -> None:
    """Show what is about to happen, and let a person decide."""
    reasons = Counter(letter.reason for letter in wanted)
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    say(f"about to {what} {len(wanted)} letters: {parts or 'none'}")
    if wanted and not yes:
        confirm("Go on?")


def confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: give --yes")
    click.confirm(question, abort=True, err=True)


@contextmanager
def bar(title: str, counts: Counter[str]) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal's stderr, and nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"))
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task: TaskID = progress.add_task(title)

        def update(done: int, total: int) -> None:
            said = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            progress.update(task, completed=done, total=total, description=f"{title} {said}")

        yield update


# Showing


def letter_json(letter: OpenLetter) -> dict[str, JsonValue]:
    return {
        "id": letter.id,
        "reason": letter.reason,
        "status": letter.status,
        "connector_id": letter.connector_id,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp": moment(letter.timestamp_ms),
        "failed_at": None if letter.failed_at is None else time_text(letter.failed_at),
        "message": letter.message,
    }


def moment(milliseconds: int) -> str | None:
    if milliseconds < 0:
        return None
    try:
        return time_text(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds))
    except OverflowError:
        return None


def lines(letters: Sequence[OpenLetter]) -> Iterator[str]:
    now, width = datetime.now(UTC), shutil.get_terminal_size((0, 0)).columns
    cut = width if sys.stdout.isatty() else 0
    rows = [
        (x.id, age(x, now), x.connector_id or "-", x.reason, " ".join(x.message.split()))
        for x in letters
    ]
    heading = ("ID", "AGE", "CONNECTOR", "REASON", "MESSAGE")
    widths = [max(len(row[n]) for row in [heading, *rows]) for n in range(4)]
    for row in [heading, *rows]:
        cells = [cell.ljust(size) for cell, size in zip(row, widths, strict=False)]
        start = printable("  ".join(cells))
        room = max(LEAST_MESSAGE, cut - len(start) - 2) if cut else None
        message = printable(row[4])
        yield f"{start}  {shortened(message, room)}"


def shortened(text: str, room: int | None) -> str:
    return text if room is None or len(text) <= room else f"{text[: room - 1]}…"


def age(letter: OpenLetter, now: datetime) -> str:
    return "-" if letter.failed_at is None else span((now - letter.failed_at).total_seconds())


def span(seconds: float) -> str:
    for unit, length in reversed(UNITS.items()):
        if seconds >= length and unit != "w":
            return f"{int(seconds // length)}{unit}"
    return "0s"


def shown(letter: OpenLetter, whole: DeadLetter | None, foreseen: Result | None) -> dict[str, Any]:
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
    if foreseen is not None:
        document["replay"] = result_json(foreseen)
    return document


def show(document: dict[str, Any], whole: DeadLetter | None) -> None:
    place = f"{document['topic']}, partition {document['partition']}, offset {document['offset']}"
    click.echo(printable(f"{document['reason']} ({document['status']})"))
    click.echo(printable(f"  {document['message']}"))
    if document["fix"]:
        click.echo(f"  fix: {document['fix']}")
    for name, value in [
        ("id", document["id"]),
        ("connector", document["connector_id"] or "-"),
        ("from", place),
        ("written", document["timestamp"] or "-"),
        ("failed", document["failed_at"] or "-"),
        ("group", document.get("group", "-")),
        ("store", document["store"] or "-"),
    ]:
        click.echo(printable(f"  {name:<10} {value}"))
    if whole is not None:
        text = json.dumps(LetterDocument.of(whole).document, indent=2, ensure_ascii=False)
        click.echo("\n".join(printable(line) for line in text.splitlines()))
    if "value_size" in document:
        click.echo(f"  cut: the record's value had {document['value_size']} bytes")
    if "connector" in document:
        now = document["connector"]
        text = "is not registered" if now is None else json.dumps(now, ensure_ascii=False)
        click.echo(printable(f"connector now: {text}"))
    if "replay" in document:
        foreseen = document["replay"]
        click.echo(printable(f"a replay now: {foreseen['outcome']} ({foreseen['reason']})"))
    else:
        say("name a store with --store to see the connector, and what a replay would do")


def stats(letters: Sequence[OpenLetter], now: datetime) -> dict[str, Any]:
    ages = sorted((now - x.failed_at).total_seconds() for x in letters if x.failed_at is not None)
    return {
        "open": len(letters),
        "by_reason": dict(Counter(x.reason for x in letters).most_common()),
        "by_connector": dict(Counter(x.connector_id or "" for x in letters).most_common()),
        "oldest_seconds": round(ages[-1], 3) if ages else None,
        "p50_seconds": round(ages[len(ages) // 2], 3) if ages else None,
        "last_hour": sum(seconds < UNITS["h"] for seconds in ages),
    }


def show_stats(document: dict[str, Any]) -> None:
    click.echo(f"{document['open']} open letters, {document['last_hour']} in the last hour")
    if document["oldest_seconds"] is not None:
        oldest, middle = span(document["oldest_seconds"]), span(document["p50_seconds"])
        click.echo(f"oldest {oldest}, half of them older than {middle}")
    for title, name in (("REASON", "by_reason"), ("CONNECTOR", "by_connector")):
        click.echo(f"\n{title:<36} {'LETTERS':>8}")
        for key, count in list(document[name].items())[:SHOWN]:
            click.echo(f"{printable(key) or '-':<36} {count:>8}")


def result_json(result: Result) -> dict[str, JsonValue]:
    return {"id": result.letter.id, "outcome": result.outcome, "reason": result.reason}


def tell(result: Result, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        put(result_json(result))
    elif dry_run:
        click.echo(f"{printable(result.letter.id)}: would be {outcome_text(result)}")


def outcome_text(result: Result) -> str:
    still = "" if result.resolved else f" ({result.reason})"
    return printable(f"{result.outcome}{still}{': ' if result.message else ''}{result.message}")


def summary(
    counts: Counter[str],
    total: int,
    left: Sequence[Result],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """What became of the letters, and what to do about the rest; on stderr."""
    say(f"{'WOULD BE' if dry_run else 'OUTCOME':<22} LETTERS")
    for outcome in (*RESOLVING, *sorted(counts.keys() - set(RESOLVING))):
        if counts[outcome] or outcome in RESOLVING:
            say(f"  {outcome:<20} {counts[outcome]:>7}")
    if total > counts.total():
        say(f"  {'not tried':<20} {total - counts.total():>7}  (stopped, or resolved meanwhile)")
    if not as_json and not dry_run:
        for result in left:
            say(f"still open: {printable(result.letter.id)}: {outcome_text(result)}")
    for outcome in sorted(counts):
        if advice := ADVICE.get(outcome):
            say(f"{outcome}: {advice}")


ADVICE = {
    "connector_not_found": "`last-sync connectors add ID`, then replay again",
    "invalid": "`last-sync dlq edit ID`, or `last-sync dlq discard --id ID --reason-text …`",
    "rejected": "`last-sync dlq edit ID`, or `last-sync dlq discard --id ID --reason-text …`",
    "too_large": "`last-sync dlq discard --reason too_large --reason-text …`",
    "other_store": "name that store with --store, or allow it here with --store-id UUID",
    UNREADABLE: "`last-sync dlq discard --reason unreadable --reason-text …`",
}
