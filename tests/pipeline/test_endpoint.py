"""The HTTP endpoint: three paths, and nothing that a client sends does harm."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from sync_engine.errors import ConfigError
from sync_engine.pipeline import Endpoint, HttpSettings
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
