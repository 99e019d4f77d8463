"""The command line: `last-sync` and its commands, and how failures end."""

import sys
from typing import NoReturn

import click

from worker.commands.check import check
from worker.commands.connectors import connectors
from worker.commands.dlq import dlq
from worker.commands.events import publish, validate
from worker.commands.run import api, demo, run
from worker.commands.schema import schema
from worker.commands.store import store
from worker.commands.topics import topics
from worker.errors import LastSyncError
from worker.options import FAILED, PROGRAM, example, say
from worker.variables import PREFIX


@click.group(
    commands=[run, api, check, validate, publish, topics, store, connectors, dlq, schema, demo],
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


def main() -> NoReturn:
    """Run the program; every foreseeable failure is one line on stderr."""
    try:
        cli.main(prog_name=PROGRAM, auto_envvar_prefix=PREFIX.rstrip("_"))
    except LastSyncError as error:
        say(f"{PROGRAM}: {error}")
        sys.exit(error.exit_code)
    except Exception:  # noqa: BLE001 - the last resort, logged whole
        log_crash()
        say(f"{PROGRAM}: an error that nobody foresaw, please report it with the lines above")
        sys.exit(FAILED)
    sys.exit(0)


def log_crash() -> None:
    """Write the exception that is being handled, as the settings want it if they were read."""
    import logging  # noqa: PLC0415 - seldom needed

    from worker import logs  # noqa: PLC0415

    if not logging.getLogger().handlers:
        logs.configure()
    logs.get_logger(__name__).critical("worker.crashed", exc_info=True)
