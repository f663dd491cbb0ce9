"""What a user relies on while tiers are down, full, slow or wrong: the engine in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.core import failpoints
from sync_engine.core.options import Durability, SubmitOptions
from sync_engine.core.pressure import BackpressureLevel
from sync_engine.engine import SyncEngine
from sync_engine.errors import (
    Backpressure,
    StoreRejected,
    StoreUnavailable,
)
from sync_engine.house import Stores
from tests.scenarios.support_embedded import FAST, Servers, Start

# -- outages (S3 to S7, S10, S16, S18, S19) -------------------------------------------------------


def test_s04_l2_down_hurts_nobody_and_converges(start: Start, servers: Servers) -> None:
    engine = start(servers.stores, **FAST)
    servers.l2.down = True
    for n in range(50):
        engine.submit(f"i{n}", b"%d" % n)
    assert all(engine.get(f"i{n}").content == b"%d" % n for n in range(50))  # type: ignore[union-attr]

    servers.l2.down = False
    assert engine.flush(10).complete
    assert len(servers.cache.get_many([f"i{n}" for n in range(50)])) == 50


def test_s05_s06_l3_down_at_start_queues_and_drains_newest_wins(
    start: Start, servers: Servers
) -> None:
    servers.l3.down = True
    engine = start(servers.stores, **FAST)
    for n in range(30):
        engine.submit(f"i{n % 10}", b"%d" % n)
    assert engine.get("i5").content == b"25"  # type: ignore[union-attr]
    assert not engine.health().ready
    with pytest.raises(StoreUnavailable):
        engine.submit("x", b"1", SubmitOptions(durability=Durability.ARCHIVE, timeout=0.2))

    servers.l3.down = False
    assert engine.flush(10).complete
    rows = servers.archive.get_many([f"i{n}" for n in range(10)])
    assert {row.content for row in rows.values()} == {b"%d" % n for n in range(20, 30)}
    assert engine.health().ready


def test_an_error_is_never_an_absence(start: Start, servers: Servers) -> None:
    engine = start(servers.stores, filter="off", **FAST)
    engine.submit("a", b"1")
    engine.flush()
    engine._house.l1.clear()  # type: ignore[union-attr]
    servers.cache.forget("a")
    servers.l3.down = True

    for call in (
        lambda: engine.get("a"),
        lambda: engine.get_many(["a"]),
        lambda: engine.contains("never"),
        lambda: list(engine.scan_prefix("a")),
        lambda: engine.count_prefix("a"),
        lambda: engine.get_or_load("a", lambda: b"overwrite"),
    ):
        with pytest.raises(StoreUnavailable):
            call()


def test_one_poison_item_goes_to_the_dead_letters_and_its_neighbours_flow(
    start: Start, servers: Servers
) -> None:
    engine = start(servers.stores, **FAST)
    servers.l3.reject = {"poison"}
    engine.pause("l3")
    receipts = {
        id: engine.submit(id, b"v")
        for id in [*(f"n{i}" for i in range(20)), "poison", *(f"m{i}" for i in range(20))]
    }
    engine.resume("l3")
    assert engine.flush(10).dead_letters == 1

    assert len(servers.archive.get_many(list(receipts))) == 40
    assert engine.get("poison").content == b"v"  # type: ignore[union-attr]
    with pytest.raises(StoreRejected):
        receipts["poison"].wait("archive", timeout=5)
    (letter,) = engine.dead_letters()
    assert letter.change.id == "poison"

    servers.l3.reject = set()
    assert engine.requeue_dead_letters() == 1
    engine.flush(10)
    assert servers.archive.get_many(["poison"])["poison"].content == b"v"
    assert engine.dead_letters() == []


def test_s10_tiny_caches_are_bounded_and_never_wrong(start: Start, servers: Servers) -> None:
    engine = start(servers.stores, l1_bytes_max=10_000, overlay_bytes_max=5_000)
    for n in range(500):
        engine.submit(f"i{n}", b"%d" % n * 30)

    for n in range(500):
        assert engine.get(f"i{n}").content == b"%d" % n * 30  # type: ignore[union-attr]
    assert engine._house.l1.bytes <= 10_000  # type: ignore[union-attr]


def test_s18_back_pressure_is_explicit_and_deletes_and_reads_go_on(
    start: Start, servers: Servers
) -> None:
    servers.l3.down = True
    engine = start(servers.stores, pending_items_max=100, **FAST)
    with pytest.raises(Backpressure) as caught:
        for n in range(101):
            engine.submit(f"i{n}", b"v", SubmitOptions(timeout=0.001))
    assert caught.value.retry_after_s > 0
    assert engine.backpressure() is BackpressureLevel.CRITICAL
    assert engine.get("i5").content == b"v"  # type: ignore[union-attr]
    assert engine.delete("i5")

    servers.l3.down = False
    assert engine.flush(10).complete
    engine.submit("again", b"v")
    assert engine.backpressure() is BackpressureLevel.NORMAL


def test_s19_health_names_what_is_amiss(start: Start, servers: Servers, tmp_path: Path) -> None:
    assert not SyncEngine(SyncEngineConfig(data_dir=tmp_path / "n")).health().live
    engine = start(servers.stores, **FAST)
    health = engine.health()
    assert health.ready
    assert not health.degraded
    assert health.tiers["l3"].latency_s is not None

    servers.l2.down = True
    degraded = engine.health()
    assert degraded.ready
    assert any("l2" in sentence for sentence in degraded.degraded)


def test_l2_that_falls_too_far_behind_is_cut_off_and_its_old_values_never_read(
    start: Start, servers: Servers
) -> None:
    engine = start(servers.stores, l2_lag_items_max=20, **FAST)
    engine.submit("a", b"old")
    engine.flush()
    servers.l2.down = True
    engine.submit("a", b"new")
    for n in range(50):
        engine.submit(f"i{n}", b"v")
    engine.submit("only-cached", b"kept", SubmitOptions.cache(60))
    assert set(engine.flush(0.5).left) <= {"l2"}

    engine._house.l1.clear()  # type: ignore[union-attr]
    servers.l2.down = False
    assert engine.get("a").content == b"new"  # type: ignore[union-attr]
    assert engine.flush(10).complete
    engine._house.l1.clear()  # type: ignore[union-attr]
    assert engine.get("a").content == b"new"  # type: ignore[union-attr]
    assert engine.get("only-cached").content == b"kept"  # type: ignore[union-attr]


def test_detach_and_attach_while_running(start: Start, servers: Servers) -> None:
    engine = start(servers.stores, **FAST)
    engine.detach("l2")
    engine.submit("a", b"1")
    assert engine.get("a").content == b"1"  # type: ignore[union-attr]
    assert "l2" in engine.flush(0.3).left

    engine.attach("l2")
    assert engine.flush(10).complete
    assert servers.cache.get_many(["a"])["a"].content == b"1"


def test_orphans_of_dead_processes_are_adopted(start: Start, tmp_path: Path) -> None:
    servers = Servers()
    servers.l3.down = True
    dead = SyncEngine(
        SyncEngineConfig(data_dir=tmp_path / "data", engine_name="dead", **FAST),
        stores=servers.stores,
    ).start()
    dead.submit("left", b"behind")
    house: Any = dead._house
    house.runtime.close(5)
    house.log._file.close()
    house.owner.release()

    servers.l3.down = False
    engine = start(servers.stores, engine_name="heir")

    assert engine.get("left").content == b"behind"  # type: ignore[union-attr]
    assert engine.flush(10).complete
    assert sorted(p.name for p in (tmp_path / "data").glob("*.db")) == ["heir.log.db"]


def test_s07_the_filter_spares_the_archive_and_survives_a_restart(
    start: Start, servers: Servers
) -> None:
    engine = start(servers.stores)
    engine.submit("a", b"1")
    engine.flush()
    assert engine.definitely_missing("never")
    assert engine.might_exist("a")
    engine.close()

    again = start(servers.stores)
    assert again.stats()["filter"]["trusted"]
    assert again.get("a").content == b"1"  # type: ignore[union-attr]
    asked = servers.l3.calls["get_many"]
    for n in range(50):
        assert again.get(f"never{n}") is None
    assert servers.l3.calls["get_many"] - asked <= 2


def test_a_second_engine_on_the_archive_makes_the_first_say_maybe(
    start: Start, servers: Servers
) -> None:
    first = start(servers.stores, engine_name="first", lease_ttl_s=0.3)
    assert first.definitely_missing("b")
    theirs = Stores(servers.l2, servers.archive.client())
    second = start(theirs, engine_name="second", lease_ttl_s=0.3)
    second.submit("b", b"theirs")
    assert second.flush(20).complete

    assert first.get("b").content == b"theirs"  # type: ignore[union-attr]
    assert not first.definitely_missing("b")


@pytest.mark.parametrize(
    "point",
    [
        "writer.filtered",
        "log.append",
        "log.committed",
        "writer.committed",
        "log.save",
        "l3.delivered",
        "log.advance",
    ],
)
def test_a_failure_at_any_failpoint_loses_nothing_acknowledged(
    start: Start, servers: Servers, point: str
) -> None:
    engine = start(servers.stores, **FAST)
    engine.submit("before", b"1")
    hits = []

    def fail() -> None:
        if not hits:
            hits.append(1)
            raise StoreUnavailable("test", point)

    acked = {}
    with failpoints.during(point, fail):
        for n in range(20):
            try:
                acked[f"i{n}"] = engine.submit(f"i{n}", b"%d" % n).version
            except StoreUnavailable:
                continue
        engine.flush(5)

    assert engine.flush(10).complete
    for id, version in {**acked}.items():
        assert engine.get(id).version >= version  # type: ignore[union-attr]
    rows = servers.archive.get_many(["before", *acked])
    assert set(rows) == {"before", *acked}


def test_cache_items_without_a_cache_tier_keep_their_promise(start: Start) -> None:
    """What was acknowledged in the log is there after a restart, Redis or not."""
    engine = start()
    engine.submit("a", b"1", SubmitOptions.cache(60))
    engine.close()

    assert start().get("a").content == b"1"  # type: ignore[union-attr]


def test_a_full_disk_ends_acknowledgements_at_memory_durability_too(
    start: Start, servers: Servers
) -> None:
    servers.l3.down = True
    engine = start(servers.stores, **FAST)
    options = SubmitOptions(durability=Durability.MEMORY, timeout=0.01)

    def full() -> None:
        raise StoreUnavailable("log", "append", "database or disk is full")

    accepted = 0
    with failpoints.during("log.append", full), pytest.raises(Backpressure):
        while accepted < 1_000_000:
            engine.submit(f"i{accepted % 100}", b"%d" % accepted, options)
            accepted += 1
    assert engine.get(f"i{(accepted - 1) % 100}").content == b"%d" % (accepted - 1)  # type: ignore[union-attr]

    servers.l3.down = False
    assert engine.flush(20).complete


def test_a_value_that_l2_refuses_leaves_no_older_one_behind(start: Start, servers: Servers) -> None:
    engine = start(servers.stores, **FAST)
    engine.submit("a", b"old")
    assert engine.flush(10).complete
    refuse = servers.l2.store.apply
    servers.l2.store.apply = lambda changes: (  # type: ignore[method-assign]
        refuse(changes) if all(c.content is None for c in changes) else _reject()
    )

    engine.submit("a", b"too large for L2")
    report = engine.flush(10)
    engine._house.l1.clear()  # type: ignore[union-attr]

    assert (report.complete, report.dead_letters) == (True, 0)
    assert engine.get("a").content == b"too large for L2"  # type: ignore[union-attr]


def test_an_l2_that_refuses_everything_lags_and_nothing_old_is_read(
    start: Start, servers: Servers
) -> None:
    """As with a password that was changed while we run."""
    engine = start(servers.stores, **FAST)
    engine.submit("a", b"old")
    assert engine.flush(10).complete
    servers.l2.store.apply = lambda changes: _reject()  # type: ignore[method-assign]

    engine.submit("a", b"new")
    assert set(engine.flush(0.5).left) == {"l2"}
    engine._house.l1.clear()  # type: ignore[union-attr]

    assert engine.get("a").content == b"new"  # type: ignore[union-attr]
    assert engine.dead_letters() == []


def test_an_archive_that_answers_and_takes_nothing_fills_no_dead_letters(
    start: Start, servers: Servers
) -> None:
    """A dropped table is not the items' fault; one item that alone cannot be taken is."""
    engine = start(servers.stores, **FAST, l3_circuit_failures_max=1000)
    broken = {"everything": True}
    apply = servers.l3.store.apply

    def picky(changes: Any) -> None:
        if broken["everything"] or any(c.id == "odd" for c in changes):
            raise StoreUnavailable("l3", "apply", "no such table")
        apply(changes)

    servers.l3.store.apply = picky  # type: ignore[method-assign]
    for id in ("odd", "b", "c"):
        engine.submit(id, b"v")
    engine.flush(3)
    assert engine.dead_letters() == []

    broken["everything"] = False
    assert engine.flush(20).complete
    assert [letter.change.id for letter in engine.dead_letters()] == ["odd"]
    assert set(servers.archive.get_many(["b", "c"])) == {"b", "c"}


def _reject() -> None:
    raise StoreRejected("l2", "apply", "a value is larger than the server takes")
