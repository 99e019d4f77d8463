"""Requests: what the server's own parser lets in gets one answer, in Elasticsearch's shapes."""

import asyncio
import json
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Scope

from tests.fuzz.inputs import GROWN, Run, Target, joined, split
from tests.fuzz.mutations import NAMES, TEXTS
from worker.api.server import METHODS, application
from worker.stores.sqlite import open_sqlite

KEY = "a-key"
RECORDED = Path(__file__).parents[2] / "data" / "elasticsearch-9.5-recorded.jsonl"
HEADERS = ("host", "content-type", "content-encoding", "accept", "accept-encoding", "authorization")
PATHS = ("/", "/_connector", "/_health", "/openapi.json", "/docs", "/_connector/my-connector")
PARAMETERS = (
    *("pretty", "human", "error_trace", "filter_path", "format", "from", "size", "index_name"),
    *("connector_name", "service_type", "query", "include_deleted", "hard", "delete_sync_jobs"),
)
WORDS = [
    *(word.encode() for word in (*METHODS, *HEADERS, *PATHS, "/_last_sync", "content-length")),
    *(f"{name}=".encode() for name in PARAMETERS),
    *(b"?", b"&", b"=", b"%", b"%25", b"%00", b"%2F", b"%ff", b"*", b"-1", b"10001", b"true", b""),
    *(b"gzip", b"identity", b"chunked", b"transfer-encoding", b"expect", b"100-continue"),
    *(
        b"application/json",
        b"application/vnd.elasticsearch+json;compatible-with=9",
        b"*/*",
        b"text/x",
    ),
    *(b"ApiKey a-key", b"/**/", b"//\n", b"{", b"[" * 70),
    *(f'"{name}":'.encode() for name in NAMES),
    *(text.encode(errors="surrogatepass") for text in TEXTS),
]
ADMITTED = (b"authorization", f"ApiKey {KEY}".encode())
LAST_SYNC = b"/_connector/my-connector/_last_sync"
# Without bytes that stand between parts.
ZIPPED = next(
    zipped
    for text in (b'{"last_synced": "%d"}' % number for number in range(10_000))
    if not {0xFD, 0xFE, 0xFF} & {*(zipped := zlib.compress(text, wbits=31))}
)
JSON = (b"content-type", b"application/json")
ENDLESS = [
    GROWN + unit + GROWN for unit in (b'\\"', b'"', b"/* ", b"//", b"[", b'{"', b"[]", b"\\")
]


@contextmanager
def opened() -> Iterator[Run]:
    """Over a store that each request finds as it was at first."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        path = Path(folder, "store.db")
        opening = open_sqlite(f"sqlite:///{path}")
        app = application(runner.run(opening.__aenter__()), [KEY])
        try:
            yield from over(app, path, runner)
        finally:
            runner.run(opening.__aexit__(None, None, None))


def over(app: ASGIApp, path: Path, runner: asyncio.Runner) -> Iterator[Run]:
    for data in PRESENT:
        assert runner.run(answered(app, data)), data
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE before AS SELECT * FROM connectors")

        def run(data: bytes) -> None:
            if runner.run(answered(app, data)):
                connection.execute("DELETE FROM connectors")
                connection.execute("INSERT INTO connectors SELECT * FROM before")

        yield run


async def answered(app: ASGIApp, data: bytes) -> bool:
    """Whether it may have changed the store."""
    events = parsed(data)
    if not events:
        return False
    request, sent = events[0], []
    incoming = iter([*messages(events[1:]), {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(incoming)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope(request), receive, send)
    if not sent:  # the caller hung up before the end of the body
        assert not isinstance(events[-1], h11.EndOfMessage)
        return False
    status = judged(request, sent)
    return status < 300 and request.method not in {b"GET", b"HEAD"}


def parsed(data: bytes) -> Sequence[Any]:
    """What the server's parser makes of the request; nothing where it refuses it itself."""
    method, target, body, *flat = [part or b"" for part in split(data)] + [b""] * 3
    headers = list(zip(flat[::2], flat[1::2], strict=False))
    framed = {name.lower() for name, _ in headers} & {b"content-length", b"transfer-encoding"}
    if body and not framed:
        headers.append((b"content-length", b"%d" % len(body)))
    lines = [b"%s: %s" % header for header in headers if header != (b"", b"")]
    head = [method + b" " + target + b" HTTP/1.1", b"host: x", *lines, b"", body]
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"\r\n".join(head))
    events: list[Any] = []
    try:
        while isinstance(event := connection.next_event(), h11.Event):
            events.append(event)
    except h11.RemoteProtocolError:
        return []
    return events


def scope(request: Any) -> Scope:
    raw_path, _, query = request.target.partition(b"?")
    return {
        "type": "http",
        "http_version": "1.1",
        "method": request.method.decode("ascii"),
        "path": raw_path.decode("ascii"),
        "raw_path": raw_path,
        "query_string": query,
        "headers": list(request.headers),
    }


def messages(events: Sequence[Any]) -> Iterator[Message]:
    for event in events:
        if isinstance(event, h11.Data):
            yield {"type": "http.request", "body": bytes(event.data), "more_body": True}
        elif isinstance(event, h11.EndOfMessage):
            yield {"type": "http.request", "body": b"", "more_body": False}


def judged(request: Any, sent: Sequence[Message]) -> int:
    """The status, of an answer that is whole, that HTTP allows, and that clients can read."""
    start, *rest = sent
    assert start["type"] == "http.response.start"
    assert [bool(each.get("more_body")) for each in rest] == [True] * (len(rest) - 1) + [False]
    headers, status = dict(start["headers"]), int(start["status"])
    assert status < 500, (status, rest)
    connection = h11.Connection(h11.SERVER)
    connection.send(h11.Response(status_code=status, headers=start["headers"]))
    raw = b"".join(each["body"] for each in rest)
    if headers.get(b"content-encoding") == b"gzip":
        raw = zlib.decompress(raw, wbits=31)
    if request.method == b"HEAD":
        assert not raw
    elif b"json" in headers.get(b"content-type", b"") and raw:
        is_an_answer(status, json.loads(raw.decode()))
    return status


def is_an_answer(status: int, body: Any) -> None:
    if status < 400:
        return
    error = body["error"]
    if isinstance(error, str):
        assert body.get("status", 400) == status
    else:
        assert body["status"] == status
        assert {"type", "reason", "root_cause"} <= error.keys()
        assert isinstance(error["type"], str)
        assert isinstance(error["reason"], str)


def recorded() -> Iterator[bytes]:
    for line in RECORDED.read_text().splitlines():
        case = json.loads(line)
        flat = [part.encode() for header in case["headers"].items() for part in header]
        body = (case["body"] or "").encode()
        yield joined(
            [case["method"].encode(), case["path"].encode(), body, *ADMITTED, *JSON, *flat]
        )


def asking(method: str, path: str, body: Any = None) -> bytes:
    raw = b"" if body is None else json.dumps(body).encode()
    return joined([method.encode(), path.encode(), raw, *ADMITTED, *(JSON if raw else ())])


PRESENT = [
    asking("PUT", "/_connector/my-connector", {"name": "n", "index_name": "a", "is_native": False}),
    asking("PUT", "/_connector/my-connector/_last_sync", {"last_sync_status": "completed"}),
    asking("PUT", "/_connector/another", {"index_name": "content-b", "is_native": True}),
]
SEEDS = [
    *PRESENT,
    *(joined([b"PUT", LAST_SYNC, part, *ADMITTED, *JSON]) for part in ENDLESS),
    *recorded(),
    *(asking("GET", path) for path in PATHS),
    asking("POST", "/_connector?pretty", {"description": "d", "language": "l"}),
    asking("GET", "/_connector?from=0&size=1&query=*n?&index_name=a,b&connector_name=n"),
    asking("DELETE", "/_connector/my-connector?hard=true"),
    joined([b"GET", b"/_connector/my-connector", b"", b"accept-encoding", b"gzip", *ADMITTED]),
    joined([b"PUT", LAST_SYNC, ZIPPED, b"content-encoding", b"gzip", *ADMITTED, *JSON]),
    joined([b"PUT", LAST_SYNC, ZIPPED[:-9], b"content-encoding", b"gzip", *ADMITTED, *JSON]),
    joined([b"PUT", LAST_SYNC, b"{}", b"content-encoding", b"br", *ADMITTED, *JSON]),
    joined([b"PUT", LAST_SYNC, b"{}", b"content-length", b"9", *ADMITTED, *JSON]),
    joined([b"PUT", LAST_SYNC, b"{}", b"content-length", b"9" * 9, *ADMITTED, *JSON]),
    joined(
        [b"PUT", LAST_SYNC, b"2\r\n{}\r\n0\r\n\r\n", b"transfer-encoding", b"chunked", *ADMITTED]
    ),
    joined([b"OPTIONS", b"/_connector/%zz", b""]),
    joined([b"HEAD", b"/?pretty", b"", *ADMITTED, b"accept", b"*/*"]),
]
TARGET = Target(opened=opened, seeds=SEEDS, words=WORDS)
