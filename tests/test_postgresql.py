"""What is PostgreSQL's own: its schema, its locks, its errors, its network."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import trustme
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from schemas.updates import Update
from tests.contract.conftest import Pin
from tests.eventually import eventually, takes_less
from tests.postgres import PostgresServer
from tests.programs import Cli
from tests.proxy import Proxy
from worker import errors, settings
from worker.app import checks
from worker.errors import MisconfiguredError, TransientError
from worker.stores import (
    ConnectorStore,
    open_store,
    postgresql_database,
    postgresql_driver,
    sql_merging,
)
from worker.stores.migrations import HEAD, VERSION_TABLE
from worker.stores.sql_merging import RejectedError
from worker.stores.tables import CONNECTORS

MakePostgres = Callable[..., PostgresServer]


def update(connector_id: str, at: int, **fields: Any) -> Update:
    return Update(connector_id=connector_id, fields=fields, at=at, rank=1, event_id=f"event {at}")


@pytest.fixture
async def store(database: str) -> AsyncIterator[ConnectorStore]:
    async with open_store(database) as store:
        yield store


@pytest.fixture
def pin() -> Pin:
    return Pin()


@pytest.fixture
async def psql(database: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect as another program would."""
    async with connected(database) as connection:
        yield connection


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        connection.terminate()


async def refusal(url: str) -> str:
    with pytest.raises(MisconfiguredError) as caught:
        async with open_store(url):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def part(url: str, **parts: str) -> str:
    """The URL with another user, password, host or database."""
    user, _, rest = url.removeprefix("postgresql://").partition(":")
    password, _, rest = rest.rpartition("@")[0], None, rest.rpartition("@")[2]
    host, _, database = rest.partition("/")
    found = {"user": user, "password": password, "host": host, "database": database, **parts}
    return "postgresql://{user}:{password}@{host}/{database}".format(**found)


def address(url: str) -> str:
    return url.rpartition("@")[2].partition("/")[0]


# The schema


async def test_the_migrated_schema_is_the_one_in_the_code(database: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        options = {"version_table": VERSION_TABLE, "compare_server_default": True}
        return list(
            compare_metadata(
                MigrationContext.configure(connection, opts=options), CONNECTORS.metadata
            )
        )

    engine = create_async_engine(database.replace("postgresql:", "postgresql+asyncpg:"))
    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()
    assert [kind for kind in found if "comment" not in str(kind)] == []


async def test_an_operator_finds_every_table_and_column_explained(
    psql: asyncpg.Connection,
) -> None:
    undocumented = await psql.fetch(
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relname IN ('connectors', 'connector_store') AND a.attnum >= 0"
        " AND col_description(c.oid, a.attnum) IS NULL AND NOT a.attisdropped"
    )
    assert undocumented == []
    for table in ("connectors", "connector_store"):
        assert await psql.fetchval("SELECT obj_description($1::regclass)", table)


async def test_an_operator_can_ask_for_the_stalest_connectors_in_sql(
    store: ConnectorStore, psql: asyncpg.Connection
) -> None:
    await store.add(["old", "new", "never"])
    await store.apply(
        [
            update("new", 1, last_synced="2024-11-09T15:13:08.231000Z"),
            update("old", 1, last_synced="2023-11-09T15:13:08.231000Z"),
        ]
    )
    rows = await psql.fetch(
        "SELECT id, now() - last_synced > '1 day' AS stale FROM connectors"
        " WHERE deleted_at IS NULL ORDER BY last_synced NULLS FIRST"
    )
    assert [row["id"] for row in rows] == ["never", "old", "new"]
    assert [row["stale"] for row in rows] == [None, True, True]


async def statistics(psql: asyncpg.Connection, column: str, rows: int) -> asyncpg.Record:
    """What PostgreSQL counted, once it counted so many: a server process tells when it ends."""

    async def counted() -> asyncpg.Record | None:
        found = await psql.fetchrow(
            "SELECT * FROM pg_stat_user_tables WHERE relname = 'connectors'"
        )
        return found if found[column] == rows else None

    return await eventually(counted)


async def test_rows_are_updated_in_place(database: str, psql: asyncpg.Connection) -> None:
    """No index holds what events change, and a page has room for a row's next version (HOT)."""
    ids = [f"c-{n}" for n in range(1_000)]
    fields = {"last_sync_error": "e" * 100, "last_sync_status": "error"}
    async with open_store(database) as store:
        await store.add(ids)
        for at in range(10):
            for start in range(0, len(ids), 250):
                await store.apply([update(id_, at, **fields) for id_ in ids[start : start + 250]])
    found = await statistics(psql, "n_tup_upd", 10 * len(ids))
    assert found["n_tup_hot_upd"] > 0.7 * found["n_tup_upd"]


async def test_no_table_is_read_whole_for_one_update(
    database: str, psql: asyncpg.Connection
) -> None:
    async with open_store(database) as store:
        await store.add([f"c-{n}" for n in range(10_000)])
    await psql.execute("ANALYZE connectors")
    before = await statistics(psql, "n_tup_ins", 10_000)
    async with open_store(database) as store:
        for at in range(10):
            await store.apply([update("c-7", at, last_sync_status="completed")])
    after = await statistics(psql, "n_tup_upd", 10)
    assert after["seq_scan"] == before["seq_scan"]


async def test_any_time_of_the_contract_comes_back_in_any_time_zone(database: str) -> None:
    times = {
        "last_synced": "0001-01-01T00:00:00.000000Z",
        "last_sync_scheduled_at": "9999-12-31T23:59:59.999999Z",
        "last_access_control_sync_scheduled_at": "2024-03-31T01:30:00.000001Z",
    }
    async with open_store(f"{database}?timezone=Asia/Kathmandu&datestyle=German") as store:
        await store.add(["a"])
        await store.apply([update("a", 1, **times)])
        connector = await store.get("a")
    assert connector is not None
    assert connector.fields == times


async def test_ten_upgrades_at_once_make_one_schema(empty_database: str, cli: Cli) -> None:
    command = ("store", "upgrade", "--store", empty_database)
    ended = await asyncio.gather(*(cli(*command) for _ in range(10)))
    assert {(one.exit_code, one.stderr) for one in ended} == {(0, "")}
    described = {one.stdout for one in ended}
    assert len(described) == 1
    assert HEAD in described.pop()


async def test_an_upgrade_may_be_repeated(database: str, store: ConnectorStore, cli: Cli) -> None:
    await store.add(["a"])
    done = await cli("store", "upgrade", "--json", env={"LAST_SYNC_STORE_URL": database})
    assert done.exit_code == 0
    assert store.store_id in done.stdout
    assert await store.get("a") is not None


async def test_a_missing_schema_is_refused_with_the_command(empty_database: str, cli: Cli) -> None:
    done = await cli("run", "--store", empty_database)
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert "has no schema of ours: run `last-sync store upgrade`" in line


async def test_an_old_schema_is_refused_with_the_command(
    database: str, psql: asyncpg.Connection, cli: Cli
) -> None:
    await psql.execute("UPDATE last_sync_schema SET version_num = 'last_sync_0000'")
    done = await cli("run", "--store", database)
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert f"has the schema last_sync_0000, and this release needs {HEAD}" in line
    assert "run `last-sync store upgrade`" in line


async def test_a_newer_schema_is_refused_and_left_alone(
    database: str, psql: asyncpg.Connection, cli: Cli
) -> None:
    await psql.execute("UPDATE last_sync_schema SET version_num = 'last_sync_9999'")
    for command in ("run", "store upgrade"):
        done = await cli(*command.split(), "--store", database)
        assert done.exit_code == 3
        (line,) = done.stderr.splitlines()
        assert "install the release that wrote it" in line
    assert await psql.fetchval("SELECT version_num FROM last_sync_schema") == "last_sync_9999"


async def test_another_programs_tables_are_left_alone(empty_database: str, cli: Cli) -> None:
    async with connected(empty_database) as connection:
        await connection.execute("CREATE TABLE connectors (url text)")
        done = await cli("store", "upgrade", "--store", empty_database)
        assert done.exit_code == 3
        assert "the tables of another program are there" in done.stderr
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert await connection.fetchval(tables) == 1


# Who may come in


async def test_what_is_wrong_with_a_url_is_named(database: str, cli: Cli) -> None:
    wrong = {
        part(database, password="wrong"): "check user, password",
        part(database, database="nowhere"): 'database "nowhere" does not exist; make the database',
        f"{database}?nonsense=1": 'unrecognized configuration parameter "nonsense"; the URL has',
        f"{database}?sslmode=perhaps": "check the URL",
        part(database, host="127.0.0.1:port"): "check the URL",
    }
    for url, says in wrong.items():
        done = await cli("connectors", "list", "--store", url)
        assert done.exit_code == 3
        (line,) = done.stderr.splitlines()
        assert says in line
        assert "wrong" not in line


async def test_missing_rights_are_named_with_the_grant(
    database: str, psql: asyncpg.Connection
) -> None:
    await psql.execute("DROP ROLE IF EXISTS last_sync_reader")
    await psql.execute("CREATE ROLE last_sync_reader LOGIN PASSWORD 'reads'")
    await psql.execute(f"GRANT SELECT ON connectors, connector_store, {VERSION_TABLE}"
                       " TO last_sync_reader")  # fmt: skip
    try:
        message = await refusal(part(database, user="last_sync_reader", password="reads"))
        assert "GRANT SELECT, INSERT, UPDATE ON connectors TO last_sync_reader" in message
    finally:
        await psql.execute("DROP OWNED BY last_sync_reader; DROP ROLE last_sync_reader")


async def test_a_connection_is_closed_where_it_cannot_be_set_up(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database) as store:
        await store.add(["a"])
        monkeypatch.setattr(postgresql_database, "SESSION", "SET no_such_parameter = 1")
        with pytest.raises(Exception, match="no_such_parameter"):  # and a warning is an error
            await store.apply([update("a", 1, last_sync_error="x")])


async def test_a_server_that_is_away_is_transient(database: str) -> None:
    with pytest.raises(TransientError, match="Connect call failed"):
        async with open_store(part(database, host="127.0.0.1:9")):
            pass


@pytest.fixture
def certified(tmp_path: Path) -> tuple[str, tuple[str, str]]:
    """Give the CA's file, and certificate and key of a server."""
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1", "localhost")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "server.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    files = (str(tmp_path / "server.pem"), str(tmp_path / "server.key"))
    return str(tmp_path / "ca.pem"), files


async def test_the_tls_parameters_of_the_url_work(
    make_postgres: MakePostgres, certified: tuple[str, tuple[str, str]], tmp_path: Path, cli: Cli
) -> None:
    ca, server_files = certified
    url = make_postgres(tls=server_files).url
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    verified = f"{url}?sslmode=verify-full&sslrootcert={ca}"
    done = await cli("store", "upgrade", "--store", verified)
    assert done.exit_code == 0, done.stderr
    async with connected(verified) as connection:
        assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid=pg_backend_pid()")
    stranger = f"{url}?sslmode=verify-full&sslrootcert={tmp_path}/stranger.pem"
    done = await cli("store", "upgrade", "--store", stranger)
    assert done.exit_code == 3
    assert "certificate verify failed" in done.stderr
    assert "check sslrootcert and host" in done.stderr


# Writers in each other's way


async def test_writers_of_the_same_connectors_in_opposite_order_all_succeed(
    store: ConnectorStore, database: str
) -> None:
    ids = [f"{number:02}" for number in range(40)]
    await store.add(ids)

    async def write(writer: ConnectorStore, names: list[str]) -> None:
        for at in range(1, 21):
            await writer.apply([update(id_, at, last_indexed_document_count=at) for id_ in names])

    async with open_store(database) as other:
        await asyncio.gather(write(store, ids), write(other, ids[::-1]))
    connector = await store.get("39")
    assert connector is not None
    assert connector.fields == {"last_indexed_document_count": 20}


async def test_a_deadlock_with_another_program_is_transient(
    store: ConnectorStore, psql: asyncpg.Connection
) -> None:
    await store.add(["a", "b"])
    batch = [update(id_, 1, last_sync_error="x") for id_ in "ab"]
    await psql.execute("BEGIN; SELECT 1 FROM connectors WHERE id = 'b' FOR UPDATE")
    applying = asyncio.create_task(store.apply(batch))
    await eventually(lambda: waits_for_a_lock(psql))
    await psql.execute("SET deadlock_timeout = '1min'")  # let the other one be the victim
    await psql.execute("SELECT 1 FROM connectors WHERE id = 'a' FOR UPDATE")
    with pytest.raises(TransientError, match="another writer was in the way"):
        await applying
    await psql.execute("ROLLBACK")
    assert [outcome.name for outcome in await store.apply(batch)] == ["applied", "applied"]


async def waits_for_a_lock(psql: asyncpg.Connection) -> bool:
    await psql.execute("SELECT pg_stat_clear_snapshot()")  # a transaction would see it once
    found = await psql.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return bool(found)


async def test_rows_that_stay_locked_are_transient_after_a_while(
    database: str, psql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_database, "SESSION", "SET lock_timeout = '100ms'")
    async with open_store(database) as store:
        await store.add(["a"])
        await psql.execute("BEGIN; SELECT 1 FROM connectors FOR UPDATE")
        with pytest.raises(TransientError, match="another writer holds the rows"):
            await store.apply([update("a", 1, last_sync_error="x")])


async def test_a_writer_that_stands_still_is_in_nobodys_way_and_merges_into_what_was_written(
    store: ConnectorStore, database: str, psql: asyncpg.Connection, pin: Pin
) -> None:
    await store.add(["a", "b", "c"])
    batch = [
        update("a", 1, last_sync_error="old"),
        update("b", 1, last_sync_error="old", last_sync_status="error"),
        update("c", 1, last_sync_error="old"),
    ]
    async with open_store(database) as standing:
        with pin.on(standing):
            applying = asyncio.create_task(standing.apply(batch))
            await pin.reached.wait()
            await store.apply([update(id_, 2, last_sync_error="new") for id_ in "ab"])
            before = await psql.fetchval("SELECT xmin FROM connectors WHERE id = 'a'")
            pin.release.set()
            outcomes = await applying
    assert [outcome.name for outcome in outcomes] == ["superseded", "applied", "applied"]
    assert [(await fields_of(store, id_)) for id_ in "abc"] == [
        {"last_sync_error": "new"},
        {"last_sync_error": "new", "last_sync_status": "error"},
        {"last_sync_error": "old"},
    ]
    assert await psql.fetchval("SELECT xmin FROM connectors WHERE id = 'a'") == before


async def test_a_writer_that_stands_still_with_some_rows_written_gives_its_locks_back(
    database: str, store: ConnectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add(["a", "b"])
    monkeypatch.setattr(postgresql_driver, "PART", 1)
    monkeypatch.setattr(
        postgresql_database, "SESSION", "SET idle_in_transaction_session_timeout = '200ms'"
    )
    reached, release = asyncio.Event(), asyncio.Event()
    load = postgresql_driver.PostgresqlDriver._load

    async def standing(connection: asyncpg.Connection, ids: list[str]) -> Any:
        if ids == ["b"]:
            reached.set()
            await release.wait()
        return await load(connection, ids)

    batch = [update(id_, 1, last_sync_error="old") for id_ in "ab"]
    async with open_store(database) as frozen:
        with monkeypatch.context() as patched:
            patched.setattr(frozen._driver, "_load", standing)  # type: ignore[attr-defined]
            applying = asyncio.create_task(frozen.apply(batch))
            await reached.wait()
        await store.apply([update(id_, 2, last_sync_error="new") for id_ in "ab"])
        release.set()
        with pytest.raises(TransientError):
            await applying
        assert await applied_again(frozen, batch) == ["superseded", "superseded"]
    assert await fields_of(store, "a") == {"last_sync_error": "new"}


async def test_a_batch_of_few_connectors_is_two_statements(
    store: ConnectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add(["a", "b"])
    asked = []
    for name in ("fetch", "execute"):
        method = getattr(asyncpg.Connection, name)

        async def noted(*of: Any, method: Any = method, **more: Any) -> Any:
            asked.append(of[1].split()[0])
            return await method(*of, **more)

        monkeypatch.setattr(asyncpg.Connection, name, noted)
    await store.apply([update("a", 0, last_sync_error="x")])  # which connects
    asked.clear()
    await store.apply([update(id_, 1, last_sync_error="x") for id_ in "ab"])
    assert asked == ["SELECT", "UPDATE"]


async def fields_of(store: ConnectorStore, connector_id: str) -> Any:
    connector = await store.get(connector_id)
    assert connector is not None
    return connector.fields


# Errors


def known_errors() -> Iterator[Any]:
    found: Any
    for _, found in inspect.getmembers(asyncpg.exceptions, inspect.isclass):
        if issubclass(found, asyncpg.PostgresError) and found.sqlstate:
            yield found


@pytest.mark.parametrize("kind", list(known_errors()), ids=lambda kind: kind.__name__)
def test_only_refused_content_is_rejected_and_what_nobody_knows_stops_the_worker(
    kind: Any,
) -> None:
    found = postgresql_database._ours("postgresql://h/db", kind("said"))
    assert "said" in str(found)
    refused = kind.sqlstate[:2] in {"22", "23"}
    assert isinstance(found, RejectedError) == refused
    assert refused or isinstance(found, TransientError | MisconfiguredError | RuntimeError)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("40001", TransientError),
        ("40P01", TransientError),
        ("25006", TransientError),
        ("53300", TransientError),
        ("57P01", TransientError),
        ("57P03", TransientError),
        ("08006", TransientError),
        ("57014", TransientError),
        ("28P01", MisconfiguredError),
        ("28000", MisconfiguredError),
        ("3D000", MisconfiguredError),
        ("42P01", MisconfiguredError),
        ("42501", MisconfiguredError),
        ("53100", TransientError),
        ("22021", RejectedError),
        ("23514", RejectedError),
        ("XX000", RuntimeError),
        ("25P02", RuntimeError),
    ],
)
def test_an_error_is_told_by_its_sqlstate(state: str, expected: type[Exception]) -> None:
    error = asyncpg.PostgresError("said")
    error.sqlstate = state
    assert type(postgresql_database._ours("postgresql://h/db", error)) is expected


async def test_a_lost_table_stops_the_worker(
    store: ConnectorStore, psql: asyncpg.Connection
) -> None:
    await psql.execute("DROP TABLE connectors")
    with pytest.raises(MisconfiguredError, match="run `last-sync store upgrade`"):
        await store.apply([update("a", 1, last_sync_error="x")])


async def test_an_error_names_the_store_without_its_password(database: str) -> None:
    async with open_store(database) as store:
        await store.add(["a"])
        async with connected(database) as connection:
            await connection.execute("DROP TABLE connectors")
        with pytest.raises(errors.LastSyncError) as caught:
            await store.get("a")
    assert address(database) in str(caught.value)
    assert database.rpartition("@")[0].rpartition(":")[2] not in str(caught.value)


# The server and the network


@pytest.fixture
async def own(make_postgres: MakePostgres, cli: Cli) -> PostgresServer:
    """Work on a server of the test's own, which it may stop."""
    server = make_postgres()
    done = await cli("store", "upgrade", "--store", server.url)
    assert done.exit_code == 0, done.stderr
    return server


async def applied_again(store: ConnectorStore, batch: list[Update]) -> list[str]:
    """The outcomes of the first attempt that gets through."""
    found: list[str] = []

    async def gets_through() -> bool:
        try:
            found[:] = [outcome.name for outcome in await store.apply(batch)]
        except TransientError:
            return False
        return True

    await eventually(gets_through, 10)
    return found


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_server_that_comes_back_is_used_again(own: PostgresServer, how: str) -> None:
    batch = [update("a", 1, last_sync_error="x")]
    async with open_store(own.url) as store:
        await store.add(["a"])
        await asyncio.to_thread(getattr(own, how))
        for _ in range(3):
            with pytest.raises(TransientError):
                await store.apply(batch)
        await asyncio.to_thread(own.start)
        assert await applied_again(store, batch) == ["applied"]


async def test_a_frozen_server_is_given_up_and_used_again(
    own: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_merging, "TRANSACTION_TIMEOUT", 0.5)
    batch = [update("a", 1, last_sync_error="x")]
    async with open_store(own.url) as store:
        await store.add(["a"])
        own.pause()
        try:
            with pytest.raises(TransientError, match="did not answer in time"):
                await store.apply(batch)
        finally:
            own.resume()
        assert await applied_again(store, batch) in (["applied"], ["duplicate"])


@pytest.mark.parametrize("call", ["get", "add", None])
async def test_a_store_on_a_frozen_server_can_be_left(
    own: PostgresServer, call: str | None
) -> None:
    try:
        async with open_store(own.url) as store:
            await store.add(["a"])
            await store.apply([update("a", 1, last_sync_error="x")])
            own.pause()
            if call is not None:
                calling = asyncio.create_task(getattr(store, call)("a"))
                await asyncio.wait({calling}, timeout=0.1)
                calling.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await calling
            left = time.monotonic()
        assert time.monotonic() - left < 2 * postgresql_database.CLOSE_TIMEOUT + 1
    finally:
        own.resume()


@pytest.mark.parametrize("mode", ["reset", "black_hole"])
async def test_a_connection_cut_in_mid_transaction_stores_nothing(
    database: str,
    pin: Pin,
    mode: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sql_merging, "TRANSACTION_TIMEOUT", 0.5)
    batch = [update(id_, 1, last_sync_error="x") for id_ in "ab"]
    proxy = Proxy(address(database))
    async with proxy, open_store(part(database, host=proxy.address)) as store:
        await store.add(["a", "b"])
        with pin.on(store):
            applying = asyncio.create_task(store.apply(batch))
            await pin.reached.wait()
            await proxy.switch(mode)
            pin.release.set()
            with pytest.raises(TransientError):
                await applying
        async with open_store(database) as other:
            assert [o.name for o in await other.preview(batch)] == ["applied", "applied"]
        await proxy.switch("reset")
        await proxy.switch("pass")
        assert await applied_again(store, batch) == ["applied", "applied"]


async def test_a_look_after_a_restart_finds_the_store_well(own: PostgresServer) -> None:
    async with open_store(own.url) as store:
        await store.describe()
        await asyncio.to_thread(own.restart)
        assert "PostgreSQL" in await store.describe()


async def test_a_standby_is_transient_and_its_connection_is_given_up(
    own: PostgresServer,
) -> None:
    batch = [update("a", 1, last_sync_error="x")]
    async with open_store(own.url) as store, connected(own.url) as admin:
        await store.add(["a"])
        others = await backends(admin)
        await store.apply([update("a", 0, last_sync_error="x")])
        before = await backends(admin) - others
        await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await admin.execute("SELECT pg_reload_conf()")

        async def is_read_only() -> bool:
            return bool(await admin.fetchval("SHOW default_transaction_read_only") == "on")

        await eventually(is_read_only)
        with pytest.raises(TransientError, match="standby"):
            await store.apply(batch)
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await admin.execute("SELECT pg_reload_conf()")
        assert await applied_again(store, batch) == ["applied"]
        assert before
        assert not before & await backends(admin)


async def backends(admin: asyncpg.Connection) -> set[int]:
    """The servers' processes for everyone else."""
    rows = await admin.fetch(
        "SELECT pid FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return {row["pid"] for row in rows}


async def test_check_says_what_is_wrong_within_five_seconds(own: PostgresServer, cli: Cli) -> None:
    good = await cli("check", "--store", own.url)
    assert "ok  store: PostgreSQL " in good.stdout
    assert f"schema {HEAD}, store " in good.stdout
    own.pause()
    try:
        bad = await cli("check", "--store", own.url)
        given = settings.load({"store_url": own.url})
        await takes_less(4.4, lambda: checks.check(given))  # and half a second until it begins
    finally:
        own.resume()
    assert bad.exit_code == 3
    assert "BAD store: store postgresql://127.0.0.1" in bad.stdout
    assert "did not answer in time" in bad.stdout
