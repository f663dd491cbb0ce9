"""Verification and repair, through an engine as its users see it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sync_engine import AsyncSyncEngine, ConfigError, SyncEngine, SyncItem
from sync_engine.core.item import Change
from sync_engine.flow.repair import Mended
from sync_engine.flow.verify import VerifyReport
from sync_engine.house import Stores
from sync_engine.stores.sql import SqlArchive
from sync_engine.testing.fakes import MemoryCacheStore


def fill(engine: SyncEngine, count: int = 1500) -> None:
    engine.submit_many([SyncItem(f"d{n % 4}.{n:05}", b"v%d" % n) for n in range(count)])
    assert engine.flush(30).complete


def damage(engine: SyncEngine, statement: str, *args: Any) -> None:
    """Change a row behind the engine's back."""
    dialect = engine._open().stores.l3._dialect  # type: ignore[attr-defined]
    with dialect.writing() as (connection, _):
        assert dialect.execute(connection, statement, args) == 1


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SyncEngine]:
    with SyncEngine.open(tmp_path / "a") as engine:
        yield engine


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[SyncEngine]:
    with SyncEngine.open(tmp_path / "b") as engine:
        yield engine


def test_an_archive_that_is_well_verifies(engine: SyncEngine) -> None:
    fill(engine)
    seen: list[VerifyReport] = []

    report = engine.verify(progress=seen.append)

    assert report.ok
    assert report.items == 1500
    assert report.next is None
    assert len(seen) == report.ranges >= 1


def test_a_damaged_row_is_found_and_written_again_from_a_copy(engine: SyncEngine) -> None:
    fill(engine)
    assert engine.get("d1.00001") is not None  # a copy is in L1
    damage(engine, "UPDATE {t} SET content = ? WHERE id = ?k", b"forged", b"d1.00001")
    assert engine.verify().corrupt == ("d1.00001",)

    told = engine.repair(dry_run=True)
    assert told.count(Mended.ROW) == 1
    assert not engine.verify().ok

    done = engine.repair()
    engine.flush(30)

    assert done.ok
    assert engine.verify().ok
    assert engine.merkle_changes(["d1.00001"])["d1.00001"].content == b"v1"


def test_rows_that_went_behind_the_engines_back_are_found_and_the_tree_built_anew(
    engine: SyncEngine,
) -> None:
    fill(engine)
    engine.merkle_root()
    damage(engine, "DELETE FROM {t} WHERE id = ?k", b"d1.00001")
    assert len(engine.verify().unmatched) == 1

    assert engine.repair().count(Mended.TREE) == 1

    assert engine.verify().ok
    assert engine.merkle_root().total.live == 1499


def test_verification_goes_on_where_it_stopped(engine: SyncEngine) -> None:
    fill(engine, 3000)
    engine._open().stores.l3.merkle.fold()  # type: ignore[attr-defined]
    first = engine.verify(items_max=1)
    assert first.next is not None
    assert 0 < first.items < 3000

    rest = engine.verify(after=first.next)

    assert first.items + rest.items == 3000
    assert rest.next is None


def test_a_sample_looks_at_some_ranges(engine: SyncEngine) -> None:
    fill(engine, 4000)
    engine._open().stores.l3.merkle.fold()  # type: ignore[attr-defined]

    report = engine.verify(sample=0.5)

    assert report.ranges + report.skipped >= 4
    assert report.items == 4000 or report.skipped > 0


@pytest.mark.parametrize("options", [{"sample": 0}, {"sample": 1.1}, {"items_per_s": 0}])
def test_a_pace_that_makes_no_sense_is_refused(engine: SyncEngine, options: Any) -> None:
    with pytest.raises(ConfigError):
        engine.verify(**options)


def test_a_rate_is_kept(engine: SyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(engine, 3000)
    engine._open().stores.l3.merkle.fold()  # type: ignore[attr-defined]
    slept: list[float] = []
    clock = engine._open().runtime.clock
    monkeypatch.setattr(type(clock), "sleep", lambda self, seconds: slept.append(seconds))

    engine.verify(items_per_s=1000.0)

    assert sum(slept) > 1.0


# -- L2 and filter --------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[tuple[SyncEngine, Any]]:
    from sync_engine import SyncEngineConfig
    from sync_engine.runtime import SystemRuntime

    runtime = SystemRuntime("test")
    l2 = MemoryCacheStore(clock=runtime.clock)
    l3 = SqlArchive(f"sqlite:///{tmp_path}/archive.db", clock=runtime.clock)
    config = SyncEngineConfig(data_dir=tmp_path / "e")
    with SyncEngine(config, runtime=runtime, stores=Stores(l2, l3)) as engine:
        yield engine, l2


def test_a_stale_value_in_l2_is_found_and_replaced(cached: tuple[SyncEngine, Any]) -> None:
    """One of the version that the archive has, too: it takes a newer one to replace it."""
    engine, l2 = cached
    fill(engine, 100)
    now = engine.merkle_changes(["d1.00001", "d2.00002"])
    l2.new_epoch()
    older = now["d1.00001"]
    l2.apply([Change(older.id, older.version - 1, b"older")])
    twin = now["d2.00002"]
    l2.apply([Change(twin.id, twin.version, b"another")])

    assert engine.verify().l2_stale == ("d1.00001", "d2.00002")
    assert engine.repair(dry_run=True).count(Mended.L2) == 2
    assert engine.repair().count(Mended.L2) == 2
    engine.flush(30)

    assert engine.verify().ok
    found = l2.get_many(["d1.00001", "d2.00002"])
    assert found["d1.00001"] == older
    assert found["d2.00002"].content == b"v2"


def test_what_was_deleted_does_not_live_on_in_l2(cached: tuple[SyncEngine, Any]) -> None:
    engine, l2 = cached
    fill(engine, 10)
    before = engine.merkle_changes(["d1.00001"])["d1.00001"]
    engine.delete("d1.00001")
    engine.flush(30)
    l2.new_epoch()
    l2.apply([before])
    assert engine.verify().l2_stale == ("d1.00001",)

    engine.repair()

    assert engine.verify().ok
    assert engine.get("d1.00001") is None


def test_a_filter_that_denies_a_stored_id_is_distrusted(engine: SyncEngine) -> None:
    fill(engine, 50)
    filters = engine._open().filters
    if not filters.trusted:
        pytest.skip("the filter is not warm yet")
    change = Change("smuggled", 1 << 50, b"x")
    engine._open().stores.l3.apply([change])  # not through the door: the filter never heard of it
    if not filters.definitely_absent("smuggled"):
        pytest.skip("a false positive")

    assert engine.verify().filter_missed == ("smuggled",)
    assert engine.repair().count(Mended.FILTER) == 1

    assert engine.get("smuggled") is not None


# -- from another engine --------------------------------------------------------------------------


def test_two_engines_repair_from_each_other_until_they_are_equal(
    engine: SyncEngine, peer: SyncEngine
) -> None:
    """The larger version wins on both sides, tombstones included."""
    fill(engine, 300)
    peer.repair(engine)
    peer.flush(30)
    assert peer.merkle_root() == engine.merkle_root()
    engine.submit("only.here", b"1")
    peer.submit("only.there", b"2")
    version = engine.submit("d1.00001", b"older").version
    peer._open().log.versions.observe(version)
    peer.submit("d1.00001", b"newer")
    peer.delete("d2.00002")
    for one in (engine, peer):
        one.flush(30)

    told = engine.repair(peer, dry_run=True)
    assert told.count(Mended.TAKEN) == 3
    assert engine.merkle_root() != peer.merkle_root()
    assert engine.repair(peer).count(Mended.TAKEN) == 3
    assert peer.repair(engine).ok
    for one in (engine, peer):
        one.flush(30)

    assert engine.merkle_root() == peer.merkle_root()
    assert not engine.diff(peer)
    item = engine.get("d1.00001")
    assert item is not None
    assert item.content == b"newer"
    assert engine.get("d2.00002") is None
    assert peer.get("only.here") is not None


def test_absence_alone_deletes_nothing(engine: SyncEngine, peer: SyncEngine) -> None:
    fill(engine, 20)

    report = engine.repair(peer)

    assert report.count(Mended.OURS) == 20
    assert engine.get("d1.00001") is not None


def test_a_write_after_the_comparison_is_not_overtaken(
    engine: SyncEngine, peer: SyncEngine
) -> None:
    """What the comparison decided on may be old when its turn comes."""
    peer.submit("k", b"theirs")
    peer.flush(30)

    class Late:
        merkle_root = peer.merkle_root
        merkle_node = peer.merkle_node
        merkle_children = peer.merkle_children

        @staticmethod
        def merkle_changes(ids: Any) -> Any:
            found = peer.merkle_changes(ids)
            engine._open().log.versions.observe(found["k"].version)
            engine.submit("k", b"newest")
            return found

    report = engine.repair(Late())
    engine.flush(30)

    assert report.count(Mended.OURS) == 1
    item = engine.get("k")
    assert item is not None
    assert item.content == b"newest"


def test_the_tree_can_be_turned_off(tmp_path: Path) -> None:
    with SyncEngine.open(tmp_path, merkle=False) as engine:
        engine.submit("k", b"v")
        assert engine.flush(30).complete
        with pytest.raises(ConfigError, match="merkle"):
            engine.merkle_root()
    with SyncEngine.open(tmp_path) as engine:
        assert engine.merkle_rebuild() >= 0
        assert engine.merkle_root().total.live == 1


async def test_asyncio_has_the_same_names(tmp_path: Path) -> None:
    async with (
        await AsyncSyncEngine.open(tmp_path / "a") as one,
        await AsyncSyncEngine.open(tmp_path / "b") as other,
    ):
        await one.submit("a.b", b"v")
        await one.flush(30)

        assert (await one.merkle_node("a")).below.live == 1
        assert [n.path for n in (await one.merkle_children("")).nodes] == ["a"]
        assert (await one.diff(other)).local_only == ("a.b",)
        assert (await other.repair(one)).count(Mended.TAKEN) == 1
        await other.flush(30)
        assert await one.merkle_root() == await other.merkle_root()
        assert (await one.verify()).ok
        assert (await one.merkle_state()).built
        await asyncio.sleep(0)
