"""The L1 cache: bounded, never older than it was, gone when it should be."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sync_engine.core.eviction import POLICIES
from sync_engine.core.item import Change
from sync_engine.errors import ConfigError
from sync_engine.stores.memory import EvictionCause, MemoryCache, entry_cost


@dataclass
class Time:
    ms: int = 1_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def now() -> Time:
    return Time()


@pytest.fixture(params=list(POLICIES))
def cache(request: pytest.FixtureRequest, now: Time) -> MemoryCache:
    return MemoryCache(100_000, policy=request.param, now_ms=now)


def test_what_was_put_is_returned_until_discarded(cache: MemoryCache) -> None:
    change = Change("a", 1, b"x")

    cache.put(change)
    assert cache.get("a") is change

    cache.discard("a")
    assert cache.get("a") is None
    assert (len(cache), cache.bytes) == (0, 0)


def test_an_older_version_never_replaces_a_newer_one(cache: MemoryCache) -> None:
    newer = Change("a", 2, b"newer")
    cache.put_many([newer, Change("a", 1, b"older"), Change("a", 2, b"same")])

    assert cache.get("a") is newer


def test_a_tombstone_is_kept_as_an_answer(cache: MemoryCache) -> None:
    cache.put(Change("a", 1, b"x"))
    cache.put(Change("a", 2, None))

    found = cache.get("a")

    assert found is not None
    assert found.is_tombstone


def test_an_expired_change_is_gone_and_gives_its_bytes_back(cache: MemoryCache, now: Time) -> None:
    cache.put(Change("a", 1, b"x", expires_at_ms=2_000))

    now.ms = 1_999
    assert cache.get("a") is not None
    now.ms = 2_000
    assert cache.get("a") is None
    assert cache.bytes == 0
    assert cache.stats().evictions[EvictionCause.EXPIRED] == 1


def test_the_caller_may_say_what_time_it_is(cache: MemoryCache) -> None:
    cache.put(Change("a", 1, b"x", expires_at_ms=2_000))

    assert cache.get("a", 1_500) is not None
    assert cache.get("a", 2_500) is None


def test_expired_entries_that_nobody_reads_are_swept_by_later_writes(now: Time) -> None:
    cache = MemoryCache(10_000_000, now_ms=now)
    cache.put_many([Change(f"{i}", 1, b"x", expires_at_ms=2_000) for i in range(400)])

    now.ms = 3_000
    cache.put_many([Change(f"later{i}", 1, b"x") for i in range(100)])

    assert len(cache) == 100
    assert cache.stats().evictions[EvictionCause.EXPIRED] == 400


def test_a_sweep_looks_at_no_more_than_it_was_told(cache: MemoryCache, now: Time) -> None:
    cache.put_many([Change(f"{i}", 1, b"x", expires_at_ms=2_000) for i in range(50)])
    now.ms = 3_000

    assert cache.sweep(20) == 20
    assert cache.sweep() == 30
    assert cache.sweep() == 0


def test_a_later_version_without_a_deadline_is_not_swept(cache: MemoryCache, now: Time) -> None:
    cache.put(Change("a", 1, b"x", expires_at_ms=2_000))
    cache.put(Change("a", 2, b"y"))
    now.ms = 3_000

    cache.sweep()

    assert cache.get("a") is not None


def test_a_change_that_is_already_expired_takes_the_older_one_along(
    cache: MemoryCache, now: Time
) -> None:
    cache.put(Change("a", 1, b"x"))
    now.ms = 5_000

    cache.put(Change("a", 2, b"y", expires_at_ms=4_000))

    assert cache.get("a") is None


def test_an_oversized_change_passes_by_but_drops_the_older_one(cache: MemoryCache) -> None:
    """Keeping the older version would serve it after a newer one was acknowledged."""
    cache.put(Change("a", 1, b"x"))

    cache.put(Change("a", 2, bytes(20_000)))

    assert cache.get("a") is None
    assert cache.stats().evictions[EvictionCause.OVERSIZED] == 1


def test_an_older_oversized_change_changes_nothing(cache: MemoryCache) -> None:
    cache.put(Change("a", 2, b"x"))
    cache.put(Change("a", 1, bytes(20_000)))

    assert cache.get("a") is not None


def test_no_bytes_means_no_cache(now: Time) -> None:
    cache = MemoryCache(0, now_ms=now)
    cache.put(Change("a", 1, b""))

    assert cache.get("a") is None
    assert len(cache) == 0


def test_a_negative_bound_is_refused(now: Time) -> None:
    with pytest.raises(ConfigError, match="l1_bytes_max"):
        MemoryCache(-1, now_ms=now)


def test_the_bound_holds_after_every_write(cache: MemoryCache, now: Time) -> None:
    random = Random(3)
    for version in range(1, 5_000):
        now.ms += 1
        id = f"{random.randrange(500)}"
        if random.random() < 0.3:
            cache.get(id)
        ttl = now.ms + random.randrange(1, 50) if random.random() < 0.2 else 0
        cache.put(Change(id, version, bytes(random.randrange(0, 14_000)), expires_at_ms=ttl))
        assert cache.bytes <= cache.bytes_max

    assert cache.stats().evictions[EvictionCause.ROOM] > 0
    assert cache.bytes == sum(entry_cost(e.change) for e in cache._entries.values())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [0, 100, 2000])
def test_the_bytes_counted_are_the_bytes_taken(policy: str, size: int, now: Time) -> None:
    """Everything that the process holds for the cache fits its bound, within a twentieth."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        cache = MemoryCache(2_000_000, policy=policy, now_ms=now)
        for i in range(12_000):
            ttl = (1 << 41) + i if i % 2 else 0
            cache.put(Change(f"user.{i:030d}", (1 << 60) + i, bytes(size), expires_at_ms=ttl))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert taken <= cache.bytes_max * 1.05


def test_clear_forgets_everything_and_goes_on(cache: MemoryCache) -> None:
    changes = [Change(f"{i}", 1, b"x") for i in range(100)]
    cache.put_many(changes)

    cache.clear()
    assert (len(cache), cache.bytes, cache.get("1")) == (0, 0, None)

    cache.put_many(changes)
    assert cache.get("1") is not None


def test_counters_tell_hits_misses_and_causes(cache: MemoryCache) -> None:
    cache.put(Change("a", 1, b"x"))
    cache.get("a")
    cache.get("a")
    cache.get("b")
    cache.discard_many(["a", "b"])

    stats = cache.stats()

    assert (stats.hits, stats.misses, stats.items, stats.bytes) == (2, 1, 0, 0)
    assert stats.hit_ratio == pytest.approx(2 / 3)
    assert stats.evictions[EvictionCause.DISCARDED] == 1
    assert set(stats.evictions) == set(EvictionCause)


def _hit_ratio_beside_scans(policy: str) -> float:
    random = Random(11)
    ids = 2_000
    weights = [1 / rank for rank in range(1, ids + 1)]
    draws = random.choices(range(ids), weights, k=40_000)
    cost = entry_cost(Change("item.0000", 1, bytes(50)))
    time = Time()
    cache = MemoryCache(200 * cost, policy=policy, now_ms=time)
    hits = 0
    scan = 0
    for turn, draw in enumerate(draws):
        time.ms += 1
        if cache.get(f"item.{draw:04d}") is not None:
            hits += 1
        else:
            cache.put(Change(f"item.{draw:04d}", turn + 1, bytes(50)))
        if turn % 400 == 0:
            for _ in range(200):  # as many as there is room for
                scan += 1
                cache.put(Change(f"scan{scan:05d}", 1, bytes(50)))
    return hits / len(draws)


@pytest.mark.parametrize("policy", ["s3-fifo", "sieve", "tan-curve"])
def test_a_scan_costs_less_than_it_costs_lru(policy: str) -> None:
    assert _hit_ratio_beside_scans(policy) > _hit_ratio_beside_scans("lru") + 0.02


def _write(cache: MemoryCache, part: int) -> None:
    for version in range(1, 4_000):
        id = f"{part}.{version % 150}"
        if version % 7 == 0:
            cache.discard(id)
        else:
            cache.put(Change(id, version, bytes(version % 300)))


def _read(cache: MemoryCache, written: threading.Event) -> None:
    ids = [f"{part}.{number}" for part in range(2) for number in range(150)]
    seen = dict.fromkeys(ids, 0)
    while not written.is_set():
        for change in filter(None, map(cache.get, ids)):
            assert change.version >= seen[change.id]
            seen[change.id] = change.version


@pytest.mark.parametrize("policy", POLICIES)
def test_readers_and_writers_meet_no_error_and_no_older_version(policy: str) -> None:
    cache = MemoryCache(60_000, policy=policy, now_ms=Time())
    written = threading.Event()

    with ThreadPoolExecutor(3) as pool:
        reader = pool.submit(_read, cache, written)
        writers = [pool.submit(_write, cache, part) for part in range(2)]
        wait(writers)
        written.set()

    for future in [reader, *writers]:
        future.result()
    assert cache.bytes == sum(entry_cost(e.change) for e in cache._entries.values())


class CacheBesideADict(RuleBasedStateMachine):
    """Whatever the cache returns is the newest put of its id; a discard is final."""

    POLICY = "s3-fifo"

    def __init__(self) -> None:
        super().__init__()
        self.now = Time()
        self.cache = MemoryCache(6_000, policy=self.POLICY, now_ms=self.now)
        self.newest: dict[str, Change] = {}
        self.version = 0

    ids = st.sampled_from([f"id{i}" for i in range(12)])

    @rule(id=ids, size=st.integers(0, 900), ttl=st.sampled_from([0, 0, 1, 50]), gone=st.booleans())
    def put(self, id: str, size: int, ttl: int, gone: bool) -> None:
        self.version += 1
        deadline = self.now.ms + ttl if ttl else 0
        change = Change(id, self.version, None if gone else bytes(size), expires_at_ms=deadline)
        self.newest[id] = change
        self.cache.put(change)

    @rule(id=ids)
    def put_older(self, id: str) -> None:
        known = self.cache.get(id)
        if known is not None:
            self.cache.put(Change(id, known.version - 1, b"older"))
            assert self.cache.get(id) is known

    @rule(id=ids)
    def discard(self, id: str) -> None:
        self.cache.discard(id)
        assert self.cache.get(id) is None

    @rule(ms=st.integers(1, 60))
    def wait(self, ms: int) -> None:
        self.now.ms += ms

    @rule()
    def clear(self) -> None:
        self.cache.clear()

    @rule(limit=st.integers(0, 5))
    def sweep(self, limit: int) -> None:
        self.cache.sweep(limit)

    @invariant()
    def answers_are_the_newest(self) -> None:
        for id, newest in self.newest.items():
            found = self.cache.get(id)
            assert found is None or found is newest
            assert found is None or not found.expired(self.now.ms)

    @invariant()
    def bound_holds(self) -> None:
        assert 0 <= self.cache.bytes <= self.cache.bytes_max
        assert self.cache.bytes == sum(entry_cost(e.change) for e in self.cache._entries.values())


def _machine(policy: str) -> type[RuleBasedStateMachine]:
    return type(f"Cache_{policy}", (CacheBesideADict,), {"POLICY": policy})


@pytest.mark.parametrize("policy", POLICIES)
def test_the_cache_agrees_with_a_dict(policy: str) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        _machine(policy), settings=settings(max_examples=25, stateful_step_count=60, deadline=None)
    )
