"""Connections: each knows which server is at its other end, and says many things in one breath."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis import exceptions as redis_errors

from sync_engine.errors import StoreRejected, StoreUnavailable
from sync_engine.redis_link.errors import STORE

__all__ = ["PROOF", "Command", "Link", "Node", "Talk", "pack"]

Command = Sequence[bytes]
PROOF: Command = (b"INFO", b"replication")
_JOINED_BYTES_MAX = 64 << 10


def pack(command: Command) -> bytes:
    """Return a command as it goes over the wire.

    One join of the parts as they are: hiredis' packer is as fast for parts of 100 bytes, and four
    times slower for parts of 1 KiB.
    """
    parts = [b"*%d" % len(command)]
    add = parts.append
    for argument in command:
        add(b"\r\n$%d\r\n" % len(argument))
        add(argument)
    add(b"\r\n")
    return b"".join(parts)


def _field(info: Any, name: bytes) -> str:
    for line in bytes(info).splitlines():
        if line.startswith(name + b":"):
            return line[len(name) + 1 :].decode(errors="replace").strip()
    return ""


def _is_replica(replication: Any) -> bool:
    return _field(replication, b"role") in ("slave", "replica")


class Link:
    """One connection, owned by one caller at a time.

    Attributes:
        number: Grows with every connection that is opened.
        identity: Of the server: its run, and its replication history, which begins anew whenever it
            is promoted.
        proved_at: Monotonic seconds at which it was last seen to be that server.
        reused: Whether it has served before.
        pid: Process that opened it.
    """

    def __init__(self, connection: Any, number: int) -> None:
        self.number = number
        self.identity = ""
        self.proved_at = 0.0
        self.reused = False
        self.pid = os.getpid()
        self._connection = connection
        self._open = False
        self._run_id = ""

    def open(self, now: float, *, cluster: bool) -> None:
        """Connect, log in, and learn who is there.

        Raises:
            StoreUnavailable: It is a replica.
            StoreRejected: It is one of a cluster's, and none is expected.
        """
        try:
            self._connection.connect()
            self._open = True
            self.send([pack((b"INFO", b"server")) + pack(PROOF)])
            self._learn(self.read(), self.read(), cluster=cluster)
        except BaseException:
            self.close()
            raise
        self.proved_at = now

    def _learn(self, server: Any, replication: Any, *, cluster: bool) -> None:
        for answer in (server, replication):
            if isinstance(answer, Exception):
                raise answer
        self._run_id = _field(server, b"run_id")
        self.identity = self._proof(replication)
        if _is_replica(replication):
            hint = "this server is a replica: point redis_url at the master"
            raise StoreUnavailable(STORE, "connect", hint)
        mode = _field(server, b"redis_mode") or _field(server, b"server_mode")  # of Valkey
        if mode == "cluster" and not cluster:
            hint = "this server is one of a cluster: use redis+cluster://"
            raise StoreRejected(STORE, "connect", hint)

    def _proof(self, replication: Any) -> str:
        return f"{self._run_id}:{_field(replication, b'master_replid')}"

    def is_proved_by(self, replication: Any, now: float) -> bool:
        """Tell whether an answer to `PROOF` shows the same master as before."""
        if isinstance(replication, Exception) or _is_replica(replication):
            return False
        self.proved_at = now
        return self._proof(replication) == self.identity

    def send(self, packed: list[bytes]) -> None:
        """Write bytes."""
        if not self._open:  # redis-py would connect, to whoever is there
            raise redis_errors.ConnectionError("the connection is closed")
        self._connection.send_packed_command(packed, check_health=False)

    def read(self) -> Any:
        """Return one answer; an error that the server sent is returned, not raised."""
        try:
            return self._connection.read_response()
        except redis_errors.ResponseError as exc:
            return exc
        except BaseException:  # the driver has let go of it, and would connect to say more
            self._open = False
            raise

    def close(self) -> None:
        """Close it; safe twice."""
        self._open = False
        self._connection.disconnect()


class Node:
    """The connections to one server, bounded.

    Args:
        open_link: Opens one.
        connections_max: That may be in use at once.
        wait_s: Seconds to wait for one of them.

    Thread-safety: every method.
    """

    def __init__(
        self, open_link: Callable[[], Link], *, connections_max: int, wait_s: float
    ) -> None:
        self._open_link = open_link
        self._connections_max = connections_max
        self._wait_s = wait_s
        self._free = threading.BoundedSemaphore(connections_max)
        self._idle: deque[Link] = deque()
        self._closed = False

    def acquire(self, *, fresh: bool = False) -> Link:
        """Return a connection for one caller, who gives it back with `release`.

        Raises:
            StoreUnavailable: All are in use; or as `Link.open`, or redis-py's errors.
        """
        if not self._free.acquire(timeout=self._wait_s):
            hint = f"all {self._connections_max} connections are in use"
            raise StoreUnavailable(STORE, "connect", hint)
        try:
            while self._idle:
                try:
                    link = self._idle.pop()
                except IndexError:  # another thread was faster
                    break
                if not fresh and link.pid == os.getpid():
                    link.reused = True
                    return link
                link.close()
            return self._open_link()
        except BaseException:
            self._free.release()
            raise

    def replace(self, link: Link) -> Link:
        """Close a connection that is in use, and open another in its place."""
        self.drop_idle()
        link.close()
        return self._open_link()

    def release(self, link: Link, *, keep: bool) -> None:
        """Give a connection back."""
        if keep and not self._closed:
            self._idle.append(link)
        else:
            link.close()
        self._free.release()
        if self._closed:  # since it was put back
            self.drop_idle()

    def drop_idle(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def close(self) -> None:
        """Close all connections: those in use, when they are given back."""
        self._closed = True
        self.drop_idle()


class Talk:
    """What is said over one connection in one round.

    Commands are sent ahead of their answers, up to `window_bytes` of them: the server works while
    the client packs, and what is small goes out in a single write.

    Attributes:
        node: Whose connection it is.
        link: The connection.
        scopes: That the commands are about.
    """

    def __init__(self, node: Node, link: Link, scopes: Sequence[int], window_bytes: int) -> None:
        self.node = node
        self.link = link
        self.scopes = scopes
        self._window_bytes = window_bytes
        self._commands: Sequence[Command] = ()
        self._replies: list[Any] = []
        self._sizes: deque[int] = deque()
        self._ahead_bytes = 0
        self._sent = 0
        self._broken = False

    @property
    def clean(self) -> bool:
        """Whether the connection may serve again."""
        return not self._broken and len(self._replies) == len(self._commands)

    def reconnect(self) -> None:
        """Take a new connection in place of this one."""
        self._broken = True  # until there is one
        self.link = self.node.replace(self.link)
        self._broken = False

    def distrust(self) -> None:
        """Let the connection not serve again."""
        self._broken = True

    def begin(self, commands: Sequence[Command]) -> None:
        """Send as much as the window takes."""
        self._commands = commands
        self._replies = []
        self._sizes.clear()
        self._ahead_bytes = self._sent = 0
        self._send()

    def finish(self) -> list[Any]:
        """Read every answer, and send the rest meanwhile; errors of the server are among them."""
        while len(self._replies) < len(self._commands):
            self._replies.append(self.link.read())
            self._ahead_bytes -= self._sizes.popleft()
            if self._sent < len(self._commands):
                self._send()
        return list(self._replies)

    def _send(self) -> None:
        parts: list[bytes] = []
        size = 0
        while self._sent < len(self._commands):
            if self._sizes and self._ahead_bytes >= self._window_bytes:
                break
            packed = pack(self._commands[self._sent])
            parts.append(packed)
            self._sizes.append(len(packed))
            self._ahead_bytes += len(packed)
            size += len(packed)
            self._sent += 1
        if parts:
            self.link.send([b"".join(parts)] if size <= _JOINED_BYTES_MAX else parts)
