"""The official clients, unmodified, against the real program."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import free_port
from tests.programs import Spawn

HERE = Path(__file__).parent / "clients"
STORY = json.loads((HERE / "story.json").read_text())
VENV = Path(sys.executable).parent.parent
NEXT = VENV / "elasticsearch-9" / "bin" / "python"
NODE = VENV / "bin" / "node"
PYTHON_ERRORS = {400: "BadRequestError", 404: "NotFoundError"}
JAVASCRIPT_ERRORS = {400: "ResponseError", 404: "ResponseError"}
DOCUMENTED = next(
    json.dumps({name: value for name, value in step["with"].items() if name != "connector_id"})
    for step in STORY
    if step["call"] == "last_sync" and "gives" in step
)  # the example of the API's own page


@pytest.fixture
async def url(spawn: Spawn, tmp_path: Path) -> str:
    """Run the API with two keys, the second of which the clients use."""
    port = free_port()
    environ = {"LAST_SYNC_API_KEY": "old,new", "LAST_SYNC_API_PORT": str(port)}
    server = spawn("api", "--store", f"sqlite:///{tmp_path}/store.db", env=environ)
    await server.says("api.started")
    return f"http://127.0.0.1:{port}"


async def output(*command: Any) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.parametrize(
    ("command", "errors"),
    [
        ((sys.executable, HERE / "story.py", "sync"), PYTHON_ERRORS),
        ((sys.executable, HERE / "story.py", "async"), PYTHON_ERRORS),
        ((NEXT, HERE / "story.py", "sync"), PYTHON_ERRORS),
        ((NEXT, HERE / "story.py", "async"), PYTHON_ERRORS),
        ((NODE, HERE / "story.mjs", "elasticsearch-8"), JAVASCRIPT_ERRORS),
        ((NODE, HERE / "story.mjs", "elasticsearch-9"), JAVASCRIPT_ERRORS),
    ],
    ids=["python-8", "python-8-async", "python-9", "python-9-async", "node-8", "node-9"],
)
async def test_an_official_client_works(
    url: str, command: tuple[Any, ...], errors: dict[int, str]
) -> None:
    told = [json.loads(line) for line in (await output(*command, url, "new")).splitlines()]
    assert len(told) == len(STORY)
    for step, answer in zip(STORY, told, strict=True):
        if "fails" in step:
            status, kind = step["fails"]
            assert answer == {"error": errors[status], "status": status, "type": kind}
        else:
            assert answer["body"].items() >= step["gives"].items(), (step, answer)


async def test_an_official_client_without_a_known_key_is_told_so(url: str) -> None:
    first = (await output(sys.executable, HERE / "story.py", "sync", url, "wrong")).splitlines()[0]
    assert json.loads(first) == {
        "error": "AuthenticationException",
        "status": 401,
        "type": "security_exception",
    }


async def test_curl_with_the_documented_example(url: str) -> None:
    curl = ("curl", "-sS", "-H", "Authorization: ApiKey old")
    put = (*curl, "-X", "PUT", f"{url}/_connector/my-connector")
    assert json.loads(await output(*put)) == {"id": "my-connector", "result": "created"}
    update = (*put[:-1], f"{put[-1]}/_last_sync", "--json", DOCUMENTED)
    assert await output(*update) == '{"result":"updated"}'
    assert await output(*update) == '{"result":"noop"}'
