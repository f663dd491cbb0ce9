"""The in-memory stores pass the suites that every adapter has to pass."""

from __future__ import annotations

import pytest

from sync_engine.core.item import Change, Route
from sync_engine.errors import StoreUnavailable
from sync_engine.ports import ArchiveStore, CacheStore
from sync_engine.testing import FlakyStore, ManualClock, MemoryArchive, MemoryCacheStore
from sync_engine.testing.contracts.archive import (
    ArchiveContract,
    EngineNumberContract,
    MakeArchive,
    SoleWriterContract,
)
from sync_engine.testing.contracts.cache import CacheContract


def put(id: str, version: int, **more: object) -> Change:
    return Change(id, version, b"%d" % version, **more)  # type: ignore[arg-type]


class _Shared:
    @pytest.fixture
    def make_archive(self, clock: ManualClock) -> MakeArchive:
        archive = MemoryArchive(clock)
        return archive.client


class TestMemoryArchive(_Shared, ArchiveContract):
    pass


class TestMemoryArchiveNumbers(_Shared, EngineNumberContract):
    pass


class TestMemoryArchiveLease(_Shared, SoleWriterContract):
    pass


class TestMemoryCacheStore(CacheContract):
    @pytest.fixture
    def cache_clock(self, clock: ManualClock) -> ManualClock:
        return clock

    @pytest.fixture
    def cache(self, clock: ManualClock) -> MemoryCacheStore:
        return MemoryCacheStore(clock)


class TestFlakyArchiveThatIsUp(ArchiveContract):
    @pytest.fixture
    def make_archive(self, clock: ManualClock) -> MakeArchive:
        archive = MemoryArchive(clock)
        return lambda: FlakyStore(archive.client())


def test_the_fakes_are_stores_to_the_type_checker(clock: ManualClock) -> None:
    archive: ArchiveStore = MemoryArchive(clock)
    cache: CacheStore = MemoryCacheStore(clock)
    flaky_archive: ArchiveStore = FlakyStore(archive)
    flaky_cache: CacheStore = FlakyStore(cache)
    assert {flaky_archive.name, flaky_cache.name} == {"l3", "l2"}


# -- MemoryCacheStore ------------------------------------------------------------------------------


@pytest.fixture
def cache(clock: ManualClock) -> MemoryCacheStore:
    return MemoryCacheStore(clock, mark_ttl_s=60)


def test_the_cache_keeps_the_larger_version(cache: MemoryCacheStore) -> None:
    cache.apply([put("a", 2)])
    cache.apply([put("a", 1)])
    assert cache.get_many(["a", "b"]) == {"a": put("a", 2)}


def test_a_late_fill_does_not_undo_a_delete_while_its_mark_is_kept(
    cache: MemoryCacheStore, clock: ManualClock
) -> None:
    cache.apply([Change("a", 5, None)])
    cache.fill([put("a", 4)])
    assert cache.get_many(["a"])["a"].content is None

    clock.advance(61)
    assert cache.get_many(["a"]) == {}


def test_what_is_not_for_l2_leaves_a_mark_without_a_value(cache: MemoryCacheStore) -> None:
    cache.apply([put("a", 1)])
    cache.apply([put("a", 2, routes=int(Route.L3))])
    assert cache.get_many(["a"])["a"].content is None
    assert cache.get_many(["a"])["a"].version == 2


def test_a_fill_of_the_same_version_does_not_undo_a_mark(cache: MemoryCacheStore) -> None:
    cache.apply([put("a", 2, routes=int(Route.L3))])
    cache.fill([put("a", 2)])
    assert cache.get_many(["a"])["a"].content is None


def test_expired_entries_are_gone(cache: MemoryCacheStore, clock: ManualClock) -> None:
    cache.apply([put("a", 1, expires_at_ms=clock.now_ms() + 1000)])
    clock.advance(0.9)
    assert "a" in cache.get_many(["a"])
    clock.advance(0.2)
    assert cache.get_many(["a"]) == {}


def test_a_replaced_server_says_so_once_and_its_past_is_not_read(cache: MemoryCacheStore) -> None:
    cache.apply([put("a", 1)])
    past = cache.snapshot()
    cache.apply([put("a", 2)])

    cache.replace_server(past)

    assert cache.get_many(["a"]) == {"a": put("a", 1)}
    assert cache.identity_changed()
    assert not cache.identity_changed()
    assert cache.get_many(["a"]) == {}


def test_a_new_epoch_abandons_everything_marks_included(cache: MemoryCacheStore) -> None:
    cache.apply([put("a", 1), Change("b", 1, None)])
    cache.new_epoch()
    assert cache.get_many(["a", "b"]) == {}
    assert cache.stats()["epochs"] == 1


# -- FlakyStore ------------------------------------------------------------------------------------


@pytest.fixture
def flaky(clock: ManualClock) -> FlakyStore:
    return FlakyStore(MemoryCacheStore(clock), clock=clock)


def test_a_store_that_is_down_does_nothing(flaky: FlakyStore) -> None:
    flaky.down = True
    with pytest.raises(StoreUnavailable):
        flaky.apply([put("a", 1)])
    flaky.down = False
    assert flaky.get_many(["a"]) == {}
    assert flaky.calls == {"apply": 1, "get_many": 1}


def test_a_batch_with_a_refused_id_is_refused_whole(flaky: FlakyStore) -> None:
    from sync_engine.errors import StoreRejected

    flaky.reject = {"b"}
    with pytest.raises(StoreRejected):
        flaky.apply([put("a", 1), put("b", 1)])
    assert flaky.get_many(["a", "b"]) == {}
    flaky.apply([put("a", 1)])


def test_the_nth_call_of_an_operation_fails_and_no_other(flaky: FlakyStore) -> None:
    flaky.fail("apply", at=2, error=OSError("planned"))
    flaky.apply([put("a", 1)])
    flaky.ping()
    with pytest.raises(OSError, match="planned"):
        flaky.apply([put("a", 2)])
    flaky.apply([put("a", 3)])
    assert flaky.get_many(["a"])["a"].version == 3


def test_a_lost_reply_leaves_the_work_done(flaky: FlakyStore) -> None:
    flaky.fail("apply", lose_reply=True)
    with pytest.raises(StoreUnavailable):
        flaky.apply([put("a", 1)])
    assert flaky.get_many(["a"]) == {"a": put("a", 1)}


def test_latency_passes_on_the_clock(flaky: FlakyStore, clock: ManualClock) -> None:
    before = clock.monotonic()
    flaky.latency_s = 0.25
    flaky.ping()
    assert clock.monotonic() - before == 0.25


def test_every_call_is_announced(flaky: FlakyStore) -> None:
    seen: list[str] = []
    flaky.on_call = seen.append
    flaky.ping()
    flaky.new_epoch()
    assert seen == ["ping", "new_epoch"]
