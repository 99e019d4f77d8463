"""`sqlite:///path`: the embedded store, in one file on one host."""

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from worker.errors import MisconfiguredError, TransientError
from worker.stores.migrations import HEAD, VERSION_TABLE
from worker.stores.rows import STORE_TABLE, TABLE
from worker.stores.sql_merging import Database, RejectedError, SqlMergingStore
from worker.stores.sqlite_driver import Line, SqliteDriver

CACHE_KIB = 8_192
CHECKPOINT_PAGES = 8_192  # 32 MiB of log: a large batch touches thousands of pages, most again
OWNER_ALONE = 0o600  # mode of a new file; SQLite gives its log the file's own
BUSY_TIMEOUT = 5.0  # seconds that a writer waits for another process's writer

_TRANSIENT = {
    sqlite3.SQLITE_BUSY: "another process holds its lock",
    sqlite3.SQLITE_LOCKED: "another connection holds its lock",
    sqlite3.SQLITE_PROTOCOL: "its lock could not be had for the crowd",
    sqlite3.SQLITE_IOERR: "reading or writing the file failed",
    sqlite3.SQLITE_FULL: "the disk is full: free some space there",
}
_MISCONFIGURED = {
    sqlite3.SQLITE_AUTH: "check who owns the file",
    sqlite3.SQLITE_CANTOPEN: "check the path, its permissions, and the limit of open files",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: put a backup in its place",
    sqlite3.SQLITE_NOTADB: "the file is something else, or encrypted: name another path",
    sqlite3.SQLITE_PERM: "check who may write the file",
    sqlite3.SQLITE_READONLY: "make file and directory writable for this user",
}
_REJECTED = frozenset({sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG})


@asynccontextmanager
async def open_sqlite_merging(url: str, *, make: bool) -> AsyncIterator[SqlMergingStore]:
    async with open_sqlite_database(url, make=make) as database:
        yield SqlMergingStore(database)


@asynccontextmanager
async def open_sqlite_database(url: str, *, make: bool) -> AsyncIterator[Database]:
    """Open the file, make or migrate its schema, and close it at the end."""
    path = sqlite_path(url)
    if not make and not path.exists():
        raise MisconfiguredError(f"store {url}: there is no such file; name the worker's store")
    store_id = await _prepared(path, url)
    merging, reading = Line(partial(_connected, path)), Line(partial(_connected, path))
    try:
        driver = SqliteDriver(merging=merging, reading=reading)
        yield Database(driver=driver, store_id=store_id, errors=partial(translated, url))
    finally:
        try:
            await reading.close()  # not at once: of two, neither could take the log into the file
        finally:
            await merging.close()


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise errors of SQLite as this package's own, by their code."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise _ours(url, error) from error
    except TimeoutError as error:
        raise TransientError(f"store {url} did not answer in time") from error


def _ours(url: str, error: BaseException | None) -> Exception:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    text = f"store {url}: {error}"
    if code in _TRANSIENT:
        return TransientError(f"{text} ({_TRANSIENT[code]})")
    if code in _MISCONFIGURED:
        return MisconfiguredError(f"{text}; {_MISCONFIGURED[code]}")
    if code in _REJECTED:
        return RejectedError(str(error))
    if "no such table" in str(error) or "no such column" in str(error):
        return MisconfiguredError(f"{text}; another program changed the schema: restore a backup")
    return RuntimeError(f"{text} ({type(error).__name__}, nobody expected it here)")


def sqlite_path(url: str) -> Path:
    named = url.removeprefix("sqlite:///")
    if named == url or not named:
        raise MisconfiguredError(
            f"store {url}: no path; use sqlite:///relative.db or sqlite:////absolute/path.db"
        )
    if named == ":memory:" or "?" in named:
        raise MisconfiguredError(
            f"store {url}: it takes a path and no options; for a store in memory use memory://"
        )
    path = Path(named).absolute()
    try:
        problem = _problem(path)
    except OSError as error:  # a name that is too long, a disk that cannot be read
        problem = f"{error.strerror}; name another path"
    if problem:
        raise MisconfiguredError(f"store {url}: {problem}")
    return path


def _problem(path: Path) -> str | None:
    if path.is_dir():
        return f"{path} is a directory; add the name of a file"
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}; make it, or name another path"
    if not _may(path.parent, os.W_OK | os.X_OK):
        return f"this user may not write into {path.parent}, where SQLite keeps its log beside it"
    if path.exists() and not _may(path, os.R_OK | os.W_OK):
        return f"this user may not read and write {path}; change its permissions"
    return None


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        set_up(connection)
    except BaseException:
        connection.close()  # else it is open until garbage is collected
        raise
    return connection


def set_up(connection: Any, *_: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    cursor.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    cursor.close()


async def _prepared(path: Path, url: str) -> str:
    """Bring the schema up to date and give the store's id; others may do so at the same time."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            return await asyncio.to_thread(_prepare, path, url)
        except TransientError:  # SQLite does not wait by itself while a file becomes WAL
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(random.uniform(0.01, 0.1))  # noqa: S311 - not a secret  # nosec B311


def _prepare(path: Path, url: str) -> str:
    with suppress(OSError):  # SQLite says what is wrong
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, OWNER_ALONE))
    with (
        translated(url),
        closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)) as connection,
    ):
        revision = _revision(connection, url)
        _use_wal(connection, url)
        if revision != HEAD:
            _migrate(connection, url)
        (store_id,) = connection.execute(f"SELECT id FROM {STORE_TABLE}").fetchone()  # noqa: S608 - a constant  # nosec B608
        return str(store_id)


def _revision(connection: sqlite3.Connection, url: str) -> str | None:
    """Give the schema's revision, None for an empty file; refuse other programs' files."""
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    tables = [name for (name,) in found]
    if not tables:
        return None
    if {VERSION_TABLE, STORE_TABLE, TABLE} <= set(tables):
        return str(connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()[0])  # noqa: S608 - a constant  # nosec B608
    raise MisconfiguredError(
        f"store {url}: the file holds another program's tables ({', '.join(tables)});"
        " name another path"
    )


def _use_wal(connection: sqlite3.Connection, url: str) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise MisconfiguredError(
            f"store {url}: no write-ahead log can be kept there (journal mode {mode});"
            " name a path on a local disk"
        )


def _migrate(connection: sqlite3.Connection, url: str) -> None:
    # A third of a second to import, and needed once in a file's life.
    from worker.stores.migrations.upgrade import UnknownRevisionError, upgrade_sqlite  # noqa: PLC0415

    connection.execute("PRAGMA synchronous = FULL")
    try:
        upgrade_sqlite(connection, partial(_revision, connection, url))
    except UnknownRevisionError as error:
        raise MisconfiguredError(
            f"store {url}: its schema {_revision(connection, url)} is unknown to this release,"
            f" which knows those up to {HEAD}; install the release that wrote it, or a newer one"
        ) from error
