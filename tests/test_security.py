"""Claims of docs/security.md that need neither a broker nor a process of their own."""

import hmac
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest
from aiohttp import web

from tests.api.conftest import served
from tests.elasticsearch import FakeElasticsearch
from tests.hostile import IDS
from worker.errors import MisconfiguredError
from worker.settings import Settings
from worker.stores import ElasticsearchAccess, masked, open_store
from worker.stores.connector_api import ConnectorApi
from worker.stores.elastic_client import connected
from worker.stores.sql import SqlStore

UMASKS = (0o022, 0o000, 0o077)
ALONE = 0o600  # what the owner may read and write, and nobody else


@asynccontextmanager
async def answering(answer: web.Response | None = None, **headers: str) -> AsyncIterator[list[str]]:
    """Give the URL of a server, and behind it the paths that it is asked for, as they were sent."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        status = int(headers.get("status", "404"))
        location = {"Location": headers["location"]} if "location" in headers else {}
        missing = {"error": {"type": "resource_not_found_exception"}}
        if answer is not None:
            return web.Response(body=answer.body, status=answer.status, headers=answer.headers)
        return web.json_response(missing, status=status, headers=location)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    asked.append(site.name)
    try:
        yield asked
    finally:
        await runner.cleanup()


# Where requests go


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_of_a_store_is_followed(status: int) -> None:
    async with (
        FakeElasticsearch() as other,
        answering(location=f"{other.url}/", status=str(status)) as asked,
    ):
        url = f"elasticsearch+{asked[0]}"
        access = ElasticsearchAccess(api_key="s3cret")
        with pytest.raises(MisconfiguredError, match=f"answered {status}"):
            async with open_store(url, access):
                pass
        async with connected(url, access) as client:
            api = ConnectorApi(client=client, url=url)
            with pytest.raises(MisconfiguredError, match=f"answered {status}"):
                await api.put_last_sync("hr-wiki", {"last_sync_error": "private"})
        assert asked[1:] == ["/", "/_connector/hr-wiki/_last_sync"]
        assert other.requests == []


async def test_no_proxy_of_the_environment_is_used_for_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with FakeElasticsearch() as server, open_store(f"elasticsearch+{server.url}") as store:
        assert await store.add(["a"]) == [True]


@pytest.mark.parametrize("id_", IDS, ids=ascii)
async def test_an_id_is_one_segment_of_the_path(id_: str) -> None:
    async with answering() as asked:
        url = f"elasticsearch+{asked[0]}"
        async with connected(url, ElasticsearchAccess()) as client:
            api = ConnectorApi(client=client, url=url)
            assert await api.get(id_) is None
            assert not await api.put_last_sync(id_, {"last_indexed_document_count": 1})
    one, two = asked[1:]
    assert two == f"{one}/_last_sync"
    _, connector, segment = one.split("/")
    assert (connector, unquote(segment)) == ("_connector", id_)
    assert not set(segment) & set("?#\\")


# Keys of the API


@pytest.mark.parametrize(
    "offered", ["first", "second", "wrong", "", "x" * 8_000, "\xff\xfe", "firs", None]
)
async def test_every_key_is_compared_in_constant_time_whatever_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offered: str | None
) -> None:
    compared, really = [], hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return really(one, other)

    monkeypatch.setattr("worker.api.server.hmac.compare_digest", spy)
    async with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        assert isinstance(store, SqlStore)
        async with served(store, ("first", "second")) as api:
            api.headers.clear()
            headers = {} if offered is None else {"Authorization": f"ApiKey {offered}"}
            answer = await api.call("GET", "/_connector", headers=headers)
    assert answer.status == (200 if offered in {"first", "second"} else 401)
    assert compared == [b"first", b"second"]


# Secrets


def test_no_secret_is_in_the_text_of_the_settings() -> None:
    secret = {
        name: "s3cret"
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    settings = Settings.model_validate(secret)
    assert len(secret) >= 6
    for text in (repr(settings), str(settings), settings.model_dump_json(), f"{settings!r}"):
        assert "s3cret" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@db/x", "postgresql://***@db/x"),
        ("postgresql://db/x?user=me&password=s3cret", "postgresql://db/x?***"),
        ("postgresql://me:s3@cret?@db/x?a=b", "postgresql://***@db/x?***"),
        ("sqlite:////data/store.db", "sqlite:////data/store.db"),
    ],
)
def test_a_store_is_named_without_user_password_and_parameters(url: str, shown: str) -> None:
    assert masked(url) == shown


# Files


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize("mask", UMASKS)
async def test_the_files_of_a_sqlite_store_are_its_owners_alone(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        async with open_store(f"sqlite:///{tmp_path}/store.db") as store:
            await store.add(["a"])
            names = {"store.db", "store.db-wal", "store.db-shm"}
            assert modes(tmp_path) == dict.fromkeys(names, ALONE)


async def test_a_sqlite_store_keeps_the_mode_that_its_owner_gave_it(tmp_path: Path) -> None:
    async with open_store(f"sqlite:///{tmp_path}/store.db"):
        pass
    (tmp_path / "store.db").chmod(0o640)
    async with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        await store.add(["a"])
        assert set(modes(tmp_path).values()) == {0o640}
