"""No text of an id, an error, an event or a server steers the terminal of who runs the program."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from schemas.updates import Update
from tests.elasticsearch import FakeElasticsearch
from tests.hostile import STEERING, assert_harmless
from tests.programs import Cli
from tests.test_security import answering
from worker.stores import open_store

LOOKALIKE = "a\u202eb\u2066c\u2028d"  # an id may have these: they are no control characters


@pytest.fixture
async def url(tmp_path: Path) -> str:
    """A store with a connector whose id and error text are hostile."""
    url = f"sqlite:///{tmp_path}/store.db"
    async with open_store(url) as store:
        await store.add([LOOKALIKE])
        fields: dict[str, Any] = {
            "last_sync_error": STEERING,
            "sync_cursor": {STEERING: STEERING},
        }
        await store.apply(
            [Update(connector_id=LOOKALIKE, fields=fields, at=1, rank=1, event_id="e")]
        )
    return url


async def test_connectors_are_listed_and_shown_harmlessly(cli: Cli, url: str) -> None:
    screens = [["list"], ["list", "--json"], ["show", LOOKALIKE], ["show", LOOKALIKE, "--json"]]
    changes = [["add", LOOKALIKE], ["delete", LOOKALIKE], ["show", STEERING]]
    for screen in (*screens, *changes):
        done = await cli("connectors", *screen, env={"LAST_SYNC_STORE_URL": url})
        assert "b" in done.stdout + done.stderr
        assert_harmless(done.stdout + done.stderr)


@pytest.mark.parametrize("how", [[], ["--json"]])
async def test_events_are_judged_harmlessly(cli: Cli, how: list[str]) -> None:
    good = {
        "event_id": LOOKALIKE,
        "connector_id": LOOKALIKE,
        "occurred_at": "2024-11-09T15:13:08Z",
        "last_sync": {"last_sync_error": STEERING},
    }
    bad = [
        {**good, "connector_id": STEERING},
        {**good, "occurred_at": STEERING},
        {**good, "last_sync": {STEERING: 1}},
        {**good, "last_sync": {"last_sync_status": STEERING}},
        {**good, "last_sync": {"sync_cursor": {STEERING: {STEERING: 1.5e308}}, STEERING: 1}},
        STEERING,
    ]
    lines = "\n".join(json.dumps(one) for one in [good, *bad]) + f"\n{STEERING}\n"
    for command in ("validate", "publish"):
        typed = lines if command == "validate" else lines.partition("\n")[2]
        done = await cli(command, *how, stdin=typed)
        assert done.exit_code == 1
        assert_harmless(done.stdout + done.stderr)


@pytest.mark.parametrize("form", ["pretty", "json"])
async def test_the_words_of_a_hostile_store_are_shown_harmlessly(cli: Cli, form: str) -> None:
    refusal = {"error": {"type": STEERING, "reason": STEERING}, "status": 403}
    async with answering(web.json_response(refusal, status=403)) as asked:
        env = {"LAST_SYNC_STORE_URL": f"elasticsearch+{asked[0]}", "LAST_SYNC_LOG_FORMAT": form}
        done = await cli("connectors", "list", env=env)
    assert done.exit_code == 3
    assert "403" in done.stderr
    assert_harmless(done.stdout + done.stderr)


async def test_a_store_s_warnings_are_logged_harmlessly(cli: Cli) -> None:
    async with FakeElasticsearch() as server:
        server.warning = '299 Elasticsearch-9.5.3 "[31m\x9b32m"'
        env = {
            "LAST_SYNC_STORE_URL": f"elasticsearch+{server.url}",
            "LAST_SYNC_LOG_FORMAT": "pretty",
        }
        done = await cli("connectors", "list", env=env)
    assert "ElasticsearchWarning" in done.stderr
    assert_harmless(done.stdout + done.stderr)
