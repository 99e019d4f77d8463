"""A publisher's transaction that hangs keeps records back: the worker counts them, and says so."""

import asyncio
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import kafka_tools
from tests.acceptance.conftest import Stack, event, record
from tests.acceptance.test_health import lag_of
from tests.eventually import eventually
from tests.probes import Probes

PATIENCE = 4  # seconds


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    kafka_tools.install(folder, os.environ)
    return folder


async def told(command: str, stack: Stack, tools: Path) -> str:
    """What one of Kafka's own tools prints, by a command as the worker's log has it."""
    name, *arguments = shlex.split(command.replace("…", stack.kafka.bootstrap))
    line = [str(tools / name), *arguments]
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, check=True)
    return done.stdout


def warnings(stderr: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "transaction.open"]


@pytest.mark.timeout(180)
async def test_an_open_transaction_is_counted_and_told_with_the_command_that_ends_it(
    stack: Stack, tools: Path
) -> None:
    probes = Probes()
    await stack.register(["a"])
    records = [record(event("a", number), "a") for number in range(6)]
    await stack.kafka.produce(stack.topics.source, records[:1])
    worker = stack.worker(LAST_SYNC_WATCHDOG_SECONDS=str(PATIENCE), **probes.env)
    await stack.drained()
    async with stack.kafka._producer(transactional_id=uuid4().hex) as hanging:
        await hanging.begin_transaction()
        for each in records[1:3]:
            await hanging.send_and_wait(stack.topics.source, each.value, partition=0)
        await stack.kafka.produce(stack.topics.source, records[3:])

        async def is_counted() -> bool:
            return lag_of(await probes.samples()) == {0: 5, 1: 0, 2: 0, 3: 0}

        await eventually(is_counted, 20)
        progress = await probes.value("last_progress_timestamp_seconds")
        await eventually(lambda: len(warnings(worker.stderr)) > 1, 40)  # once in a while
        assert worker.exit_code is None
        assert await probes.value("last_progress_timestamp_seconds") > progress
        assert (await probes.get("/readyz"))[0] == 200
        assert await probes.value("oldest_unprocessed_event_age_seconds") > PATIENCE
        line = warnings(worker.stderr)[-1]
        place = {"topic": stack.topics.source, "partition": 0, "offset": 1, "kept_back": 5}
        assert line.items() >= place.items()
        assert line["seconds"] > 2 * PATIENCE
        ask = "kafka-consumer-groups.sh --bootstrap-server … --describe --group "
        answer = await told(ask + stack.topics.group, stack, tools)
        rows = [row.split() for row in answer.splitlines()]
        assert {row[2]: row[5] for row in rows if row[1:2] == [stack.topics.source]}["0"] == "5"

        command = line["waiting_for"].split(" by ")[1].partition(";")[0]
        await told(command, stack, tools)
        await stack.drained()
    assert (await stack.stored())["a"]["last_indexed_document_count"] == 5
    await eventually(lambda: no_lag(probes), 20)


async def no_lag(probes: Probes) -> bool:
    return set(lag_of(await probes.samples()).values()) == {0}
