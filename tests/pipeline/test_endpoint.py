"""The HTTP endpoint: three paths, and nothing that a client sends does harm."""

from __future__ import annotations

import http.client
import json
import math
import os
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from sync_engine.errors import ConfigError
from sync_engine.pipeline import Endpoint, HttpSettings
from sync_engine.runtime import SystemClock
from sync_engine.testing import SystemRuntime


def broken() -> tuple[int, str, bytes]:
    raise RuntimeError("a mistake")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    runtime = SystemRuntime("test")
    made = Endpoint(
        HttpSettings(port=0),
        {"/hello": lambda: (200, "text/plain", b"hello\n"), "/broken": broken},
        runtime.clock,
    )
    made.open()
    runtime.add_job("http", made.step)
    yield made
    made.close()
    assert runtime.close(5) == []
    made.release()


def get(endpoint: Endpoint, path: str, method: str = "GET") -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(*endpoint.address, timeout=5)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def raw(endpoint: Endpoint, data: bytes) -> bytes:
    with closing(socket.create_connection(endpoint.address, timeout=5)) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while piece := connection.recv(4096):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def test_it_answers(endpoint: Endpoint) -> None:
    assert get(endpoint, "/hello") == (200, b"hello\n")
    assert get(endpoint, "/hello?x=1") == (200, b"hello\n")
    assert get(endpoint, "/hello", "HEAD") == (200, b"")


def test_an_answer_to_head_has_no_body(endpoint: Endpoint) -> None:
    answer = raw(endpoint, b"HEAD /hello HTTP/1.1\r\n\r\n")
    assert b"Content-Length: 6\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_it_says_no(endpoint: Endpoint) -> None:
    assert get(endpoint, "/other")[0] == 404
    assert get(endpoint, "/hello", "POST")[0] == 405
    assert get(endpoint, "/broken")[0] == 500
    assert json.loads(get(endpoint, "/other")[1]) == {"error": "not found"}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /hello\r\n\r\n", b"400"),
        (b"GET /hello SMTP/1.0\r\n\r\n", b"400"),
        (b"\x00\xff\xfe\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\nX: " + b"x" * 9000, b"431"),
        (b"GET /hello HTTP/1.1\r\n", b"408"),
    ],
)
def test_nonsense_is_answered_and_forgotten(endpoint: Endpoint, data: bytes, status: bytes) -> None:
    answer = raw(endpoint, data)
    assert answer.split(b" ")[1:2] == [status] or not answer  # reset while it still sent
    assert get(endpoint, "/hello")[0] == 200


def test_who_connects_and_leaves_does_no_harm(endpoint: Endpoint) -> None:
    for _ in range(20):
        socket.create_connection(endpoint.address).close()
    assert get(endpoint, "/hello")[0] == 200


def test_without_a_free_file_descriptor_it_waits_and_serves_again() -> None:
    """The client stays in the queue: asking for it again and again would take a whole core."""
    endpoint = Endpoint(
        HttpSettings(port=0), {"/hello": lambda: (200, "text/plain", b"")}, SystemClock()
    )
    endpoint.open()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(socket.create_connection(endpoint.address)) as client:
        client.sendall(b"GET /hello HTTP/1.0\r\n\r\n")
        lowest_free = client.fileno() + 1
        taken = [os.dup(0) for _ in range(3)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min([*taken, lowest_free]), limits[1]))
        try:
            waits_s = endpoint.step()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for number in taken:
                os.close(number)
        assert waits_s > 0.0
        assert endpoint.step() == 0.0
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    endpoint.close()
    endpoint.release()


def test_a_step_that_meets_the_closing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint(HttpSettings(port=0), {}, SystemClock())
    endpoint.open()
    look = select.select

    def closed_meanwhile(*arguments: Any) -> Any:
        endpoint.close()
        return look(*arguments)

    monkeypatch.setattr(select, "select", closed_meanwhile)
    assert endpoint.step() == math.inf
    endpoint.release()


def test_an_address_in_use_is_told(endpoint: Endpoint) -> None:
    other = Endpoint(HttpSettings(port=endpoint.address[1]), {}, SystemRuntime("x").clock)
    with pytest.raises(ConfigError, match="cannot listen"):
        other.open()
    other.close()
    other.release()


@pytest.mark.parametrize("host", ["203.0.113.1", "a" * 70 + ".invalid"])
def test_an_endpoint_that_cannot_listen_leaves_no_socket(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    pair, one = socket.socketpair, socket.socket

    def taken() -> tuple[socket.socket, socket.socket]:
        made.extend(pair())
        return made[0], made[1]

    class Kept(one):  # type: ignore[misc,valid-type]
        def __init__(self, *args: int) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(socket, "socketpair", taken)
    endpoint = Endpoint(HttpSettings(host=host, port=0), {}, SystemRuntime("x").clock)
    monkeypatch.setattr(socket, "socket", Kept)
    with pytest.raises(ConfigError, match="cannot listen"):
        endpoint.open()
    assert [one.fileno() for one in made] == [-1, -1, -1]
