"""RedisStore on real servers: one, a cluster, and one that is hurt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from sync_engine.core.item import Change, Route
from sync_engine.errors import ConfigError, StoreRejected, StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.runtime import SystemClock
from sync_engine.stores.redis import RedisStore
from sync_engine.testing import ManualClock, MemoryCacheStore
from sync_engine.testing.contracts.cache import CacheContract, put


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


def value_keys(server: Any) -> list[bytes]:
    """Return the keys that are no marks."""
    return [key for key in server.execute("KEYS", "*") if not key.endswith(b":mark")]


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
def test_an_old_dump_is_not_read(store: RedisStore, redis_server: Any) -> None:
    """The server went back in time: its old value is older than what was delivered."""
    store.apply([put("a", 5, b"old")])
    redis_server.execute("SAVE")
    store.apply([put("a", 6, b"new")])
    redis_server.kill()
    with pytest.raises(StoreUnavailable):
        store.get_many(["a"])
    redis_server.start()
    assert any(key.endswith(b":a") for key in redis_server.execute("KEYS", "*"))

    assert store.get_many(["a"]) == {}
    assert store.identity_changed()


@pytest.mark.external
def test_engines_on_one_prefix_agree_on_the_epoch(
    store: RedisStore, redis_server: Any, cache_clock: Clock
) -> None:
    other = RedisStore(redis_server.url, clock=cache_clock)
    other.attach()
    store.apply([put("a", 5)])
    assert other.get_many(["a"])["a"].version == 5

    other.new_epoch()

    assert store.get_many(["a"]) == {}  # seen at once, by readers as well
    other.new_epoch()
    store.apply([put("b", 1)])  # goes into the epoch in force
    assert other.get_many(["a", "b"]).keys() == {"b"}
    assert not store.identity_changed()
    other.close()


@pytest.mark.external
def test_engines_share_one_new_epoch_after_a_restart(
    store: RedisStore, redis_server: Any, cache_clock: Clock
) -> None:
    other = RedisStore(redis_server.url, clock=cache_clock)
    other.attach()
    store.apply([put("a", 5)])
    redis_server.execute("SAVE")
    redis_server.restart()

    store.apply([put("b", 6)])
    other.apply([put("c", 7)])

    assert store.get_many(["a", "b", "c"]).keys() == {"b", "c"}
    assert other.get_many(["a", "b", "c"]).keys() == {"b", "c"}
    assert store.identity_changed()
    assert other.identity_changed()
    other.close()


@pytest.mark.external
def test_an_engine_that_was_away_abandons_what_it_finds_on_a_restarted_server(
    store: RedisStore, redis_server: Any
) -> None:
    store.apply([put("a", 5)])
    store.close()
    redis_server.execute("SAVE")
    redis_server.restart()

    store.attach()

    assert store.get_many(["a"]) == {}
    assert store.identity_changed()


@pytest.mark.external
def test_a_server_that_was_a_replica_meanwhile_is_another_one(
    store: RedisStore, redis_server: Any
) -> None:
    """Its connections stay open over that, and its data may have been replaced."""
    store.apply([put("a", 5)])
    redis_server.execute("REPLICAOF", "127.0.0.1", "1")
    redis_server.execute("REPLICAOF", "NO", "ONE")

    store.ping()

    assert store.identity_changed()
    assert store.get_many(["a"]) == {}


@pytest.mark.external
def test_connections_prove_themselves_every_second_without_being_asked(
    redis_server: Any, clock: ManualClock
) -> None:
    store = RedisStore(redis_server.url, clock=clock)
    store.attach()
    store.apply([put("a", 5)])
    redis_server.execute("REPLICAOF", "127.0.0.1", "1")
    redis_server.execute("REPLICAOF", "NO", "ONE")

    clock.advance(1.0)

    assert store.get_many(["a"]) == {}
    assert store.identity_changed()
    store.close()


@pytest.mark.external
def test_an_emptied_server_is_only_a_set_of_misses(store: RedisStore, redis_server: Any) -> None:
    store.apply([put("a", 5)])
    redis_server.flush()

    assert store.get_many(["a"]) == {}
    redis_server.flush()
    store.apply([put("a", 4)])
    assert store.get_many(["a"])["a"].version == 4
    assert not store.identity_changed()


@pytest.mark.external
def test_fills_from_before_a_new_epoch_are_dropped(redis_server: Any, clock: ManualClock) -> None:
    """The version mark that would have refused an older one went with the old epoch."""
    store = RedisStore(redis_server.url, clock=clock, fill_pause_s=5.0)
    store.attach()
    store.apply([Change("a", 9, None)])
    redis_server.flush()

    store.fill([put("a", 3, b"read before the delete")])
    assert store.get_many(["a"]) == {}
    store.fill([put("a", 3, b"read before the delete")])
    assert store.get_many(["a"]) == {}
    assert store.stats()["fills_dropped"] == 2

    clock.advance(5.0)
    store.fill([put("b", 10, b"read since")])
    assert store.get_many(["b"])["b"].version == 10
    store.close()


@pytest.mark.external
@pytest.mark.parametrize("event", ["flushed", "restarted"])
def test_a_fill_that_finds_a_new_epoch_itself_is_dropped(
    redis_server: Any, clock: ManualClock, event: str
) -> None:
    """Nobody else has asked meanwhile: what it read may be older than the marks that are gone."""
    store = RedisStore(redis_server.url, clock=clock, fill_pause_s=5.0)
    store.attach()
    store.apply([Change("a", 9, None)])
    if event == "flushed":
        redis_server.flush()
    else:
        redis_server.restart()

    there = value_keys(redis_server)

    for _ in range(3):
        store.fill([put("a", 3, b"read before the delete")])

    assert value_keys(redis_server) == there
    assert store.stats()["fills_dropped"] == 3
    clock.advance(5.0)
    store.fill([put("a", 3, b"read since")])
    assert len(value_keys(redis_server)) == len(there) + 1
    store.close()


@pytest.mark.external
def test_an_expired_value_still_refuses_older_ones(redis_server: Any, clock: ManualClock) -> None:
    store = RedisStore(redis_server.url, clock=clock)
    store.attach()
    store.apply([put("a", 5, b"short-lived", expires_at_ms=clock.now_ms() + 100)])
    (key,) = value_keys(redis_server)
    clock.advance(1.0)

    store.fill([put("a", 3, b"read from the archive long ago")])

    assert store.get_many(["a"]) == {}
    assert redis_server.execute("PTTL", key) > 59_000  # it outstays its deadline by a minute
    store.close()


@pytest.mark.external
def test_fills_leave_before_their_item_does_and_expired_ones_are_not_stored(
    store: RedisStore, redis_server: Any, cache_clock: Clock
) -> None:
    now_ms = cache_clock.now_ms()
    store.fill(
        [
            put("long", 1, expires_at_ms=now_ms + 10**9),
            put("short", 1, expires_at_ms=now_ms + 10_000),
            put("gone", 1, expires_at_ms=now_ms - 1),
            put("elsewhere", 1, routes=int(Route.L3)),
        ]
    )

    ttl_s = {
        k.rpartition(b":")[2]: redis_server.execute("TTL", k) for k in value_keys(redis_server)
    }
    assert ttl_s.keys() == {b"long", b"short"}
    assert 3590 <= ttl_s[b"long"] <= 3600
    assert 10 <= ttl_s[b"short"] <= 71  # a minute more than the item, to refuse older ones


@pytest.mark.external
def test_the_script_is_sent_again_where_the_server_forgot_it(
    store: RedisStore, redis_server: Any
) -> None:
    redis_server.execute("SCRIPT", "FLUSH")
    changes = [put(f"i{n}", n + 1, bytes(100_000)) for n in range(20)]

    store.apply(changes)

    assert len(store.get_many([c.id for c in changes])) == 20


@pytest.mark.external
def test_no_script_call_carries_more_than_it_may_but_for_one_large_value(
    redis_server: Any, cache_clock: Clock
) -> None:
    """A call blocks the server for as long as it takes."""
    store = RedisStore(redis_server.url, clock=cache_clock, chunk_bytes_max=2000)
    store.attach()
    store.apply([put("a", 1)])  # the server knows the script
    redis_server.execute("CONFIG", "RESETSTAT")

    store.apply([put(f"{n}", 1, bytes(1200)) for n in range(5)] + [put("large", 1, bytes(9000))])

    calls = redis_server.execute("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
    assert calls == 6
    store.close()


@pytest.mark.external
def test_threads_share_a_bounded_number_of_connections(
    redis_server: Any, cache_clock: Clock
) -> None:
    store = RedisStore(redis_server.url, clock=cache_clock, connections_max=3, timeout_s=10)
    store.attach()
    before = len(redis_server.execute("CLIENT LIST"))

    def work(worker: int) -> None:
        for n in range(50):
            store.apply([put(f"w{worker}", n + 1, b"%d" % n), put("all", worker * 100 + n)])
            assert store.get_many([f"w{worker}"])[f"w{worker}"].version == n + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))

    assert store.get_many(["all"])["all"].version == 749
    assert len(redis_server.execute("CLIENT LIST")) <= before + 2
    store.close()
    assert len(redis_server.execute("CLIENT LIST")) < before


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
def test_no_flipped_bit_and_no_cut_passes(store: RedisStore, redis_server: Any) -> None:
    """The wire and the server notice neither."""
    store.apply([put("a", 5, b"content")])
    (key,) = value_keys(redis_server)
    with redis_server.client() as client:
        whole = client.get(key)
        for n in range(len(whole)):
            flipped = bytearray(whole)
            flipped[n] ^= 1 << (n % 8)
            client.set(key, bytes(flipped))
            assert store.get_many(["a"]) == {}, f"bit flipped in byte {n}"
            client.set(key, whole[:n])
            assert store.get_many(["a"]) == {}, f"cut at byte {n}"

    stats = store.stats()
    assert stats["corrupt"] + stats["foreign"] == 2 * len(whole)


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
@pytest.mark.parametrize("mark", ["2 0123456789abcdef x", "99 x y", "garbage", ""])
def test_keys_of_another_format_are_refused_and_left_alone(
    redis_server: Any, cache_clock: Clock, mark: str
) -> None:
    redis_server.execute("SET", "se:{00}:mark", mark)
    store = RedisStore(redis_server.url, clock=cache_clock)

    with pytest.raises(ConfigError, match="redis_prefix"):
        store.attach()

    assert redis_server.execute("GET", "se:{00}:mark") == mark.encode()
    store.close()


@pytest.mark.external
def test_a_mark_that_is_no_string_is_refused(redis_server: Any, cache_clock: Clock) -> None:
    redis_server.execute("LPUSH", "se:{00}:mark", "x")
    store = RedisStore(redis_server.url, clock=cache_clock)

    with pytest.raises(ConfigError, match="somebody else's"):
        store.attach()
    store.close()


@pytest.mark.external
def test_a_newer_format_that_appears_under_way_is_unavailable(
    store: RedisStore, redis_server: Any
) -> None:
    redis_server.execute("SET", "se:{00}:mark", "2 0123456789abcdef x")

    with pytest.raises(StoreUnavailable, match="upgrade"):
        store.apply([put("a", 1)])
    assert value_keys(redis_server) == []


@pytest.mark.external
def test_a_value_larger_than_the_server_takes_is_rejected(
    redis_server: Any, cache_clock: Clock
) -> None:
    """Sent, it would end the connection, and be tried for ever."""
    redis_server.config(proto_max_bulk_len="1mb")
    store = RedisStore(redis_server.url, clock=cache_clock)
    store.attach()

    with pytest.raises(StoreRejected, match="larger"):
        store.apply([put("a", 1, bytes(2 << 20))])
    store.apply([put("a", 1, bytes(1 << 19))])
    store.close()


@pytest.mark.external
def test_a_script_that_blocks_the_server_is_waited_out(
    store: RedisStore, redis_server: Any
) -> None:
    redis_server.config(busy_reply_threshold=1)
    with ThreadPoolExecutor(1) as pool, redis_server.client() as client:
        endless = pool.submit(client.execute_command, "EVAL", "while true do end", 0)
        try:
            with pytest.raises(StoreUnavailable, match=r"blocks|no answer"):
                while True:
                    store.apply([put("a", 1)])
        finally:
            redis_server.execute("SCRIPT", "KILL")
        with pytest.raises(redis.ResponseError):
            endless.result()
    recovered(store)


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


def test_nobody_there_is_unavailable() -> None:
    store = RedisStore("redis://127.0.0.1:1", clock=ManualClock())

    with pytest.raises(StoreUnavailable):
        store.attach()
    with pytest.raises(StoreUnavailable):
        store.get_many(["a"])
    store.close()
