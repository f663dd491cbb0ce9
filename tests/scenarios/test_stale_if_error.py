"""An old answer in place of an error, where the caller allows it, and only there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sync_engine import AsyncSyncEngine, SubmitOptions, SyncEngine, SyncEngineConfig
from sync_engine.core.item import Change
from sync_engine.errors import InvalidItem, StoreUnavailable
from sync_engine.flow.stale import StaleCopies
from sync_engine.house import Stores
from sync_engine.testing import FlakyStore, ManualRuntime, MemoryArchive


class World:
    """An engine on a manual clock, and the switch of its archive."""

    def __init__(self, data_dir: Path) -> None:
        self.runtime = ManualRuntime(waits_run_jobs=True)
        self.archive = FlakyStore(MemoryArchive(clock=self.runtime.clock))
        config = SyncEngineConfig(data_dir=data_dir, filter="off", read_timeout_s=0.2)
        self.engine = SyncEngine(
            config, runtime=self.runtime, stores=Stores(None, self.archive)
        ).start()

    def put(self, id: str, content: bytes, ttl: float) -> None:
        self.engine.submit(id, content, SubmitOptions(ttl=ttl))
        assert self.engine.flush(5).complete

    def pass_time(self, seconds: float) -> None:
        self.runtime.clock.advance(seconds)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.archive.down = False
    world.engine.close(1)


def broken() -> bytes:
    raise ConnectionError("the origin is down")


def test_an_expired_copy_is_served_while_the_archive_is_down_and_says_so(world: World) -> None:
    world.put("a", b"old", ttl=10)
    world.pass_time(11)
    world.archive.down = True
    assert world.engine._house is not None
    assert world.engine._house.l1.get("a") is None  # met there, and put aside

    with pytest.raises(StoreUnavailable):
        world.engine.get("a")
    item = world.engine.get("a", stale_if_error=60)

    assert item is not None
    assert (item.content, item.stale) == (b"old", True)
    with pytest.raises(StoreUnavailable):
        world.engine.get("a", stale_if_error=0.5)  # its deadline passed a second ago


def test_a_failing_loader_leaves_the_old_value_to_those_who_take_it(world: World) -> None:
    assert world.engine.get_or_load("a", lambda: b"1", 10) is not None
    world.engine.flush(5)
    world.pass_time(11)

    with pytest.raises(ConnectionError):
        world.engine.get_or_load("a", broken, 10)
    item = world.engine.get_or_load("a", broken, 10, stale_if_error=60)
    assert item is not None
    assert (item.content, item.stale) == (b"1", True)

    fresh = world.engine.get_or_load("a", lambda: b"2", 10, stale_if_error=60)
    assert fresh is not None
    assert (fresh.content, fresh.stale) == (b"2", False)
    world.pass_time(120)
    with pytest.raises(ConnectionError):
        world.engine.get_or_load("a", broken, 10, stale_if_error=60)


def test_cached_functions_take_old_results_too(world: World) -> None:
    answers = iter([b"1"])

    @world.engine.cached(key="price:{}", ttl=10, stale_if_error=60)
    def price(name: str) -> bytes:
        try:
            return next(answers)
        except StopIteration:
            raise ConnectionError(name) from None

    assert price("x") == b"1"
    world.pass_time(11)
    assert price("x") == b"1"
    world.pass_time(100)
    with pytest.raises(ConnectionError):
        price("x")


def test_what_was_deleted_or_written_since_is_never_served(world: World) -> None:
    for id in ("gone", "newer"):
        world.put(id, b"old", ttl=10)
    world.pass_time(11)
    assert world.engine.get("gone") is None
    assert world.engine.get("newer") is None
    world.engine.delete("gone")
    world.engine.submit("gone", b"", SubmitOptions(ttl=1))
    world.engine.delete("gone")
    world.engine.submit("newer", b"new", SubmitOptions(ttl=1))
    world.engine.flush(5)
    world.pass_time(2)

    assert world.engine.stale_copy("gone", 1e6) is None
    copy = world.engine.stale_copy("newer", 1e6)
    assert copy is not None
    assert copy.content == b"new"


def test_bad_bounds_are_refused(world: World) -> None:
    world.put("a", b"old", ttl=10)
    world.pass_time(11)
    world.archive.down = True

    for bound in (-1, "10", True):
        with pytest.raises(InvalidItem):
            world.engine.get("a", stale_if_error=bound)  # type: ignore[arg-type]


def test_copies_keep_their_bound_and_the_newest(world: World) -> None:
    copies = StaleCopies(1_000, world.runtime.lock)
    for version, id in enumerate("abcdefgh", 1):
        copies.keep(Change(id, version, b"x" * 100, expires_at_ms=1))
    copies.keep(Change("h", 1, b"older", expires_at_ms=1))
    copies.keep(Change("big", 9, b"x" * 2_000, expires_at_ms=1))

    assert [id for id in "abcdefgh" if copies.get(id)] == list("efgh")
    assert copies.get("h") == Change("h", 8, b"x" * 100, expires_at_ms=1)
    copies.forget([Change("h", 9, None)])
    assert len(copies) == 3


async def test_the_same_for_asyncio(tmp_path: Path) -> None:
    archive = FlakyStore(MemoryArchive(clock=ManualRuntime().clock))
    config = SyncEngineConfig(data_dir=tmp_path, filter="off", read_timeout_s=0.2)
    async with AsyncSyncEngine(config, stores=Stores(None, archive)) as engine:
        await engine.submit("a", b"old", SubmitOptions(ttl=0.001))
        await engine.flush(5)
        assert engine.sync._house is not None
        engine.sync._house.runtime.clock.sleep(0.01)
        assert await engine.get("a") is None
        archive.down = True

        with pytest.raises(StoreUnavailable):
            await engine.get("a")
        item = await engine.get("a", stale_if_error=60)
        assert item is not None
        assert (item.content, item.stale) == (b"old", True)

        async def broken() -> bytes:
            raise ConnectionError

        item = await engine.get_or_load("a", broken, 10, stale_if_error=60)
        assert item is not None
        assert item.stale
        archive.down = False
