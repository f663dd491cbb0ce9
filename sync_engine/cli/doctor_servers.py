"""`doctor` on the servers: Redis and the archive's database."""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from sync_engine.cli.findings import Finding, Severity, failed
from sync_engine.cli.output import duration, size
from sync_engine.cli.probe import (
    archive_url,
    clock_difference_s,
    packet_bytes_max,
    schema_version,
    try_write,
)
from sync_engine.config import SyncEngineConfig
from sync_engine.config.urls import sqlite_file
from sync_engine.core.item import Change
from sync_engine.errors import StorageError, SyncEngineError
from sync_engine.ports import Clock

__all__ = ["check_archive", "check_redis", "policy_finding"]

_PINGS = 5
_SLOW_S = 0.05
_CLOCK_OFF_S = 1.0
_OLDEST_REDIS = (6, 2)
_PACKET_ROOM_BYTES = 1 << 16


def check_redis(config: SyncEngineConfig, clock: Clock) -> Iterator[Finding]:
    """Connect to Redis; look at latency, rights and the policies that L2 depends on.

    Leaves nothing behind but one key that expires within seconds.
    """
    if config.redis_url is None:
        yield Finding(part="redis", severity=Severity.NOTE, what="not configured: there is no L2")
        return
    yield from _check_transport("redis", config.redis_url)
    try:
        from sync_engine.stores.redis import RedisStore

        store = RedisStore(
            config.redis_url,
            prefix=config.redis_prefix,
            clock=clock,
            connect_timeout_s=config.l2_connect_timeout_s,
            timeout_s=config.l2_timeout_s,
            tombstone_ttl_s=5.0,
        )
    except SyncEngineError as exc:
        yield _failed("redis", exc)
        return
    try:
        store.attach()
        facts = store.describe()
        yield _reached("redis", f"Redis {facts['version']}", store.ping)
        yield from _check_version(facts["version"])
        yield policy_finding(facts)
        probe = Change(f"sync-engine doctor {uuid.uuid4()}", 1, b"x", 0, "default", 0)
        store.apply([_expiring(probe, clock.now_ms() + 5000)])
        if probe.id in store.get_many([probe.id]):
            yield Finding(part="redis", severity=Severity.OK, what="may read, write, run scripts")
        else:
            what = "what was written a moment ago is gone"
            remedy = "Redis is full, or something else empties it"
            yield Finding(part="redis", severity=Severity.WARNING, what=what, remedy=remedy)
    except SyncEngineError as exc:
        yield _failed("redis", exc)
    finally:
        with suppress(SyncEngineError):
            store.close()


def _expiring(change: Change, expires_at_ms: int) -> Change:
    return Change(change.id, change.version, change.content, 0, change.state, expires_at_ms)


def _check_version(version: str) -> Iterator[Finding]:
    numbers = version.split(".")[:2]
    if all(part.isdigit() for part in numbers) and tuple(map(int, numbers)) < _OLDEST_REDIS:
        yield Finding(
            part="redis",
            severity=Severity.WARNING,
            what=f"version {version} is no longer maintained",
            remedy="upgrade to Redis 6.2 or newer, or Valkey",
        )


def policy_finding(facts: Mapping[str, str]) -> Finding:
    """Judge what Redis does when it is full."""
    policy, maxmemory = facts["maxmemory_policy"], facts["maxmemory"]
    limit = int(maxmemory) if maxmemory.isdigit() else None
    told = f"maxmemory {size(limit) if limit else 'unlimited'}, policy {policy or 'unknown'}"
    if not policy or limit is None:
        what, remedy = f"{told}: the server does not tell all", "check maxmemory and its policy"
        return Finding(part="redis", severity=Severity.NOTE, what=what, remedy=remedy)
    if limit == 0:
        what = f"{told}: items without a time to live stay until the host has no memory left"
        remedy = "set maxmemory, and maxmemory-policy allkeys-lru or allkeys-lfu"
        return Finding(part="redis", severity=Severity.WARNING, what=what, remedy=remedy)
    if policy == "noeviction":
        what = f"{told}: once it is full, writes to L2 fail and it falls behind"
        remedy = "set maxmemory-policy allkeys-lru or allkeys-lfu"
        return Finding(part="redis", severity=Severity.WARNING, what=what, remedy=remedy)
    if policy.startswith("volatile-"):
        what = f"{told}: items without a time to live are never evicted, and fill it"
        remedy = "set maxmemory-policy allkeys-lru or allkeys-lfu"
        return Finding(part="redis", severity=Severity.WARNING, what=what, remedy=remedy)
    what = f"{told}: items kept in the cache tiers only may be evicted before their time"
    return Finding(part="redis", severity=Severity.OK, what=what)


def check_archive(config: SyncEngineConfig, clock: Clock) -> Iterator[Finding]:
    """Connect to the database; look at schema, latency, rights, durability and clock.

    Leaves nothing behind: its one row is rolled back.
    """
    url, timeout_s = archive_url(config), config.l3_connect_timeout_s
    yield from _check_transport("sql", url)
    try:
        version = schema_version(url, clock, timeout_s)
        if version == 0:
            yield _no_tables(config)
            return
        yield from _check_attached(config, url, clock)
        try_write(url, clock, timeout_s)
        yield Finding(part="sql", severity=Severity.OK, what="may read and write")
        yield from _check_clock(clock_difference_s(url, clock, timeout_s))
        yield from _check_packet(config, packet_bytes_max(url, clock, timeout_s))
    except SyncEngineError as exc:
        yield _failed("sql", exc)


def _no_tables(config: SyncEngineConfig) -> Finding:
    if config.create_schema:
        what = "no tables yet: the first engine makes them"
        return Finding(part="sql", severity=Severity.NOTE, what=what)
    what = "no tables, and create_schema is off"
    return Finding(
        part="sql", severity=Severity.ERROR, what=what, remedy="run `sync-engine migrate`"
    )


def _check_attached(config: SyncEngineConfig, url: str, clock: Clock) -> Iterator[Finding]:
    from sync_engine.stores.sql import SqlArchive

    store = SqlArchive(
        url,
        clock=clock,
        create_schema=False,
        connect_timeout_s=config.l3_connect_timeout_s,
        timeout_s=config.l3_timeout_s,
    )
    try:
        info = store.attach()
        yield _reached("sql", f"{info.server}, schema version {info.schema_version}", store.ping)
        for sentence in info.warnings:
            remedy = "change the server's setting, or accept it: the log is not affected"
            yield Finding(part="sql", severity=Severity.WARNING, what=sentence, remedy=remedy)
    finally:
        with suppress(StorageError):
            store.close()


def _check_clock(difference_s: float | None) -> Iterator[Finding]:
    if difference_s is None:
        return
    told = f"this clock and the database's differ by {duration(abs(difference_s))}"
    if abs(difference_s) > _CLOCK_OFF_S:
        remedy = "keep both by NTP: the later clock wins where two engines write one item"
        yield Finding(part="clock", severity=Severity.WARNING, what=told, remedy=remedy)
    else:
        yield Finding(part="clock", severity=Severity.OK, what=told)


def _check_packet(config: SyncEngineConfig, bytes_max: int | None) -> Iterator[Finding]:
    if bytes_max is not None and bytes_max < config.max_payload_bytes + _PACKET_ROOM_BYTES:
        yield Finding(
            part="sql",
            severity=Severity.WARNING,
            what=f"max_allowed_packet is {size(bytes_max)}, max_payload_bytes is"
            f" {size(config.max_payload_bytes)}: larger items become dead letters",
            remedy="raise max_allowed_packet above max_payload_bytes, or lower the latter",
        )


def _check_transport(part: str, url: str) -> Iterator[Finding]:
    """Tell of a password that goes over a network in the clear."""
    if part == "redis" and not url.startswith(("redis://", "redis+")):
        return
    if part == "sql" and (sqlite_file(url) is not None or "ssl" in url or "tls" in url):
        return
    parts = urlsplit(url)
    hosts = [host.rpartition(":")[0] or host for host in parts.netloc.rpartition("@")[2].split(",")]
    local = ("localhost", "127.", "[::1", "::1")
    if any(host and not host.startswith(local) for host in hosts):
        yield Finding(
            part=part,
            severity=Severity.NOTE,
            what="the URL asks for no encryption (TLS), and the server is another host",
            remedy="use TLS where you do not trust the network",
        )


def _reached(part: str, what: str, ping: Callable[[], float]) -> Finding:
    median = statistics.median(ping() for _ in range(_PINGS))
    told = f"{what}; a round trip takes {duration(median)}"
    if median > _SLOW_S:
        remedy = "place it nearer: every cold read waits for it"
        return Finding(part=part, severity=Severity.WARNING, what=told, remedy=remedy)
    return Finding(part=part, severity=Severity.OK, what=told)


def _failed(part: str, exc: SyncEngineError) -> Finding:
    remedy = "start it, or correct the URL; writes wait in the log meanwhile"
    return failed(part, exc, unavailable=remedy)
