"""Each fault does to a connection what it says, and healing ends it."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from sync_engine.testing import FaultProxy


class Echo(socketserver.ThreadingTCPServer):
    """Answers every line with ``ok:`` and the line; remembers what it was asked."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.changed = threading.Condition()
        super().__init__(("127.0.0.1", 0), EchoHandler)

    def was_asked(self, line: bytes) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: line in self.asked, 10)


class EchoHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, Echo)
        try:
            for line in self.rfile:
                with server.changed:
                    server.asked.append(line.strip())
                    server.changed.notify_all()
                self.wfile.write(b"ok:" + line)
        except OSError:
            pass  # a reset is what many of these tests are about


@pytest.fixture
def server() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: Echo) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.server_address[1]) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        yield client


def ask(client: socket.socket, line: bytes = b"hello") -> bytes:
    client.sendall(line + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        part = client.recv(65536)
        if not part:
            break
        answer += part
    return answer


def test_a_healthy_proxy_is_invisible(proxy: FaultProxy, client: socket.socket) -> None:
    assert ask(client) == b"ok:hello\n"
    assert ask(client, b"x" * 200_000) == b"ok:" + b"x" * 200_000 + b"\n"
    assert proxy.connections == 1


def test_latency_waits_each_way(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.latency_s, proxy.jitter_s = 0.05, 0.01
    started = time.monotonic()
    assert ask(client) == b"ok:hello\n"
    assert time.monotonic() - started >= 0.08


def test_a_rate_slows_down(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.rate_bytes_s = 200_000
    started = time.monotonic()
    ask(client, b"x" * 10_000)
    assert time.monotonic() - started >= 0.09


def test_a_drip_is_too_fast_for_timeouts_and_too_slow_for_life(
    proxy: FaultProxy, client: socket.socket
) -> None:
    client.settimeout(1.0)  # no single wait is that long
    proxy.drip_s = 0.01
    started = time.monotonic()
    assert ask(client) == b"ok:hello\n"
    assert time.monotonic() - started >= 0.1


def test_a_black_hole_swallows_and_keeps_the_connection(
    proxy: FaultProxy, server: Echo, client: socket.socket
) -> None:
    client.settimeout(0.1)
    proxy.blackhole = True
    with pytest.raises(TimeoutError):
        ask(client, b"lost")
    proxy.blackhole = False
    assert ask(client, b"found") == b"ok:found\n"
    assert server.asked == [b"found"]


def test_a_freeze_delays_and_loses_nothing(proxy: FaultProxy, client: socket.socket) -> None:
    client.settimeout(0.1)
    proxy.freeze = True
    with pytest.raises(TimeoutError):
        ask(client)
    proxy.freeze = False
    client.settimeout(10)
    assert client.recv(100) == b"ok:hello\n"


def test_refusing_resets_new_connections_only(proxy: FaultProxy, client: socket.socket) -> None:
    assert ask(client) == b"ok:hello\n"
    proxy.refuse = True
    with (
        pytest.raises(OSError, match=r"reset|Broken pipe"),
        socket.create_connection(("127.0.0.1", proxy.port), 10) as refused,
    ):
        for _ in range(3):
            ask(refused)
    assert ask(client) == b"ok:hello\n"


def test_a_reset_comes_after_so_many_bytes_of_reply(
    proxy: FaultProxy, client: socket.socket
) -> None:
    proxy.rst_after = 5
    client.sendall(b"hello\n")
    received = b""
    with pytest.raises(ConnectionResetError):
        while part := client.recv(100):
            received += part
    assert received == b"ok:he"


def test_a_cut_reply_leaves_the_request_done(
    proxy: FaultProxy, server: Echo, client: socket.socket
) -> None:
    proxy.cut_match = rb"COM+IT"
    assert ask(client, b"INSERT") == b"ok:INSERT\n"
    with pytest.raises(ConnectionResetError):
        ask(client, b"COMMIT")
    assert server.was_asked(b"COMMIT")
    assert proxy.cuts == 1


def test_a_request_in_pieces_is_recognised(
    proxy: FaultProxy, server: Echo, client: socket.socket
) -> None:
    proxy.cut_match = rb"COMMIT"
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for letter in b"COMMIT":
        client.sendall(bytes([letter]))
    with pytest.raises(ConnectionResetError):
        ask(client, b"")
    assert server.was_asked(b"COMMIT")


def test_half_closing_ends_the_reply(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.half_close = True
    assert ask(client) == b""


def test_corruption_flips_one_bit(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.corrupt = True
    client.sendall(b"hello\n")
    received = client.recv(100)
    assert len(received) == 9
    differences = [a ^ b for a, b in zip(received, b"ok:hello\n", strict=True)]
    assert sum(difference.bit_count() for difference in differences) == 1


def test_dropping_resets_what_is_open(proxy: FaultProxy, client: socket.socket) -> None:
    assert ask(client) == b"ok:hello\n"
    proxy.drop_connections()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        for _ in range(3):
            ask(client)


def test_a_dead_server_looks_dead(server: Echo) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with (
            FaultProxy("127.0.0.1", unused.getsockname()[1]) as proxy,
            pytest.raises((ConnectionResetError, BrokenPipeError)),
            socket.create_connection(("127.0.0.1", proxy.port), 10) as client,
        ):
            for _ in range(3):
                ask(client)


def test_reset_turns_everything_off(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.latency_s = 60
    proxy.blackhole = proxy.freeze = proxy.corrupt = proxy.half_close = True
    proxy.cut_match, proxy.rst_after = b".", 0
    proxy.reset()
    assert ask(client) == b"ok:hello\n"


def test_closing_twice_is_fine_and_leaves_no_thread(server: Echo) -> None:
    proxy = FaultProxy("127.0.0.1", server.server_address[1])
    with socket.create_connection(("127.0.0.1", proxy.port), 10):
        proxy.close()
        proxy.close()
    assert "fault-proxy" not in [thread.name for thread in threading.enumerate()]
