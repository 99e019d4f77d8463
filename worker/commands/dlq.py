"""The `dlq` commands: the open dead letters as a work list."""

import click

from worker.commands.dlq_discard import dlq_discard
from worker.commands.dlq_edit import dlq_edit
from worker.commands.dlq_read import dlq_list, dlq_show, dlq_stats
from worker.commands.dlq_replay import dlq_replay
from worker.options import example


@click.group(
    commands=[dlq_list, dlq_show, dlq_stats, dlq_replay, dlq_discard, dlq_edit],
    epilog=example("last-sync dlq list\nlast-sync dlq replay --status 404 --dry-run"),
)
def dlq() -> None:
    """See, replay, mend and discard the open dead letters."""
