"""A TCP proxy that spoils a connection in the ways that networks do."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Literal, Self

__all__ = ["FaultProxy"]

_CHUNK = 65_536
_TAIL = 256
_TICK_S = 0.005
_Direction = Literal["up", "down"]


class _Link:
    """One client connection and its twin to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.replied = 0
        self.cut = False
        self.tail = b""


class FaultProxy:
    """Forwards TCP between clients and one server; its faults are attributes, changed at any time.

    Use ``proxy.port`` in place of the server's port. All faults are off at first.

    Args:
        host: Of the server.
        port: Of the server.
        seed: Of jitter and corruption.

    Attributes:
        port: The loopback port to connect to.
        connections: How many were made so far.
        latency_s: Seconds that every chunk waits, either way.
        jitter_s: Up to so many seconds more or less.
        rate_bytes_s: Bytes a second, either way; 0 is unlimited.
        drip_s: Seconds between single bytes; 0 is off.
        blackhole: Everything is swallowed, connections stay open.
        refuse: New connections are reset.
        rst_after: Bytes of reply after which a connection is reset.
        cut_match: A pattern of requests: what matches is forwarded, its reply is swallowed, and the
            client is reset. It cannot know what became of its request.
        cuts: How often that happened.
        half_close: The reply's direction ends (FIN) in place of the next reply.
        corrupt: One bit of every reply chunk is flipped.
        freeze: Nothing moves; it goes on when this is False again.

    Thread-safety: every method and attribute.
    """

    latency_s: float
    jitter_s: float
    rate_bytes_s: float
    drip_s: float
    blackhole: bool
    refuse: bool
    rst_after: int | None
    cut_match: bytes | None
    half_close: bool
    corrupt: bool
    freeze: bool

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self._target = (host, port)
        self._random = random.Random(seed)
        self.connections = 0
        self.cuts = 0
        self.reset()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fault-proxy", daemon=True
        )
        self._thread.start()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._do(self._listen())

    def reset(self) -> None:
        """Turn every fault off."""
        self.latency_s = self.jitter_s = self.rate_bytes_s = self.drip_s = 0.0
        self.blackhole = self.refuse = self.half_close = self.corrupt = self.freeze = False
        self.rst_after = None
        self.cut_match = None

    def drop_connections(self) -> None:
        """Reset every connection there is."""
        self._do(self._drop())

    def close(self) -> None:
        """Reset every connection and stop listening; safe twice."""
        if self._loop.is_closed():
            return
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- in the proxy's thread --------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it is gone already
            return
        self.connections += 1
        client.setblocking(False)
        if self.refuse:
            _reset(client)
            client.close()
            return
        task = self._start(self._serve(client))
        task.add_done_callback(lambda _: client.close())  # where it was cancelled at once

    async def _drop(self) -> None:
        for link in list(self._links):
            _abort(link.client)
            _abort(link.server)

    async def _shut(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(3):  # aborted transports close their sockets a turn later
            await asyncio.sleep(0)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, client: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=client)
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError):
            _abort(writer)
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        pumps = [
            self._start(self._pump(link, reader, server_writer, "up")),
            self._start(self._pump(link, server_reader, writer, "down")),
        ]
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(*pumps)
        finally:  # nothing is awaited here: a cancellation must not come in between
            for pump in pumps:
                pump.cancel()
            self._links.discard(link)
            _abort(link.client)
            _abort(link.server)

    async def _pump(
        self,
        link: _Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: _Direction,
    ) -> None:
        while data := await reader.read(_CHUNK):
            while self.freeze:
                await asyncio.sleep(_TICK_S)
            if self.blackhole:
                continue
            if direction == "up":
                self._look_for_cut(link, data)
            else:
                data = await self._spoil_reply(link, data)
                if not data:
                    return
            await self._delay()
            await self._forward(writer, data)
            if direction == "down":
                link.replied += len(data)
                if self.rst_after is not None and link.replied >= self.rst_after:
                    await asyncio.sleep(_TICK_S)  # what was sent should arrive before the reset
                    raise ConnectionResetError
        if writer.can_write_eof():
            writer.write_eof()

    def _look_for_cut(self, link: _Link, data: bytes) -> None:
        if self.cut_match is None or link.cut:
            return
        seen = link.tail + data  # a request may come in pieces
        link.tail = seen[-_TAIL:]
        if re.search(self.cut_match, seen):
            link.cut = True

    async def _spoil_reply(self, link: _Link, data: bytes) -> bytes:
        if link.cut:
            self.cuts += 1
            raise ConnectionResetError
        if self.half_close:
            link.client.write_eof()
            return b""
        if self.rst_after is not None:
            data = data[: max(0, self.rst_after - link.replied)]
            if not data:
                raise ConnectionResetError
        if self.corrupt:
            spoiled = bytearray(data)
            spoiled[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            data = bytes(spoiled)
        return data

    async def _delay(self) -> None:
        delay_s = self.latency_s + self.jitter_s * self._random.uniform(-1, 1)
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    async def _forward(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self.drip_s:
            for place in range(len(data)):
                writer.write(data[place : place + 1])
                await writer.drain()
                await asyncio.sleep(self.drip_s)
            return
        if self.rate_bytes_s:
            await asyncio.sleep(len(data) / self.rate_bytes_s)
        writer.write(data)
        await writer.drain()


def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST, not by FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        _reset(sock)
    writer.transport.abort()


def _reset(sock: socket.socket) -> None:
    """Make the coming close a RST."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
