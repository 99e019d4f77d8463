"""What a command imports, which is most of what a person waits for."""

import re
from collections.abc import Mapping

import pytest

from tests.kafka import Kafka, Topics
from tests.programs import Cli, Finished

IMPORTED = re.compile(r"^import time: .*\| +([\w.]+)$", re.MULTILINE)
MANAGING = {"aiosqlite", "alembic", "sqlalchemy"}  # what a SQL store takes beside merging
STORES = {*MANAGING, "asyncpg", "elasticsearch"}
SERVERS = {"prometheus_client", "starlette", "uvicorn", "opentelemetry", "http"}
LINES = {"rich", "structlog"}  # both are slow to import
BROKER = {"aiokafka"}
ALL = {*STORES, *SERVERS, *LINES, *BROKER, "asyncio", "dotenv", "importlib.metadata", "pydantic"}
STORE = ("--store", "sqlite:///s.db")
EVENT = (
    '{"event_id":"e","connector_id":"c","occurred_at":"2026-01-01T00:00:00Z",'
    '"last_sync":{"last_sync_status":"completed"}}'
)


async def imported(
    cli: Cli, *arguments: str, code: int = 0, stdin: str = "", env: Mapping[str, str] | None = None
) -> set[str]:
    """Give the modules that the command imports, with the packages that they are in."""
    env = {"PYTHONPROFILEIMPORTTIME": "1", **(env or {})}
    done = await cli(*arguments, env=env, stdin=stdin)
    assert done.exit_code == code, done.stderr
    return names_of(done)


def names_of(done: Finished) -> set[str]:
    whole = [name.split(".") for name in IMPORTED.findall(done.stderr)]
    found = {".".join(parts[:n]) for parts in whole for n in range(1, len(parts) + 1)}
    assert {"worker.cli", "click"} <= found
    return found


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("--help", 0),
        ("dlq --help", 0),
        ("rum", 2),
        ("run --drian", 2),
        ("dlq list --limit none", 2),
        ("dlq replay --rate none", 2),
        ("connectors show", 2),
    ],
)
async def test_help_and_wrong_usage_import_click_and_little_else(
    cli: Cli, call: str, code: int
) -> None:
    assert not await imported(cli, *call.split(), code=code) & ALL


async def test_the_version_is_looked_up_without_the_program(cli: Cli) -> None:
    assert not await imported(cli, "--version") & (ALL - {"importlib.metadata"})


@pytest.mark.parametrize("words", ["last-sync dl", "last-sync dlq re", "last-sync validate e"])
async def test_completion_imports_click_and_little_else(cli: Cli, words: str) -> None:
    typed = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    found = await imported(cli, env={**typed, "_LAST_SYNC_COMPLETE": "bash_complete"})
    assert not found & ALL


@pytest.mark.parametrize("command", ["run", "publish", "store verify", "dlq edit"])
async def test_help_of_settings_takes_the_settings_and_no_more(cli: Cli, command: str) -> None:
    found = await imported(cli, *command.split(), "--help")
    assert not found & (STORES | SERVERS | LINES | BROKER | {"dotenv"})


async def test_validate_imports_the_contract_alone(cli: Cli) -> None:
    found = await imported(cli, "validate", stdin=EVENT)
    assert "schemas.sync_finished" in found
    assert not found & {*STORES, *SERVERS, *LINES, *BROKER, "asyncio", "worker.settings"}


async def test_a_sqlite_store_takes_no_broker_and_no_other_store(cli: Cli) -> None:
    await cli("connectors", "add", "a", *STORE)
    found = await imported(cli, "connectors", "list", *STORE)
    assert "sqlalchemy" in found
    assert not found & {*SERVERS, *LINES, *BROKER, "alembic", "asyncpg", "elasticsearch"}


@pytest.fixture
def at_broker(cli: Cli, kafka: Kafka, topic: Topics) -> Cli:
    """Run the program on the topics of the test."""
    settings = {
        "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
        "LAST_SYNC_KAFKA_TOPIC": topic.source,
        "LAST_SYNC_KAFKA_DEAD_LETTER_TOPIC": topic.dlq,
        "LAST_SYNC_KAFKA_GROUP_ID": topic.group,
    }
    return Cli(folder=cli.folder, environ={**cli.environ, **settings})


@pytest.mark.parametrize("command", ["dlq list", "dlq stats", "topics check", "publish"])
async def test_what_talks_to_the_brokers_alone_imports_no_store(
    at_broker: Cli, command: str
) -> None:
    found = await imported(at_broker, *command.split(), stdin=EVENT)
    assert "aiokafka" in found
    assert not found & (STORES | SERVERS | LINES)
    assert command == "publish" or "schemas.updates" not in found


async def test_a_worker_imports_its_own_store_and_no_other(at_broker: Cli) -> None:
    await at_broker("connectors", "add", "a", *STORE)
    found = await imported(at_broker, "run", "--drain", *STORE)
    assert {"aiokafka", "sqlite3", "prometheus_client"} <= found
    others = {"asyncpg", "elasticsearch", "starlette", "uvicorn", "opentelemetry"}
    assert not found & {*MANAGING, *others}


async def test_a_replay_imports_what_merging_takes(at_broker: Cli) -> None:
    await at_broker("publish", stdin=EVENT)
    await at_broker("run", "--drain", *STORE)
    await at_broker("connectors", "add", "c", *STORE)
    found = await imported(at_broker, "dlq", "replay", "--all", "--yes", *STORE)
    assert {"aiokafka", "sqlite3"} <= found
    assert not found & {*MANAGING, *SERVERS, "prometheus_client"}
