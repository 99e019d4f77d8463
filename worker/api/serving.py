"""The listening server: bounded in connections, in waiting, and in its end."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from worker.errors import MisconfiguredError
from worker.logs import get_logger

log = get_logger(__name__)

PATIENCE = 10.0  # seconds for a request's line and headers, and without progress of an answer
MOST_AT_ONCE = 1_000  # connections; above it callers get a 503
GRACE = 5  # seconds for the requests in hand when told to stop


class ImpatientProtocol(H11Protocol):
    """Closes connections on which no request arrives or no answer leaves; uvicorn itself waits."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look_later()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        if self._deadline is None:
            seen = self.cycle, self.transport.get_write_buffer_size()
            self._deadline = self.loop.call_later(PATIENCE, self._look, *seen)

    def _look(self, cycle: object, unsent: int) -> None:
        self._deadline = None
        idle = self.cycle is cycle and (cycle is None or self.cycle.response_complete)
        stuck = unsent > 0 and self.transport.get_write_buffer_size() == unsent
        if idle or stuck:
            self.transport.abort()
        else:
            self._look_later()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the caller."""
        yield


async def serve(app: ASGIApp, host: str, port: int, stop: asyncio.Event) -> None:
    """Listen until `stop` is set, then finish the requests in hand."""
    logging.getLogger("uvicorn.error").disabled = True  # the log of this program says what matters
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_AT_ONCE,
        timeout_graceful_shutdown=GRACE,
    )
    server = _Server(config)
    sockets = _listening(host, port)
    log.info("api.started", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")
    listening = asyncio.create_task(server.serve(sockets=sockets), name="api")
    wish = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({listening, wish}, return_when=asyncio.FIRST_COMPLETED)
    wish.cancel()
    server.should_exit = True
    await listening


def _listening(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with contextlib.ExitStack() as opened:
            sockets = [
                opened.enter_context(socket.create_server(address[:2], family=family))
                for family, _, _, _, address in found
            ]
            opened.pop_all()
            for each in sockets:  # inherited; asyncio sees to it only where it made the socket
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sockets
    except OSError as error:
        raise MisconfiguredError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with"
            " LAST_SYNC_API_HOST and LAST_SYNC_API_PORT"
        ) from None
