"""The API as it is served: a real server over a real store, and a client."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema  # type: ignore[import-untyped]  # it has no types of its own
import pytest
from yarl import URL

from tests.brokers import free_port
from worker.api.openapi import DOCUMENT, PATHS
from worker.api.server import application
from worker.api.serving import serve
from worker.stores import open_store
from worker.stores.sql import SqlStore

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    body: Any
    headers: dict[str, str]

    @property
    def error_type(self) -> str | None:
        error = self.body.get("error") if isinstance(self.body, dict) else None
        return error["type"] if isinstance(error, dict) else None

    @property
    def reason(self) -> str | None:
        error = self.body.get("error") if isinstance(self.body, dict) else None
        return error["reason"] if isinstance(error, dict) else error


@dataclass(kw_only=True)
class Api:
    url: str
    store: SqlStore
    session: aiohttp.ClientSession
    headers: dict[str, str] = field(default_factory=dict)

    async def call(
        self,
        method: str,
        path: str,
        body: str | bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        sent = {**self.headers, **(JSON if body is not None else {}), **(headers or {})}
        url = URL(self.url + path, encoded=True)
        skip = [] if "Content-Type" in sent else ["Content-Type"]
        raw = body.encode() if isinstance(body, str) else body
        data = None if raw is None else io.BytesIO(raw)  # aiohttp warns of large bytes
        async with self.session.request(
            method, url, data=data, headers=sent, skip_auto_headers=skip
        ) as answer:
            json = "json" in answer.headers.get("content-type", "")
            content = await (answer.json(content_type=None) if json else answer.text())
            found = {name.lower(): value for name, value in answer.headers.items()}
            media_type = "application/json" if json else answer.content_type
            assert_documented(method, path, answer.status, media_type, content)
            return Answer(status=answer.status, body=content, headers=found)

    async def last_sync(self, body: str, **more: Any) -> Answer:
        return await self.call("PUT", "/_connector/my-connector/_last_sync", body, **more)

    async def stored(self, name: str) -> Any:
        return (await self.call("GET", "/_connector/my-connector")).body.get(name)


def assert_documented(method: str, path: str, status: int, media_type: str, body: Any) -> None:
    """Hold what was answered against the OpenAPI document, as far as that knows the route."""
    operation = documented(path.partition("?")[0]).get(method.lower())
    if operation is None:
        return
    response = operation["responses"][str(status)]
    if content := response.get("content"):
        schema = {**content[media_type]["schema"], "components": DOCUMENT["components"]}
        jsonschema.validate(body, schema)


def documented(path: str) -> dict[str, Any]:
    for template, operations in PATHS.items():
        if re.fullmatch(template.replace("{id}", "[^/]+"), path):
            return dict(operations)
    return {}


@asynccontextmanager
async def served(store: SqlStore, keys: tuple[str, ...] = ()) -> AsyncIterator[Api]:
    port, stop = free_port(), asyncio.Event()
    url = f"http://127.0.0.1:{port}"
    task = asyncio.create_task(serve(application(store, keys), "127.0.0.1", port, stop))
    headers = {"Authorization": f"ApiKey {keys[0]}"} if keys else {}
    async with aiohttp.ClientSession() as session:
        api = Api(url=url, store=store, session=session, headers=headers)
        while True:
            try:
                await api.call("GET", "/_health")
                break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.01)
        yield api
    stop.set()
    await task


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    async with open_store(f"sqlite:///{tmp_path}/store.db") as opened:
        assert isinstance(opened, SqlStore)
        yield opened


@pytest.fixture
async def api(store: SqlStore) -> AsyncIterator[Api]:
    async with served(store) as api:
        await api.call("PUT", "/_connector/my-connector")
        yield api
