"""The real program on a real broker, and what it is held against."""

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance import generator
from tests.eventually import eventually
from tests.kafka import Kafka, Record, Topics
from tests.programs import Cli, Spawn, Spawned
from worker.app.stores import add_connectors, connectors
from worker.settings import Settings
from worker.variables import variable

# For workers that nobody kills: one that is not scheduled for two seconds stays in its group.
PATIENT = {"LAST_SYNC_KAFKA_SESSION_TIMEOUT_MS": "30000"}


@dataclass(slots=True, kw_only=True)
class Stack:
    """A topic, a store, and the program with the settings for both."""

    kafka: Kafka
    topics: Topics
    cli: Cli
    spawn: Spawn
    folder: Path
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.folder / "store.db"

    @property
    def env(self) -> dict[str, str]:
        return {
            "LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "LAST_SYNC_KAFKA_TOPIC": self.topics.source,
            "LAST_SYNC_KAFKA_DEAD_LETTER_TOPIC": self.topics.dlq,
            "LAST_SYNC_KAFKA_GROUP_ID": self.topics.group,
            "LAST_SYNC_KAFKA_SESSION_TIMEOUT_MS": "2000",
            "LAST_SYNC_STORE_URL": f"sqlite:///{self.database}",
            **self.more,
        }

    async def fill(self, made: generator.Topic, *, until: int | None = None) -> None:
        """Register its connectors, and publish its records or the first so many of them."""
        await self.register(made.registered)
        await self.publish(made, 0, until)

    async def publish(self, made: generator.Topic, begin: int, end: int | None = None) -> None:
        await self.kafka.produce(self.topics.source, made.records[begin:end])

    @property
    def settings(self) -> Settings:
        """What the program makes of the environment."""
        given = {name: self.env.get(variable(name)) for name in Settings.model_fields}
        return Settings(**{name: text for name, text in given.items() if text is not None})

    async def register(self, connector_ids: list[str]) -> None:
        """As `connectors add` does, whose start alone would be half of many a test."""
        await add_connectors(self.settings, connector_ids)

    def worker(self, *arguments: str, **more: str) -> Spawned:
        return self.spawn("run", *arguments, env={**self.env, **more})

    async def drain(self, **more: str) -> None:
        done = await self.cli("run", "--drain", env={**self.env, **more}, timeout=90)
        assert done.exit_code == 0, done.stderr[-2000:]

    async def stored(self) -> dict[str, dict[str, Any]]:
        """Read the store, as `connectors list` does, by connector."""
        return {found.id: dict(found.fields) async for found in connectors(self.settings)}

    def rows(self) -> list[tuple[Any, ...]]:
        """Read the store's table, stamps too."""
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute("SELECT * FROM connectors ORDER BY id").fetchall()
        finally:
            connection.close()

    async def letters(self) -> dict[bytes, tuple[str, int, bytes | None]]:
        """Read the open letters: reason, status and original value by letter id."""
        found = {}
        for record in await self.kafka.read_all(self.topics.dlq):
            headers = dict(record.headers)
            reason, status = headers["__dlq.errors.reason"], headers["__dlq.errors.status"]
            assert record.key is not None
            assert reason is not None
            assert status is not None
            null = headers.get("__dlq.errors.value_null") == b"true"
            found[record.key] = (reason.decode(), int(status), None if null else record.value)
        return found

    async def committed(self) -> dict[int, int]:
        return await self.kafka.committed(self.topics.group, self.topics.source)

    async def is_drained(self) -> bool:
        return await self.committed() == await self.kafka.end_offsets(self.topics.source)

    async def drained(self, timeout: float = 60) -> None:  # noqa: ASYNC109 - a test's patience
        await eventually(self.is_drained, timeout)

    async def assert_true_to(self, made: generator.Topic) -> None:
        """Nothing lost, nothing wrong, and exactly the right letters."""
        assert await self.is_drained()
        stored, expected = await self.stored(), made.expected
        assert stored.keys() == expected.keys()
        wrong = {
            name: (stored[name], expected[name])
            for name in stored
            if stored[name] != expected[name]
        }
        assert not wrong
        assert Counter((await self.letters()).values()) == made.failing


@pytest.fixture
def stack(kafka: Kafka, topic: Topics, cli: Cli, spawn: Spawn, tmp_path: Path) -> Stack:
    """Work on the session's broker, with topics and a store of the test's own."""
    return Stack(kafka=kafka, topics=topic, cli=cli, spawn=spawn, folder=tmp_path)


def event(connector: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "event_id": f"e-{connector}-{number}",
        "connector_id": connector,
        "occurred_at": f"2026-01-01T00:00:{number % 60:02}Z",
        "last_sync": {"last_indexed_document_count": number},
        **more,
    }


def record(value: Any, key: str, partition: int = 0, **more: Any) -> Record:
    encoded = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Record(value=encoded, key=key.encode(), partition=partition, **more)


async def dead_lettered(stack: Stack, records: Sequence[Record]) -> None:
    await stack.kafka.produce(stack.topics.source, list(records))
    await stack.drain(LAST_SYNC_FLOOD_SHARE="1")


@pytest.fixture
async def filled(stack: Stack) -> Stack:
    """Dead-letter two events of an unknown connector, and two that are wrong."""
    await stack.register(["known"])
    wrong = event("known", 3, last_sync={"last_sync_status": "Completed"})
    other = event("unknown", 2, last_sync={"last_deleted_document_count": 2})
    await dead_lettered(
        stack,
        [
            record(event("unknown", 1), "unknown", 0),
            record(other, "unknown", 1),
            record(wrong, "known", 2),
            record(b"\xff{", "known", 3),
        ],
    )
    return stack
