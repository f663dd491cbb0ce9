"""One connection: what must not be said over it any more."""

from __future__ import annotations

from typing import Any

import pytest
from redis import exceptions as redis_errors

from sync_engine.redis_link.link import Link, Node

INFO = b"redis_version:7.0.0\r\nrun_id:abc\r\nrole:master\r\nmaster_replid:def\r\n"


class Connection:
    """As redis-py's: what is sent over a closed one opens it anew, to whoever is there."""

    def __init__(self) -> None:
        self.opened = 0
        self.answers: list[Any] = [INFO, INFO]

    def connect(self) -> None:
        self.opened += 1

    def send_packed_command(self, parts: list[bytes], *, check_health: bool) -> None:
        assert parts
        assert not check_health
        if not self.opened:
            self.connect()

    def read_response(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            if not isinstance(answer, redis_errors.ResponseError):
                self.disconnect()
            raise answer
        return answer

    def disconnect(self) -> None:
        self.opened = 0


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def link(connection: Connection) -> Link:
    link = Link(connection, 1)
    link.open(0.0, cluster=False)
    return link


def test_over_a_closed_connection_nothing_is_said(link: Link, connection: Connection) -> None:
    link.close()

    with pytest.raises(redis_errors.ConnectionError, match="closed"):
        link.send([b"PING"])

    assert connection.opened == 0


@pytest.mark.parametrize("end", [redis_errors.TimeoutError, redis_errors.ConnectionError])
def test_over_a_connection_that_broke_nothing_more_is_said(
    link: Link, connection: Connection, end: type[Exception]
) -> None:
    """The one that would be opened in its place has proved nothing."""
    connection.answers = [end("no answer")]
    with pytest.raises(end):
        link.read()

    with pytest.raises(redis_errors.ConnectionError, match="closed"):
        link.send([b"PING"])

    assert connection.opened == 0


def test_an_error_that_the_server_sends_is_an_answer(link: Link, connection: Connection) -> None:
    connection.answers = [redis_errors.ResponseError("ERR no"), b"fine"]

    assert isinstance(link.read(), redis_errors.ResponseError)
    link.send([b"PING"])
    assert link.read() == b"fine"


def test_a_connection_of_another_process_is_not_used() -> None:
    """After a fork two processes would read each other's answers."""
    made = []

    def opened() -> Link:
        made.append(Link(Connection(), len(made) + 1))
        made[-1].open(0.0, cluster=False)
        return made[-1]

    node = Node(opened, connections_max=1, wait_s=0.0)
    node.release(node.acquire(), keep=True)
    assert node.acquire() is made[0]
    made[0].pid += 1
    node.release(made[0], keep=True)

    assert node.acquire() is made[1]
    assert len(made) == 2
