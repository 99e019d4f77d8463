"""A TCP proxy that breaks the network on demand, between a client and a real service."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Literal, Self

from tests.brokers import HOST, free_port

CHUNK = 65_536  # bytes
NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST

Mode = Literal["pass", "black_hole", "half_open", "forget", "reset", "refuse"]


class Proxy:
    """`async with Proxy("127.0.0.1:9092") as proxy:` listens at `proxy.address`.

    `await proxy.switch(mode)` changes open connections and coming ones alike:

    - `pass`: all is well; what a black hole held back arrives now
    - `black_hole`: connections open and stay open, and nothing passes, in neither direction
    - `half_open`: requests arrive and their answers are lost
    - `forget`: the same for the connections that are open now, for good; new ones pass
    - `reset`: every connection is reset, also each new one
    - `refuse`: the same, and nobody listens at the port

    `latency` (seconds) delays each chunk, in both directions. `passed` and `lost` count bytes,
    `resets` the clients' connections that were reset.
    """

    def __init__(self, target: str, *, port: int | None = None) -> None:
        host, _, target_port = target.rpartition(":")
        self._target = host, int(target_port)
        self.port = port or free_port()
        self.latency = 0.0
        self.mode: Mode = "pass"
        self.passed = self.lost = self.resets = 0
        self._flowing = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        return len(self._handlers)

    async def __aenter__(self) -> Self:
        await self.switch("pass")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.switch("refuse")
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def switch(self, mode: Mode) -> None:
        self.mode = mode
        if mode == "black_hole":
            self._flowing.clear()
        else:
            self._flowing.set()
        if mode == "forget":
            self._forgotten |= self._open
        if mode in {"reset", "refuse"}:
            self.resets += self.connections
            self._reset_all()
        await self._listen(on=mode != "refuse")

    async def _listen(self, *, on: bool) -> None:
        if on and self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self.port)
        elif not on and self._server is not None:
            self._server.close()
            self._server = None

    def _reset_all(self) -> None:
        for writer in tuple(self._open):
            self._reset(writer)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        sock: socket.socket = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it is closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        writer.transport.abort()

    @contextlib.contextmanager
    def _held(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        """Close the connection after its natural end, and reset it after any other."""
        self._open.add(writer)
        try:
            yield
            writer.close()
        except BaseException:
            self._reset(writer)
            raise
        finally:
            self._open.discard(writer)
            self._forgotten.discard(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)
        try:
            with self._held(writer):
                await self._connect(reader, writer)
        except* (OSError, asyncio.CancelledError):
            pass  # the client has learnt of it: its connection was reset

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        if self.mode in {"reset", "refuse"}:
            raise ConnectionResetError
        service_reader, service_writer = await asyncio.open_connection(*self._target)
        with self._held(service_writer):
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, service_writer, answers=False))
                pumps.create_task(self._pump(service_reader, writer, answers=True))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await self._read(reader):
            if answers and (self.mode == "half_open" or writer in self._forgotten):
                self.lost += len(data)
                continue
            self.passed += len(data)
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        await self._flowing.wait()
        data = await reader.read(CHUNK)
        await asyncio.sleep(self.latency)
        await self._flowing.wait()
        return data
