"""The fake Elasticsearch answers as the real one did, and fails as the real one fails."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from elasticsearch import (
    ApiError,
    AsyncElasticsearch,
    AuthenticationException,
    AuthorizationException,
    ConflictError,
    ConnectionTimeout,
    NotFoundError,
    UnsupportedProductError,
)
from elasticsearch import ConnectionError as ElasticConnectionError
from yarl import URL

from tests.elasticsearch import FakeElasticsearch
from tests.eventually import eventually

RECORDED = Path(__file__).parent / "data" / "elasticsearch-9.5-recorded.jsonl"
CASES = [json.loads(line) for line in RECORDED.read_text().splitlines()]
INDEX = "things"


@pytest.fixture
async def server() -> AsyncIterator[FakeElasticsearch]:
    async with FakeElasticsearch() as server:
        yield server


@pytest.fixture
async def client(server: FakeElasticsearch) -> AsyncIterator[AsyncElasticsearch]:
    async with AsyncElasticsearch(server.url, max_retries=0, request_timeout=1) as client:
        yield client


def comparable(reason: str | None) -> str | None:
    """Without places in the text and names of Java's, which are not worth imitating."""
    return reason and re.sub(r"^\[\d+:\d+\] |\n at \[Source.*", "", reason, flags=re.DOTALL)


def told(body: Any) -> tuple[str | None, str | None]:
    error = body.get("error")
    if isinstance(error, dict):
        return error["type"], error["reason"]
    return None, error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"][:80])
async def test_it_answers_as_the_real_one_was_recorded(
    server: FakeElasticsearch, case: dict[str, Any]
) -> None:
    headers = {"Content-Type": "application/json", **case["headers"]}
    body = case["body"] and case["body"].encode()
    async with aiohttp.ClientSession(server.url) as session:
        await session.put("/_connector/my-connector")
        answer = await session.request(
            case["method"], URL(case["path"], encoded=True), data=body, headers=headers
        )
        error_type, reason = told(json.loads(await answer.read()))
        assert answer.status == case["status"]
        assert error_type == case["error_type"]
        assert comparable(reason) == comparable(case["reason"])
        assert answer.headers["X-elastic-product"] == "Elasticsearch"
        document = await (await session.get("/_connector/my-connector")).json()
    for name, value in (case["stored"] or {}).items():
        assert document[name] == value


# Writes under conditions


async def test_a_write_loses_where_the_document_has_changed(client: AsyncElasticsearch) -> None:
    first = await client.index(index=INDEX, id="a", document={"n": 1})
    read = {"if_seq_no": first["_seq_no"], "if_primary_term": first["_primary_term"]}
    await client.index(index=INDEX, id="a", document={"n": 2}, **read)
    with pytest.raises(ConflictError, match="version_conflict_engine_exception"):
        await client.index(index=INDEX, id="a", document={"n": 3}, **read)
    with pytest.raises(ConflictError):
        await client.create(index=INDEX, id="a", document={"n": 3})
    assert (await client.get(index=INDEX, id="a"))["_source"] == {"n": 2}


async def test_a_bulk_tells_of_each_item(client: AsyncElasticsearch) -> None:
    await client.create(index=INDEX, id="a", document={})
    answer = await client.bulk(
        index=INDEX,
        operations=[
            {"create": {"_id": "a"}},
            {},
            {"create": {"_id": "b"}},
            {},
            {"index": {"_id": "a", "if_seq_no": 0, "if_primary_term": 1}},
            {"n": 2},
        ],
    )
    results = [next(iter(item.values())) for item in answer["items"]]
    assert [result["status"] for result in results] == [409, 201, 200]
    assert results[0]["error"]["type"] == "version_conflict_engine_exception"
    found = await client.mget(index=INDEX, ids=["a", "b", "c"])
    assert [doc["found"] for doc in found["docs"]] == [True, True, False]


async def test_an_index_is_made_by_writing_unless_that_is_switched_off(
    server: FakeElasticsearch, client: AsyncElasticsearch
) -> None:
    server.auto_create_index = False
    with pytest.raises(NotFoundError, match="index_not_found_exception"):
        await client.index(index=INDEX, id="a", document={})
    answer = await client.mget(index=INDEX, ids=["a"])
    assert answer["docs"][0]["error"]["type"] == "index_not_found_exception"
    await client.indices.create(index=INDEX)
    await client.index(index=INDEX, id="a", document={})


async def test_a_search_sees_a_write_after_a_refresh_and_a_get_at_once(
    server: FakeElasticsearch, client: AsyncElasticsearch
) -> None:
    server.refresh_interval = 1000
    await client.index(index=INDEX, id="a", document={"connector_id": "a"})

    async def found() -> int:
        return len((await client.search(index=INDEX))["hits"]["hits"])

    assert (await client.get(index=INDEX, id="a"))["found"]
    assert await found() == 0
    await client.indices.refresh(index=INDEX)
    assert await found() == 1


async def test_the_list_of_connectors_lags_behind(server: FakeElasticsearch) -> None:
    server.refresh_interval = 0.2
    async with aiohttp.ClientSession(server.url) as session:
        await session.put("/_connector/a")

        async def count() -> int:
            listed = await (await session.get("/_connector")).json()
            return int(listed["count"])

        assert (await session.get("/_connector/a")).status == 200
        assert await count() == 0

        async def is_listed() -> bool:
            return await count() == 1

        await eventually(is_listed)


async def test_a_deleted_connector_still_takes_stats(server: FakeElasticsearch) -> None:
    async with aiohttp.ClientSession(server.url) as session:
        await session.put("/_connector/a")
        await session.delete("/_connector/a")
        assert (await session.get("/_connector/a")).status == 404
        assert (await session.put("/_connector/a/_last_sync", json={})).status == 200
        server.soft_deletes = False
        await session.put("/_connector/a")
        await session.delete("/_connector/a")
        assert (await session.put("/_connector/a/_last_sync", json={})).status == 404


# Trouble


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        (401, AuthenticationException),
        (403, AuthorizationException),
        (409, ConflictError),
        (429, ApiError),
        (503, ApiError),
        ("reset", ElasticConnectionError),
        ("reset_after", ElasticConnectionError),
        ("hang", ConnectionTimeout),
        ("html_404", NotFoundError),
        ("html_502", ApiError),
        ("index_not_found", NotFoundError),
    ],
)
async def test_each_failure_reaches_the_client_and_can_be_cleared(
    server: FakeElasticsearch, client: AsyncElasticsearch, kind: Any, raised: type[Exception]
) -> None:
    failure = server.fail(kind)
    with pytest.raises(raised) as caught:
        await client.index(index=INDEX, id="a", document={})
    if isinstance(caught.value, ApiError):
        assert str(caught.value.meta.status) in f"{kind} index_not_found: 404"
    failure.clear()
    await client.index(index=INDEX, id="b", document={})
    assert set(server.indices[INDEX].documents) == ({"a", "b"} if kind == "reset_after" else {"b"})


async def test_another_product_is_told_from_elasticsearch(
    server: FakeElasticsearch, client: AsyncElasticsearch
) -> None:
    server.product = False
    with pytest.raises(UnsupportedProductError):
        await client.info()


async def test_keys_and_passwords_are_asked_for(server: FakeElasticsearch) -> None:
    server.api_keys, server.users = {"key"}, {"elastic": "changeme"}
    for options, raised in [
        ({}, AuthenticationException),
        ({"api_key": "other"}, AuthenticationException),
        ({"api_key": "key"}, None),
        ({"basic_auth": ("elastic", "changeme")}, None),
    ]:
        async with AsyncElasticsearch(server.url, **options) as client:  # type: ignore[arg-type]
            if raised:
                with pytest.raises(raised):
                    await client.info()
            else:
                await client.info()


async def test_data_outlive_a_stop(server: FakeElasticsearch, client: AsyncElasticsearch) -> None:
    await client.index(index=INDEX, id="a", document={"n": 1})
    await server.stop()
    with pytest.raises(ElasticConnectionError):
        await client.info()
    await server.start()
    assert (await client.get(index=INDEX, id="a"))["_source"] == {"n": 1}


@pytest.mark.parametrize("before", [True, False])
async def test_a_pin_stops_a_request_before_or_after_its_effect(
    server: FakeElasticsearch, client: AsyncElasticsearch, *, before: bool
) -> None:
    pin = server.pin(lambda request: "_doc" in request.path, before=before)
    writing = asyncio.create_task(client.index(index=INDEX, id="a", document={}))
    await pin.reached.wait()
    assert (INDEX in server.indices) == (not before)
    assert not writing.done()
    pin.release.set()
    await writing


@pytest.mark.parametrize(("kind", "at_once"), [("lands_late", []), ("answers_late", [INDEX])])
async def test_a_late_request_takes_effect_though_its_client_gave_up(
    server: FakeElasticsearch, client: AsyncElasticsearch, kind: str, at_once: list[str]
) -> None:
    failure = server.fail(kind, times=1)
    with pytest.raises(ConnectionTimeout):
        await client.index(index=INDEX, id="a", document={"n": 1})
    assert list(server.indices) == at_once
    assert (failure.count, failure.waiting) == (1, 1)
    failure.clear()
    await eventually(lambda: not failure.waiting)
    assert (await client.get(index=INDEX, id="a"))["_source"] == {"n": 1}
