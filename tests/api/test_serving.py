"""Slow, rude and too many callers; a store that is away; keys; an orderly end."""

import asyncio
import gzip
import io
import json
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from urllib.parse import quote

import pytest
from yarl import URL

from tests.api.conftest import Api, served
from tests.eventually import eventually
from tests.hostile import STEERING, assert_harmless
from worker import logs
from worker.api import bodies, serving
from worker.stores.sql import SqlStore

PUT = "PUT /_connector/my-connector/_last_sync HTTP/1.1\r\nHost: x\r\n"
JSON = "Content-Type: application/json\r\n"
BODY = '{"last_sync_status":"completed"}'


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PATIENCE", 0.3)
    monkeypatch.setattr(bodies, "BODY_TIMEOUT", 0.3)


@asynccontextmanager
async def connection(
    api: Api, *, limit: int = 2**16
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    port = int(api.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.close()


async def talk(api: Api, text: str) -> str:
    """Send the text, and read until the server closes."""
    async with connection(api) as (reader, writer):
        writer.write(text.encode())
        return (await reader.read()).decode()


@pytest.mark.parametrize(
    "text", ["", "GE", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\nA: " + "b" * 9]
)
async def test_a_connection_without_a_request_is_closed(
    patience: None, api: Api, text: str
) -> None:
    assert await talk(api, text) == ""


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ['\\"', '["', "/* ", "/*\\"])
async def test_a_body_that_ends_within_texts_or_comments_keeps_nobody_waiting(
    api: Api, unit: str
) -> None:
    body = unit * ((bodies.MAX_BODY - 100) // len(unit))
    assert (await api.last_sync(body)).status == 400


async def test_a_connection_is_closed_after_its_last_request(patience: None, api: Api) -> None:
    said = await talk(api, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert said.startswith("HTTP/1.1 200")


async def test_a_body_that_does_not_arrive_is_a_408(patience: None, api: Api) -> None:
    said = await talk(api, f"{PUT}{JSON}Content-Length: 9\r\n\r\n{{")
    head, _, body = said.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 408")
    assert json.loads(body)["error"]["type"] == "timeout_exception"


@pytest.mark.parametrize("requests", [1, 2])
async def test_an_answer_that_nobody_reads_is_given_up(
    patience: None, store: SqlStore, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    lost = []

    class Watched(serving.ImpatientProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost.append(self.cycle.scope["path"])

    monkeypatch.setattr(serving, "ImpatientProtocol", Watched)
    async with served(store) as api:
        for number in range(20):  # more than the kernel's buffers take
            await api.call(
                "PUT", f"/_connector/{number}", json.dumps({"description": "x" * 900_000})
            )
        async with connection(api, limit=1) as (reader, writer):
            writer.write(b"GET /_connector HTTP/1.1\r\nHost: x\r\n\r\n" * requests)
            assert await reader.readexactly(12) == b"HTTP/1.1 200"
            await eventually(lambda: "/_connector" in lost, 20)


async def test_many_silent_connections_keep_nobody_out(api: Api) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(300):
            _, writer = await stack.enter_async_context(connection(api))
            writer.write(f"{PUT}{JSON}Content-Length: 9\r\n\r\n{{".encode())
        assert (await api.last_sync(BODY)).body == {"result": "updated"}


async def test_above_the_limit_callers_are_told_to_come_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_AT_ONCE", 5)
    async with served(api.store) as small, AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(connection(small))

        async def refused() -> bool:
            return (await small.call("GET", "/")).status == 503

        await eventually(refused)


@pytest.mark.parametrize("expects", [False, True])
async def test_a_body_over_the_limit_is_a_413_that_its_sender_can_read(
    api: Api, *, expects: bool
) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    url = f"{api.url}/_connector/my-connector/_last_sync"
    headers = {"Content-Type": "application/json"}
    for data in (io.BytesIO(b" " * 2_000_000), body()):
        async with api.session.put(url, data=data, headers=headers, expect100=expects) as answer:
            assert answer.status == 413
            error = (await answer.json())["error"]
            assert error["type"] == "content_too_long_exception"
    assert (await api.last_sync(BODY)).status == 200


async def test_what_is_no_http_is_refused(api: Api) -> None:
    said = await talk(api, "hello\r\n\r\n")
    assert said.startswith("HTTP/1.1 400")
    assert "Traceback" not in said


async def test_a_locked_store_is_a_503(store: SqlStore, api: Api, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = await api.last_sync(BODY)
        assert (answer.status, answer.error_type) == (503, "no_shard_available_action_exception")
        assert "store.db" not in json.dumps(answer.body)
        other.execute("ROLLBACK")
    assert (await api.last_sync(BODY)).status == 200


@pytest.mark.usefixtures("logging_as_before")
async def test_a_bug_is_a_500_that_says_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret of the store")

    monkeypatch.setattr(SqlStore, "put_last_sync", broken)
    logs.configure("info", "json")
    answer = await api.call("PUT", "/_connector/my%2Dconnector/_last_sync", BODY)
    assert answer.status == 500
    assert answer.body["error"]["reason"] == "the server failed; its log says why"
    logged = json.loads(capsys.readouterr().err)
    assert "a secret of the store" in str(logged["exception"])
    assert logged["path"] == "/_connector/my%2Dconnector/_last_sync"  # ids could steer a terminal


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("ApiKey first", 200),
        ("apikey second", 200),
        ("ApiKey third", 401),
        ("ApiKey ", 401),
        ("ApiKey \xff", 401),
        ("Bearer first", 401),
        ("first", 401),
        (None, 401),
    ],
)
@pytest.mark.parametrize("path", ["/_connector", "/", "/nope"])
async def test_any_known_key_lets_in_and_nothing_else(
    store: SqlStore, header: str | None, status: int, path: str
) -> None:
    async with served(store, ("first", "second")) as api:
        api.headers.clear()
        answer = await api.call("GET", path, headers={"Authorization": header} if header else None)
    assert answer.status == (400 if path == "/nope" and status == 200 else status)
    if status == 401:
        assert answer.error_type == "security_exception"
        assert answer.headers["www-authenticate"] == "ApiKey"


@pytest.mark.parametrize("path", ["/_health", "/openapi.json", "/docs"])
async def test_health_and_documents_need_no_key(store: SqlStore, path: str) -> None:
    async with served(store, ("first",)) as api:
        api.headers.clear()
        assert (await api.call("GET", path)).status == 200


async def test_nothing_of_a_body_is_read_before_its_sender_is_let_in(store: SqlStore) -> None:
    async with served(store, ("first",)) as api:
        said = await talk(api, f"{PUT}{JSON}Connection: close\r\nContent-Length: 9\r\n\r\n")
    assert said.startswith("HTTP/1.1 401")


async def test_a_request_in_hand_is_finished_at_the_end(store: SqlStore) -> None:
    async with AsyncExitStack() as stack:
        async with served(store) as api:
            await api.call("PUT", "/_connector/my-connector")
            reader, writer = await stack.enter_async_context(connection(api))
            head = f"{PUT}{JSON}Content-Length: {len(BODY)}\r\n\r\n"
            writer.write(head.encode() + BODY[:5].encode())
            await eventually(in_hand)
            rest = asyncio.create_task(send_later(api, writer))
        await rest
        assert (await reader.read()).startswith(b"HTTP/1.1 200")


def in_hand() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if "run_asgi" in repr(task)]


async def send_later(api: Api, writer: asyncio.StreamWriter) -> None:
    """Send the rest of the body once the server takes no more connections."""

    async def deaf() -> bool:
        try:
            async with connection(api):
                return False
        except ConnectionRefusedError:
            return True

    await eventually(deaf)
    writer.write(BODY[5:].encode())


@pytest.mark.parametrize("query", ["", "?pretty"])
async def test_no_answer_can_steer_a_terminal(api: Api, query: str) -> None:
    """It is the same JSON: what would steer is escaped."""
    text = f"ä {STEERING} 😀"
    await api.last_sync(json.dumps({"last_sync_error": text}))
    for path in ("/_connector/my-connector", "/_connector", f"/_connector/{quote(text)}"):
        async with api.session.get(URL(f"{api.url}{path}{query}", encoded=True)) as answer:
            said = await answer.text()
        assert_harmless(said)
        assert text in str(json.loads(said)) or ascii(text)[1:-1] in ascii(json.loads(said))


@pytest.mark.parametrize(
    "value",
    [
        "[" * 500_000,
        '{"a":' * 150_000,
        "9" * 1_000_000,
        "-" * 1_000_000,
        "1e999999",
        "\\" * 500_000,
    ],
    ids=["lists", "objects", "digits", "signs", "exponent", "backslashes"],
)
async def test_a_hostile_body_is_refused_and_delays_nobody(api: Api, value: str) -> None:
    async with asyncio.timeout(20):
        for field in ("sync_cursor", "last_indexed_document_count"):
            assert (await api.last_sync(f'{{"{field}":{value}')).status == 400
            assert (await api.last_sync(f'{{"{field}":{value}}}')).status == 400


async def test_a_body_that_expands_beyond_the_limit_is_a_413(api: Api) -> None:
    bomb = gzip.compress(bytes(200_000_000), compresslevel=9)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert len(bomb) < bodies.MAX_BODY
    tracemalloc.start()
    try:
        answer = await api.call("PUT", "/_connector/my-connector/_last_sync", bomb, headers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status == 413
    assert peak < 10 * bodies.MAX_BODY
