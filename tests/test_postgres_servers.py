"""The servers of the other tests, which have to do what those rely on."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from tests import postgres
from tests.brokers import HOST
from tests.conftest import ENVIRON
from tests.eventually import eventually
from tests.postgres import (
    Databases,
    NoPostgresError,
    PostgresFactory,
    PostgresServer,
    execute,
    find_postgres,
)

BUSY = "SELECT count(*) FROM generate_series(1, 1000000000000)"  # looks at no one until it is done
LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
FROZEN_FOR = 0.3  # seconds
ABANDON = """
import os, signal
from tests.postgres import find_postgres

server = find_postgres(os.environ, lambda line: None)()
server.start()
print(server.url, flush=True)
if input() == "pause":
    server.pause()
os.kill(os.getpid(), signal.SIGKILL)
"""

MakePostgres = Callable[..., PostgresServer]


@pytest.fixture
def server(make_postgres: MakePostgres) -> PostgresServer:
    return make_postgres()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        yield connection
    finally:
        connection.terminate()


async def ask(url: str, query: str) -> object:
    async with connected(url) as connection:
        return await connection.fetchval(query)


async def refuses(url: str) -> bool:
    """Whether nobody listens, rather than listens and hangs up."""
    try:
        await ask(url, "SELECT 1")
    except ConnectionRefusedError:
        return True
    except LOST:
        pass
    return False


def unused() -> int:
    """Bind a port, and give it back: nobody listens there."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Give the environment of a machine without an engine and without PostgreSQL."""
    monkeypatch.setattr(postgres, "FOLDERS", f"{tmp_path}/*/bin")
    return {"PATH": str(tmp_path), "DOCKER_HOST": f"tcp://{HOST}:{unused()}"}


def silent(line: str) -> None:
    pass


async def test_a_server_lets_in_only_who_has_the_password(server: PostgresServer) -> None:
    assert await ask(server.url, "SELECT current_user") == "postgres"
    wrong = server.url.replace("postgres:", "postgres:not-", 1)
    assert wrong != server.url
    with pytest.raises(asyncpg.InvalidPasswordError):
        await ask(wrong, "SELECT 1")


async def test_a_server_has_the_configuration_it_was_given(make_postgres: MakePostgres) -> None:
    server = make_postgres(configuration={"max_connections": "20"})
    assert await ask(server.url, "SHOW max_connections") == "20"


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_server_keeps_its_address_and_its_data(server: PostgresServer, how: str) -> None:
    url = server.url
    execute(url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)", "CHECKPOINT")
    await asyncio.to_thread(getattr(server, how))
    with pytest.raises(ConnectionRefusedError):
        await ask(url, "SELECT 1")
    await asyncio.to_thread(server.start)
    assert server.url == url
    assert await ask(url, "SELECT n FROM kept") == 7


async def test_a_restart_ends_connections_and_lets_in_new_ones(server: PostgresServer) -> None:
    async with connected(server.url) as connection:
        await asyncio.to_thread(server.restart)
        with pytest.raises(LOST):
            await connection.fetchval("SELECT 1")
    assert await ask(server.url, "SELECT 1") == 1


async def test_a_kill_ends_a_backend_that_is_busy(server: PostgresServer) -> None:
    async with connected(server.url) as connection:
        busy = asyncio.create_task(connection.execute(BUSY))
        active = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT count(*) FROM gen%'"
        )
        await eventually(lambda: ask(server.url, active))
        await asyncio.to_thread(server.kill)
        async with asyncio.timeout(5):
            with pytest.raises(LOST):
                await busy
    await asyncio.to_thread(server.start)
    assert await ask(server.url, "SELECT 1") == 1


async def test_a_frozen_server_answers_only_when_it_is_resumed(server: PostgresServer) -> None:
    async with connected(server.url) as connection:
        await asyncio.to_thread(server.pause)
        try:
            old = asyncio.create_task(connection.fetchval("SELECT 1"))
            new = asyncio.create_task(ask(server.url, "SELECT 2"))
            answered, _ = await asyncio.wait({old, new}, timeout=FROZEN_FOR)
            assert not answered
        finally:
            await asyncio.to_thread(server.resume)
        async with asyncio.timeout(10):
            assert await old == 1
            assert await new == 2


async def test_a_frozen_server_can_be_killed(server: PostgresServer) -> None:
    async with connected(server.url) as connection:
        await asyncio.to_thread(server.pause)
        await asyncio.to_thread(server.kill)
        async with asyncio.timeout(5):
            with pytest.raises(LOST):
                await connection.fetchval("SELECT 1")
    await asyncio.to_thread(server.start)
    assert await ask(server.url, "SELECT 1") == 1


async def test_a_frozen_server_can_be_closed(postgres_servers: PostgresFactory) -> None:
    with postgres_servers() as server:
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.pause)
    assert await refuses(server.url)


@pytest.mark.parametrize("state", ["awake", "pause"])
async def test_a_server_ends_with_its_test_run(pytestconfig: pytest.Config, state: str) -> None:
    """Even when it is frozen, and does not notice by itself."""
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ABANDON),
        env=pytestconfig.stash[ENVIRON],
        cwd=Path(__file__).parents[1],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert run.stdin
    assert run.stdout
    url = (await run.stdout.readline()).decode().strip()
    async with connected(url) as connection:
        run.stdin.write(f"{state}\n".encode())
        assert await run.wait() == -signal.SIGKILL
        await eventually(connection.is_closed)
    await eventually(lambda: refuses(url))


async def test_a_server_that_does_not_start_says_why(make_postgres: MakePostgres) -> None:
    with pytest.raises(NoPostgresError, match="no_such_setting"):
        make_postgres(configuration={"no_such_setting": "1"})


async def test_what_a_template_has_stands_in_each_new_database(server: PostgresServer) -> None:
    databases = Databases(server.url)
    databases.make_template("template_x", lambda url: execute(url, "CREATE TABLE made (n int)"))
    first, second = databases.create("template_x"), databases.create("template_x")
    execute(first, "INSERT INTO made VALUES (1)")
    assert await ask(first, "SELECT count(*) FROM made") == 1
    assert await ask(second, "SELECT count(*) FROM made") == 0


async def test_a_database_is_dropped_under_its_clients(server: PostgresServer) -> None:
    databases = Databases(server.url)
    url = databases.create()
    async with connected(url):
        databases.drop(url)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await ask(url, "SELECT 1")


def test_without_any_server_all_ways_to_one_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoPostgresError) as caught:
        find_postgres(nowhere(tmp_path, monkeypatch), silent)
    given = "LAST_SYNC_TEST_POSTGRES to postgresql://user:password@host:port/postgres"
    assert given in str(caught.value)
    assert "start a Docker engine" in str(caught.value)
    assert "Debian's package postgresql" in str(caught.value)


@pytest.mark.parametrize(("only", "other"), [("docker", "local:"), ("local", "docker:")])
def test_a_way_that_is_asked_for_is_the_only_one_tried(
    only: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = nowhere(tmp_path, monkeypatch) | {"LAST_SYNC_TEST_POSTGRES_SERVER": only}
    with pytest.raises(NoPostgresError) as caught:
        find_postgres(environ, silent)
    assert f"{only}:" in str(caught.value)
    assert other not in str(caught.value)


def test_an_unknown_way_is_named_with_those_there_are() -> None:
    with pytest.raises(NoPostgresError, match="'podman'; it must be docker or local"):
        find_postgres({"LAST_SYNC_TEST_POSTGRES_SERVER": "podman"}, silent)
