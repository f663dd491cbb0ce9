"""A small S3 that lists a million keys quickly, and misbehaves on command.

As a process: ``python fake_s3.py PORT KEYS [LATENCY_MS]``; ``PUT /_control`` with a JSON object of
``change``, ``remove``, ``add`` (lists of key numbers), ``latency_ms``, ``clear``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, quote_plus, unquote, urlsplit

__all__ = ["Answer", "FakeS3", "LoopbackS3", "Request", "error", "numbered"]

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def numbered(number: int) -> str:
    """Return the name of the numbered key; the order of names is that of numbers."""
    return f"data/{number // 10_000:04d}/part-{number:09d}.parquet"


@dataclass
class Request:
    """What was asked; `target` is path and query as they were sent, and signed."""

    method: str
    target: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: Any
    body: bytes
    number: int = 0

    @property
    def lists(self) -> bool:
        return self.method == "GET" and not self.key and "list-type" in self.query


@dataclass
class Answer:
    """What is answered; `cut` bytes of the body are sent, then the connection is reset."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    drip_s: float = 0.0
    reset: bool = False


def error(status: int, code: str, message: str = "", **headers: str) -> Answer:
    """Make an error of S3; ``_`` in the names of headers stands for ``-``."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer(status, body.encode(), {k.replace("_", "-"): v for k, v in headers.items()})


class LoopbackS3:
    """What is asked as an S3, on loopback; what it answers is of those who derive from it.

    Attributes:
        port: Where it listens.
        count: Requests so far.
    """

    def __init__(self, name: str, port: int = 0) -> None:
        self.count = 0
        self._name = name
        owner = self

        class Handler(_Handler):
            server_owner = owner

        self._server = _Server(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name=self._name, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve(self) -> None:
        """Serve until the process ends."""
        self._server.serve_forever()

    def received(self, request: Request) -> Answer:
        """Number a request, and answer it."""
        self.count += 1
        request.number = self.count
        return self.answer(request)

    def answer(self, request: Request) -> Answer:
        """Return what is answered."""
        raise NotImplementedError


class FakeS3(LoopbackS3):
    """Objects in memory, served on loopback.

    Attributes:
        spoil: Called with every request; an `Answer` replaces the true one, None lets it be.
        rewrite: Called with every request and its true answer; may change the answer.
        latency_s: Seconds that each answer waits.
        requests: Every request there was.
    """

    access_key_id = "AKIAFAKE"
    secret_access_key = "fake-secret"
    bucket = "bucket"

    def __init__(self, port: int = 0) -> None:
        super().__init__("fake-s3", port)
        self.objects: dict[str, tuple[str, int, str]] = {}
        self.bodies: dict[str, bytes] = {}
        self._sorted: list[bytes] | None = []
        self._names: list[str] = []
        self.spoil: Callable[[Request], Answer | None] | None = None
        self.rewrite: Callable[[Request, Answer], Answer] | None = None
        self.latency_s = 0.0
        self.requests: list[Request] = []
        self.keep_requests = True
        self.order: Callable[[list[str]], list[str]] | None = None
        self._lock = threading.Lock()

    def settings(self, **others: Any) -> Any:
        """Return our settings for this server."""
        from sync_engine.s3.address import S3Settings

        given: dict[str, Any] = {
            "endpoint_url": self.endpoint_url,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
        }
        return S3Settings(**given | others)

    # -- contents ---------------------------------------------------------------------------------

    def put(
        self, key: str, body: bytes = b"", *, etag: str = "", size: int | None = None,
        modified: str = "2026-01-02T03:04:05.000Z",
    ) -> None:  # fmt: skip
        """Store an object; its ETag is the MD5 of its body unless one is given."""
        with self._lock:
            tag = etag or hashlib.md5(body).hexdigest()
            self.objects[key] = (tag, len(body) if size is None else size, modified)
            self.bodies[key] = body
            self._sorted = None

    def put_many(self, keys: Iterable[str], *, generation: int = 0) -> None:
        """Store or change many objects whose ETag follows from name and generation."""
        with self._lock:
            for key in keys:
                tag = f"{hash((key, generation)) & (1 << 128) - 1:032x}"
                self.objects[key] = (tag, 1000 + generation, "2026-01-02T03:04:05.000Z")
            self._sorted = None

    def remove(self, *keys: str) -> None:
        """Delete objects."""
        with self._lock:
            for key in keys:
                self.objects.pop(key, None)
                self.bodies.pop(key, None)
            self._sorted = None

    def clear(self) -> None:
        """Delete everything."""
        with self._lock:
            self.objects.clear()
            self.bodies.clear()
            self._sorted = None

    def _order(self) -> tuple[list[bytes], list[str]]:
        with self._lock:
            if self._sorted is None:
                self._names = sorted(self.objects, key=lambda key: key.encode())
                self._sorted = [name.encode() for name in self._names]
            return self._sorted, self._names

    # -- answers ----------------------------------------------------------------------------------

    def received(self, request: Request) -> Answer:
        """Do what a control request says; answer another one."""
        if request.bucket == "_control":
            self.control(json.loads(request.body))
            return Answer(200, json.dumps({"requests": self.count}).encode())
        return super().received(request)

    def answer(self, request: Request) -> Answer:
        """Return what an honest server would."""
        if self.keep_requests:
            self.requests.append(request)
        if self.latency_s:
            time.sleep(self.latency_s)
        spoiled = self.spoil(request) if self.spoil is not None else None
        if spoiled is not None:
            return spoiled
        if request.bucket != self.bucket:
            return error(404, "NoSuchBucket", "The specified bucket does not exist")
        if request.lists:
            made = self._list(request.query)
        elif request.method in {"GET", "HEAD"} and request.key:
            made = self._object(request)
        elif request.method == "HEAD":
            made = Answer()
        else:
            made = error(501, "NotImplemented")
        return self.rewrite(request, made) if self.rewrite is not None else made

    def _object(self, request: Request) -> Answer:
        found = self.objects.get(request.key)
        if found is None:
            return error(404, "NoSuchKey")
        tag, size, _ = found
        body = self.bodies.get(request.key, b"\0" * size)
        headers = {"ETag": f'"{tag}"', "Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"}
        return Answer(200, body, headers)

    def _list(self, query: dict[str, str]) -> Answer:
        order, names = self._order()
        prefix = query.get("prefix", "")
        token = query.get("continuation-token")
        after = bytes.fromhex(token).decode() if token else query.get("start-after", "")
        limit = min(int(query.get("max-keys", "1000")), 1000)
        low = bisect_left(order, prefix.encode()) if prefix else 0
        if after:
            low = max(low, bisect_right(order, after.encode()))
        delimiter = query.get("delimiter", "")
        encode = _url if query.get("encoding-type") == "url" else _xml
        if delimiter:
            return self._folders(order, names, low, prefix, delimiter)
        page = names[low : low + limit + 1]
        if prefix:
            page = [name for name in page if name.startswith(prefix)]
        more = len(page) > limit
        page = page[:limit]
        last = page[-1] if page else ""
        if self.order is not None:
            page = self.order(page)
        objects = self.objects
        parts = []
        for name in page:
            tag, size, modified = objects[name]
            parts.append(
                f"<Contents><Key>{encode(name)}</Key><LastModified>{modified}</LastModified>"
                f"<ETag>&quot;{tag}&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm>"
                f"<ChecksumType>FULL_OBJECT</ChecksumType><Size>{size}</Size>"
                f"<StorageClass>STANDARD</StorageClass></Contents>"
            )
        token = (
            f"<NextContinuationToken>{last.encode().hex()}</NextContinuationToken>" if more else ""
        )
        kind = "<EncodingType>url</EncodingType>" if encode is _url else ""
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="{NAMESPACE}">'
            f"<Name>{self.bucket}</Name><Prefix>{encode(prefix)}</Prefix>{token}"
            f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{limit}</MaxKeys>{kind}"
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{''.join(parts)}"
            "</ListBucketResult>"
        )
        return Answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _folders(
        self, order: list[bytes], names: list[str], low: int, prefix: str, delimiter: str
    ) -> Answer:
        found: list[str] = []
        while low < len(names) and names[low].startswith(prefix) and len(found) < 1000:
            head, cut, _ = names[low][len(prefix) :].partition(delimiter)
            if not cut:
                low += 1
                continue
            found.append(prefix + head + cut)
            low = bisect_left(order, found[-1].encode() + b"\xff")
        folders = "".join(
            f"<CommonPrefixes><Prefix>{quote_plus(name)}</Prefix></CommonPrefixes>"
            for name in found
        )
        body = (
            f'<ListBucketResult xmlns="{NAMESPACE}"><KeyCount>{len(found)}</KeyCount>'
            "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
            f"{folders}</ListBucketResult>"
        )
        return Answer(200, body.encode())

    def control(self, words: dict[str, Any]) -> None:
        """Do what a control request says."""
        if words.get("clear"):
            self.clear()
        generation = int(words.get("generation", 1))
        self.put_many(map(numbered, words.get("change", ())), generation=generation)
        self.put_many(map(numbered, words.get("add", ())), generation=0)
        self.remove(*map(numbered, words.get("remove", ())))
        self.latency_s = words.get("latency_ms", self.latency_s * 1000) / 1000
        if "range" in words:
            self.put_many(map(numbered, range(*words["range"])))
        self._order()


def _url(text: str) -> str:
    return quote_plus(text, safe="/")


def _xml(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_owner: LoopbackS3
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        _, bucket, *rest = parts.path.split("/", 2)
        query = {k: v[-1] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        key = unquote(rest[0]) if rest else ""
        request = Request(self.command, self.path, unquote(bucket), key, query, self.headers, body)
        self._send(self.server_owner.received(request))

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - the base class names them

    def _send(self, answer: Answer) -> None:
        if answer.reset:
            self._reset()
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:  # that of HEAD is of another body
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        body = b"" if self.command == "HEAD" else answer.body
        if answer.cut is not None:
            self.wfile.write(body[: answer.cut])
            self._reset()
            return
        if answer.drip_s:
            self.wfile.flush()
            with contextlib.suppress(OSError):
                for place in range(len(body)):
                    self.wfile.write(body[place : place + 1])
                    self.wfile.flush()
                    time.sleep(answer.drip_s)
            return
        self.wfile.write(body)

    def _reset(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.flush()
        self.close_connection = True


def main() -> None:
    """Serve numbered keys until killed."""
    port, keys = int(sys.argv[1]), int(sys.argv[2])
    server = FakeS3(port)
    server.keep_requests = False
    server.latency_s = float(sys.argv[3]) / 1000 if len(sys.argv) > 3 else 0.0
    server.put_many(map(numbered, range(keys)))
    server._order()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    main()
