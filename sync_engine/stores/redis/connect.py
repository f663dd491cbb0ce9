"""Clients for each kind of URL, with the driver's own retries switched off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from sync_engine.errors import ConfigError
from sync_engine.telemetry import redact_url

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
    from redis.sentinel import Sentinel
except ModuleNotFoundError as exc:
    raise ConfigError("redis_url: install the driver: pip install 'sync-engine[redis]'") from exc

__all__ = ["connect"]

_CONNECTIONS_MAX = 32
_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "db", "health")


def connect(
    url: str, *, connect_timeout_s: float, timeout_s: float, on_connect: Callable[[Any], None]
) -> tuple[Any, bool]:
    """Return a client that has not connected yet, and whether it is a cluster's.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://``, ``redis+cluster://``, ``rediss+cluster://``
            (hosts separated by commas), or ``redis+sentinel://hosts/service[/db]``.
        connect_timeout_s: Seconds for a connection.
        timeout_s: Seconds between two bytes of an answer.
        on_connect: Called with each new connection after its handshake; may raise.

    Raises:
        ConfigError: The URL cannot be used.
    """
    try:
        parts = urlsplit(url)
        kind = parts.scheme
        common: dict[str, Any] = {
            "socket_connect_timeout": connect_timeout_s,
            "socket_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "decode_responses": False,
            **_options(parts.query),
        }
        if kind in ("redis", "rediss", "unix"):
            return _single(url.partition("?")[0], common, on_connect), False
        if parts.username:
            common["username"] = unquote(parts.username)
        if parts.password:
            common["password"] = unquote(parts.password)
        hosts = _hosts(parts.netloc)
        if kind in ("redis+cluster", "rediss+cluster"):
            return _cluster(hosts, common, secure=kind.startswith("rediss")), True
        if kind == "redis+sentinel":
            return _sentinel(hosts, parts.path, common, on_connect), False
    except (ValueError, redis.exceptions.DataError) as exc:
        raise ConfigError(f"redis_url: {redact_url(url)} cannot be used: {exc}") from exc
    raise ConfigError(f"redis_url: {redact_url(url)} has an unknown scheme")


def _options(query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise ValueError(f"unknown option {name!r}; known are {', '.join(_OPTIONS)}")
        options[name] = int(value) if name == "db" else value
    return options


def _single(url: str, common: dict[str, Any], on_connect: Callable[[Any], None]) -> Any:
    def greet(connection: Any) -> None:
        connection.on_connect()
        on_connect(connection)

    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS_MAX,
        timeout=common["socket_timeout"],
        redis_connect_func=greet,
        **common,
    )
    return redis.Redis(connection_pool=pool)


def _hosts(netloc: str) -> list[tuple[str, int]]:
    hosts = []
    for host in netloc.rpartition("@")[2].split(","):
        name, _, port = host.rpartition(":")
        hosts.append((name.strip("[]") or host, int(port) if name else 6379))
    return hosts


def _cluster(hosts: list[tuple[str, int]], common: dict[str, Any], *, secure: bool) -> Any:
    from redis.cluster import ClusterNode, RedisCluster

    if common.pop("db", 0):
        raise ValueError("a cluster has database 0 only")
    node: Any = ClusterNode  # untyped in redis-py
    return RedisCluster(
        startup_nodes=[node(name, port) for name, port in hosts],
        require_full_coverage=False,
        ssl=secure,
        **common,
    )


def _sentinel(
    hosts: list[tuple[str, int]],
    path: str,
    common: dict[str, Any],
    on_connect: Callable[[Any], None],
) -> Any:
    service, _, database = path.strip("/").partition("/")
    if not service:
        raise ValueError("a sentinel URL names its service: redis+sentinel://host:26379/mymaster")
    waits = {name: common[name] for name in ("socket_connect_timeout", "socket_timeout")}

    def greet(connection: Any) -> None:
        connection.on_connect()
        on_connect(connection)

    make: Any = Sentinel  # untyped in redis-py
    sentinel = make(hosts, sentinel_kwargs=waits)
    with contextlib.suppress(KeyError):
        common["db"] = int(database) if database else common["db"]
    return sentinel.master_for(service, redis_connect_func=greet, **common)
