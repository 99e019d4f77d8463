"""`postgresql://…`: connectors in PostgreSQL, for as many workers as there are."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from datetime import datetime
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import ARRAY, ExceptionContext, any_, bindparam, event
from sqlalchemy.dialects.postgresql import TEXT, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from schemas.last_sync import LAST_SYNC_TIMES
from worker.errors import MisconfiguredError, TransientError
from worker.stores.migrations import HEAD, VERSION_TABLE
from worker.stores.postgresql_batches import Connect, PostgresqlBatches
from worker.stores.rows import CONNECTORS, STATE, STORE, Row
from worker.stores.sql import Dialect, RejectedError, SqlStore

OPEN_TIMEOUT = 3.5  # seconds
CONNECT_TIMEOUT = 3.0  # seconds
CLOSE_TIMEOUT = 2.0  # seconds; a server may be frozen
ADVISORY_LOCK = int.from_bytes(b"lastsync")  # what migrations and registrations queue for
UPGRADE = "run `last-sync store upgrade`"

# A writer that was frozen or cut off gives its locks back; one that waits for it says so.
SESSION = """
SET lock_timeout = '5s';
SET statement_timeout = '15s';
SET idle_in_transaction_session_timeout = '15s'
"""

# The planner takes every JSON array for one of a hundred elements, and would read a table of
# thousands whole to update one row.
MERGING = "SET enable_seqscan = off"

READ_ONLY = "25006"
UNDEFINED_TABLE = "42P01"

# By SQLSTATE or its class: PostgreSQL's manual, appendix A.
_TRANSIENT = {
    "08": "the connection was lost",
    "40": "another writer was in the way",
    READ_ONLY: "the server is a standby: its place may have been taken",
    "25P03": "the server ended the transaction, which had stood still",
    "53100": "the server's disk is full: free some space there",
    "53200": "the server is out of memory",
    "53300": "the server takes no more connections",
    "53400": "a limit of the server was reached",
    "55P03": "another writer holds the rows",
    "57": "the server ended the statement or the connection, or is starting or stopping",
    "58": "the server's system failed",
}
_MISCONFIGURED = {
    "0P": "check the role",
    "28": "check user, password, and the server's pg_hba.conf",
    "3D": "make the database, or name another",
    "3F": "make the schema, or name another",
    "42501": "GRANT this user SELECT, INSERT and UPDATE on the tables",
    "42703": f"the schema is not this release's: {UPGRADE}",
    "42704": "the URL has a parameter that the server does not know",
    "42P07": "the tables of another program are there: name another database or schema",
    UNDEFINED_TABLE: f"the schema is missing: {UPGRADE}",
}
_REJECTED = ("22", "23")

_TIMES = [
    place for place, column in enumerate(STATE) if column.name in {*LAST_SYNC_TIMES, "deleted_at"}
]


@asynccontextmanager
async def open_postgresql(url: str) -> AsyncIterator[SqlStore]:
    """Connect, refuse a schema that is not this release's, and disconnect at the end."""
    connect = partial(_connect, url)
    async with _connected(connect) as engine:
        with translated(url):
            async with asyncio.timeout(OPEN_TIMEOUT), engine.begin() as connection:
                store_id = await _store_id(connection, url)
        batches = PostgresqlBatches(partial(_connect, url, MERGING))
        try:
            yield SqlStore(engine, _dialect(url), batches=batches, store_id=store_id, revision=HEAD)
        finally:
            await asyncio.gather(batches.close(CLOSE_TIMEOUT), _close(engine))


async def upgrade_postgresql(url: str) -> None:
    """Bring the schema up to date; of many who try at once one does it, and the others wait."""
    # A third of a second to import.
    from worker.stores.migrations.upgrade import UnknownRevisionError, upgrade  # noqa: PLC0415

    async with _connected(partial(_connect, url)) as engine:
        with translated(url):
            async with engine.begin() as connection:
                await connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
                await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
                try:
                    await connection.run_sync(upgrade)
                except UnknownRevisionError as error:
                    raise MisconfiguredError(_unknown(url)) from error


def _dialect(url: str) -> Dialect:
    return Dialect(
        name="PostgreSQL",
        remote=True,
        most=9_000,
        version="SHOW server_version",
        begin_read=None,
        begin_write=None,
        begin_add=f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})",
        turn=nullcontext(),
        insert=insert,
        has_id=CONNECTORS.c.id == any_(bindparam("ids", type_=ARRAY(TEXT()))),
        ids=list,
        then=".*{}",
        sent=_sent,
        received=_received,
        errors=lambda: translated(url),
        refusals=(),
    )


def _sent(row: Row) -> Row:
    values = list(row)
    for place in _TIMES:
        if values[place] is not None:
            values[place] = datetime.fromisoformat(values[place])
    return tuple(values)


def _received(row: Row) -> Row:
    values = list(row)
    for place in _TIMES:
        if values[place] is not None:
            text = values[place].isoformat(timespec="microseconds")
            values[place] = text.removesuffix("+00:00") + "Z"
    return values


@asynccontextmanager
async def _connected(connect: Connect) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda *_, **__: connect(),
        pool_pre_ping=True,  # batches find out by themselves that the server was restarted
        json_serializer=str,  # it is text already
        json_deserializer=str,
    )
    event.listen(engine.sync_engine, "handle_error", _forget_standbys)
    event.listen(engine.sync_engine, "invalidate", _terminate)
    try:
        yield engine
    finally:
        await _close(engine)


async def _connect(url: str, more: str = "") -> asyncpg.Connection:
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT)
    except ssl.SSLError:
        raise
    except ValueError as error:
        raise MisconfiguredError(f"{_named(url)}: {_line(error)}; check the URL") from error
    try:
        await connection.execute(f"{SESSION};{more}")
    except BaseException:
        connection.terminate()
        raise
    return connection


def _forget_standbys(context: ExceptionContext) -> None:
    """Connect anew after a failover: the old primary's connections stay open."""
    if _sqlstate(context.original_exception) == READ_ONLY:
        context.is_disconnect = True


def _terminate(connection: Any, *_: Any) -> None:
    # A server that is frozen would never answer a farewell.
    connection.driver_connection.terminate()


async def _close(engine: AsyncEngine) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await engine.dispose()
    except TimeoutError:
        await engine.dispose(close=False)


async def _store_id(connection: AsyncConnection, url: str) -> str:
    tables = f"to_regclass('{VERSION_TABLE}'), to_regclass('{STORE.name}')"
    if None in (await connection.exec_driver_sql(f"SELECT {tables}")).one():
        raise MisconfiguredError(f"{_named(url)} has no schema of ours: {UPGRADE}")
    answer = await connection.exec_driver_sql(
        f"SELECT (SELECT version_num FROM {VERSION_TABLE}), (SELECT id FROM {STORE.name}),"  # noqa: S608 - constants  # nosec B608
        f" has_table_privilege('{CONNECTORS.name}', 'SELECT')"
        f" AND has_table_privilege('{CONNECTORS.name}', 'INSERT')"
        f" AND has_table_privilege('{CONNECTORS.name}', 'UPDATE'), current_user,"
        " current_setting('transaction_read_only') = 'on'"
    )
    revision, store_id, may_write, user, read_only = tuple(answer.one())
    if revision != HEAD:
        raise MisconfiguredError(_outdated(url, revision))
    if not may_write:
        raise MisconfiguredError(
            f"{_named(url)}: user {user} may not read and write it:"
            f" GRANT SELECT, INSERT, UPDATE ON {CONNECTORS.name} TO {user}"
        )
    if read_only:
        raise TransientError(f"{_named(url)}: {_TRANSIENT[READ_ONLY]}")
    return str(store_id)


def _outdated(url: str, revision: str) -> str:
    if revision < HEAD:  # they are numbered
        return f"{_named(url)} has the schema {revision}, and this release needs {HEAD}: {UPGRADE}"
    return _unknown(url)


def _unknown(url: str) -> str:
    return (
        f"{_named(url)}: its schema is unknown to this release, which knows those up to {HEAD};"
        " install the release that wrote it, or a newer one"
    )


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise errors of PostgreSQL, its driver and its network as this package's own."""
    try:
        yield
    except DBAPIError as error:
        raise _ours(url, error.orig.__cause__ if error.orig else error) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise _ours(url, error) from error
    except ssl.SSLCertVerificationError as error:
        raise MisconfiguredError(f"{_named(url)}: {error}; check sslrootcert and host") from error
    except TimeoutError as error:
        raise TransientError(f"{_named(url)} did not answer in time") from error
    except PoolTimeoutError as error:
        raise TransientError(f"{_named(url)}: all connections are busy: {error}") from error
    except OSError as error:
        raise TransientError(f"{_named(url)}: {error}") from error


def _ours(url: str, error: BaseException | None) -> Exception:
    state = _sqlstate(error)
    text = f"{_named(url)}: {_line(error)}"
    if fix := _MISCONFIGURED.get(state) or _MISCONFIGURED.get(state[:2]):
        return MisconfiguredError(f"{text}; {fix}")
    if reason := _TRANSIENT.get(state) or _TRANSIENT.get(state[:2]):
        return TransientError(f"{text} ({reason})")
    if state.startswith(_REJECTED):
        return RejectedError(_line(error))
    # The driver's own confusion when the server hangs up in between is an internal error to it.
    if isinstance(
        error,
        asyncpg.InterfaceError | asyncpg.InternalClientError | asyncpg.InvalidCachedStatementError,
    ):
        return TransientError(f"{text} ({_TRANSIENT['08']})")
    return RuntimeError(f"{text} ({type(error).__name__} {state}, nobody expected it here)")


def _line(error: BaseException | None) -> str:
    return " ".join(str(error).split())


def _sqlstate(error: BaseException | None) -> str:
    return getattr(error, "sqlstate", None) or ""


def _named(url: str) -> str:
    """The store for a message: without user, password and parameters."""
    scheme, _, rest = url.partition("://")
    return f"store {scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
