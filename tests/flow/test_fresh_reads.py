"""Reads past L1, by which a conditional write decides when the lease was just lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.core.item import Change
from sync_engine.engine import SyncEngine
from sync_engine.errors import StoreUnavailable
from sync_engine.flow.reader import Reader
from sync_engine.house import Stores
from sync_engine.testing import FlakyStore, ManualRuntime, MemoryArchive, MemoryCacheStore


class World:
    """An engine with both tiers, either of which may be down."""

    def __init__(self, path: Path) -> None:
        self.runtime = ManualRuntime(waits_run_jobs=True)
        clock = self.runtime.clock
        self.cache = FlakyStore(MemoryCacheStore(clock))
        self.archive = FlakyStore(MemoryArchive(clock))
        self.engine = SyncEngine(
            SyncEngineConfig(data_dir=path),
            runtime=self.runtime,
            stores=Stores(self.cache, self.archive),
        ).start()

    @property
    def reader(self) -> Reader:
        house = self.engine._house
        assert house is not None
        return house.reader


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.engine.submit("k", b"v")
    assert made.engine.flush(5.0).complete
    yield made
    made.cache.down = made.archive.down = False
    made.engine.close(0)


def test_an_l2_that_fails_is_left_out(world: World) -> None:
    world.cache.down = True
    asked = world.cache.calls["get_many"]

    found = world.reader.get_fresh("k")

    assert world.cache.calls["get_many"] > asked  # its circuit was closed
    assert found is not None
    assert found.content == b"v"


def test_what_l2_has_newer_than_the_archive_wins(world: World) -> None:
    known = world.reader.get_fresh("k")
    assert known is not None
    world.cache.apply([Change("k", known.version + 1, b"newer")])

    found = world.reader.get_fresh("k")

    assert found is not None
    assert found.content == b"newer"


def test_without_the_archive_nobody_knows(world: World) -> None:
    world.archive.down = True

    with pytest.raises(StoreUnavailable):
        world.reader.get_fresh("k")
