"""Every command of the runbooks in docs/operations.md, run in the situation that it is for."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Stack, dead_lettered, event, record
from tests.acceptance.test_dlq import listed
from tests.acceptance.test_dlq_survives import produce_compressed
from tests.eventually import eventually
from tests.kafka import Record

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
SECTIONS = re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]
RUNBOOKS = {section.partition("\n")[0]: section for section in SECTIONS}

Situation = Callable[[Stack], Awaitable[dict[str, str]]]


def commands(runbook: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", RUNBOOKS[runbook], re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


async def missing(stack: Stack) -> dict[str, str]:
    await dead_lettered(
        stack, [record(event(name, 1), name) for name in ("old-intranet", "left-over")]
    )
    return await first_letter(stack)


async def bad_release(stack: Stack) -> dict[str, str]:
    await stack.register(["hr", "crm", "wiki"])
    wrong = {"last_sync_status": "Completed"}
    await dead_lettered(
        stack, [record(event(name, 1, last_sync=wrong), name) for name in ("hr", "crm")]
    )
    odd = event("wiki", 1, last_sync={"last_sync_status": None})
    await dead_lettered(stack, [record(odd, "wiki")])
    (letter,) = await listed(stack, "--connector", "wiki")
    fixed = {"headers": [], "value": event("wiki", 1)}
    (stack.folder / "fixed.json").write_text(json.dumps(fixed))
    return {"ID": letter["id"]}


async def wrong_store(stack: Stack) -> dict[str, str]:
    right, stack.more = stack.more, {"LAST_SYNC_STORE_URL": f"sqlite:///{stack.folder}/wrong.db"}
    await dead_lettered(stack, [record(event("hr", 1), "hr")])
    letters = await stack.kafka.read_all(stack.topics.dlq)
    stack.more = right
    await stack.register(["hr"])
    store = dict(letters[0].headers)["__dlq.errors.store"]
    assert store is not None
    return {**await first_letter(stack), "WRONG_STORE": store.decode()}


async def clock_ahead(stack: Stack) -> dict[str, str]:
    await stack.register(["hr"])
    valid_in = timedelta(minutes=5, seconds=15)
    ahead = (datetime.now(UTC) + valid_in).isoformat()
    await dead_lettered(stack, [record(event("hr", 1, occurred_at=ahead), "hr")])
    letter = await first_letter(stack)
    due = datetime.now(UTC) + timedelta(seconds=16)
    await eventually(lambda: datetime.now(UTC) > due, 20)
    return letter


async def oversized(stack: Stack) -> dict[str, str]:
    smaller = {"cleanup.policy": "compact", "max.message.bytes": "140000"}
    await stack.kafka.alter(stack.topics.dlq, smaller)
    await stack.kafka.alter(stack.topics.source, {"max.message.bytes": "70000"})
    large = json.dumps(event("u", 1, filler="x" * 1_000_000)).encode()
    await produce_compressed(stack, Record(value=large, key=b"u", partition=0))
    await stack.drain()
    return await first_letter(stack)


async def tripped(stack: Stack) -> dict[str, str]:
    names = [f"new-{n}" for n in range(30)]
    records = [record(event(name, 1), name, n % 4) for n, name in enumerate(names)]
    await stack.kafka.produce(stack.topics.source, records)
    worker = stack.worker()
    await worker.says("flood breaker", 30)
    worker.close()
    return {}


async def first_letter(stack: Stack) -> dict[str, str]:
    return {"ID": (await listed(stack))[0]["id"]}


SITUATIONS: dict[str, Situation] = {
    "A connector is missing": missing,
    "A bad producer release": bad_release,
    "The wrong store": wrong_store,
    "A clock that is ahead": clock_ahead,
    "A record that is too large": oversized,
    "The flood breaker has tripped": tripped,
}
LEFT_OPEN = {"The flood breaker has tripped": 27}


def test_every_runbook_has_its_situation() -> None:
    assert RUNBOOKS.keys() == SITUATIONS.keys()


@pytest.mark.parametrize("runbook", SITUATIONS)
async def test_the_commands_of_a_runbook_mend_its_situation(stack: Stack, runbook: str) -> None:
    found = await SITUATIONS[runbook](stack)
    for command in commands(runbook):
        code, said = await shell(stack, command, found)
        assert code == 0, f"{command}\n{said}"
    assert len(await listed(stack)) == LEFT_OPEN.get(runbook, 0)


async def shell(stack: Stack, command: str, more: dict[str, Any]) -> tuple[int, str]:
    folder = Path(sys.executable).parent
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", command),
        env={**os.environ, **stack.env, **more, "PATH": f"{folder}:{os.environ['PATH']}"},
        cwd=stack.folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, said.decode()
