"""What is SQLite's own: its file, its locks, its errors, its schema."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from schemas.updates import Update
from tests.contract.conftest import Pin
from worker import errors
from worker.errors import MisconfiguredError, TransientError
from worker.stores import (
    ConnectorStore,
    migrations,
    open_store,
    rows,
    sql,
    sql_merging,
    sqlite_database,
    sqlite_driver,
)
from worker.stores.base import Connector
from worker.stores.migrations import upgrade
from worker.stores.sql_merging import RejectedError
from worker.stores.tables import CONNECTORS

NOBODY = 65534  # a user id without rights, for tests that run as root


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[ConnectorStore]:
    async with open_store(f"sqlite:///{path}") as store:
        yield store


@contextmanager
def sqlite_shell(path: Path) -> Iterator[sqlite3.Connection]:
    """Connect as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        yield connection


def update(connector_id: str, at: int, **fields: Any) -> Update:
    return Update(connector_id=connector_id, fields=fields, at=at, rank=1, event_id=f"event {at}")


def contents(path: Path) -> bytes:
    return path.read_bytes()


def log_of(path: Path) -> bytes:
    return contents(Path(f"{path}-wal"))


def updates(number: int) -> list[Update]:
    return [update(str(n), 1, last_indexed_document_count=n) for n in range(number)]


async def refusal(url: str) -> str:
    with pytest.raises(MisconfiguredError) as caught:
        async with open_store(url):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The URL and the file


async def test_a_relative_path_has_three_slashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_store("sqlite:///here.db"):
        assert (tmp_path / "here.db").exists()


async def test_any_character_may_be_in_the_path(tmp_path: Path) -> None:
    name = "100%20 a@b:c#d é%s.db"
    async with open_store(f"sqlite:///{tmp_path}/{name}"):
        assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://u:secret@h/0", "store 'redis://***@h/0': not a URL that this release knows"),
        ("store.db", "use sqlite:///path"),
        ("", "store '': not a URL"),
        ("memory://x", "not a URL"),
        ("sqlite://", "no path; use sqlite:///relative.db"),
        ("sqlite:///", "no path"),
        ("sqlite://store.db", "no path"),
        ("sqlite:///:memory:", "use memory://"),
        ("sqlite:///a.db?mode=ro", "a path and no options"),
    ],
)
async def test_a_url_that_names_no_store_is_refused(url: str, says: str) -> None:
    message = await refusal(url)
    assert says in message
    assert "secret" not in message


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    message = await refusal(f"sqlite:///{tmp_path}/no/where/store.db")
    assert f"there is no directory {tmp_path}/no/where; make it" in message
    assert not (tmp_path / "no").exists()


async def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    assert "File name too long; name another" in await refusal(f"sqlite:///{tmp_path}/{'a' * 300}")


async def test_a_directory_is_no_store(tmp_path: Path) -> None:
    assert f"{tmp_path} is a directory" in await refusal(f"sqlite:///{tmp_path}")


@pytest.fixture
def letter(path: Path) -> Path:
    path.write_text("a letter to a friend, long enough to be no header of SQLite's\n" * 20)
    return path


async def test_a_file_of_another_kind_is_refused_and_left_alone(letter: Path) -> None:
    before = contents(letter)
    assert "file is not a database" in await refusal(f"sqlite:///{letter}")
    assert contents(letter) == before


async def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    with sqlite_shell(path) as shell:
        shell.execute("CREATE TABLE bookmarks (url)")
    before = contents(path)
    assert "another program's tables (bookmarks)" in await refusal(f"sqlite:///{path}")
    assert contents(path) == before


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    async with open_store(f"sqlite:///{path}"):
        pass
    with sqlite_shell(path) as shell:
        shell.execute("UPDATE last_sync_schema SET version_num = 'last_sync_9999'")
    assert "its schema last_sync_9999 is unknown to this release" in await refusal(
        f"sqlite:///{path}"
    )
    with sqlite_shell(path) as shell:
        assert shell.execute("SELECT * FROM last_sync_schema").fetchall() == [("last_sync_9999",)]


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Callable[[int, int], None]]:
    """Take rights from directory and file; root gives up its own, for it may do anything."""
    root = os.geteuid() == 0
    store = tmp_path / "store.db"
    store.touch()

    def take(directory_mode: int, file_mode: int) -> None:
        if root:
            for parent in [tmp_path, *tmp_path.parents[:3]]:
                parent.chmod(parent.stat().st_mode | 0o055)
            os.chown(tmp_path, NOBODY, NOBODY)
            os.chown(store, NOBODY, NOBODY)
        store.chmod(file_mode)
        tmp_path.chmod(directory_mode)
        if root:
            os.seteuid(NOBODY)

    yield take
    if root:
        os.seteuid(0)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("directory_mode", "file_mode", "says"),
    [
        (0o700, 0o400, "may not read and write"),
        (0o700, 0o000, "may not read and write"),
        (0o500, 0o600, "may not write into"),
    ],
)
async def test_missing_rights_are_named(
    path: Path,
    unprivileged: Callable[[int, int], None],
    directory_mode: int,
    file_mode: int,
    says: str,
) -> None:
    unprivileged(directory_mode, file_mode)
    assert says in await refusal(f"sqlite:///{path}")


# Durability and transactions


async def test_commits_are_flushed_to_a_write_ahead_log(store: Any) -> None:
    durable = {"journal_mode": "wal", "synchronous": 2}
    async with store._engine.connect() as connection:
        for pragma, value in durable.items():
            found = await connection.exec_driver_sql(f"PRAGMA {pragma}")
            assert found.scalar_one() == value

    def of_batches() -> dict[str, Any]:
        with closing(store._driver._merging._connect()) as opened:
            return {name: opened.execute(f"PRAGMA {name}").fetchone()[0] for name in durable}

    assert await asyncio.to_thread(of_batches) == durable


async def test_a_file_restored_without_its_log_mode_gets_it_back(path: Path) -> None:
    async with open_store(f"sqlite:///{path}"):
        pass
    with sqlite_shell(path) as shell:
        shell.execute("PRAGMA journal_mode = DELETE")
    async with open_store(f"sqlite:///{path}"):
        with sqlite_shell(path) as shell:
            assert shell.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def commits(path: Path) -> int:
    """Count the transactions in the write-ahead log: their last frames give the file's size."""
    log = log_of(path)
    page_size, salts = int.from_bytes(log[8:12]), log[16:24]
    frames = (log[place : place + 24] for place in range(32, len(log), 24 + page_size))
    return sum(1 for f in frames if f[8:16] == salts and int.from_bytes(f[4:8]))


async def test_a_batch_is_one_transaction(store: ConnectorStore, path: Path) -> None:
    batch = updates(500)
    await store.add([u.connector_id for u in batch])
    before = commits(path)
    assert {o.name for o in await store.apply(batch)} == {"applied"}
    assert commits(path) == before + 1


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold the commits of batches while it is not set."""
    gate = threading.Event()
    gate.set()

    def held(statement: str) -> None:
        if statement == "COMMIT":
            gate.wait(5)

    def set_up(connection: Any, *_: Any) -> None:
        as_it_is(connection)
        if isinstance(connection, sqlite3.Connection):
            connection.set_trace_callback(held)

    as_it_is = sqlite_database.set_up
    monkeypatch.setattr(sqlite_database, "set_up", set_up)
    return gate


async def test_it_leaves_time_from_when_all_is_written_until_it_is_committed(
    gate: threading.Event, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = updates(3 * sqlite_driver.PART)
    await store.add([u.connector_id for u in batch])
    at_parts = []

    def noted(self: rows.Merging, *given: Any) -> list[rows.Change]:
        time.sleep(0.02)  # for the event loop to hear of it
        at_parts.append(store.leaves_time.is_set())
        return changes(self, *given)

    changes = rows.Merging.changes
    monkeypatch.setattr(rows.Merging, "changes", noted)
    asyncio.get_running_loop().set_debug(True)  # which tells what a thread may not do
    gate.clear()
    applying = asyncio.create_task(store.apply(batch))
    await asyncio.wait_for(store.leaves_time.wait(), 4)
    assert not applying.done()
    gate.set()
    await applying
    assert at_parts == 3 * [False]
    assert not store.leaves_time.is_set()


async def test_it_leaves_no_time_after_a_call_that_was_given_up(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = updates(sqlite_driver.PART)
    await store.add([u.connector_id for u in batch])
    merging, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def held(self: rows.Merging, *given: Any) -> list[rows.Change]:
        loop.call_soon_threadsafe(merging.set)
        gate.wait(5)
        return changes(self, *given)

    changes = rows.Merging.changes
    monkeypatch.setattr(rows.Merging, "changes", held)
    applying = asyncio.create_task(store.apply(batch))
    await merging.wait()
    applying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await applying
    gate.set()
    await store._driver._merging.do(lambda _: None)  # until that one is done
    assert not store.leaves_time.is_set()


async def test_only_changed_connectors_are_written(store: ConnectorStore, path: Path) -> None:
    batch = updates(500)
    await store.add([u.connector_id for u in batch])
    await store.apply(batch)
    before = log_of(path)
    assert {o.name for o in await store.apply(batch)} == {"duplicate"}
    assert log_of(path) == before
    assert {o.name for o in await store.apply([update("7", 2, last_sync_error="x"), *batch])} == {
        "applied",
        "duplicate",
    }
    assert len(log_of(path)) < len(before) + 4 * 5_000  # a few pages of 4 KiB


async def test_closing_leaves_one_file_and_no_thread(path: Path) -> None:
    threads = set(threading.enumerate())
    async with open_store(f"sqlite:///{path}") as store:
        await store.add(["a"])
        await asyncio.gather(
            store.apply([update("a", 1, last_sync_error="x")]),
            *(store.get(str(n)) for n in range(20)),
        )
    assert [p.name for p in path.parent.iterdir()] == ["store.db"]
    for thread in set(threading.enumerate()) - threads:
        if "asyncio" not in thread.name:  # the loop's own executor
            thread.join(timeout=5)
            assert not thread.is_alive()


async def test_one_connection_is_closed_after_the_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two at the same time, now and then neither takes the log into the file."""
    close, seen = sqlite_driver.Line.close, []

    async def noted(line: sqlite_driver.Line) -> None:
        seen.append("begins")
        await close(line)
        seen.append("ends")

    monkeypatch.setattr(sqlite_driver.Line, "close", noted)
    async with open_store(f"sqlite:///{path}"):
        pass
    assert seen == ["begins", "ends"] * 2


# Locks


async def test_a_second_process_waits_for_the_first(store: ConnectorStore, path: Path) -> None:
    pin = Pin()
    await store.add(["a"])
    async with open_store(f"sqlite:///{path}") as other:
        with pin.on(store):
            first = asyncio.create_task(store.apply([update("a", 2, last_sync_error="first")]))
            await pin.reached.wait()
            second = asyncio.create_task(other.apply([update("a", 1, last_sync_status="error")]))
            await asyncio.wait({second}, timeout=0.3)
            assert not second.done()
            pin.release.set()
            await asyncio.gather(first, second)
    connector = await store.get("a")
    assert connector is not None
    assert connector.fields == {"last_sync_error": "first", "last_sync_status": "error"}


async def test_a_crowd_of_waiting_writers_leaves_room_for_readers(store: ConnectorStore) -> None:
    pin = Pin()
    await store.add(["a"])
    with pin.on(store):
        first = asyncio.create_task(store.apply([update("a", 1, last_sync_error="x")]))
        await pin.reached.wait()
        crowd = [
            asyncio.create_task(store.apply([update("a", at, last_sync_error="x")]))
            for at in range(2, 42)
        ]
        await asyncio.wait(crowd, timeout=0.1)
        async with asyncio.timeout(2):
            assert await store.get("a") is not None
        pin.release.set()
        await asyncio.gather(first, *crowd)


async def test_a_foreign_reader_is_never_blocked(store: ConnectorStore, path: Path) -> None:
    pin = Pin()
    await store.add(["a"])
    with sqlite_shell(path) as shell, pin.on(store):
        task = asyncio.create_task(store.apply([update("a", 1, last_sync_error="x")]))
        await pin.reached.wait()
        assert shell.execute("SELECT id, last_sync_error FROM connectors").fetchall() == [
            ("a", None)
        ]
        pin.release.set()
        await task
        assert shell.execute("SELECT last_sync_error FROM connectors").fetchall() == [("x",)]


@asynccontextmanager
async def free_loop() -> AsyncIterator[None]:
    """Fail where something blocks the event loop."""
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.monotonic())
            await asyncio.sleep(0.01)

    beating = asyncio.create_task(beat())
    yield
    beating.cancel()
    assert beats[-1] - beats[0] > 1.6
    assert max(after - before for before, after in pairwise(beats)) < 1.0


async def test_a_lock_held_elsewhere_is_transient_and_never_blocks_the_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_database, "BUSY_TIMEOUT", 2.0)
    async with open_store(f"sqlite:///{path}") as store:
        await store.add(["a"])
        with sqlite_shell(path) as shell:
            shell.execute("BEGIN IMMEDIATE")
            async with free_loop():
                with pytest.raises(TransientError, match=r"store\.db: .*database is locked"):
                    await store.apply([update("a", 1, last_sync_error="x")])
            assert await store.get("a") is not None  # readers go on
        outcomes = await store.apply([update("a", 1, last_sync_error="x")])
    assert [outcome.name for outcome in outcomes] == ["applied"]


async def test_a_file_locked_at_opening_is_transient_and_never_blocks_the_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_database, "BUSY_TIMEOUT", 2.0)
    with sqlite_shell(path) as shell:
        shell.execute("BEGIN EXCLUSIVE")
        async with free_loop():
            with pytest.raises(TransientError, match="locked"):
                async with open_store(f"sqlite:///{path}"):
                    pass


async def test_opening_outlasts_another_process_that_makes_the_file(path: Path) -> None:
    """SQLite itself gives up at once while the file's journal mode cannot be changed."""

    async def opening() -> list[bool]:
        async with open_store(f"sqlite:///{path}") as store:
            return await store.add(["a"])

    with sqlite_shell(path) as shell:
        shell.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(opening())
        await asyncio.wait({task}, timeout=0.2)
        assert not task.done()
        shell.execute("COMMIT")
        assert await task == [True]


async def test_opening_a_file_in_use_waits_for_no_writer(store: ConnectorStore, path: Path) -> None:
    with sqlite_shell(path) as shell:
        shell.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(2), open_store(f"sqlite:///{path}") as other:
            assert other.store_id == store.store_id


# Errors


def primary_codes() -> dict[int, str]:
    names = [n for n in dir(sqlite3) if n.startswith("SQLITE_") and n.count("_") == 1]
    found = {getattr(sqlite3, name): name for name in names}
    return {code: name for code, name in found.items() if 0 < code < 100}


def driver_errors() -> list[Exception]:
    """Every class of the driver, bare and with every code of SQLite's."""
    found: list[Exception] = []
    for name, kind in vars(sqlite3).items():
        if isinstance(kind, type) and issubclass(kind, sqlite3.Error | sqlite3.Warning):
            found.append(kind(f"bare {name}"))
            for code, code_name in primary_codes().items():
                error = kind(f"{name} {code_name}")
                error.sqlite_errorcode = code | 7 << 8  # type: ignore[union-attr]
                found.append(error)
    return found


def translation(error: Exception) -> BaseException:
    with (
        pytest.raises(Exception) as caught,  # noqa: PT011
        sqlite_database.translated("sqlite:///x.db"),
        sql.driver_errors(),
    ):
        raise error
    return caught.value


def test_no_error_of_the_driver_leaves_the_store() -> None:
    assert len(primary_codes()) > 25
    ours = (errors.LastSyncError, RejectedError, RuntimeError)
    for error in driver_errors():
        error.__cause__ = ValueError("no active connection")  # as aiosqlite has it
        for raised in (error, DBAPIError("SELECT", {}, error)):
            found = translation(raised)
            assert isinstance(found, ours), (error, found)
            assert str(error) in str(found)
            assert found.__cause__ is error
            assert not isinstance(error.__cause__, DBAPIError)  # whose cause it is: a circle


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY, TransientError),
        (sqlite3.SQLITE_LOCKED, TransientError),
        (sqlite3.SQLITE_IOERR, TransientError),
        (sqlite3.SQLITE_PROTOCOL, TransientError),
        (sqlite3.SQLITE_FULL, TransientError),
        (sqlite3.SQLITE_CANTOPEN, MisconfiguredError),
        (sqlite3.SQLITE_NOTADB, MisconfiguredError),
        (sqlite3.SQLITE_CORRUPT, MisconfiguredError),
        (sqlite3.SQLITE_READONLY, MisconfiguredError),
        (sqlite3.SQLITE_CONSTRAINT, RejectedError),
        (sqlite3.SQLITE_TOOBIG, RejectedError),
        (sqlite3.SQLITE_MISUSE, RuntimeError),
        (sqlite3.SQLITE_NOMEM, RuntimeError),
    ],
)
def test_sqlites_code_decides_what_happens_next(code: int, kind: type[Exception]) -> None:
    error = sqlite3.OperationalError("trouble")
    error.sqlite_errorcode = code
    assert type(translation(error)) is kind


async def test_a_connection_that_cannot_be_set_up_is_closed(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[sqlite3.Connection] = []

    def broken(connection: sqlite3.Connection, *_: object) -> None:
        opened.append(connection)
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(sqlite_database, "set_up", broken)
    with pytest.raises(RuntimeError, match="database is locked"):
        await store.apply([update("a", 1, last_sync_error="x")])
    thread = store._driver._merging._thread
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        await asyncio.wrap_future(thread.submit(opened[0].execute, "SELECT 1"))


async def test_a_disk_that_does_not_answer_is_transient(
    store: ConnectorStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add(["a"])
    monkeypatch.setattr(sql_merging, "TRANSACTION_TIMEOUT", 0.1)
    with sqlite_shell(path) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransientError, match="did not answer in time"):
            await store.apply([update("a", 1, last_sync_error="x")])


def on_connecting(store: Any, do: Callable[[sqlite3.Connection], object]) -> None:
    """Do something to the connection by which batches will be merged."""
    connect = store._driver._merging._connect

    def connected() -> sqlite3.Connection:
        opened: sqlite3.Connection = connect()
        do(opened)
        return opened

    store._driver._merging._connect = connected


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("\ud800", "surrogates not allowed"),
        (2**63, "too large"),
        ("x" * 2_000, "too big"),
    ],
)
async def test_content_that_sqlite_refuses_is_rejected(store: Any, value: Any, says: str) -> None:
    await store.add(["a", "b"])
    on_connecting(store, lambda opened: opened.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_500))
    field = "last_sync_error" if isinstance(value, str) else "last_indexed_document_count"
    sound = update("b", 1, last_sync_error="x")
    rejected, applied = await store.apply([update("a", 1, **{field: value}), sound])
    assert (rejected.name, applied.name) == ("rejected", "applied")
    assert says in rejected.detail
    assert (await store.get("a")).fields == {}


async def test_a_poisonous_batch_costs_a_bisection(store: ConnectorStore, path: Path) -> None:
    batch = updates(64)
    await store.add([u.connector_id for u in batch])
    batch[40] = update("40", 1, last_sync_error="\ud800")
    before = commits(path)
    outcomes = await store.apply(batch)
    assert [n for n, o in enumerate(outcomes) if o.name == "rejected"] == [40]
    assert commits(path) == before + 6  # halves without it: of 64, of 32, of 16, of 8, of 4, of 2


async def test_a_bisection_that_is_cut_off_goes_on_where_it_was(store: Any) -> None:
    batch = [update("a", 1, last_sync_error="x"), update("b", 1, last_sync_error="\ud800")]
    await store.add(["a", "b"])
    merge, sizes = store._driver.merge, []

    async def cut_off(updates: list[Update]) -> Any:
        sizes.append(len(updates))
        if len(sizes) == 3:  # the whole, its first half, and now the second
            raise sqlite3.OperationalError("disk I/O error")
        return await merge(updates)

    store._driver.merge = cut_off
    with pytest.raises(RuntimeError, match="disk I/O error"):
        await store.apply(batch)
    assert sizes == [2, 1, 1]
    assert [outcome.name for outcome in await store.apply(batch)] == ["duplicate", "rejected"]
    assert (await store.get("a")).fields == {"last_sync_error": "x"}


async def test_a_full_disk_is_waited_for(store: Any) -> None:
    await store.add(["a"])
    on_connecting(store, lambda opened: opened.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(TransientError, match="disk is full: free some space"):
        await store.apply([update("a", 1, last_sync_error="x" * 1_000_000)])
    assert (await store.get("a")).fields == {}


async def test_a_lost_table_stops_the_worker(store: ConnectorStore, path: Path) -> None:
    with sqlite_shell(path) as shell:
        shell.execute("DROP TABLE connectors")
    with pytest.raises(MisconfiguredError, match="no such table: connectors"):
        await store.apply([update("a", 1, last_sync_error="x")])


# The schema


def test_the_migrated_schema_is_the_one_in_the_code(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/store.db")
    with engine.begin() as connection:
        upgrade.upgrade(connection)
        context = MigrationContext.configure(
            connection, opts={"version_table": migrations.VERSION_TABLE}
        )
        difference = compare_metadata(context, CONNECTORS.metadata)
    engine.dispose()
    assert difference == []


def test_the_newest_step_is_the_one_that_opening_asks_for() -> None:
    steps = ScriptDirectory(str(Path(upgrade.__file__).parent))
    assert steps.get_heads() == [migrations.HEAD]


async def test_stamps_that_named_their_fields_are_understood_after_the_migration(
    path: Path,
) -> None:
    await asyncio.to_thread(store_with_names, path)
    async with open_store(f"sqlite:///{path}") as store:
        held = await store.get("a")
        assert held == Connector(id="a", fields={"last_sync_status": "error"})
        assert await store.get("b") == Connector(id="b", fields={})
        outcomes = await store.apply(
            [
                update("a", 4, last_sync_status="pending"),  # the status is later
                update("a", 6, last_synced="2026-01-01T00:00:00.000000Z"),  # a reset is later
                update("a", 6, last_sync_error="x"),
                update("b", 1, last_sync_status="pending"),
            ]
        )
    assert [outcome.name for outcome in outcomes] == [
        "superseded",
        "superseded",
        "applied",
        "applied",
    ]
    written = await asyncio.to_thread(stamps_of, path, "a")
    assert [group[4:] for group in json.loads(written)] == [[256 | 1024, 1024], [512], [64]]


def store_with_names(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        upgrade.upgrade(connection, to="last_sync_0002")
        connection.exec_driver_sql(
            "INSERT INTO connectors (id, last_sync_status, stamps) VALUES (?, ?, ?)",
            [("a", "error", NAMED), ("b", None, '{"stamps":[]}')],
        )
    engine.dispose()


def stamps_of(path: Path, connector_id: str) -> str:
    with sqlite_shell(path) as shell:
        found = shell.execute("SELECT stamps FROM connectors WHERE id = ?", [connector_id])
        return str(found.fetchone()[0])


# A status that an event set, a cursor that a reset took though its stamp is later, and a reset.
NAMED = json.dumps(
    {
        "stamps": [
            [5, 4, "e", "d", ["last_sync_status", "sync_cursor"]],
            [7, 5, "", "", ["last_synced"]],
        ],
        "absent": ["sync_cursor"],
    }
)


async def test_tables_of_another_program_that_came_meanwhile_are_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_wal = sqlite_database._use_wal

    def beaten(connection: sqlite3.Connection, url: str) -> None:
        use_wal(connection, url)
        with sqlite_shell(path) as shell:
            shell.execute("CREATE TABLE theirs (id)")

    monkeypatch.setattr(sqlite_database, "_use_wal", beaten)
    assert "another program's tables (theirs)" in await refusal(f"sqlite:///{path}")
    with sqlite_shell(path) as shell:
        assert shell.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


async def test_a_migration_that_fails_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = command.upgrade

    def fail(*args: Any) -> None:
        run(*args)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", fail)
        with pytest.raises(ZeroDivisionError):
            async with open_store(f"sqlite:///{path}"):
                pass
    with sqlite_shell(path) as shell:
        assert shell.execute("SELECT * FROM sqlite_master").fetchall() == []
    async with open_store(f"sqlite:///{path}") as store:
        assert await store.add(["a"]) == [True]


TEN_PROCESSES = """
import asyncio, os, sys
from worker.stores import open_store, sqlite
from worker.stores.migrations import upgrade  # before the race, for it takes longest

async def main(name):
    async with open_store(sys.argv[1]) as store:
        await store.add(["a", name])
        os.write(1, f"{store.store_id}\\n".encode())

gate, opener = os.pipe()
for number in range(10):
    if os.fork() == 0:
        os.close(opener)
        os.read(gate, 1)  # until the parent opens the gate for all
        asyncio.run(main(str(number)))
        os._exit(0)
os.close(opener)
sys.exit(max(os.wait()[1] for _ in range(10)))
"""


async def test_ten_tasks_may_open_a_fresh_file_at_once(path: Path) -> None:
    async def opening(number: int) -> str:
        async with open_store(f"sqlite:///{path.parent}/{number % 2}.db") as store:
            return store.store_id

    assert len(set(await asyncio.gather(*(opening(n) for n in range(10))))) == 2


def test_ten_processes_may_open_a_fresh_file_at_once(path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TEN_PROCESSES, f"sqlite:///{path}"],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    store_ids = ended.stdout.split()
    assert (len(store_ids), len(set(store_ids))) == (10, 1)
    with sqlite_shell(path) as shell:
        assert shell.execute("SELECT count(*) FROM connectors").fetchone() == (11,)
