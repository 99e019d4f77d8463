"""`postgresql://…`: connectors in PostgreSQL, for as many workers as there are."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import asyncpg

from worker.errors import MisconfiguredError, TransientError
from worker.stores.migrations import HEAD, VERSION_TABLE
from worker.stores.postgresql_driver import Line, PostgresqlDriver
from worker.stores.rows import STORE_TABLE, TABLE
from worker.stores.sql_merging import Database, RejectedError, SqlMergingStore

OPEN_TIMEOUT = 3.5  # seconds
CONNECT_TIMEOUT = 3.0  # seconds
CLOSE_TIMEOUT = 1.0  # seconds, for a pool and then for the others; a server may be frozen
UPGRADE = "run `last-sync store upgrade`"

# A writer that was frozen or cut off gives its locks back; one that waits for it says so.
SESSION = """
SET lock_timeout = '5s';
SET statement_timeout = '15s';
SET idle_in_transaction_session_timeout = '15s'
"""

# The planner takes every JSON array for one of a hundred elements, and would read a table of
# thousands whole to update one row.
PLANS = "SET enable_seqscan = off"

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


@asynccontextmanager
async def open_postgresql_merging(url: str) -> AsyncIterator[SqlMergingStore]:
    async with open_postgresql_database(url) as database:
        yield SqlMergingStore(database)


@asynccontextmanager
async def open_postgresql_database(url: str) -> AsyncIterator[Database]:
    """Connect, refuse a schema that is not this release's, and disconnect at the end."""
    merging, reading = Line(partial(connected, url, PLANS)), Line(partial(connected, url))
    try:
        with translated(url):
            async with asyncio.timeout(OPEN_TIMEOUT), reading.taken() as connection:
                store_id = await _store_id(connection, url)
        driver = PostgresqlDriver(merging=merging, reading=reading)
        yield Database(driver=driver, store_id=store_id, errors=partial(translated, url))
    finally:
        await asyncio.gather(merging.close(CLOSE_TIMEOUT), reading.close(CLOSE_TIMEOUT))


async def connected(url: str, more: str = "") -> asyncpg.Connection:
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT)
    except ssl.SSLError:
        raise
    except ValueError as error:
        raise MisconfiguredError(f"{named(url)}: {_line(error)}; check the URL") from error
    try:
        await connection.execute(f"{SESSION};{more}")
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _store_id(connection: asyncpg.Connection, url: str) -> str:
    tables = f"to_regclass('{VERSION_TABLE}'), to_regclass('{STORE_TABLE}')"
    if None in tuple(await connection.fetchrow(f"SELECT {tables}")):
        raise MisconfiguredError(f"{named(url)} has no schema of ours: {UPGRADE}")
    row = await connection.fetchrow(
        f"SELECT (SELECT version_num FROM {VERSION_TABLE}), (SELECT id FROM {STORE_TABLE}),"  # noqa: S608 - constants  # nosec B608
        f" has_table_privilege('{TABLE}', 'SELECT')"
        f" AND has_table_privilege('{TABLE}', 'INSERT')"
        f" AND has_table_privilege('{TABLE}', 'UPDATE'), current_user,"
        " current_setting('transaction_read_only') = 'on'"
    )
    revision, store_id, may_write, user, read_only = row
    if revision != HEAD:
        raise MisconfiguredError(_outdated(url, revision))
    if not may_write:
        raise MisconfiguredError(
            f"{named(url)}: user {user} may not read and write it:"
            f" GRANT SELECT, INSERT, UPDATE ON {TABLE} TO {user}"
        )
    if read_only:
        raise TransientError(f"{named(url)}: {_TRANSIENT[READ_ONLY]}")
    return str(store_id)


def _outdated(url: str, revision: str) -> str:
    if revision < HEAD:  # they are numbered
        return f"{named(url)} has the schema {revision}, and this release needs {HEAD}: {UPGRADE}"
    return unknown_schema(url)


def unknown_schema(url: str) -> str:
    return (
        f"{named(url)}: its schema is unknown to this release, which knows those up to {HEAD};"
        " install the release that wrote it, or a newer one"
    )


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise errors of PostgreSQL, its driver and its network as this package's own."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise _ours(url, error) from error
    except ssl.SSLCertVerificationError as error:
        raise MisconfiguredError(f"{named(url)}: {error}; check sslrootcert and host") from error
    except TimeoutError as error:
        raise TransientError(f"{named(url)} did not answer in time") from error
    except OSError as error:
        raise TransientError(f"{named(url)}: {error}") from error


def _ours(url: str, error: BaseException | None) -> Exception:
    state = sqlstate(error)
    text = f"{named(url)}: {_line(error)}"
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


def sqlstate(error: BaseException | None) -> str:
    return getattr(error, "sqlstate", None) or ""


def named(url: str) -> str:
    """The store for a message: without user, password and parameters."""
    scheme, _, rest = url.partition("://")
    return f"store {scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
