"""Which server holds what: one server, the master that sentinels name, or a cluster's masters."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from sync_engine.errors import StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.redis_link.address import Address, Kind
from sync_engine.redis_link.errors import STORE
from sync_engine.redis_link.link import Link, Node, pack

__all__ = ["Topology", "make_topology"]

_CANDIDATES_MAX = 4  # each may hang for its timeouts


class Topology(Protocol):
    """Finds servers."""

    def route(self, scopes: Iterable[int]) -> list[tuple[Node, list[int]]]:
        """Return which node serves which scopes; may ask servers."""

    def doubt(self) -> None:
        """Look again before the next answer."""

    def close(self) -> None:
        """Close every connection."""


def make_topology(
    address: Address,
    *,
    clock: Clock,
    connect_timeout_s: float,
    timeout_s: float,
    connections_max: int,
    numbers: Callable[[], int],
    slot_key: Callable[[int], bytes],
) -> Topology:
    """Return the topology of an address; connects to nothing yet.

    Args:
        address: Where.
        clock: Says when a connection was proved.
        connect_timeout_s: Seconds for a connection.
        timeout_s: Seconds between two bytes of an answer, and to wait for a free connection.
        connections_max: In use at once, for each server.
        numbers: Numbers connections.
        slot_key: A key of a scope, to find its slot in a cluster.
    """
    common: dict[str, Any] = {
        "socket_connect_timeout": connect_timeout_s,
        "socket_timeout": timeout_s,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),  # only the engine retries
        "decode_responses": False,
        "protocol": 2,
    }
    login: dict[str, Any] = {
        "username": address.username, "password": address.password, "db": address.database
    }  # fmt: skip

    def connection(host: str, port: int, login: Mapping[str, Any]) -> Any:
        make: Any = redis.Connection  # untyped in redis-py
        if address.tls is not None:
            make = redis.SSLConnection
            login = {**address.tls, **login}
        return make(host=host, port=port, **common, **login)

    def opened(made: Any, *, cluster: bool = False) -> Link:
        link = Link(made, numbers())
        link.open(clock.monotonic(), cluster=cluster)
        return link

    def node(open_link: Callable[[], Link]) -> Node:
        return Node(open_link, connections_max=connections_max, wait_s=timeout_s)

    def open_socket() -> Link:
        options = {name: value for name, value in common.items() if name != "socket_keepalive"}
        made: Any = redis.UnixDomainSocketConnection
        return opened(made(path=address.path, **options, **login))

    def open_master() -> Link:
        sentinels = (connection(*host, address.sentinel) for host in address.hosts)
        return opened(connection(*_master(sentinels, address.service), login))

    if address.kind is Kind.CLUSTER:
        return _Cluster(
            address.hosts,
            lambda host, port: connection(host, port, login),
            lambda host, port: node(lambda: opened(connection(host, port, login), cluster=True)),
            slot_key,
        )
    if address.kind is Kind.SENTINEL:
        return _Single(node(open_master))
    if address.kind is Kind.SOCKET:
        return _Single(node(open_socket))
    return _Single(node(lambda: opened(connection(*address.hosts[0], login))))


class _Single:
    """Everything is on one server."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def route(self, scopes: Iterable[int]) -> list[tuple[Node, list[int]]]:
        return [(self._node, list(scopes))]

    def doubt(self) -> None:
        """A server that was replaced shows when a connection to it is opened."""

    def close(self) -> None:
        self._node.close()


def _asked(connection: Any, *command: bytes) -> Any:
    """Ask one question over a connection that is closed afterwards."""
    try:
        connection.connect()
        connection.send_packed_command([pack(command)], check_health=False)
        return connection.read_response()
    finally:
        connection.disconnect()


def _master(sentinels: Iterable[Any], service: str) -> tuple[str, int]:
    """Return host and port of the master, from the first sentinel that knows it."""
    failure: Exception = StoreUnavailable(
        STORE, "connect", f"no sentinel knows a master called {service!r}"
    )
    for sentinel in sentinels:
        try:
            found = _asked(sentinel, b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service.encode())
        except (redis.RedisError, OSError) as exc:
            failure = exc
        else:
            if found:
                return found[0].decode(), int(found[1])
    raise failure


class _Cluster:
    """A bucket is on the master that holds its slot; the map is asked for anew when in doubt."""

    def __init__(
        self,
        seeds: Sequence[tuple[str, int]],
        connection: Callable[[str, int], Any],
        node: Callable[[str, int], Node],
        slot_key: Callable[[int], bytes],
    ) -> None:
        self._seeds = seeds
        self._connection = connection
        self._make_node = node
        self._slot_key = slot_key
        self._lock = threading.Lock()  # guards the fields below, never held over a question
        self._nodes: dict[tuple[str, int], Node] = {}
        self._owners: Mapping[int, tuple[str, int]] | None = None
        self._turn = itertools.count()
        self._closed = False

    def route(self, scopes: Iterable[int]) -> list[tuple[Node, list[int]]]:
        owners = self._owners
        if owners is None:
            owners = self._ask()
        routes: dict[tuple[str, int], list[int]] = {}
        for scope in scopes:
            owner = owners.get(key_slot(self._slot_key(scope)))
            if owner is None:
                raise StoreUnavailable(STORE, "route", "the cluster does not cover all slots")
            routes.setdefault(owner, []).append(scope)
        # Always in one order: who holds connections to some nodes cannot wait for others in a ring.
        return [(self._node(owner), routes[owner]) for owner in sorted(routes)]

    def doubt(self) -> None:
        self._owners = None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            nodes, self._nodes = list(self._nodes.values()), {}
        for node in nodes:
            node.close()

    def _node(self, owner: tuple[str, int]) -> Node:
        with self._lock:
            if self._closed:
                raise StoreUnavailable(STORE, "route", "closed")
            if owner not in self._nodes:
                self._nodes[owner] = self._make_node(*owner)
            return self._nodes[owner]

    def _ask(self) -> Mapping[int, tuple[str, int]]:
        """Learn the map from the first node that answers, another one first at every turn."""
        with self._lock:
            known = list(dict.fromkeys([*self._nodes, *self._seeds]))
        start = next(self._turn) % len(known)
        failure: Exception | None = None
        for host, port in (known[start:] + known[:start])[:_CANDIDATES_MAX]:
            try:
                answer = _asked(self._connection(host, port), b"CLUSTER", b"SLOTS")
            except (redis.RedisError, OSError) as exc:
                failure = exc
                continue
            owners: dict[int, tuple[str, int]] = {}
            for first, last, master, *_ in answer:
                # A node that does not know its own name leaves it out: it is the one asked.
                name = (master[0] or b"").decode()
                owner = (name if name not in ("", "?") else host, int(master[1]))
                owners.update(dict.fromkeys(range(first, last + 1), owner))
            self._drop_unused(set(owners.values()))
            self._owners = owners
            return owners
        raise failure or StoreUnavailable(STORE, "route", "no node of the cluster is known")

    def _drop_unused(self, owners: set[tuple[str, int]]) -> None:
        with self._lock:
            gone = [self._nodes.pop(owner) for owner in set(self._nodes) - owners]
        for node in gone:
            node.close()
