"""`last-sync api` from outside: how it starts, whom it lets in, how it ends; beside a worker."""

import asyncio
import io
import json
import signal
import socket
import time
from contextlib import closing
from typing import Any

import aiohttp
import pytest

from tests.acceptance.conftest import Stack
from tests.brokers import free_port
from tests.eventually import eventually
from tests.kafka import Record
from tests.programs import Cli, Spawn, Spawned

LONG = 60  # seconds
CLIENTS = 200
LEAST = 2  # updates of each client, however slow the machine is


@pytest.mark.parametrize(
    ("arguments", "environ", "line"),
    [
        (
            ("--host", "0.0.0.0"),
            {},
            (
                "LAST_SYNC_API_HOST='0.0.0.0' lets other hosts in: set LAST_SYNC_API_KEY to one or"
                " more keys, or listen on 127.0.0.1"
            ),
        ),
        (("--host", "::"), {"LAST_SYNC_API_KEY": " , "}, "LAST_SYNC_API_HOST='::' lets other"),
        (
            (),
            {"LAST_SYNC_API_KEY": "good,b\u00e4d"},
            "LAST_SYNC_API_KEY: a key has to be printable ASCII without spaces",
        ),
        (("--store", "memory://"), {}, "the API keeps its connectors in a SQL store"),
        (("--store", "sqlite:////nowhere/store.db"), {}, "there is no directory /nowhere"),
        (
            ("--host", "no.such.host.invalid"),
            {"LAST_SYNC_API_KEY": "k"},
            "cannot listen on no.such",
        ),
    ],
)
async def test_what_cannot_be_served_is_refused_in_a_line(
    cli: Cli, arguments: tuple[str, ...], environ: dict[str, str], line: str
) -> None:
    store = {"LAST_SYNC_STORE_URL": "sqlite:///store.db"}
    done = await cli("api", *arguments, env={**store, **environ})
    assert (done.exit_code, done.stdout) == (3, "")
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert "b\u00e4d" not in done.stderr


async def test_a_port_in_use_is_named(cli: Cli) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        done = await cli("api", "--store", "sqlite:///store.db", "--port", port)
    assert done.exit_code == 3
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


async def started(spawn: Spawn, store: str, **more: str) -> tuple[Spawned, str]:
    port = free_port()
    environ = {"LAST_SYNC_STORE_URL": store, "LAST_SYNC_API_PORT": str(port), **more}
    server = spawn("api", env=environ)
    await server.says("api.started")
    return server, f"http://127.0.0.1:{port}"


async def test_a_key_lets_it_listen_everywhere_and_is_never_logged(spawn: Spawn) -> None:
    keys = {"LAST_SYNC_API_HOST": "0.0.0.0", "LAST_SYNC_API_KEY": "k-3f9a,k-77b1"}
    server, url = await started(spawn, "sqlite:///store.db", LAST_SYNC_LOG_LEVEL="debug", **keys)
    async with aiohttp.ClientSession() as session:
        for key, status in {"k-3f9a": 200, "k-77b1": 200, "k-0000": 401}.items():
            headers = {"Authorization": f"ApiKey {key}"}
            async with session.get(f"{url}/_connector", headers=headers) as answer:
                assert answer.status == status
                assert "k-" not in await answer.text()
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0  # although a connection is still open
    assert "api.stopped" in server.stderr
    assert "k-" not in server.stdout + server.stderr
    assert "Traceback" not in server.stderr


async def put(session: aiohttp.ClientSession, url: str, **body: Any) -> Any:
    data = io.BytesIO(json.dumps(body).encode())
    async with session.put(url, data=data, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status in {200, 201}, await answer.text()
        return (await answer.json())["result"]


async def load(url: str, seconds: float) -> int:
    """Let clients update one connector for a while; nothing that was acknowledged is lost.

    Each counts in a key of its own of the cursor, and in a connector of its own.
    """
    acknowledged = [0] * CLIENTS
    until = time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        own = f"{url}/_connector/own-{number}"
        assert await put(session, own) == "created"
        while acknowledged[number] < LEAST or time.monotonic() < until:
            count = acknowledged[number] + 1
            shared = f"{url}/_connector/shared/_last_sync"
            assert await put(session, shared, sync_cursor={str(number): count}) == "updated"
            await put(session, f"{own}/_last_sync", last_indexed_document_count=count)
            acknowledged[number] = count

    unlimited = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=unlimited) as session:
        await put(session, f"{url}/_connector/shared")
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(client(session, number))
        async with session.get(f"{url}/_connector?size=1000") as answer:
            found = {each.pop("id"): each for each in (await answer.json())["results"]}
    assert found["shared"]["sync_cursor"] == {str(n): c for n, c in enumerate(acknowledged) if c}
    for number, count in enumerate(acknowledged):
        assert found[f"own-{number}"].get("last_indexed_document_count", 0) == count
    return sum(acknowledged)


@pytest.mark.parametrize(
    "seconds", [3, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(LONG + 120)])]
)
async def test_200_clients_at_once_lose_nothing(
    spawn: Spawn, sql_store_url: str, seconds: int
) -> None:
    server, url = await started(spawn, sql_store_url)
    assert await load(url, seconds) >= LEAST * CLIENTS
    assert "warning" not in server.stderr
    assert "error" not in server.stderr


async def test_a_worker_and_the_api_share_a_store(stack: Stack, sql_store_url: str) -> None:
    stack.more = {"LAST_SYNC_STORE_URL": sql_store_url}
    _, url = await started(stack.spawn, sql_store_url)
    worker = stack.worker()
    await worker.says("partitions.assigned")
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(put(session, f"{url}/_connector/c{n}") for n in range(20)))
        before = time.time_ns()
        publishing = stack.kafka.produce(
            stack.topics.source,
            [event(n % 20, f"early {n}", before - 10**15 + n) for n in range(2_000)],
        )
        writing = [
            put(session, f"{url}/_connector/c{n}/_last_sync", last_sync_error=f"put {n}")
            for n in range(20)
        ]
        await asyncio.gather(publishing, *writing)
        await stack.drained()
        stored = await stack.stored()
        assert {f"c{n}": f"put {n}" for n in range(20)} == {
            name: fields["last_sync_error"] for name, fields in stored.items()
        }
        assert {fields["last_sync_status"] for fields in stored.values()} == {"error"}

        late = [event(n, f"late {n}", time.time_ns()) for n in range(20)]
        await stack.kafka.produce(stack.topics.source, late)

        async def won() -> bool:
            async with session.get(f"{url}/_connector?size=100") as answer:
                results = (await answer.json())["results"]
            return {each["last_sync_error"] for each in results} == {f"late {n}" for n in range(20)}

        await eventually(won)


def event(connector: int, error: str, nanoseconds: int) -> Record:
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 10**9))
    body = {
        "event_id": error,
        "connector_id": f"c{connector}",
        "occurred_at": f"{at}.{nanoseconds % 10**9 // 1000:06}Z",
        "job": {"job_type": "full", "status": "error", "error": error},
    }
    return Record(key=f"c{connector}".encode(), value=json.dumps(body).encode())
