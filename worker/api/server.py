"""The server's door: one request in, one answer out, both as Elasticsearch has them."""

import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.api import bodies, media_types, requests, urls
from worker.api.calls import Call
from worker.api.documents import document
from worker.api.errors import ElasticError, illegal_argument, not_valid
from worker.api.openapi import DOCUMENT, PAGE
from worker.errors import LastSyncError, TransientError
from worker.logs import get_logger
from worker.stores.base import Wanted
from worker.stores.sql import IndexNameTakenError, SqlStore
from worker.stores.sql_merging import RejectedError

COMPRESSION = 3  # Elasticsearch's; while it lasts, nobody else is answered
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")  # the order in which they are listed
VERSION = "9.5.0"  # the release whose answers are given here
INDEX = ".elastic-connectors-v1"  # where Elasticsearch keeps its connectors
MAX_LINE = 4096  # bytes of a request's first; Elasticsearch's http.max_initial_line_length
PAGE_SIZE = 100
MAX_WINDOW = 10_000  # Elasticsearch's index.max_result_window

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[..., Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Answers requests from a store. Without `keys` it lets everybody in."""

    store: SqlStore
    keys: Sequence[str] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        query: Mapping[str, str] = {}
        media_type = media_types.JSON
        try:
            uri = _uri(request)
            query = _parameters(scope["query_string"])
            media_type = media_types.answered(request.headers)
            answer = await self._answer(request, uri, query)
        except ClientDisconnect:
            return
        except ElasticError as error:
            answer = Answer(status=error.status, body=error.body(), headers=error.headers)
        except RejectedError as error:
            refused = ElasticError(400, "document_parsing_exception", str(error))
            answer = Answer(status=400, body=refused.body())
        except LastSyncError as error:
            log.warning("api.store_away", text=str(error))
            answer = Answer(status=503, body=_AWAY.body())
        except Exception:
            log.exception("api.failed", method=request.method, path=scope["raw_path"].decode())
            answer = Answer(status=500, body=_FAILED.body())
        if isinstance(answer.body, str):
            response: Response = HTMLResponse(answer.body)
        else:
            response = _response(answer, media_type, pretty=query.get("pretty", "false") != "false")
        if request.method == "HEAD":
            response.body = b""
        await response(scope, receive, send)

    async def _answer(self, request: Request, uri: str, query: Mapping[str, str]) -> Answer:
        """Nothing of a body is read before its sender is let in."""
        raw_path = request.scope["raw_path"]
        handlers, raw_ids = _route(raw_path)
        handler = handlers.get(request.method)
        if handler not in _OPEN:
            self._admit(request, uri)
        if handler is None:
            return _unhandled(uri, request.method, handlers)
        try:
            *ids, path = [urls.decoded(each) for each in (*raw_ids, raw_path)]
        except ValueError as error:
            return _wrong_method(str(error), handlers)
        raw = await bodies.read(request)
        if raw:
            media_types.refuse_disagreeing(request.headers)
        if raw and (problem := media_types.refuse_unreadable(request.headers)):
            return Answer(status=406, body={"error": problem, "status": 406})
        if raw and handler not in _READING:
            raise illegal_argument(
                f"request [{request.method} {path}] does not support having a body"
            )
        return await handler(self, Call(path=path, query=query, body=raw), *ids)

    def _admit(self, request: Request, uri: str) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        offered = given.strip().encode() if scheme.lower() == "apikey" else b""
        # Each is compared, and in constant time: how long it takes tells nothing about the keys.
        known = [hmac.compare_digest(offered, key.encode()) for key in self.keys]
        if self.keys and not any(known):
            missing = "authorization" not in request.headers
            reason = (
                f"missing authentication credentials for REST request [{uri}]"
                if missing
                else f"unable to authenticate with the given credentials for REST request [{uri}]"
            )
            challenge = {"WWW-Authenticate": "ApiKey"}
            raise ElasticError(
                401, "security_exception", reason, more={"header": challenge}, headers=challenge
            )

    # --- the API -------------------------------------------------------------------------------

    async def last_sync(self, call: Call, id_: str) -> Answer:
        """Set last-sync stats: `PUT /_connector/{id}/_last_sync`."""
        if not call.body:
            raise ElasticError(400, "parse_exception", "request body is required")
        fields = requests.storable(requests.last_sync(requests.parsed(call.body)))
        call.refuse_unknown()
        if not id_:
            raise not_valid('[connector_id] cannot be [null] or [""].')
        missing = ElasticError(
            404,
            "document_missing_exception",
            f"[{id_}]: document missing",
            more={"index_uuid": self.store.store_id, "shard": "0", "index": INDEX},
        )
        if not requests.possible(id_):
            requests.refuse_long(id_)
            raise missing
        changed = await self.store.put_last_sync(id_, fields)
        if changed is None:
            raise missing
        return Answer(body={"result": "updated" if changed else "noop"})

    async def put(self, call: Call, id_: str = "") -> Answer:
        """Register a connector under an id, or replace it; without an id it is given one."""
        body = requests.parsed(call.body) if call.body else {}
        registration = requests.registration(body)
        call.refuse_unknown()
        id_ = id_ or secrets.token_urlsafe(15)
        try:
            new = await self.store.register(requests.identifier(id_), registration)
        except IndexNameTakenError:
            reason = f"Index name [{registration.index_name}] is used by another connector."
            raise ElasticError(400, "status_exception", reason) from None
        result = "created" if new else "updated"
        return Answer(status=201 if new else 200, body={"id": id_, "result": result})

    async def get(self, call: Call, id_: str) -> Answer:
        call.refuse_unknown("include_deleted")
        found = await self.store.registration(id_) if requests.possible(id_) else None
        if found is None:
            raise _not_found(id_)
        return Answer(body=document(*found))

    async def delete(self, call: Call, id_: str) -> Answer:
        call.refuse_unknown("hard", "delete_sync_jobs")
        if not requests.possible(id_) or not (await self.store.delete([id_]))[0]:
            raise _not_found(id_)
        return Answer(body={"acknowledged": True})

    async def connectors(self, call: Call) -> Answer:
        """List connectors, sorted by index name: `GET /_connector`."""
        start, size = call.number("from", 0), call.number("size", PAGE_SIZE)
        call.refuse_unknown(*_LISTING)
        if start + size > MAX_WINDOW:
            raise illegal_argument(
                "Result window is too large, from + size must be less than or equal to:"
                f" [{MAX_WINDOW}] but was [{start + size}]"
            )
        if any("\0" in text for text in call.query.values()):  # which no store can hold
            return Answer(body={"count": 0, "results": []})
        wanted = Wanted(
            index_names=call.names("index_name"),
            names=call.names("connector_name"),
            service_types=call.names("service_type"),
            text=call.query.get("query", ""),
        )
        count, found = await self.store.registrations(wanted, start, size)
        return Answer(body={"count": count, "results": [document(*each) for each in found]})

    async def info(self, call: Call) -> Answer:
        call.refuse_unknown()
        version = {"number": VERSION, "build_flavor": "last-sync", "build_type": "python"}
        return Answer(
            body={
                "name": "last-sync",
                "cluster_name": "last-sync",
                "cluster_uuid": self.store.store_id,
                "version": version,
                "tagline": "You Know, for Search",
            }
        )

    # --- beside it -----------------------------------------------------------------------------

    async def health(self, _: Call) -> Answer:
        """Say 200 while the store answers, 503 while it does not; needs no key."""
        try:
            await self.store.describe()
        except TransientError as error:
            log.warning("api.store_away", text=str(error))
            return Answer(status=503, body={"status": "store unreachable"})
        return Answer(body={"status": "ok"})

    async def openapi(self, _: Call) -> Answer:
        return Answer(body=DOCUMENT)

    async def page(self, _: Call) -> Answer:
        return Answer(body=PAGE)


_FIXED: Mapping[bytes, Mapping[str, Handler]] = {
    b"": {"GET": Door.info, "HEAD": Door.info},
    b"/_connector": {"GET": Door.connectors, "POST": Door.put, "PUT": Door.put},
    b"/_health": {"GET": Door.health},
    b"/openapi.json": {"GET": Door.openapi},
    b"/docs": {"GET": Door.page},
}
_READING = {Door.last_sync, Door.put}
_OPEN = {Door.health, Door.openapi, Door.page}
_LISTING = (
    "from",
    "size",
    "index_name",
    "connector_name",
    "service_type",
    "query",
    "include_deleted",
)
_AWAY = ElasticError(
    503, "no_shard_available_action_exception", "the connector store is away: try again later"
)
_FAILED = ElasticError(500, "exception", "the server failed; its log says why")


def application(store: SqlStore, keys: Sequence[str] = ()) -> ASGIApp:
    door = Door(store=store, keys=keys)
    return GZipMiddleware(door, minimum_size=1024, compresslevel=COMPRESSION)


def _route(raw_path: bytes) -> tuple[Mapping[str, Handler], list[bytes]]:
    """What the path answers, by method, and the id in it; nothing where it is unknown."""
    path = raw_path.rstrip(b"/")
    match path.split(b"/"):
        case [b"", b"_connector", id_, b"_last_sync"]:
            return {"PUT": Door.last_sync}, [id_]
        case [b"", b"_connector", id_]:
            return {"GET": Door.get, "PUT": Door.put, "DELETE": Door.delete}, [id_]
    return _FIXED.get(path, {}), []


def _uri(request: Request) -> str:
    """The URI as it was sent, which has to fit into a line."""
    query = request.scope["query_string"]
    uri = str((request.scope["raw_path"] + (b"?" + query if query else b"")).decode())
    if len(f"{request.method} {uri} HTTP/1.1") > MAX_LINE:
        reason = f"An HTTP line is larger than {MAX_LINE} bytes."
        raise ElasticError(400, "too_long_http_line_exception", reason)
    return uri


def _parameters(query_string: bytes) -> Mapping[str, str]:
    try:
        return urls.parameters(query_string)
    except ValueError as error:
        cause = "illegal_argument_exception", str(error)
        raise ElasticError(400, "bad_parameter_exception", str(error), cause) from None


def _response(answer: Answer, media_type: str, *, pretty: bool) -> Response:
    headers = {
        "X-Elastic-Product": "Elasticsearch",
        "content-type": media_type,
        **answer.headers,
    }
    if answer.body is None:
        return Response(status_code=answer.status, headers=headers)
    layout: dict[str, Any] = {"separators": (",", ":")}
    if pretty:
        layout = {"indent": 2, "separators": (",", " : ")}
    text = json.dumps(answer.body, ensure_ascii=False, **layout)
    if not text.replace("\n", "").isprintable():  # what would steer a terminal is escaped
        text = json.dumps(answer.body, **layout)
    return Response(text + "\n" * pretty, answer.status, headers)


def _unhandled(uri: str, method: str, handlers: Mapping[str, Handler]) -> Answer:
    if method == "OPTIONS":
        return Answer(headers=_allow(handlers))
    if not handlers:
        text = f"no handler found for uri [{uri}] and method [{method}]"
        return Answer(status=400, body={"error": text})
    return _wrong_method(f"Incorrect HTTP method for uri [{uri}] and method [{method}]", handlers)


def _wrong_method(what: str, handlers: Mapping[str, Handler]) -> Answer:
    """Elasticsearch says so of an id with a broken escape, too."""
    allow = _allow(handlers)
    text = f"{what}, allowed: [{allow['allow'].replace(',', ', ')}]"
    return Answer(status=405, body={"error": text, "status": 405}, headers=allow)


def _allow(handlers: Mapping[str, Handler]) -> Mapping[str, str]:
    return {"allow": ",".join(sorted(handlers, key=METHODS.index))} if handlers else {}


def _not_found(id_: str) -> ElasticError:
    return ElasticError(404, "resource_not_found_exception", f"connector [{id_}] not found")
