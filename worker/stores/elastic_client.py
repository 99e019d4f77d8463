"""The official Elasticsearch client: how it is made, and what its errors mean."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from elastic_transport import (
    AiohttpHttpNode,
    ConnectionTimeout,
    SerializationError,
    TlsError,
    TransportError,
)
from elastic_transport import ConnectionError as ElasticConnectionError
from elasticsearch import ApiError, AsyncElasticsearch, ConflictError, UnsupportedProductError

from worker.errors import MisconfiguredError, TransientError
from worker.stores.base import ElasticsearchAccess

REQUEST_TIMEOUT = 10.0  # seconds
DEFAULT_PORT = 9200
OLDEST = (8, 15)  # older ones null every field of the stats that a request leaves out

PREFIX = "elasticsearch+"


class RefusedError(Exception):
    """Elasticsearch refuses this very content."""


class _Node(AiohttpHttpNode):
    """Goes nowhere else: the client would follow a redirect to any host, with the event in hand."""

    def _create_aiohttp_session(self) -> None:
        super()._create_aiohttp_session()
        assert self.session is not None  # noqa: S101 - made in the line above  # nosec B101
        self.session = _Session(self.session)  # type: ignore[assignment]


class _Session:
    """What a node uses of its session."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session, self.close = session, session.close

    def request(self, method: str, url: str, **options: Any) -> Any:
        return self._session.request(method, url, allow_redirects=False, **options)


@asynccontextmanager
async def connected(url: str, access: ElasticsearchAccess) -> AsyncIterator[AsyncElasticsearch]:
    client = _client(url, access)
    try:
        yield client
    finally:
        await client.close()


async def version(client: AsyncElasticsearch, url: str) -> str:
    """Ask who is there, and refuse what would do harm."""
    with translated(url):
        try:
            found = (await client.info())["version"]
        except ValueError as error:  # only now does the client look at the host's name
            raise MisconfiguredError(f"{named(url)}: {_line(error)}; check the URL") from error
    if found.get("build_flavor") == "serverless":  # it reports an old number
        return "serverless"
    number = str(found["number"])
    major, minor = (int(part) for part in number.split(".")[:2])
    if (major, minor) < OLDEST:
        raise MisconfiguredError(
            f"{named(url)} is Elasticsearch {number}: its connector API nulls what a request leaves"
            f" out; upgrade it to {OLDEST[0]}.{OLDEST[1]} or newer"
        )
    return number


def _client(url: str, access: ElasticsearchAccess) -> AsyncElasticsearch:
    hosts, basic_auth = _hosts(url)
    if basic_auth and access.api_key:
        raise MisconfiguredError(
            f"{named(url)}: both a user in the URL and LAST_SYNC_ELASTICSEARCH_API_KEY are given:"
            " remove one"
        )
    options: dict[str, Any] = {"api_key": access.api_key, "basic_auth": basic_auth}
    if access.cafile:
        options["ca_certs"] = str(access.cafile)
    try:
        return AsyncElasticsearch(
            hosts,
            node_class=_Node,
            request_timeout=REQUEST_TIMEOUT,
            connections_per_node=access.concurrency,
            max_retries=len(hosts) - 1,  # once at each node; the worker holds and tries again
            **{name: value for name, value in options.items() if value is not None},
        )
    except (ValueError, OSError) as error:
        raise MisconfiguredError(f"{named(url)}: {error}; check the URL and the CA file") from error


def _hosts(url: str) -> tuple[list[str], tuple[str, str] | None]:
    """The nodes' URLs, and user and password; of `elasticsearch+https://u:p@a:9200,b:9200/path`."""
    try:
        parts = urlsplit(url.removeprefix(PREFIX))
    except ValueError as error:
        raise MisconfiguredError(f"{named(url)}: {error}; check the URL") from error
    credentials, _, servers = parts.netloc.rpartition("@")
    if not servers or parts.query or parts.fragment:
        raise MisconfiguredError(
            f"{named(url)}: write elasticsearch+https://user:password@host:9200, nothing after it"
        )
    user, _, password = credentials.partition(":")
    hosts = []
    for server in servers.split(","):
        host, colon, port = server.rpartition(":")
        address = server if colon and port.isdigit() and host else f"{server}:{DEFAULT_PORT}"
        hosts.append(f"{parts.scheme}://{address}{parts.path.rstrip('/')}")
    return hosts, (unquote(user), unquote(password)) if credentials else None


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise errors of the client as this package's own; a conflict stays what it is."""
    try:
        yield
    except ConflictError:
        raise
    except UnsupportedProductError as error:
        raise MisconfiguredError(f"{named(url)} is not Elasticsearch; check the URL") from error
    except ApiError as error:
        raise _ours(url, error) from error
    except TlsError as error:
        raise MisconfiguredError(
            f"{named(url)}: {_line(error)}; check LAST_SYNC_ELASTICSEARCH_CAFILE and the host"
        ) from error
    except (ConnectionTimeout, TimeoutError) as error:
        raise TransientError(f"{named(url)} did not answer in time") from error
    except (ElasticConnectionError, SerializationError) as error:
        causes = " ".join(str(cause) for cause in error.errors)
        raise TransientError(f"{named(url)}: {_line(f'{error.message} {causes}')}") from error
    except TransportError as error:
        raise RuntimeError(f"{named(url)}: {_line(error)}, nobody expected it here") from error


def of(url: str, status: int, error: Any) -> Exception:
    """What an error in an answer means; `error` is its `error` object, or any other body."""
    kind, reason = _kind_and_reason(error)
    text = f"{named(url)} answered {status} {kind}: {reason}"
    if status in {401, 403}:
        return MisconfiguredError(f"{text}; {_rights(status)}")
    if status in {409, 429} or status >= 500:  # noqa: PLR2004
        return TransientError(text)
    if status == 404 and kind:  # noqa: PLR2004
        return TransientError(f"{text} (an index is not there; its creation may be switched off)")
    if kind and status == 400 and kind != "media_type_header_exception":  # noqa: PLR2004
        return RefusedError(f"{kind}: {reason}")
    return MisconfiguredError(f"{text}; check the URL: a proxy or another service answered")


def _ours(url: str, error: ApiError) -> Exception:
    body = error.body
    return of(url, error.meta.status, body.get("error", body) if isinstance(body, dict) else body)


def missing(error: ApiError) -> str | None:
    """The kind of a 404 that Elasticsearch itself gave."""
    body = error.body
    found = body.get("error") if isinstance(body, dict) else None
    return found.get("type") if isinstance(found, dict) else None


def _kind_and_reason(error: Any) -> tuple[str, str]:
    if not isinstance(error, dict):
        return "", _line(error)[:200]
    reason = str(error.get("reason", ""))
    cause = error.get("caused_by")
    if isinstance(cause, dict) and cause.get("reason"):
        reason += f" ({cause['reason']})"
    return str(error.get("type", "")), _line(reason)[:1000]


def _rights(status: int) -> str:
    if status == 401:  # noqa: PLR2004
        return "check LAST_SYNC_ELASTICSEARCH_API_KEY, or user and password in the URL"
    return (
        "give it the cluster privileges monitor, monitor_connector and manage_connector, and all"
        " on the ledger index"
    )


def named(url: str) -> str:
    """The store for a message, without user and password."""
    scheme, _, rest = url.partition("://")
    return f"store {scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _line(text: object) -> str:
    return " ".join(str(text).split())
