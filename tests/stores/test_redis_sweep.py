"""Keys of abandoned epochs leave Redis; keys of the epoch in force, and of others, stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.core.item import Change
from sync_engine.engine import SyncEngine
from sync_engine.errors import StoreRejected, StoreUnavailable
from sync_engine.flow.sweeper import Sweeper
from sync_engine.runtime import SystemClock
from sync_engine.stores.redis import RedisStore
from sync_engine.testing import ManualClock
from sync_engine.testing.contracts.cache import put


@pytest.fixture(params=["server", "cluster"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"redis_{request.param}")


@pytest.fixture
def store(server: Any) -> Iterator[RedisStore]:
    store = RedisStore(server.url, clock=SystemClock(), fill_pause_s=0)
    store.attach()
    yield store
    store.close()


def nodes_of(server: Any) -> list[Any]:
    return getattr(server, "nodes", [server])


def keys_of(server: Any) -> set[bytes]:
    return {key for node in nodes_of(server) for key in node.execute("KEYS", "*")}


def walk(store: RedisStore, keys_max: int = 50) -> int:
    """Sweep until all was looked at; return the number of steps."""
    for steps in range(1, 10_000):
        if store.sweep(keys_max):
            return steps
    pytest.fail("the walk has no end")


@pytest.mark.external
def test_keys_of_abandoned_epochs_go_and_all_others_stay(server: Any, store: RedisStore) -> None:
    old = [put(f"old{n}", n + 1) for n in range(500)]
    store.apply([*old, Change("dead", 1, None)])
    store.new_epoch()
    kept = [put(f"new{n}", n + 1) for n in range(300)]
    store.apply(kept)
    neighbour = RedisStore(server.url, clock=SystemClock(), prefix="se:x")
    neighbour.attach()
    neighbour.apply([put("other", 1)])
    foreign = {b"se:{zz}:0123456789abcdef:a", b"mine", b"se:{00}:mark2"}
    client_nodes = nodes_of(server)
    if len(client_nodes) == 1:
        for key in foreign:
            server.execute("SET", key, b"x")
    before = keys_of(server)

    walk(store)

    gone = before - keys_of(server)
    assert len(gone) == 501
    assert all(key.rpartition(b":")[2].startswith((b"old", b"dead")) for key in gone)
    assert store.get_many([c.id for c in kept]) == {c.id: c for c in kept}
    assert neighbour.get_many(["other"])
    assert store.stats()["swept"] == 501
    neighbour.close()


@pytest.mark.external
def test_a_sweeper_that_missed_a_new_epoch_takes_nothing_of_it(server: Any) -> None:
    first, second = (RedisStore(server.url, clock=SystemClock()) for _ in range(2))
    first.attach()
    second.attach()
    first.apply([put(f"a{n}", 1) for n in range(200)])
    second.new_epoch()
    kept = [put(f"b{n}", 1) for n in range(200)]
    second.apply(kept)

    for _ in range(3):  # it learns of the new epoch on the way
        walk(first)

    assert second.get_many([c.id for c in kept]) == {c.id: c for c in kept}
    assert not any(key.rpartition(b":")[2].startswith(b"a") for key in keys_of(server))
    first.close()
    second.close()


@pytest.mark.external
def test_a_step_looks_at_no_more_than_it_may(store: RedisStore) -> None:
    store.apply([put(f"i{n}", 1) for n in range(2000)])

    assert walk(store, keys_max=100) >= 15
    assert store.stats()["swept"] == 0


@pytest.mark.external
def test_an_engine_sweeps_by_itself_where_nothing_is_ever_evicted(
    redis_server: Any, tmp_path: Path
) -> None:
    config = SyncEngineConfig(data_dir=tmp_path, redis_url=redis_server.url)
    with SyncEngine(config) as engine:
        for n in range(100):
            engine.submit(f"old{n}", b"v")
        assert engine.flush(10).complete
    redis_server.restart()  # an empty or old Redis is another epoch
    for n in range(50):
        redis_server.execute("SET", f"se:{{00}}:{n:016x}:left", b"x")
    with SyncEngine(config) as engine:
        engine.submit("new", b"v")
        assert engine.flush(10).complete
        for _ in range(500):
            if not any(b"left" in key or b":old" in key for key in keys_of(redis_server)):
                break
            SystemClock().sleep(0.02)
        left = keys_of(redis_server)

    assert not any(b"left" in key or b":old" in key for key in left)
    assert any(key.endswith(b":new") for key in left)


class FakeTier:
    """L2 as the sweeper sees it."""

    def __init__(self) -> None:
        self.usable = True
        self.epochs = 0.0
        self.answers: list[bool | Exception] = []
        self.asked: list[int] = []
        self.store = self

    def stats(self) -> dict[str, float]:
        return {"epochs": self.epochs}

    def sweep(self, keys_max: int) -> bool:
        self.asked.append(keys_max)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def call(self, operation: str, fn: Any, *args: Any) -> Any:
        return fn(*args)


def test_the_pace_is_bounded_and_rests_after_a_walk_until_an_epoch_ends() -> None:
    clock, tier = ManualClock(), FakeTier()
    sweeper = Sweeper(tier, clock, keys_per_s=1000)  # type: ignore[arg-type]
    tier.answers = [False, False, True, False]

    assert [sweeper.step() for _ in range(3)] == [0.5] * 3
    assert tier.asked == [500] * 3
    for _ in range(10):
        assert sweeper.step() == 5.0
        clock.advance(5)
    assert len(tier.asked) == 3

    tier.epochs += 1
    sweeper.step()
    assert len(tier.asked) == 4
    slow = Sweeper(tier, clock, keys_per_s=10)  # type: ignore[arg-type]
    tier.answers = [False]
    assert slow.step() == 1.0
    assert tier.asked[-1] == 10


def test_a_server_that_is_down_or_refuses_is_left_alone_for_a_while() -> None:
    clock, tier = ManualClock(), FakeTier()
    sweeper = Sweeper(tier, clock, keys_per_s=1000)  # type: ignore[arg-type]
    tier.answers = [StoreUnavailable("redis", "sweep"), StoreRejected("redis", "sweep"), True]

    assert sweeper.step() == 5.0
    assert sweeper.step() == 5.0
    assert sweeper.step() == 5.0
    assert len(tier.asked) == 2
    clock.advance(3600)
    sweeper.step()
    assert len(tier.asked) == 3
    tier.usable = False
    assert sweeper.step() == 5.0
