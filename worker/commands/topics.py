"""The `topics` commands."""

from typing import Any

import click

from worker.commands.check import report_verdicts
from worker.options import as_json, example, flag, kafka_settings, loaded, out, put, run_async


@click.group(epilog=example("last-sync topics create --partitions 12 --replication-factor 3"))
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
    from worker.app.topics import create_topics

    done = run_async(
        create_topics(loaded(given), partitions=partitions, replication_factor=replication_factor)
    )
    if as_json:
        put({"done": done})
    else:
        out("\n".join(done))


@topics.command("check", epilog=example("last-sync topics check --json"))
@kafka_settings
@as_json
def topics_check(*, as_json: bool, **given: Any) -> None:
    """Check that both topics exist and that the dead-letter topic is compacted and large enough."""
    from worker.app.topics import check_topics

    report_verdicts(run_async(check_topics(loaded(given))), as_json=as_json)
