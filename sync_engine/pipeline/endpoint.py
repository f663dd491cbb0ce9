"""The process as others ask for it over HTTP: is it alive, is it ready, how does it do."""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
from collections.abc import Callable, Mapping
from typing import Any

from sync_engine.errors import ConfigError
from sync_engine.pipeline.model import HttpSettings
from sync_engine.ports import Clock
from sync_engine.telemetry import get_logger

__all__ = ["Answer", "Endpoint"]

_log = get_logger("pipeline.endpoint")
_HEAD_BYTES_MAX = 8192
_REQUEST_S_MAX = 1.0
_IDLE_S = 5.0
_BACKLOG = 16
_NO_ROOM_S = 0.1
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

Answer = tuple[int, str, bytes]
"""Status, content type, body."""


class _Bad(Exception):
    """The request cannot be answered; carries the status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Endpoint:
    """Answers GET and HEAD for a few paths; one request a connection, one connection at a time.

    A client has one second for its request and as long to take the answer, and its head is bounded
    to 8 KiB: whoever is slow or sends nonsense is let go, and nothing else notices.

    `step` belongs to one job; `close` to any thread.

    Args:
        settings: Where to listen.
        routes: A function that makes the answer, by path.
        clock: Bounds the time of a client.
    """

    def __init__(
        self, settings: HttpSettings, routes: Mapping[str, Callable[[], Answer]], clock: Clock
    ) -> None:
        self._settings = settings
        self._routes = dict(routes)
        self._clock = clock
        self._listener: socket.socket | None = None
        self._wakes, self._woken = socket.socketpair()
        self.served = 0

    def open(self) -> None:
        """Listen; where that fails, everything is given back.

        Raises:
            ConfigError: The address cannot be used.
        """
        host, port = self._settings.host, self._settings.port or 0
        try:
            self._listener = _listening(host, port)
        except (OSError, UnicodeError) as exc:
            self.release()
            why = getattr(exc, "strerror", None) or exc
            raise ConfigError(f"[http] listen: cannot listen at {host}:{port}: {why}") from exc

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened at."""
        if self._listener is None:
            return self._settings.host, 0
        host, port, *_ = self._listener.getsockname()
        return str(host), int(port)

    def step(self) -> float:
        """Answer at most one client; return the seconds until the next step."""
        listener = self._listener
        if listener is None:
            return float("inf")
        try:
            ready, _, _ = select.select([listener, self._woken], [], [], _IDLE_S)
        except (OSError, ValueError):
            if self._listener is None:  # closed meanwhile
                return float("inf")
            raise
        if self._woken in ready:
            return float("inf")
        return self._accepted(listener) if listener in ready else 0.0

    def _accepted(self, listener: socket.socket) -> float:
        try:
            connection, _ = listener.accept()
        except OSError as exc:
            # The client is gone; or this process may open no more files, and it waits on.
            return _NO_ROOM_S if exc.errno in (errno.EMFILE, errno.ENFILE) else 0.0
        with connection, contextlib.suppress(OSError):
            self._serve(connection)
        return 0.0

    def _serve(self, connection: socket.socket) -> None:
        try:
            method, path = self._request(connection)
            answer = self._answer(method, path)
        except _Bad as exc:
            method, answer = "GET", _error(exc.status)
        self.served += 1
        status, kind, body = answer
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        connection.settimeout(_REQUEST_S_MAX)
        connection.sendall(head.encode("ascii") + (b"" if method == "HEAD" else body))

    def _request(self, connection: socket.socket) -> tuple[str, str]:
        """Read the head of a request; return its method and path."""
        deadline = self._clock.monotonic() + _REQUEST_S_MAX
        head = b""
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise _Bad(408)
            connection.settimeout(left)
            try:
                piece = connection.recv(4096)
            except TimeoutError:
                raise _Bad(408) from None
            if not piece:
                raise _Bad(400)
            head += piece
            if len(head) > _HEAD_BYTES_MAX:
                raise _Bad(431)
        words = head.split(b"\n", 1)[0].decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise _Bad(400)
        return words[0], words[1].partition("?")[0]

    def _answer(self, method: str, path: str) -> Answer:
        route = self._routes.get(path)
        if route is None:
            raise _Bad(404)
        if method not in ("GET", "HEAD"):
            raise _Bad(405)
        try:
            return route()
        except Exception as exc:
            _log.limited("answer_failed", path=path, error=exc)
            raise _Bad(500) from exc

    def close(self) -> None:
        """Stop listening, and end a step that waits; safe twice."""
        with contextlib.suppress(OSError):
            self._wakes.send(b"x")
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def release(self) -> None:
        """Give everything back, once no step runs any more."""
        self._wakes.close()
        self._woken.close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _error(status: int) -> Answer:
    body: dict[str, Any] = {"error": _REASONS[status].lower()}
    return status, "application/json", (json.dumps(body) + "\n").encode()
