"""Runs the steps that a database still lacks, with Alembic."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, StaticPool, create_engine

from worker.stores.sql import driver_errors

_ALEMBIC = threading.Lock()  # it keeps the migration at hand in global variables


class UnknownRevisionError(Exception):
    """The database is at a step that this release does not have."""


def upgrade(connection: Connection, to: str = "head") -> None:
    """Run the lacking steps within the transaction that the connection is in."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        with _ALEMBIC:
            command.upgrade(config, to)
    except CommandError as error:
        raise UnknownRevisionError(str(error)) from error


def upgrade_sqlite(connection: sqlite3.Connection, check: Callable[[], object]) -> None:
    """Run the lacking steps in a transaction, while no other process does, if the check passes."""
    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    with driver_errors(), engine.connect() as migrating:
        migrating.exec_driver_sql("BEGIN IMMEDIATE")
        check()
        upgrade(migrating)
        migrating.commit()
