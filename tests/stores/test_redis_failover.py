"""Masters that die, and replicas that lag: what was read before is never contradicted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from support.processes import free_port
from support.servers import RedisCluster, RedisServer

from sync_engine.errors import StorageError, StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.runtime import SystemClock
from sync_engine.stores.redis import RedisStore
from sync_engine.testing.contracts.cache import put

pytestmark = pytest.mark.external
IDS = [f"i{n}" for n in range(300)]


@pytest.fixture
def cache_clock() -> Clock:
    return SystemClock()


def until(done: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait for another process."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def connections_idle(store: RedisStore) -> int:
    """Return how many connections to one server nobody uses."""
    topology: Any = store._topology
    return len(topology._node._idle)


def served(call: Callable[[], object]) -> Callable[[], bool]:
    """Tell whether a call succeeds."""

    def attempt() -> bool:
        try:
            call()
        except StoreUnavailable:
            return False
        return True

    return attempt


class Sentinel(RedisServer):
    """A sentinel that watches one master, and takes it for dead after half a second."""

    def __init__(self, master: RedisServer) -> None:
        super().__init__()
        self._file = self.dir / "sentinel.conf"
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\nprotected-mode no\ndir {self.dir}\n"
            f"sentinel monitor ours 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds ours 500\nsentinel failover-timeout ours 2000\n"
        )

    def command(self) -> list[str]:
        return [self._program, str(self._file), "--sentinel"]


@pytest.fixture
def watched() -> Iterator[tuple[RedisServer, RedisServer, Sentinel]]:
    """A master, its replica, and the sentinel that watches them."""
    master = RedisServer()
    replica = RedisServer("--replicaof", f"127.0.0.1 {master.port}")
    sentinel = Sentinel(master)
    servers = (master, replica, sentinel)
    try:
        for server in servers:
            server.start()
        until(lambda: replica.execute("INFO", "replication")["master_link_status"] == "up")
        until(lambda: sentinel.execute("SENTINEL", "REPLICAS", "ours"))
        yield servers
    finally:
        for server in servers:
            server.destroy()


def test_a_lagging_replica_that_is_promoted_begins_empty(
    watched: tuple[RedisServer, RedisServer, Sentinel], cache_clock: Clock
) -> None:
    master, replica, sentinel = watched
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/ours"
    store = RedisStore(url, clock=cache_clock, timeout_s=0.3, connect_timeout_s=0.3)
    store.attach()
    store.apply([put(change_id, 1, b"old") for change_id in IDS])
    until(lambda: replica.execute("DBSIZE") == len(IDS) + 1)
    replica.pause()
    store.apply([put(change_id, 2, b"new") for change_id in IDS])
    master.kill()
    replica.resume()

    with pytest.raises(StoreUnavailable):
        store.get_many(IDS)
    until(served(store.ping))

    assert replica.execute("DBSIZE") >= len(IDS)  # the old values are there, and are not read
    assert store.get_many(IDS) == {}
    assert store.identity_changed()
    store.apply([put("a", 3)])
    assert store.get_many(["a"])["a"].version == 3
    store.close()


def test_a_master_that_is_demoted_in_order_is_left(
    watched: tuple[RedisServer, RedisServer, Sentinel], cache_clock: Clock
) -> None:
    master, replica, sentinel = watched
    store = RedisStore(f"redis+sentinel://127.0.0.1:{sentinel.port}/ours", clock=cache_clock)
    store.attach()
    store.apply([put("a", 1)])

    sentinel.execute("SENTINEL", "FAILOVER", "ours")
    until(lambda: master.execute("ROLE")[0] == b"slave")
    until(served(lambda: store.apply([put("b", 2)])))

    assert len(replica.execute("KEYS", "*:b")) == 1
    assert store.get_many(["a", "b"]).keys() == {"b"}
    assert store.identity_changed()
    store.close()


def test_an_unknown_master_is_unavailable(
    watched: tuple[RedisServer, RedisServer, Sentinel], cache_clock: Clock
) -> None:
    store = RedisStore(f"redis+sentinel://127.0.0.1:{watched[2].port}/theirs", clock=cache_clock)

    with pytest.raises(StoreUnavailable, match="no sentinel knows"):
        store.attach()
    store.close()


def test_an_old_connection_does_not_lead_back_to_the_server_that_was_left(
    tmp_path: Path, cache_clock: Clock
) -> None:
    """An address that changes its server leaves open connections where they are."""
    before, after = (
        RedisServer("--unixsocket", "redis.sock"),
        RedisServer("--unixsocket", "redis.sock"),
    )
    address = tmp_path / "redis.sock"
    store = RedisStore(f"unix://{address}", clock=cache_clock, timeout_s=10)
    try:
        before.start()
        after.start()
        address.symlink_to(before.dir / "redis.sock")
        store.attach()
        store.apply([put("a", 1)])
        with ThreadPoolExecutor(1) as pool:
            before.pause()
            assert connections_idle(store) == 1
            slow = pool.submit(store.get_many, ["a"])  # holds the only connection
            until(lambda: connections_idle(store) == 0)
            address.unlink()
            address.symlink_to(after.dir / "redis.sock")
            store.apply([put("b", 2)])
            before.resume()
            slow.result()
        epochs = store.stats()["epochs"]

        for n in range(4):
            store.apply([put("c", n)])

        assert store.get_many(["a", "b", "c"]).keys() == {"b", "c"}
        assert store.stats()["epochs"] == epochs == 1
        assert len(before.execute("KEYS", "*")) == 2
    finally:
        store.close()
        before.destroy()
        after.destroy()


# -- cluster --------------------------------------------------------------------------------------


@pytest.fixture
def store(redis_cluster: Any, cache_clock: Clock) -> Iterator[RedisStore]:
    store = RedisStore(redis_cluster.url, clock=cache_clock, timeout_s=0.5, connect_timeout_s=0.5)
    store.attach()
    yield store
    store.close()


def test_a_batch_is_spread_over_all_masters(store: RedisStore, redis_cluster: Any) -> None:
    store.apply([put(change_id, 1) for change_id in IDS])

    sizes = [node.execute("DBSIZE") for node in redis_cluster.nodes]
    assert sum(sizes) == len(IDS) + 64
    assert min(sizes) > 50


def test_one_dead_master_makes_its_batches_unavailable_and_loses_only_its_buckets(
    store: RedisStore, redis_cluster: Any
) -> None:
    store.apply([put(change_id, 1) for change_id in IDS])
    redis_cluster.nodes[1].kill()

    with pytest.raises(StoreUnavailable):
        store.get_many(IDS)
    redis_cluster.heal()
    until(served(store.ping))

    found = store.get_many(IDS)
    assert 0 < len(found) < len(IDS)
    assert store.identity_changed()
    store.apply([put(change_id, 2) for change_id in IDS])
    assert {c.version for c in store.get_many(IDS).values()} == {2}


def test_an_emptied_master_is_only_a_set_of_misses(store: RedisStore, redis_cluster: Any) -> None:
    store.apply([put(change_id, 1) for change_id in IDS])
    redis_cluster.nodes[0].flush()

    assert 0 < len(store.get_many(IDS)) < len(IDS)
    store.apply([put(change_id, 1) for change_id in IDS])
    assert len(store.get_many(IDS)) == len(IDS)
    assert not store.identity_changed()


def test_a_hung_master_is_given_up_in_time(store: RedisStore, redis_cluster: Any) -> None:
    redis_cluster.nodes[2].pause()
    try:
        for call in (lambda: store.get_many(IDS), store.ping):
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                call()
            assert time.monotonic() - started < 2.5
    finally:
        redis_cluster.nodes[2].resume()
    redis_cluster.heal()
    until(served(store.ping))


def test_engines_on_a_cluster_agree_on_epochs(
    store: RedisStore, redis_cluster: Any, cache_clock: Clock
) -> None:
    other = RedisStore(redis_cluster.url, clock=cache_clock)
    other.attach()
    store.apply([put(change_id, 1) for change_id in IDS])
    assert len(other.get_many(IDS)) == len(IDS)

    other.new_epoch()

    assert store.get_many(IDS) == {}
    other.close()


def test_a_slot_that_moves_is_followed(store: RedisStore, redis_cluster: Any) -> None:
    store.apply([put(change_id, 1) for change_id in IDS])
    first, second, _ = redis_cluster.nodes
    # One of an item: there is a mark, too, in a bucket that has none of them.
    key = next(k for k in first.execute("KEYS", "*") if not k.endswith(b":mark"))
    slot = key_slot(key)
    names = [node.execute("CLUSTER MYID").decode() for node in redis_cluster.nodes]
    second.execute("CLUSTER SETSLOT", slot, "IMPORTING", names[0])
    first.execute("CLUSTER SETSLOT", slot, "MIGRATING", names[1])
    keys = first.execute("CLUSTER GETKEYSINSLOT", slot, 1000)
    first.execute("MIGRATE", "127.0.0.1", second.port, "", 0, 5000, "KEYS", *keys)
    with pytest.raises(StorageError, match="moving slots"):
        store.apply([put(change_id, 2) for change_id in IDS])
    for node in redis_cluster.nodes:
        node.execute("CLUSTER SETSLOT", slot, "NODE", names[1])

    store.apply([put(change_id, 3) for change_id in IDS])

    assert {c.version for c in store.get_many(IDS).values()} == {3}


def test_a_lagging_replica_that_is_promoted_in_a_cluster_begins_empty(cache_clock: Clock) -> None:
    cluster = RedisCluster()
    bus = free_port()
    replica = RedisServer(
        "--cluster-enabled", "yes", "--cluster-port", str(bus),
        "--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0",
    )  # fmt: skip
    master = cluster.nodes[0]
    store = RedisStore(cluster.url, clock=cache_clock, timeout_s=0.5, connect_timeout_s=0.5)
    try:
        cluster.start()
        replica.start()
        name = master.execute("CLUSTER MYID").decode()
        master.execute("CLUSTER MEET", "127.0.0.1", replica.port, bus)
        until(answered(lambda: replica.execute("CLUSTER REPLICATE", name)))
        until(lambda: replica.execute("INFO", "replication").get("master_link_status") == "up")
        store.attach()
        store.apply([put(change_id, 1, b"old") for change_id in IDS])
        until(lambda: replica.execute("DBSIZE") == master.execute("DBSIZE"))
        held = {k.rpartition(b":")[2].decode() for k in master.execute("KEYS", "*")} - {"mark"}
        replica.pause()
        store.apply([put(change_id, 2, b"new") for change_id in IDS])
        master.kill()
        replica.resume()

        with pytest.raises(StoreUnavailable):
            store.get_many(IDS)
        until(served(store.ping), 40)

        assert replica.execute("DBSIZE") >= len(held)  # the old values are there, and are not read
        assert set(IDS) - store.get_many(IDS).keys() == held
        assert {c.version for c in store.get_many(IDS).values()} == {2}
        assert store.identity_changed()
        store.apply([put(change_id, 3) for change_id in IDS])
        assert {c.version for c in store.get_many(IDS).values()} == {3}
    finally:
        store.close()
        replica.destroy()
        cluster.destroy()


def answered(call: Callable[[], object]) -> Callable[[], bool]:
    """Tell whether a command of a server succeeds."""

    def attempt() -> bool:
        try:
            call()
        except redis.RedisError:
            return False
        return True

    return attempt
