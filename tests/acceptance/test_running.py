"""Backups, restores and disasters, by the very commands of docs/running.md."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests import kafka_tools
from tests.acceptance.conftest import Stack, event, record
from tests.acceptance.test_dlq import listed
from tests.acceptance.test_operations import shell
from tests.brokers import free_port
from tests.postgres import PostgresFactory, execute, find_binaries, find_postgres
from tests.programs import LAST_SYNC, Spawned

PAGE = Path(__file__).parents[2] / "docs" / "running.md"
SECTIONS = {
    section.partition("\n")[0]: re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    for section in re.split(r"^##+ ", PAGE.read_text(), flags=re.MULTILINE)
}
AGAIN = "Reading again from before the backup"
CONNECTORS = ("hr", "crm", "wiki")

Rows = list[Any]  # asyncpg's records


@pytest.fixture(autouse=True)
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Kafka's scripts where the page's commands find them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    kafka_tools.install(folder, os.environ)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.fixture(scope="session")
def own_postgres() -> PostgresFactory:
    """Make servers of the local binaries: `pg_dump` refuses one that is newer than itself."""
    return find_postgres({**os.environ, "LAST_SYNC_TEST_POSTGRES_SERVER": "local"}, print)


@pytest.fixture
def database_url(own_postgres: PostgresFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("PATH", f"{find_binaries(os.environ)}:{os.environ['PATH']}")
    with own_postgres() as server:
        server.start()
        subprocess.run([LAST_SYNC, "store", "upgrade", "--store", server.url], check=True)
        yield server.url


async def run(stack: Stack, block: str, **more: str) -> None:
    for command in block.splitlines():
        code, said = await shell(stack, command, {"STORE": str(stack.database), **more})
        assert code == 0, f"{command}\n{said}"


async def publish(stack: Stack, *numbers: int) -> None:
    records = [
        record(event(name, number), name, place)
        for number in numbers
        for place, name in enumerate(CONNECTORS)
    ]
    await stack.kafka.produce(stack.topics.source, records)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def postgres_rows(url: str) -> Rows:
    connection = await asyncpg.connect(url)
    try:
        found: Rows = await connection.fetch("SELECT * FROM connectors ORDER BY id")
        return found
    finally:
        await connection.close()


async def connections(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return count
    finally:
        await connection.close()


async def stopped(worker: Spawned) -> None:
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0


def test_every_command_of_the_page_is_in_a_section_that_a_test_runs() -> None:
    assert {title for title, blocks in SECTIONS.items() if blocks} == {
        "SQLite", "PostgreSQL", AGAIN, "The topic is lost", "The store is lost"
    }  # fmt: skip


async def test_a_sqlite_store_is_restored_and_caught_up_to_the_last_event(stack: Stack) -> None:
    backup, restore = SECTIONS["SQLite"]
    await stack.register([*CONNECTORS])
    worker = stack.worker()
    await publish(stack, 1, 2)
    await stack.drained()
    before = now()
    await publish(stack, 3)
    await stack.drained()
    await run(stack, backup)
    await publish(stack, 4, 5)
    await stack.drained()
    log = stack.database.with_name("store.db-wal")
    left = log.read_bytes()
    await stopped(worker)
    whole = stack.rows()
    stack.database.write_bytes(b"damaged")
    log.write_bytes(left)  # as a crash leaves it
    await run(stack, restore)
    assert stack.rows() != whole
    (again,) = SECTIONS[AGAIN]
    await run(stack, again, BEFORE_BACKUP=before)
    assert stack.rows() == whole
    assert await listed(stack) == []


async def test_a_postgresql_store_is_restored_and_caught_up_to_the_last_event(
    stack: Stack, database_url: str
) -> None:
    backup, restore = SECTIONS["PostgreSQL"]
    stack.more = {"LAST_SYNC_STORE_URL": database_url}
    await stack.register([*CONNECTORS])
    worker = stack.worker(LAST_SYNC_HEALTH_PORT=str(free_port()))
    await publish(stack, 1, 2)
    await stack.drained()
    assert await connections(database_url) in {1, 2}  # a batch's, and a look's at the same time
    before = now()
    await publish(stack, 3)
    await stack.drained()
    await run(stack, backup)
    await publish(stack, 4, 5)
    await stack.drained()
    await stopped(worker)
    whole = await postgres_rows(database_url)
    await damage(database_url)
    await run(stack, restore)
    assert await postgres_rows(database_url) != whole
    (again,) = SECTIONS[AGAIN]
    await run(stack, again, BEFORE_BACKUP=before)
    assert await postgres_rows(database_url) == whole
    assert await listed(stack) == []


async def damage(url: str) -> None:
    await asyncio.to_thread(execute, url, "DROP TABLE connectors, connector_store")


async def test_a_worker_that_runs_goes_on_while_a_newer_release_adds_to_the_schema(
    stack: Stack, database: str
) -> None:
    stack.more = {"LAST_SYNC_STORE_URL": database}
    await stack.register([*CONNECTORS])
    worker = stack.worker()
    await publish(stack, 1)
    await stack.drained()
    step = ("ALTER TABLE connectors ADD COLUMN later text",
            "UPDATE last_sync_schema SET version_num = 'last_sync_9999'")  # fmt: skip
    await asyncio.to_thread(execute, database, *step)
    await publish(stack, 2)
    await stack.drained()
    assert {row["last_indexed_document_count"] for row in await postgres_rows(database)} == {2}
    await stopped(worker)
    late = await stack.cli("run", env=stack.env)
    assert late.exit_code == 3
    assert "install the release that wrote it" in late.stderr


async def test_a_topic_that_was_lost_is_made_again_and_the_store_goes_on(stack: Stack) -> None:
    make, look = SECTIONS["The topic is lost"]
    await stack.register([*CONNECTORS])
    await publish(stack, 1, 2)
    await stack.drain()
    whole = stack.rows()
    await stack.kafka.delete_topic(stack.topics.source)
    await run(stack, make)
    assert stack.rows() == whole
    await publish_to_one_partition(stack, 2, 3)
    await run(stack, make)
    await run(stack, look)
    stored = await stack.stored()
    assert {document["last_indexed_document_count"] for document in stored.values()} == {3}


async def publish_to_one_partition(stack: Stack, *numbers: int) -> None:
    """The topic that a broker's defaults make has one."""
    records = [record(event(name, n), name) for n in numbers for name in CONNECTORS]
    await stack.kafka.produce(stack.topics.source, records)


async def test_a_store_that_was_lost_is_rebuilt_from_the_topic_as_it_was(stack: Stack) -> None:
    (rebuild,) = SECTIONS["The store is lost"]
    await stack.register([*CONNECTORS])
    await publish(stack, 1, 3, 2)
    await stack.drain()
    whole = stack.rows()
    for file in stack.folder.glob("store.db*"):
        file.unlink()
    (stack.folder / "ids.txt").write_text("".join(f"{name}\n" for name in CONNECTORS))
    await run(stack, rebuild)
    assert stack.rows() == whole


async def test_a_group_with_members_refuses_to_be_set_back(stack: Stack) -> None:
    await stack.register([*CONNECTORS])
    stack.worker()
    await publish(stack, 1)
    await stack.drained()
    (again,) = SECTIONS[AGAIN]
    reset, *_ = again.splitlines()
    _, said = await shell(stack, reset, {"BEFORE_BACKUP": now()})
    assert "can only be reset if the group" in said
    assert await stack.is_drained()
