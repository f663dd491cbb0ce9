"""A server between the program and a true S3 that answers some requests itself."""

from __future__ import annotations

import http.client
from collections.abc import Callable

from support.fake_s3 import Answer, LoopbackS3, Request

__all__ = ["SpoilingS3"]

_OF_THE_CONNECTION = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}


class SpoilingS3(LoopbackS3):
    """Forwards every request, unless `spoil` has an answer for it.

    Args:
        port: Where the true server listens, on loopback.

    Attributes:
        spoil: Called with every request; an `Answer` is given in place of the true one.
    """

    def __init__(self, port: int) -> None:
        super().__init__("spoiling-s3")
        self.spoil: Callable[[Request], Answer | None] = lambda request: None
        self._target = port

    def answer(self, request: Request) -> Answer:
        """Ask the true server, with the headers that were signed, where nothing is spoiled."""
        spoiled = self.spoil(request)
        if spoiled is not None:
            return spoiled
        connection = http.client.HTTPConnection("127.0.0.1", self._target, timeout=30)
        try:
            headers = {n: v for n, v in request.headers.items() if n.lower() != "connection"}
            connection.request(request.method, request.target, request.body, headers)
            answer = connection.getresponse()
            kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in _OF_THE_CONNECTION]
            length = answer.headers.get("Content-Length", "0")
            made = Answer(answer.status, answer.read(), dict(kept))
            if request.method == "HEAD":
                made.headers["Content-Length"] = length
            return made
        finally:
            connection.close()
