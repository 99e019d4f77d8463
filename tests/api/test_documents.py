"""The OpenAPI document and its page: complete, and true."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.acceptance.test_api import started
from tests.api.conftest import Api
from tests.programs import Spawn
from worker.api.openapi import DOCUMENT, PATHS

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = Path(sys.executable).with_name("st")


async def test_the_document_is_served(api: Api) -> None:
    answer = await api.call("GET", "/openapi.json")
    assert (answer.status, answer.body) == (200, DOCUMENT)


async def test_the_page_shows_every_route_and_field(api: Api) -> None:
    page = await api.call("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path, operations in PATHS.items():
        for method in operations.keys() - {"parameters"}:
            assert f"<code>{method.upper()} {path}</code>" in page.body
    for name in ("last_sync_status", "sync_cursor", "index_name"):
        assert f"<th>{name}</th>" in page.body
    assert "null clears" not in page.body
    assert "<code>&quot;&quot;</code> clears it" in page.body


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_schemathesis_finds_nothing(spawn: Spawn, sql_store_url: str, tmp_path: Path) -> None:
    server, url = await started(spawn, sql_store_url)
    process = await asyncio.create_subprocess_exec(
        SCHEMATHESIS, "run", f"{url}/openapi.json", "--checks", "all", "--max-examples", "200",
        env={"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.api.schemathesis_hooks"},
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert "No issues found" in said.decode()
    assert "Traceback" not in server.stderr
