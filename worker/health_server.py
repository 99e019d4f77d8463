"""The HTTP server of /livez, /readyz and /metrics: a thread, which a stuck event loop cannot stop.

The standard library's server and prometheus_client's handler; docs/why.md says why.
"""

import asyncio
import socket
import socketserver
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler

from worker.errors import MisconfiguredError
from worker.health import Verdict
from worker.logs import get_logger
from worker.text import escaped
from worker.variables import variable

log = get_logger(__name__)

ROUTES = ("/livez", "/readyz", "/metrics")
LOOP_TIMEOUT = 2.0  # seconds for the event loop to answer
CONNECTION_TIMEOUT = 5.0  # seconds for a whole request and its answer, however slow the client
MAX_CONNECTIONS = 64
POLL = 0.1  # seconds between looks at connections that last too long, and at the wish to stop

Ask = Callable[[str], Verdict]


class Handler(MetricsHandler):
    """Answers one request; the base class knows /metrics, its formats and their compression."""

    server: "Server"
    server_version, sys_version = "last-sync", ""

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        path = self.path.partition("?")[0]
        if path == "/metrics":
            super().do_GET()
        elif path in ROUTES:
            verdict = self.server.ask(path)
            self._say(200 if verdict.ok else 503, verdict.text)
        else:
            self._say(404, f"there is nothing here; ask for {', '.join(ROUTES)}")

    def _say(self, status: int, text: str) -> None:
        body = f"{escaped(text)}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each connection, for a few seconds at most."""

    daemon_threads = True
    allow_reuse_address = True  # a port that was left a moment ago is free
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, host: str, port: int, registry: CollectorRegistry, ask: Ask) -> None:
        self.ask = ask
        self._open: dict[Any, float] = {}
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        super().__init__((str(address[0]), port), Handler.factory(registry))

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:  # no file is left, for example: trying again at once would only spin
            time.sleep(POLL)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        return len(self._open) < MAX_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut what lasts too long: a client that sends nothing, or reads nothing."""
        now = time.monotonic()
        for request, since in list(self._open.items()):
            if now - since > CONNECTION_TIMEOUT:
                with suppress(OSError):  # it has ended by itself
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A client that went away, or a bug: in an answer neither is a reason to stop working."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("health.request_failed", exc_info=error)


@asynccontextmanager
async def serving(
    host: str, port: int, registry: CollectorRegistry, verdicts: Mapping[str, Callable[[], Verdict]]
) -> AsyncIterator[asyncio.Task[None]]:
    """Serve as long as the block; the task that is given ends only when the server failed.

    Raises MisconfiguredError when it cannot listen there.
    """
    loop = asyncio.get_running_loop()

    async def in_the_loop(path: str) -> Verdict:
        return verdicts[path]()

    def ask(path: str) -> Verdict:
        future = asyncio.run_coroutine_threadsafe(in_the_loop(path), loop)
        try:
            return future.result(LOOP_TIMEOUT)
        except TimeoutError:
            future.cancel()
            text = f"the event loop has not answered for {LOOP_TIMEOUT:.0f} s"
            return Verdict(ok=False, text=text)

    server = await asyncio.to_thread(_listen, host, port, registry, ask)
    task = asyncio.create_task(asyncio.to_thread(server.serve_forever, POLL), name="health-server")
    log.info("health.listening", host=host, port=port)
    try:
        yield task
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


def _listen(host: str, port: int, registry: CollectorRegistry, ask: Ask) -> Server:
    try:
        return Server(host, port, registry, ask)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MisconfiguredError(
            f"cannot listen at {host} port {port} for health and metrics: {reason}; set "
            f"{variable('health_host')} to an address of this host and "
            f"{variable('health_port')} to a free port"
        ) from None
