"""A fake Elasticsearch: its own ASGI app on a real socket, for the official client.

`async with FakeElasticsearch() as server:` listens at `server.url`. Its data outlive `stop` and
`start`. `server.fail(...)` makes requests go wrong, and `server.pin(...)` stops them half-way.
"""

import asyncio
import base64
import contextlib
import json
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

import uvicorn

from tests.brokers import HOST, free_port
from tests.elastic_data import (
    CONNECTOR_INDEX,
    Connectors,
    ElasticError,
    Index,
    last_sync,
    parsed,
)

COMPATIBLE = re.compile(r"application/vnd\.elasticsearch\+(x-nd)?json;\s*compatible-with=[89]")
VERSIONED = "application/vnd.elasticsearch+"
NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST
KNOWN_PARAMETERS = {"pretty", "human", "error_trace", "filter_path", "refresh", "timeout"}
TAGLINE = "You Know, for Search"

FAILURES: dict[Any, ElasticError] = {
    401: ElasticError(401, "security_exception", "unable to authenticate user"),
    403: ElasticError(403, "security_exception", "action is unauthorized for this user"),
    409: ElasticError(409, "version_conflict_engine_exception", "[id]: version conflict"),
    429: ElasticError(429, "es_rejected_execution_exception", "rejected execution"),
    503: ElasticError(503, "cluster_block_exception", "blocked by: [SERVICE_UNAVAILABLE]"),
    "index_not_found": ElasticError(
        404, "index_not_found_exception", f"no such index [{CONNECTOR_INDEX}]"
    ),
}

TAKING_EFFECT = ("reset_after", "lands_late", "answers_late")

Answer = tuple[int, Any]
Match = Callable[["Request"], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    path: str  # percent-decoded
    query: dict[str, str]
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The JSON value, or the list of values where there is one a line; None for none."""
        if not self.raw.strip():
            return None
        if self.path.endswith("/_bulk") or self.path == "/_bulk":
            return [json.loads(line) for line in self.raw.splitlines() if line.strip()]
        if "yaml" in self.headers.get("content-type", ""):
            lines = (line.split(": ") for line in self.raw.decode().splitlines() if ": " in line)
            return {name: value for name, value in lines}  # noqa: C416 - lists, not pairs
        return parsed(self.raw)


def every(_: Request) -> bool:
    return True


@dataclass(slots=True, eq=False)
class Failure:
    """A way for requests to go wrong; `times` None means until it is cleared."""

    kind: int | str
    times: int | None
    match: Match
    seconds: float | None  # that a request is late; None: until it is cleared
    count: int = 0  # requests that went wrong
    waiting: int = 0  # those of them that are late now
    hung: asyncio.Event = field(default_factory=asyncio.Event)

    def clear(self) -> None:
        self.times = 0
        self.hung.set()

    async def wait(self) -> None:
        self.waiting += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.seconds):
                await self.hung.wait()
        self.waiting -= 1

    def hits(self, request: Request) -> bool:
        if self.times == 0 or not self.match(request):
            return False
        self.times = None if self.times is None else self.times - 1
        self.count += 1
        return True


@dataclass(slots=True, eq=False)
class Pin:
    """Stops the next request that matches, before or after it takes effect."""

    match: Match
    before: bool
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are pytest's


class FakeElasticsearch:
    """One node; `url` is where it listens, and the attributes below may be set at any time."""

    def __init__(self, *, ssl_certfile: str | None = None, ssl_keyfile: str | None = None) -> None:
        self.port = free_port()
        self.number, self.build_flavor = "9.5.3", "default"
        self.product = True
        self.auto_create_index = True
        self.refresh_interval = 1.0  # seconds
        self.soft_deletes = True
        self.api_keys: set[str] | None = None
        self.users: dict[str, str] | None = None
        self.warning: str | None = None
        self.requests: list[tuple[str, str, Any]] = []
        self.indices: dict[str, Index] = {}
        self._tls = {"ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile}
        self.failures: list[Failure] = []
        self._pins: list[Pin] = []
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._bug: Exception | None = None
        self.loop: asyncio.AbstractEventLoop | None = None  # its own, where it has one

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls['ssl_certfile'] else ''}://{HOST}:{self.port}"

    @property
    def connectors(self) -> dict[str, dict[str, Any]]:
        """The stored documents by id, those marked as deleted too."""
        index = self.indices.get(CONNECTOR_INDEX)
        return {id_: doc.source for id_, doc in index.documents.items()} if index else {}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self._bug:
            raise self._bug

    async def start(self) -> None:
        config = uvicorn.Config(
            self._app,
            host=HOST,
            port=self.port,
            log_level="critical",
            interface="asgi3",
            lifespan="off",
            http="h11",
            ws="none",
            timeout_graceful_shutdown=1,
            **self._tls,  # type: ignore[arg-type]  # two paths, or None twice
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(), name="fake Elasticsearch")
        while not self._server.started:
            await asyncio.sleep(0.001)
            if self._serving.done():
                self._serving.result()

    async def stop(self) -> None:
        """End as a killed node does: connections break, and data stay."""
        if self._server is None or self._serving is None:
            return
        for failure in self.failures:
            failure.hung.set()
        for pin in self._pins:
            pin.release.set()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        self._server.should_exit = True
        await self._serving
        self._server = self._serving = None

    def fail(
        self,
        kind: int | str,
        *,
        times: int | None = None,
        match: Match = every,
        seconds: float | None = None,
    ) -> Failure:
        """Let requests go wrong: a status, or `reset`, `reset_after`, `hang`, `html_404`, …

        After so many seconds `lands_late` takes effect, and the answer of `answers_late` is sent.
        """
        failure = Failure(kind, times, match, seconds)
        self.failures.append(failure)
        return failure

    def pin(self, match: Match, *, before: bool = True) -> Pin:
        pin = Pin(match, before)
        self._pins.append(pin)
        return pin

    # Serving

    async def _app(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        request = await _read(scope, receive)
        self.requests.append((request.method, request.path, _quietly(request)))
        pin = self._pinned(request)
        if pin and pin.before:
            await _wait_at(pin)
        failure = next((one for one in self.failures if one.hits(request)), None)
        if failure and failure.kind in ("hang", "lands_late"):
            await failure.wait()
        if failure and failure.kind in ("reset", "hang"):
            return self._reset(scope)
        if failure and failure.kind not in TAKING_EFFECT:
            status, body = _failed(failure.kind)
        else:
            status, body = self._safely(request)
        if pin and not pin.before:
            await _wait_at(pin)
        if failure and failure.kind == "reset_after":
            return self._reset(scope)
        if failure and failure.kind == "answers_late":
            await failure.wait()
        await self._send(request, status, body, send)
        return None

    def _pinned(self, request: Request) -> Pin | None:
        for pin in self._pins:
            if pin.match(request):
                self._pins.remove(pin)
                return pin
        return None

    def _reset(self, scope: MutableMapping[str, Any]) -> None:
        assert self._server is not None
        for connection in list(self._server.server_state.connections):
            if connection.client == scope["client"]:  # type: ignore[union-attr]
                transport = connection.transport
                sock: socket.socket = transport.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                transport.abort()

    async def _send(
        self,
        request: Request,
        status: int,
        body: Any,
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        html = isinstance(body, bytes)
        accepted = request.headers.get("accept", "")
        kind = accepted if accepted.startswith(VERSIONED) else "application/json"
        headers = {"content-type": "text/html" if html else kind}
        if self.product and not html:
            headers["X-elastic-product"] = "Elasticsearch"
        if self.warning and not html:
            headers["Warning"] = f'299 Elasticsearch-{self.number}-fake "{self.warning}"'
        if status == 401:
            headers["WWW-Authenticate"] = "ApiKey"
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        encoded.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        sent = b"" if request.method == "HEAD" else content
        await send({"type": "http.response.body", "body": sent})

    # Answering

    def _safely(self, request: Request) -> Answer:
        try:
            return self._answer(request)
        except Exception as error:
            self._bug = error  # a 500 would look like trouble that the fake makes on purpose
            raise

    def _answer(self, request: Request) -> Answer:
        try:
            self._admit(request)
            return self._route(request)
        except ElasticError as error:
            return error.status, error.body()

    def _admit(self, request: Request) -> None:
        versioned = {
            header: request.headers.get(header, "").startswith(VERSIONED)
            for header in ("accept", "content-type")
            if header == "accept" or request.raw
        }
        bad = len(set(versioned.values())) > 1 or any(
            not COMPATIBLE.match(request.headers[header]) for header, on in versioned.items() if on
        )
        if bad:
            reason = "Invalid media-type value on headers [Accept, Content-Type]"
            raise ElasticError(400, "media_type_header_exception", reason)
        if not self._knows(request.headers.get("authorization", "")):
            raise FAILURES[401]

    def _knows(self, authorization: str) -> bool:
        if self.api_keys is None and self.users is None:
            return True
        scheme, _, token = authorization.partition(" ")
        if scheme == "ApiKey":
            return token in (self.api_keys or ())
        if scheme == "Basic":
            user, _, password = base64.b64decode(token).decode().partition(":")
            return (self.users or {}).get(user) == password
        return False

    def _route(self, request: Request) -> Answer:
        for pattern, handlers in ROUTES.items():
            match = re.fullmatch(pattern, request.path, flags=re.DOTALL)
            if match is None:
                continue
            handler = handlers.get(request.method)
            if handler is None:
                allowed = ", ".join(sorted(handlers))
                return 405, {
                    "error": f"Incorrect HTTP method for uri [{request.path}] and method"
                    f" [{request.method}], allowed: [{allowed}]",
                    "status": 405,
                }
            return handler(self, request, *match.groups())
        text = f"no handler found for uri [{request.path}] and method [{request.method}]"
        return 400, {"error": text}

    def _index(self, name: str) -> Index:
        if name not in self.indices:
            raise ElasticError(
                404, "index_not_found_exception", f"no such index [{name}]", more={"index": name}
            )
        return self.indices[name]

    def _made(self, name: str) -> Index:
        """The index; made on the way where the cluster does so."""
        if name not in self.indices and self.auto_create_index:
            self.indices[name] = Index(name, self.refresh_interval)
        return self._index(name)

    def _connectors(self) -> Connectors:
        """The connectors there are; reading them makes no index."""
        index = self.indices.get(CONNECTOR_INDEX) or Index(CONNECTOR_INDEX, self.refresh_interval)
        return Connectors(index, soft_deletes=self.soft_deletes)

    def _info(self, _: Request) -> Answer:
        version = {"number": self.number, "build_flavor": self.build_flavor}
        tagline = TAGLINE if self.product else "The other search"
        return 200, {
            "name": "fake",
            "cluster_name": "fake",
            "cluster_uuid": "_na_",
            "version": version,
            "tagline": tagline,
        }

    def _register(self, request: Request, id_: str) -> Answer:
        if CONNECTOR_INDEX not in self.indices:  # the server makes its own index by itself
            self.indices[CONNECTOR_INDEX] = Index(CONNECTOR_INDEX, self.refresh_interval)
        status, result = self._connectors().register(id_, request.body or {})
        return status, {"id": id_, "result": result}

    def _get_connector(self, _: Request, id_: str) -> Answer:
        return 200, self._connectors().get(id_)

    def _delete_connector(self, _: Request, id_: str) -> Answer:
        self._connectors().delete(id_)
        return 200, {"acknowledged": True}

    def _list(self, request: Request) -> Answer:
        start, size = (int(request.query.get(name, n)) for name, n in [("from", 0), ("size", 100)])
        return 200, self._connectors().page(start, size)

    def _last_sync(self, request: Request, id_: str) -> Answer:
        unknown = set(request.query) - KNOWN_PARAMETERS
        if unknown:
            reason = f"request [{request.path}] contains unrecognized parameter: [{min(unknown)}]"
            raise ElasticError(400, "illegal_argument_exception", reason)
        fields = last_sync(request.body if request.raw else parsed(b""))
        self._made(CONNECTOR_INDEX)
        return 200, {"result": self._connectors().update_last_sync(id_, fields)}

    def _create_index(self, request: Request, name: str) -> Answer:
        if name in self.indices:
            reason = f"index [{name}/{self.indices[name].uuid}] already exists"
            raise ElasticError(400, "resource_already_exists_exception", reason)
        mappings = (request.body or {}).get("mappings", {})
        self.indices[name] = Index(name, self.refresh_interval, mappings)
        return 200, {"acknowledged": True, "shards_acknowledged": True, "index": name}

    def _get_index(self, _: Request, name: str) -> Answer:
        return 200, {name: {"aliases": {}, "mappings": self._index(name).mappings}}

    def _delete_index(self, _: Request, name: str) -> Answer:
        self._index(name)
        del self.indices[name]
        return 200, {"acknowledged": True}

    def _refresh(self, _: Request, name: str) -> Answer:
        self._index(name).refresh()
        return 200, {"_shards": {"total": 1, "successful": 1, "failed": 0}}

    def _put_doc(self, request: Request, name: str, kind: str, id_: str) -> Answer:
        action = {**request.query, "_index": name, "_id": id_}
        create = kind == "_create" or request.query.get("op_type") == "create"
        status, answer = self._write(action, request.body, create=create)
        return status, answer

    def _write(self, action: dict[str, Any], source: Any, *, create: bool) -> Answer:
        index, id_ = self._made(action["_index"]), action["_id"]
        seq_no, term = action.get("if_seq_no"), action.get("if_primary_term")
        document, new = index.put(
            id_,
            source,
            if_seq_no=None if seq_no is None else int(seq_no),
            if_primary_term=None if term is None else int(term),
            create=create,
        )
        if action.get("refresh", "false") in ("", "true", True):
            index.refresh()
        return 201 if new else 200, {
            "_index": index.name,
            "_id": id_,
            "result": "created" if new else "updated",
            "_seq_no": document.seq_no,
            "_primary_term": document.primary_term,
        }

    def _get_doc(self, _: Request, name: str, __: str, id_: str) -> Answer:
        found = self._one(name, id_)
        return 200 if found["found"] else 404, found

    def _one(self, name: str, id_: str) -> dict[str, Any]:
        document = self._index(name).documents.get(id_)
        found: dict[str, Any] = {"_index": name, "_id": id_, "found": document is not None}
        if document is not None:
            found |= {
                "_seq_no": document.seq_no,
                "_primary_term": document.primary_term,
                "_source": document.source,
            }
        return found

    def _mget(self, request: Request, name: str | None = None) -> Answer:
        body = request.body
        asked = [(name, id_) for id_ in body.get("ids", ())]
        asked += [(doc.get("_index", name), doc["_id"]) for doc in body.get("docs", ())]
        docs = []
        for index, id_ in asked:
            try:
                docs.append(self._one(str(index), id_))
            except ElasticError as error:
                docs.append({"_index": index, "_id": id_, "error": error.body()["error"]})
        return 200, {"docs": docs}

    def _bulk(self, request: Request, name: str | None = None) -> Answer:
        lines = iter(request.body)
        items = []
        for line in lines:
            ((kind, action),) = line.items()
            action = {"_index": name, "refresh": request.query.get("refresh", "false"), **action}
            try:
                status, answer = self._write(action, next(lines), create=kind == "create")
            except ElasticError as error:
                status, answer = error.status, {"_index": action["_index"], "_id": action["_id"]}
                answer["error"] = {"type": error.type, "reason": error.reason, **error.more}
            items.append({kind: {**answer, "status": status}})
        errors = any("error" in item[kind] for item in items for kind in item)
        return 200, {"took": 1, "errors": errors, "items": items}

    def _search(self, request: Request, name: str) -> Answer:
        body = request.body or {}
        documents = self._index(name).searched()
        (sort,) = body.get("sort", [{"connector_id": "asc"}])
        (key,) = sort
        after = (body.get("search_after") or [""])[0]
        found = sorted(
            (document.source[key], id_, document)
            for id_, document in documents.items()
            if document.source[key] > after
        )
        hits = [
            {"_index": name, "_id": id_, "sort": [value], "_seq_no": document.seq_no}
            for value, id_, document in found[: body.get("size", 10)]
        ]
        return 200, {"hits": {"total": {"value": len(found), "relation": "eq"}, "hits": hits}}


def call(server: FakeElasticsearch, coroutine: Coroutine[Any, Any, None]) -> None:
    """Run one of its coroutines in its thread."""
    assert server.loop is not None
    asyncio.run_coroutine_threadsafe(coroutine, server.loop).result()


@contextlib.contextmanager
def in_a_thread(server: FakeElasticsearch) -> Iterator[None]:
    """Serve in a loop of its own, for tests that run several."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake Elasticsearch", daemon=True)
    thread.start()
    server.loop = loop
    call(server, server.start())
    try:
        yield
    finally:
        call(server, server.__aexit__())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


ONE = "([^/]+)"
FAKE = FakeElasticsearch
ROUTES: dict[str, dict[str, Callable[..., Answer]]] = {
    "/": {"GET": FAKE._info, "HEAD": FAKE._info},
    "/_connector": {"GET": FAKE._list},
    "/_connector/(.+)/_last_sync": {"PUT": FAKE._last_sync},
    "/_connector/(.+)": {
        "GET": FAKE._get_connector,
        "PUT": FAKE._register,
        "DELETE": FAKE._delete_connector,
    },
    "/_mget": {"GET": FAKE._mget, "POST": FAKE._mget},
    "/_bulk": {"PUT": FAKE._bulk, "POST": FAKE._bulk},
    f"/{ONE}/_mget": {"GET": FAKE._mget, "POST": FAKE._mget},
    f"/{ONE}/_bulk": {"PUT": FAKE._bulk, "POST": FAKE._bulk},
    f"/{ONE}/_search": {"GET": FAKE._search, "POST": FAKE._search},
    f"/{ONE}/_refresh": {"GET": FAKE._refresh, "POST": FAKE._refresh},
    f"/{ONE}/(_doc|_create)/(.+)": {
        "GET": FAKE._get_doc,
        "PUT": FAKE._put_doc,
        "POST": FAKE._put_doc,
    },
    "/([^/_][^/]*)": {
        "GET": FAKE._get_index,
        "HEAD": FAKE._get_index,
        "PUT": FAKE._create_index,
        "DELETE": FAKE._delete_index,
    },
}


async def _read(
    scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[MutableMapping[str, Any]]]
) -> Request:
    raw, more = b"", True
    while more:
        message = await receive()
        raw += message.get("body", b"")
        more = message.get("more_body", False)
    return Request(
        method=scope["method"],
        path=unquote(scope["raw_path"].decode()),
        query=dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True)),
        headers={name.decode(): value.decode() for name, value in scope["headers"]},
        raw=raw,
    )


async def _wait_at(pin: Pin) -> None:
    pin.reached.set()
    await pin.release.wait()


def _quietly(request: Request) -> Any:
    try:
        return request.body
    except (ElasticError, ValueError):
        return request.raw


def _failed(kind: int | str) -> Answer:
    if isinstance(kind, str) and kind.startswith("html_"):
        status = int(kind.removeprefix("html_"))
        return status, b"<html><body>The proxy knows no such page.</body></html>"
    error = FAILURES[kind]
    return error.status, error.body()
