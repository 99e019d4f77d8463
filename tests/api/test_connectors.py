"""Registering, reading, listing and deleting connectors through the API."""

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.api.conftest import Api, served
from worker.stores import open_store
from worker.stores.sql import SqlStore


@pytest.fixture
async def api(sql_store_url: str) -> AsyncIterator[Api]:
    async with open_store(sql_store_url) as store:
        assert isinstance(store, SqlStore)
        async with served(store) as api:
            yield api


async def put(api: Api, id_: str, **body: Any) -> tuple[int, Any]:
    answer = await api.call("PUT", f"/_connector/{id_}", json.dumps(body))
    return answer.status, answer.body


async def listed(api: Api, query: str = "") -> tuple[int, list[str]]:
    answer = await api.call("GET", f"/_connector{query}")
    assert answer.status == 200, answer.body
    return answer.body["count"], [found["id"] for found in answer.body["results"]]


async def test_a_connector_has_the_document_that_elasticsearch_gives_it(api: Api) -> None:
    said = {"name": "One", "description": "d", "service_type": "s3", "language": "en"}
    created = await put(api, "one", index_name="search-one", **said)
    assert created == (201, {"id": "one", "result": "created"})
    document = (await api.call("GET", "/_connector/one")).body
    off = {"enabled": False, "interval": "0 0 0 * * ?"}
    (filtering,) = document.pop("filtering")
    assert filtering["domain"] == "DEFAULT"
    assert (
        filtering["active"]["rules"][0]["id"] == filtering["draft"]["rules"][0]["id"] == "DEFAULT"
    )
    assert document == {
        "id": "one",
        "configuration": {},
        "custom_scheduling": {},
        "description": "d",
        "index_name": "search-one",
        "is_native": False,
        "language": "en",
        "name": "One",
        "scheduling": {"access_control": off, "full": off, "incremental": off},
        "service_type": "s3",
        "status": "created",
        "sync_now": False,
    }


async def test_a_registration_without_a_body(api: Api) -> None:
    assert (await api.call("PUT", "/_connector/bare")).status == 201
    document = (await api.call("GET", "/_connector/bare")).body
    assert (document["name"], document["index_name"], document["status"]) == ("", None, "created")


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_connector_without_an_id_is_given_one(api: Api, method: str) -> None:
    answer = await api.call(method, "/_connector", '{"name":"x","is_native":"true"}')
    assert (answer.status, answer.body["result"]) == (201, "created")
    assert len(answer.body["id"]) == 20
    document = (await api.call("GET", f"/_connector/{answer.body['id']}")).body
    assert (document["is_native"], document["status"]) == (True, "needs_configuration")


async def test_putting_a_connector_again_replaces_it(api: Api) -> None:
    await put(api, "one", index_name="search-one", name="One")
    await api.call("PUT", "/_connector/one/_last_sync", '{"last_sync_status":"completed"}')
    assert await put(api, "one", name="Two") == (200, {"id": "one", "result": "updated"})
    document = (await api.call("GET", "/_connector/one")).body
    assert (document["name"], document["index_name"]) == ("Two", None)
    assert "last_sync_status" not in document


async def test_no_two_connectors_fill_one_index(api: Api) -> None:
    await put(api, "one", index_name="search-one")
    status, body = await put(api, "two", index_name="search-one")
    assert (status, body["error"]["type"]) == (400, "status_exception")
    assert body["error"]["reason"] == "Index name [search-one] is used by another connector."
    assert (await put(api, "one", index_name="search-one"))[0] == 200
    await api.call("DELETE", "/_connector/one")
    assert (await put(api, "two", index_name="search-one"))[0] == 201


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"index_name": "_x"}, "must not start with '_', '-', or '+'"),
        ({"index_name": "a b"}, "must not contain the following characters"),
        ({"index_name": ""}, "must not be empty"),
        ({"index_name": ".."}, "must not be '.' or '..'"),
        ({"index_name": "x" * 256}, "too long"),
        ({"index_name": "search-x", "is_native": True}, "must start with the prefix: [content-]"),
    ],
)
async def test_an_index_name_that_elasticsearch_refuses(
    api: Api, body: dict[str, Any], reason: str
) -> None:
    status, answer = await put(api, "one", **body)
    assert (status, answer["error"]["type"]) == (400, "action_request_validation_exception")
    assert reason in answer["error"]["reason"]


@pytest.mark.parametrize(
    "body",
    [{"name": None}, {"name": 1}, {"is_native": 1}, {"is_native": "yes"}, {"nam": "x"},
     {"name": "\0"}, {"name": "\ud800"}],
)  # fmt: skip
async def test_a_registration_that_is_not_valid(api: Api, body: dict[str, Any]) -> None:
    status, answer = await put(api, "one", **body)
    assert (status, answer["error"]["type"]) == (400, "x_content_parse_exception")
    assert (await api.call("GET", "/_connector/one")).status == 404


@pytest.mark.parametrize("name", ["name", "service_type", "language"])
async def test_a_text_that_elasticsearch_keeps_as_one_term_has_a_limit(api: Api, name: str) -> None:
    assert (await put(api, "one", **{name: "\u00e4" * 16_383}))[0] == 201
    status, answer = await put(api, "one", **{name: "\u00e4" * 16_384})
    assert (status, answer["error"]["type"]) == (400, "document_parsing_exception")
    assert (await put(api, "one", description="\u00e4" * 16_384))[0] == 200


async def test_an_index_name_may_be_upper_case(api: Api) -> None:
    """Only making the index refuses it, in Elasticsearch too."""
    assert (await put(api, "one", index_name="UPPER"))[0] == 201


async def test_a_list_is_sorted_by_index_name_and_paged(api: Api) -> None:
    await put(api, "a")
    await put(api, "b", index_name="zz")
    await put(api, "c", index_name="aa")
    assert await listed(api) == (3, ["c", "b", "a"])
    assert await listed(api, "?from=1&size=1") == (3, ["b"])
    assert await listed(api, "?size=0") == (3, [])
    assert (await api.call("GET", "/_connector?from=9999&size=2")).status == 400


async def test_a_list_is_filtered(api: Api) -> None:
    await put(api, "a", index_name="ix-a", name="Alpha 100%", service_type="s3")
    await put(api, "b", index_name="ix-b", name="Beta", service_type="s3", description="of_alpha")
    await put(api, "c", index_name="ix-c", name="Gamma", service_type="gmail")
    assert await listed(api, "?index_name=ix-a,ix-c") == (2, ["a", "c"])
    assert await listed(api, "?connector_name=Beta") == (1, ["b"])
    assert await listed(api, "?service_type=s3&connector_name=Beta,Gamma") == (1, ["b"])
    assert await listed(api, "?query=lpha") == (2, ["a", "b"])
    assert await listed(api, "?query=ALPHA") == (0, [])
    assert await listed(api, "?query=100%25") == (1, ["a"])
    assert await listed(api, "?query=f_al") == (1, ["b"])
    assert await listed(api, "?query=B?ta") == (1, ["b"])
    assert await listed(api, "?query=G*a") == (1, ["c"])
    assert await listed(api, "?query=%5C*") == (0, [])
    assert await listed(api, "?query=(") == (0, [])
    for most in (
        "*" * 200 + "never" + "*a" * 100,
        "*a" * 2000,
        "*?" * 2000,
        "a" * 4000,
        "(" * 4000,
    ):
        assert await listed(api, f"?query={most}") == (0, [])


async def test_deleting(api: Api) -> None:
    await put(api, "one", index_name="ix", name="One")
    answer = await api.call("DELETE", "/_connector/one?delete_sync_jobs=true")
    assert (answer.status, answer.body) == (200, {"acknowledged": True})
    assert (await api.call("DELETE", "/_connector/one")).status == 404
    assert (await api.call("GET", "/_connector/one")).status == 404
    assert await listed(api) == (0, [])
    await api.store.add(["one"])
    assert (await api.call("GET", "/_connector/one")).body["name"] == ""


@pytest.mark.parametrize(
    "id_", ["a/b", "ä ö", "100%", "a?b", "a;b'--", "*", "_last_sync", "x" * 512]
)
async def test_any_id_that_events_may_name(api: Api, id_: str) -> None:
    from urllib.parse import quote  # noqa: PLC0415

    path = f"/_connector/{quote(id_, safe='')}"
    assert (await api.call("PUT", path)).status == 201
    answer = await api.call("PUT", f"{path}/_last_sync", '{"last_sync_status":"ERROR"}')
    assert (answer.status, answer.body) == (200, {"result": "updated"})
    document = (await api.call("GET", path)).body
    assert (document["id"], document["last_sync_status"]) == (id_, "error")


async def test_a_cursor_is_merged_key_by_key(api: Api) -> None:
    await put(api, "one")
    path = "/_connector/one/_last_sync"
    await api.call("PUT", path, '{"sync_cursor":{"a":{"b":1,"c":[1]},"d":null}}')
    again = await api.call("PUT", path, '{"sync_cursor":{"a":{"c":[2]}}}')
    assert again.body == {"result": "updated"}
    cursor = (await api.call("GET", "/_connector/one")).body["sync_cursor"]
    assert cursor == {"a": {"b": 1, "c": [2]}, "d": None}
    noop = await api.call("PUT", path, '{"sync_cursor":{"a":{"b":1}}}')
    assert noop.body == {"result": "noop"}
    other = await api.call("PUT", path, '{"sync_cursor":{"a":{"b":true}}}')
    assert other.body == {"result": "updated"}


async def test_compressed_bodies(api: Api) -> None:
    body = gzip.compress(b'{"name":"zipped"}')
    zipped = {"Content-Encoding": "gzip"}
    assert (await api.call("PUT", "/_connector/one", body, zipped)).status == 201
    assert (await api.call("GET", "/_connector/one")).body["name"] == "zipped"
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 1_048_576
    assert (await api.call("PUT", "/_connector/one", bomb, zipped)).status == 413
    assert (await api.call("PUT", "/_connector/one", b"x", zipped)).status == 400


async def test_any_text_may_be_looked_for(api: Api) -> None:
    await put(api, "one", index_name="ix", name="One")
    for parameter in ("query", "index_name", "connector_name", "service_type"):
        for text in ("%00", "a%00b", "%ff", "%ed%a0%80", "%F0%9F%98%80", "%0A", "%5C", "'"):
            assert await listed(api, f"?{parameter}={text}") == (0, [])
