"""A server between the program and a true S3 that answers some requests itself."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from support.fake_s3 import Answer, Request

__all__ = ["SpoilingS3"]

_OF_THE_CONNECTION = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}


class SpoilingS3:
    """Forwards every request, unless `spoil` has an answer for it.

    Attributes:
        spoil: Called with every request; an `Answer` is given in place of the true one.
        port: Where it listens, on loopback.
    """

    def __init__(self, port: int) -> None:
        self.spoil: Callable[[Request], Answer | None] = lambda request: None
        self.target = port
        self.count = 0
        owner = self

        class Handler(_Handler):
            server_owner = owner

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="spoiling-s3", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients go away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_owner: SpoilingS3
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        owner = self.server_owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        _, bucket, *rest = parts.path.split("/", 2)
        query = {k: v[-1] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        owner.count += 1
        key = unquote(rest[0]) if rest else ""
        request = Request(self.command, unquote(bucket), key, query, self.headers, owner.count)
        self._send(owner.spoil(request) or self._forwarded(body))

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - the base class names them

    def _forwarded(self, body: bytes) -> Answer:
        """Ask the true server, with the headers that were signed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server_owner.target, timeout=30)
        try:
            headers = {n: v for n, v in self.headers.items() if n.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in _OF_THE_CONNECTION]
            length = answer.headers.get("Content-Length", "0")
            made = Answer(answer.status, answer.read(), dict(kept))
            if self.command == "HEAD":
                made.headers["Content-Length"] = length
            return made
        finally:
            connection.close()

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
