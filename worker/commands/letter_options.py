"""Which letters a `dlq` command means, and how fast: the options that the commands share."""

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from worker.options import Decorated, completed, flag
from worker.selection import UNREADABLE, Selection

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds


class Moment(click.ParamType[datetime]):
    """An RFC 3339 time, or how long ago."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        from pydantic import ValidationError
        from pydantic_core import SchemaValidator

        from schemas.scalars import TIME

        try:
            if match := re.fullmatch(r"([0-9]{1,6})([smhdw])", value):
                return datetime.now(UTC) - timedelta(seconds=int(match[1]) * UNITS[match[2]])
            found: datetime = SchemaValidator(TIME.core).validate_python(value)
        except (ValidationError, OverflowError):
            self.fail(
                f"{value!r} is no time: write 2024-11-09T15:13:08Z, or how long ago: 90s, 2h, 3d",
                param,
                ctx,
            )
        return found


class Rate(click.ParamType[int]):
    """`10` or `10/s`."""

    name = "N/s"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        if not (match := re.fullmatch(r"([1-9][0-9]{0,5})(/s)?", value)):
            self.fail(f"{value!r} is no rate: write letters a second, such as 10/s", param, ctx)
        return int(match[1])


def reasons() -> Iterable[str]:
    from schemas.reasons import REASONS

    return (*REASONS, UNREADABLE)


def selection(command: Decorated) -> Decorated:
    """The filters; those given all have to let a letter through."""
    several = {"multiple": True, "metavar": "TEXT"}
    for decorator in (
        flag("--limit", type=click.IntRange(1), help="The oldest N of them."),
        flag("--id", "ids", help="Letters with this id (repeatable).", **several),
        flag(
            "--partition",
            "partitions",
            type=click.IntRange(0),
            multiple=True,
            help="Origin's partition (repeatable).",
        ),
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
        flag(
            "--reason",
            "reasons",
            help="Reason code (repeatable).",
            shell_complete=completed(reasons),
            **several,
        ),
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
    if everything and given:
        raise click.UsageError("--all and filters exclude each other: give the filters alone")
    if not everything and not given:
        raise click.UsageError("say which letters: give filters or --id, or else --all")
