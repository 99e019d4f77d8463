"""The API answers as Elasticsearch was recorded, but for what docs/api.md lists."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.api.conftest import Answer, Api, served
from worker.stores import open_store
from worker.stores.sql import SqlStore

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "data" / "elasticsearch-9.5-recorded.jsonl"
CASES = [json.loads(line) for line in RECORDED.read_text().splitlines()]
LAST_SYNC = "/_connector/my-connector/_last_sync"
YAML = "---\nlast_sync_status: completed\n"
Request = tuple[str, str, str | None]  # method, path, body
NAMED: dict[str, Request] = {  # requests that a cell of the table cannot hold
    "a cursor nested 65 deep": (
        "PUT",
        LAST_SYNC,
        '{"sync_cursor":' + '{"a":' * 63 + "{}" + "}" * 64,
    ),
    "a body of 1,048,577 bytes": ("PUT", LAST_SYNC, '{"last_sync_error":"x"}'.ljust(1_048_577)),
    "a body in YAML": ("PUT", LAST_SYNC, YAML),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """Start a server for all tests here: none of them changes more than its connectors."""
    folder = tmp_path_factory.mktemp("api")
    async with open_store(f"sqlite:///{folder}/store.db") as store:
        assert isinstance(store, SqlStore)
        async with served(store) as api:
            yield api


@pytest_asyncio.fixture(loop_scope="module")
async def api(shared: Api) -> Api:
    await shared.call("DELETE", "/_connector/my-connector")
    await shared.call("PUT", "/_connector/my-connector")
    return shared


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A row of the table."""

    title: str
    requests: list[Request]
    status: int
    theirs: int
    value: Any


def deviations() -> list[Deviation]:
    text = (ROOT / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| (.*) \| (\d{3}.*) \| (\d{3}.*) \| (.*) \|$", text, re.MULTILINE)
    assert rows
    return [deviation(*row) for row in rows]


def deviation(request: str, theirs: str, ours: str, why: str) -> Deviation:
    assert why
    assert theirs != ours
    requests = [parsed(r) for r in spans(request)] or [NAMED[request]]
    value = json.loads(spans(ours)[0]) if "`" in ours else None
    return Deviation(
        title=request, requests=requests, status=int(ours[:3]), theirs=int(theirs[:3]), value=value
    )


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def parsed(request: str) -> Request:
    if request.startswith("{"):
        return "PUT", LAST_SYNC, request
    method, path, *body = request.split(" ", 2)
    return method, path, body[0] if body else None


DEVIATIONS = deviations()


@pytest.mark.parametrize("row", DEVIATIONS, ids=lambda row: row.title[:60])
async def test_each_deviation_of_the_table_is_one(api: Api, row: Deviation) -> None:
    for method, path, body in row.requests:
        headers = {"Content-Type": "application/yaml"} if body == YAML else None
        answer = await api.call(method, path, body, headers)
    assert answer.status == row.status
    if row.value is not None:
        (name,) = json.loads(str(body))
        assert await api.stored(name) == row.value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"][:80])
async def test_it_answers_as_elasticsearch_was_recorded(api: Api, case: dict[str, Any]) -> None:
    answer = await api.call(case["method"], case["path"], case["body"], case["headers"])

    request = (case["method"], case["path"], case["body"])
    listed = [row for row in DEVIATIONS if row.requests == [request]]
    if listed:
        assert {row.theirs for row in listed} == {case["status"]}
        assert answer.status == listed[0].status
        return
    assert answer.status == case["status"]
    assert answer.error_type == case["error_type"]
    assert comparable(answer.reason) == comparable(case["reason"])
    assert answer.headers["x-elastic-product"] == "Elasticsearch"
    for name, value in (case["stored"] or {}).items():
        stored = await api.stored(name)
        assert (stored, type(stored)) == (value, type(value))


def comparable(reason: str | None) -> str | None:
    """Without places in the text and names of Java's, which are not worth imitating."""
    return reason and re.sub(r"^\[\d+:\d+\] |\n at \[Source.*", "", reason, flags=re.DOTALL)


def told(answer: Answer) -> tuple[int, str | None, str | None]:
    return answer.status, answer.error_type, answer.reason


STATUS = '{"last_sync_status":"completed"}'


@pytest.mark.parametrize(
    ("body", "status", "kind", "reason"),
    [
        ("", 400, "parse_exception", "request body is required"),
        ("  ", 400, "x_content_parse_exception", "Expected START_OBJECT but was: null"),
        ("null", 400, "x_content_parse_exception", "Expected START_OBJECT but was: VALUE_NULL"),
        ("[1]", 400, "x_content_parse_exception", "Expected START_OBJECT but was: START_ARRAY"),
        ('"x"', 400, "x_content_parse_exception", "Expected START_OBJECT but was: VALUE_STRING"),
        ("nul", 400, "x_content_parse_exception", "Unexpected character"),
        ('{"last_seen":"2023-11-09T15:13:08Z"}', 400, "x_content_parse_exception", "unknown field"),
        ('{"last_sync_statu":1}', 400, "x_content_parse_exception", "[last_sync_status"),
        (
            '{"last_sync_status":"error","last_sync_status":"error"}',
            400,
            "x_content_parse_exception",
            "Duplicate field 'last_sync_status'",
        ),
        ('{"last_indexed_document_count":NaN}', 400, "x_content_parse_exception", "NaN"),
        (f'{{"last_indexed_document_count":{"9" * 5000}}}', 400, "x_content_parse_exception", ""),
        ('{"last_sync_error":"a\nb"}', 400, "x_content_parse_exception", "Unexpected character"),
        ('{"last_sync_error":"unended', 400, "x_content_e_o_f_exception", "Unexpected end of file"),
        ('{"last_sync_status":', 400, "x_content_e_o_f_exception", "Unexpected end of file"),
        (
            json.dumps({"last_sync_error": "ä" * 16_384}),
            400,
            "document_parsing_exception",
            "immense term",
        ),
        ("[" * 100_000, 400, "x_content_parse_exception", "nesting"),
        ('{"sync_cursor":' * 5000, 400, "x_content_parse_exception", "nesting"),
        ('{"sync_cursor":{"a":"[[[' + "[" * 99, 400, "x_content_e_o_f_exception", ""),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bodies_nobody_wrote_down(
    api: Api, body: str, status: int, kind: str, reason: str
) -> None:
    answer = await api.last_sync(body)
    assert (answer.status, answer.error_type) == (status, kind)
    assert reason in str(answer.reason)
    assert answer.body["error"]["root_cause"][0]["type"] == kind
    assert answer.body["status"] == status


async def test_a_field_that_nobody_knows_keeps_nobody_waiting(api: Api) -> None:
    async with asyncio.timeout(5):
        answer = await api.last_sync(json.dumps({"x" * 1_000_000: 1}))
    assert (answer.status, answer.error_type) == (400, "x_content_parse_exception")


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("2023-11-09T15", "2023-11-09T15:00:00.000Z"),
        ("2023-11-09T15:13", "2023-11-09T15:13:00.000Z"),
        ("2023-11-09T15:13:08,5", "2023-11-09T15:13:08.500Z"),
        ("2023-11-09T15:13:08.2310", "2023-11-09T15:13:08.231Z"),
        ("2023-11-09T15:13:08.2314", "2023-11-09T15:13:08.231400Z"),
        ("2023-11-09T15:13:08+01", "2023-11-09T14:13:08.000Z"),
        ("2023-11-09T15:13:08-0130", "2023-11-09T16:43:08.000Z"),
        ("2023-11-09T15:13:08+01:30:30", "2023-11-09T13:42:38.000Z"),
        ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000Z"),
        ("1699542788231", "2023-11-09T15:13:08.231Z"),
        ("2023-11-09T15:13:08+18:00", "2023-11-08T21:13:08.000Z"),
        ("2023-11-09T15:13:08-013030", "2023-11-09T16:43:38.000Z"),
        ("1699542788231.5", "2023-11-09T15:13:08.231500Z"),
        ("1699542788231.", "2023-11-09T15:13:08.231Z"),
        ("2023.5", "1970-01-01T00:00:02.023500Z"),
        ("-1", "1969-12-31T23:59:59.999Z"),
        ("0", "1970-01-01T00:00:00.000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
async def test_the_date_forms_of_elasticsearch(api: Api, given: str, stored: str) -> None:
    assert (await api.last_sync(json.dumps({"last_synced": given}))).status == 200
    assert await api.stored("last_synced") == stored


@pytest.mark.parametrize(
    "given",
    ["2023-11-09T", "2023-11-09T24:00:00Z", "2023-11-09T15:13:60Z", "2023-11-09T15:13:08+18:01x",
     "2023-11-09T15:13:08+19", "2023-11-09T15:13:08+18:01", "2023-11-09T15:13:08+01:60",
     "2023-11-09T15:13:08+01:3030", "2023-11-09T15:13:08+0130:30", "-2023", "+5", "1e3",
     "2023-11-09T15:13.5Z", "", " ", "now", "\uff11\uff16\uff19\uff19",
     "2023-11-09T15:13:08Z ", "2023-02-29T00:00:00Z"],
)  # fmt: skip
async def test_what_is_no_date_to_elasticsearch(api: Api, given: str) -> None:
    answer = await api.last_sync(json.dumps({"last_synced": given}))
    assert (answer.status, answer.error_type) == (400, "x_content_parse_exception")
    assert answer.body["error"]["caused_by"]["type"] == "date_time_parse_exception"


@pytest.mark.parametrize(
    ("given", "stored"),
    [("42", 42), ('"42"', 42), ("42.9", 42), ('"0.5"', 0), ("-0.5", 0), ('"+7"', 7), ("1e3", 1000),
     ("9223372036854775807", 2**63 - 1), ("1234567890123456789.0", 1234567890123456768)],
)  # fmt: skip
async def test_the_counts_of_elasticsearch(api: Api, given: str, stored: int) -> None:
    answer = await api.last_sync(f'{{"last_indexed_document_count":{given}}}')
    assert answer.status == 200
    assert await api.stored("last_indexed_document_count") == stored


@pytest.mark.parametrize("given", ['"9223372036854775808"', '"1e999999999"', '"1_000"', '" 1"'])
async def test_what_is_no_count_to_elasticsearch(api: Api, given: str) -> None:
    answer = await api.last_sync(f'{{"last_indexed_document_count":{given}}}')
    assert (answer.status, answer.error_type) == (400, "x_content_parse_exception")


@pytest.mark.parametrize(
    ("accept", "given", "status", "answered"),
    [
        (None, "application/json", 200, "application/json"),
        ("*/*", "application/json", 200, "application/json"),
        (8, 8, 200, "application/vnd.elasticsearch+json;compatible-with=8"),
        (9, 9, 200, "application/vnd.elasticsearch+json;compatible-with=9"),
        (8, 9, 400, "application/json"),
        (7, 7, 400, "application/json"),
        (None, "application/vnd.elasticsearch+json", 200, "application/json"),
        (None, "Application/JSON ; charset=utf-8;", 200, "application/json"),
        ("text/html,*/*;q=0.8", "application/json", 200, "application/json"),
        ("text/html", "application/json", 200, "application/json"),
        (None, "json", 400, "application/json"),
        (None, "", 400, "application/json"),
        (None, "application/json; utf-8", 400, "application/json"),
        (None, "application/json,application/json", 406, "application/json"),
        ("json", "application/json", 400, "application/json"),
        (None, "text/plain", 406, "application/json"),
        (None, "application/x-www-form-urlencoded", 406, "application/json"),
        (None, None, 406, "application/json"),
    ],
)
async def test_media_types(api: Api, accept: Any, given: Any, status: int, answered: str) -> None:
    headers = {
        name: f"application/vnd.elasticsearch+json; compatible-with={value}"
        if isinstance(value, int)
        else value
        for name, value in (("Accept", accept), ("Content-Type", given))
        if value is not None
    }
    async with api.session.put(
        f"{api.url}{LAST_SYNC}", data=STATUS.encode(), headers=headers,
        skip_auto_headers=["Content-Type"],
    ) as answer:  # fmt: skip
        assert (answer.status, answer.headers["content-type"]) == (status, answered)


async def test_a_version_on_accept_alone_will_do_without_a_body(api: Api) -> None:
    accept = {"Accept": "application/vnd.elasticsearch+json;compatible-with=8"}
    assert (await api.call("GET", "/_connector", headers=accept)).status == 200


NO_HANDLER = "no handler found for uri [{}] and method [{}]"
NOT_FOUND = (404, "resource_not_found_exception")
ILLEGAL = (400, "illegal_argument_exception")


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        ("GET /nope", (400, None, NO_HANDLER.format("/nope", "GET"))),
        ("PUT /nope?a=b", (400, None, NO_HANDLER.format("/nope?a=b", "PUT"))),
        (
            "POST /_connector/x",
            (
                405,
                None,
                (
                    "Incorrect HTTP method for uri [/_connector/x] and method [POST],"
                    " allowed: [GET, PUT, DELETE]"
                ),
            ),
        ),
        ("GET /_connector/none", (*NOT_FOUND, "connector [none] not found")),
        ("DELETE /_connector/none", (*NOT_FOUND, "connector [none] not found")),
        (
            "GET /_connector?fro=1",
            (
                *ILLEGAL,
                (
                    "request [/_connector] contains unrecognized parameter: [fro]"
                    " -> did you mean [from]?"
                ),
            ),
        ),
        ("GET /_connector?from=-1", (*ILLEGAL, "Parameter [from] cannot be negative but was [-1]")),
        (
            "GET /_connector?size=x",
            (*ILLEGAL, "Failed to parse int parameter [size] with value [x]"),
        ),
        (
            "GET /_connector?pretty=maybe",
            (*ILLEGAL, "Failed to parse value [maybe] as only [true] or [false] are allowed."),
        ),
        (
            "PUT /_connector//_last_sync",
            (
                400,
                "action_request_validation_exception",
                'Validation Failed: 1: [connector_id] cannot be [null] or [""].;',
            ),
        ),
        (
            "GET /_connector?size=1_0",
            (*ILLEGAL, "Failed to parse int parameter [size] with value [1_0]"),
        ),
        (
            "GET /_connector?size=+1",  # a space
            (*ILLEGAL, "Failed to parse int parameter [size] with value [ 1]"),
        ),
        ("GET /_connector/a%%b", (*NOT_FOUND, "connector [a%b] not found")),
        ("GET /_connector/a+b", (*NOT_FOUND, "connector [a+b] not found")),
        ("GET /_connector/%ff", (*NOT_FOUND, "connector [\ufffd] not found")),
        ("GET /%5Fconnector", (400, None, NO_HANDLER.format("/%5Fconnector", "GET"))),
        ("GET //_connector", (400, None, NO_HANDLER.format("//_connector", "GET"))),
        (
            "PUT /_connector/100%",
            (
                405,
                None,
                "invalid escape sequence at index 3 of: 100%, allowed: [GET, PUT, DELETE]",
            ),
        ),
        (
            "GET /_connector?query=100%",
            (400, "bad_parameter_exception", "invalid escape sequence at index 3 of: 100%"),
        ),
        ("GET /_connector/%00", (*NOT_FOUND, "connector [\0] not found")),
    ],
)
async def test_requests_nobody_wrote_down(
    api: Api, request_line: str, expected: tuple[int, str | None, str]
) -> None:
    method, path = request_line.split(" ")
    body = STATUS if "_last_sync" in path else None
    assert told(await api.call(method, path, body)) == expected


@pytest.mark.parametrize(
    "request_line", ["GET /", "GET /_connector", "GET /_connector/x", "DELETE /_connector/x"]
)
async def test_a_body_where_none_is_read(api: Api, request_line: str) -> None:
    method, path = request_line.split(" ")
    answer = await api.call(method, path, "{}")
    reason = f"request [{request_line}] does not support having a body"
    assert told(answer) == (*ILLEGAL, reason)


@pytest.mark.parametrize(("length", "status"), [(4096, 200), (4097, 400)])
async def test_a_request_line_has_a_limit(api: Api, length: int, status: int) -> None:
    rest = len("GET /_connector?query= HTTP/1.1")
    answer = await api.call("GET", f"/_connector?query={'a' * (length - rest)}")
    kind = None if status == 200 else "too_long_http_line_exception"
    assert (answer.status, answer.error_type) == (status, kind)


async def test_parameters_may_be_separated_by_semicolons_and_the_last_counts(api: Api) -> None:
    answer = await api.call("GET", "/_connector?size=5&from=0;size=0;&=x&pretty")
    assert (answer.status, answer.body["results"]) == (200, [])


async def test_a_wrong_method_names_the_right_ones(api: Api) -> None:
    answer = await api.call("DELETE", LAST_SYNC)
    assert (answer.status, answer.headers["allow"]) == (405, "PUT")
    options = await api.call("OPTIONS", "/_connector")
    assert (options.status, options.headers["allow"]) == (200, "GET,POST,PUT")
    assert "access-control-allow-origin" not in options.headers
