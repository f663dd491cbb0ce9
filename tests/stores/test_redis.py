"""RedisStore on real servers: one, a cluster, and one that is hurt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.runtime import SystemClock
from sync_engine.stores.redis import RedisStore
from sync_engine.testing import ManualClock, MemoryCacheStore
from sync_engine.testing.contracts.cache import CacheContract, put

IDS = ["a", "b", "c"]


@pytest.fixture
def cache_clock() -> Clock:
    return SystemClock()


class TestMemoryCacheStore(CacheContract):
    @pytest.fixture
    def cache(self, cache_clock: Clock) -> MemoryCacheStore:
        return MemoryCacheStore(clock=cache_clock)


@pytest.mark.external
class TestRedis(CacheContract):
    @pytest.fixture
    def cache(self, redis_server: Any, cache_clock: Clock) -> Iterator[RedisStore]:
        store = RedisStore(redis_server.url, clock=cache_clock)
        store.attach()
        yield store
        store.close()


@pytest.mark.external
class TestRedisCluster(CacheContract):
    @pytest.fixture
    def cache(self, redis_cluster: Any, cache_clock: Clock) -> Iterator[RedisStore]:
        store = RedisStore(redis_cluster.url, clock=cache_clock)
        store.attach()
        yield store
        store.close()


@pytest.fixture
def store(redis_server: Any, cache_clock: Clock) -> Iterator[RedisStore]:
    store = RedisStore(redis_server.url, clock=cache_clock, timeout_s=0.3, connect_timeout_s=0.3)
    store.attach()
    yield store
    store.close()


def recovered(store: RedisStore, timeout_s: float = 10.0) -> None:
    """Call until the server answers again."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            store.ping()
        except StoreUnavailable:
            assert time.monotonic() < deadline
        else:
            return


def insist(store: RedisStore, changes: list[Change]) -> None:
    """Apply; a store may ask to try again while it finds its feet."""
    try:
        store.apply(changes)
    except StoreUnavailable:
        store.apply(changes)


@pytest.mark.external
def test_a_restarted_server_is_another_one_and_its_old_values_are_abandoned(
    store: RedisStore, redis_server: Any
) -> None:
    """An old dump may have been loaded: nothing of it may be read."""
    store.apply([put("a", 5, b"old")])
    redis_server.execute("SAVE")
    redis_server.restart()

    recovered(store)

    assert store.get_many(["a"]) == {}
    assert store.identity_changed()
    assert not store.identity_changed()
    store.apply([put("a", 5, b"again")])
    assert store.get_many(["a"])["a"].content == b"again"


@pytest.mark.external
def test_engines_on_one_prefix_agree_on_the_epoch(
    store: RedisStore, redis_server: Any, cache_clock: Clock
) -> None:
    other = RedisStore(redis_server.url, clock=cache_clock)
    other.attach()
    store.apply([put("a", 5)])
    assert other.get_many(["a"])["a"].version == 5

    other.new_epoch()
    insist(store, [put("b", 1)])  # its epoch is over: nothing is written under it

    assert other.get_many(["b"])["b"].version == 1
    other.close()


@pytest.mark.external
def test_an_emptied_server_is_only_a_set_of_misses(store: RedisStore, redis_server: Any) -> None:
    store.apply([put("a", 5)])
    redis_server.flush()

    assert store.get_many(["a"]) == {}
    insist(store, [put("a", 4)])
    assert store.get_many(["a"])["a"].version == 4


@pytest.mark.external
def test_a_hung_server_is_given_up_in_time(store: RedisStore, redis_server: Any) -> None:
    redis_server.pause()
    started = time.monotonic()
    try:
        for call in (lambda: store.get_many(["a"]), lambda: store.apply([put("a", 1)]), store.ping):
            with pytest.raises(StoreUnavailable):
                call()
        assert time.monotonic() - started < 4
    finally:
        redis_server.resume()
    recovered(store)


@pytest.mark.external
@pytest.mark.parametrize(
    "damage",
    [
        ("SET", b"garbage"),
        ("SET", b""),
        ("SET", b"00000000000000000005"),
        ("SET", b"00000000000000000005" + b"\xff" * 50),
        ("LPUSH", b"1"),
        ("HSET", b"f", b"v"),
    ],
)
def test_foreign_and_corrupt_values_are_misses_and_are_replaced(
    store: RedisStore, redis_server: Any, damage: tuple[Any, ...]
) -> None:
    store.apply([put("a", 5)])
    client = redis_server.client()
    (key,) = [k for k in client.scan_iter() if k.endswith(b":a")]
    client.delete(key)
    client.execute_command(damage[0], key, *damage[1:])

    assert store.get_many(["a", "b"]) == {}
    store.apply([put("a", 6)])
    assert store.get_many(["a"])["a"].version == 6
    client.close()


@pytest.mark.external
def test_a_value_under_the_wrong_id_is_noticed(store: RedisStore, redis_server: Any) -> None:
    store.apply([put("a", 5), put("b", 6)])
    client = redis_server.client()
    keys = {k[-1:]: k for k in client.scan_iter() if not k.endswith(b"mark")}
    client.set(keys[b"b"], client.get(keys[b"a"]))

    assert list(store.get_many(["a", "b"])) == ["a"]
    assert store.stats()["corrupt"] == 1
    client.close()


@pytest.mark.external
def test_a_newer_format_is_refused(redis_server: Any, cache_clock: Clock) -> None:
    redis_server.execute("SET", "se:{00}:mark", "99 x y")
    store = RedisStore(redis_server.url, clock=cache_clock)

    with pytest.raises(ConfigError, match="upgrade"):
        store.attach()
    store.close()


@pytest.mark.external
def test_a_full_server_is_unavailable_with_a_hint(store: RedisStore, redis_server: Any) -> None:
    redis_server.config(maxmemory="1mb")
    try:
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            store.apply([put("a", 1, bytes(4 << 20))])
    finally:
        redis_server.config(maxmemory="0")


@pytest.mark.external
def test_a_replica_is_not_written_to(store: RedisStore, redis_server: Any) -> None:
    redis_server.execute("REPLICAOF", "127.0.0.1", "1")
    try:
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                store.apply([put("a", 1)])
        with pytest.raises(StoreUnavailable):
            store.get_many(["a"])
    finally:
        redis_server.execute("REPLICAOF", "NO", "ONE")
    recovered(store)


@pytest.mark.external
def test_marks_expire_and_values_without_deadline_do_not(
    store: RedisStore, redis_server: Any
) -> None:
    store.apply([put("a", 1), Change("b", 2, None)])
    store.fill([put("c", 3)])
    client = redis_server.client()
    ttl = {k[-1:]: client.ttl(k) for k in client.scan_iter() if not k.endswith(b"mark")}

    assert ttl[b"a"] == -1
    assert 0 < ttl[b"b"] <= 600
    assert 0 < ttl[b"c"] <= 3600
    client.close()


@pytest.mark.external
def test_a_wrong_password_is_a_setting_to_fix_and_is_never_shown(
    redis_server: Any, cache_clock: Clock
) -> None:
    url = redis_server.url.replace("redis://", "redis://user:s3cret@", 1)
    store = RedisStore(url, clock=cache_clock)

    with pytest.raises(ConfigError) as caught:
        store.attach()

    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(store)
    store.close()


def test_nobody_there_is_unavailable() -> None:
    store = RedisStore("redis://127.0.0.1:1", clock=ManualClock())

    with pytest.raises(StoreUnavailable):
        store.attach()
    with pytest.raises(StoreUnavailable):
        store.get_many(["a"])
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://h:26379",
        "http://h",
        "redis://h/0?nonsense=1",
        "redis+cluster://h:x",
    ],
)
def test_unusable_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        RedisStore(url, clock=ManualClock()).attach()
