"""How letters are listed, a line each, and counted."""

import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from pydantic import JsonValue

from schemas.scalars import time_text
from worker.commands.letter_options import UNITS
from worker.open_letters import OpenLetter
from worker.text import printable

SHOWN = 20  # rows of a table of counts
LEAST_MESSAGE = 20  # characters, however narrow the terminal
WIDEST = 64  # characters that a column is padded to; one long name must not move all others


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
    heading = ("ID", "AGE", "CONNECTOR", "REASON", "MESSAGE")
    widths = [len(name) for name in heading[:-1]]
    for letter in letters:
        for n, cell in enumerate(cells(letter, now)[:-1]):
            widths[n] = min(max(widths[n], len(cell)), WIDEST)
    yield line(heading, widths, cut)
    for letter in letters:
        yield line(cells(letter, now), widths, cut)


def cells(letter: OpenLetter, now: datetime) -> Sequence[str]:
    message = " ".join(letter.message.split())
    return (letter.id, age(letter, now), letter.connector_id or "-", letter.reason, message)


def line(row: Sequence[str], widths: Sequence[int], cut: int) -> str:
    """The row, its message cut to what the terminal leaves; the id is there to be copied."""
    start = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=False))
    room = max(LEAST_MESSAGE, cut - len(start) - 2) if cut else None
    return printable(f"{start}  {shortened(row[-1], room)}")


def shortened(text: str, room: int | None) -> str:
    return text if room is None or len(text) <= room else f"{text[: room - 1]}…"


def age(letter: OpenLetter, now: datetime) -> str:
    return "-" if letter.failed_at is None else span((now - letter.failed_at).total_seconds())


def span(seconds: float) -> str:
    for unit, length in reversed(UNITS.items()):
        if seconds >= length and unit != "w":
            return f"{int(seconds // length)}{unit}"
    return "0s"


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
    if not document["open"]:
        return
    for title, name in (("REASON", "by_reason"), ("CONNECTOR", "by_connector")):
        click.echo(f"\n{title:<36} {'LETTERS':>8}")
        counts = list(document[name].items())
        for key, count in counts[:SHOWN]:
            click.echo(f"{printable(key) or '-':<36} {count:>8}")
        if more := counts[SHOWN:]:
            rest = f"and {len(more)} more (--json has all)"
            click.echo(f"{rest:<36} {sum(count for _, count in more):>8}")
