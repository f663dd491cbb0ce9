"""Compare-and-set that holds between engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.killed import Killed, kill
from support.sites import Fleet

from sync_engine import Conflict, SubmitOptions, SyncItem
from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.core.options import Durability
from sync_engine.errors import StoreUnavailable
from sync_engine.testing import Action, History, SimulatedRuntime, check

MakeFleet = Callable[..., Fleet]
POINTS = ["arbiter.intent", "arbiter.marked", "arbiter.decided", "arbiter.logged"]


def test_of_two_engines_that_saw_the_same_version_one_wins(fleet: MakeFleet) -> None:
    both = fleet()
    version = both["a"].submit("x", b"0").version
    both.settle()
    options = SubmitOptions(if_version=version)
    both["a"].submit("x", b"a", options)
    with pytest.raises(Conflict) as caught:
        both["b"].submit("x", b"b", options)
    assert caught.value.actual == both["a"].get("x").version  # type: ignore[union-attr]
    both.settle()
    assert both.content("b", "x") == b"a"


def test_of_two_engines_that_saw_nothing_one_wins(fleet: MakeFleet) -> None:
    both = fleet()
    options = SubmitOptions(if_absent=True)
    both["b"].submit("x", b"b", options)
    with pytest.raises(Conflict):
        both["a"].submit("x", b"a", options)
    both["a"].delete("x")
    both.settle()
    both["b"].submit("x", b"again", options)
    both.settle()
    assert both.content("a", "x") == b"again"


def test_updates_of_several_engines_lose_nothing(fleet: MakeFleet) -> None:
    both = fleet()

    def one_more(item: SyncItem | None) -> bytes:
        return b"%d" % (1 + (0 if item is None else int(item.content)))

    for _ in range(10):
        both["a"].update("x", one_more)
        both["b"].update("x", one_more)
    both.settle()
    assert (both.content("a", "x"), both.content("b", "x")) == (b"20", b"20")


def test_a_conditional_deletion_is_decided_by_the_archive(fleet: MakeFleet) -> None:
    both = fleet()
    version = both["a"].submit("x", b"0").version
    both.settle()
    both["a"].submit("x", b"1")
    both.settle()
    with pytest.raises(Conflict):
        both["b"].delete("x", SubmitOptions(if_version=version))
    now = both["b"].get("x")
    assert now is not None
    both["b"].delete("x", SubmitOptions(if_version=now.version))
    both.settle()
    assert both.content("a", "x") is None


def test_an_engine_s_own_unarchived_write_is_decided_upon(fleet: MakeFleet) -> None:
    both = fleet()
    receipt = both["a"].submit("x", b"0")
    both["a"].submit("x", b"1", SubmitOptions(if_version=receipt.version))
    with pytest.raises(Conflict):
        both["a"].submit("x", b"2", SubmitOptions(if_version=receipt.version))


def test_what_was_decided_reaches_l2_feed_and_the_others(fleet: MakeFleet) -> None:
    both = fleet()
    version = both["a"].submit("x", b"0").version
    both.settle()
    assert both.content("b", "x") == b"0"
    new = both["a"].submit("x", b"1", SubmitOptions(if_version=version)).version
    both.settle()
    assert both.cache.snapshot()["x"].version == new
    assert both.cache.snapshot()["x"].content == b"1"
    assert ("x", new) in {(id, v) for _, id, v in both.feed.told}
    assert both.content("b", "x") == b"1"


def test_an_engine_alone_decides_by_its_log(fleet: MakeFleet) -> None:
    """No round trip: the archive may even be away for a moment."""
    alone = fleet("a")
    version = alone["a"].submit("x", b"0").version
    alone.settle()
    alone.l3["a"].down = True
    alone["a"].submit("x", b"1", SubmitOptions(if_version=version))
    assert alone.content("a", "x") == b"1"
    assert alone.l3["a"].calls["put_if"] == 0


def test_what_an_engine_decided_alone_is_archived_before_another_one_may_decide(
    fleet: MakeFleet,
) -> None:
    both = fleet("a")
    version = both["a"].submit("x", b"0").version
    both.settle()
    both["a"].pause("l3")
    both["a"].submit("x", b"1", SubmitOptions(if_version=version))
    both.open("b")
    both.settle(2.5)  # it asks for the lease, and the first one would give way by now
    with pytest.raises(StoreUnavailable):
        both["b"].submit("y", b"1", SubmitOptions(durability=Durability.ARCHIVE, timeout=0.1))
    both["a"].resume("l3")
    both.settle(5.0)
    with pytest.raises(Conflict):
        both["b"].submit("x", b"late", SubmitOptions(if_version=version))
    assert both.content("b", "x") == b"1"


def test_without_the_archive_nothing_is_decided(fleet: MakeFleet) -> None:
    both = fleet()
    version = both["a"].submit("x", b"0").version
    both.settle()
    both.l3["a"].down = True
    with pytest.raises(StoreUnavailable):
        both["a"].submit("x", b"1", SubmitOptions(if_version=version))
    both.l3["a"].down = False
    both.settle(60.0)
    assert both.content("a", "x") == b"0"


def test_a_lost_answer_of_the_archive_is_asked_for_again(fleet: MakeFleet) -> None:
    """It was written: to repeat it is no conflict with oneself."""
    both = fleet()
    version = both["a"].submit("x", b"0").version
    both.settle()
    both.l3["a"].fail("put_if", lose_reply=True)
    both["a"].submit("x", b"1", SubmitOptions(if_version=version))
    both.settle()
    assert both.content("b", "x") == b"1"


def test_what_was_decided_and_not_known_to_be_arrives_all_the_same(fleet: MakeFleet) -> None:
    both = fleet(read_attempts_max=1)
    version = both["a"].submit("x", b"0").version
    both.settle()
    assert both.content("b", "x") == b"0"
    both.l3["a"].fail("put_if", lose_reply=True)
    with pytest.raises(StoreUnavailable):
        both["a"].submit("x", b"1", SubmitOptions(if_version=version))
    both.settle(5.0)
    assert both.cache.snapshot()["x"].content == b"1"
    assert both.content("a", "x") == b"1"
    assert both.content("b", "x") == b"1"


def test_where_too_many_are_in_doubt_the_next_one_is_told_and_does_not_wait_for_ever(
    fleet: MakeFleet,
) -> None:
    both = fleet(read_attempts_max=1, l3_circuit_failures_max=1000)
    a, l3 = both["a"], both.l3["a"]
    options = SubmitOptions(if_absent=True)
    for n in range(256):
        l3.fail("put_if")
        with pytest.raises(StoreUnavailable):
            a.submit(f"x{n}", b"", options)
    with pytest.raises(StoreUnavailable, match="256 writes"):
        a.submit("one more", b"", options)
    both.settle(60.0)  # by then none of them can still be under way
    assert a.submit("one more", b"", options).version


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_hides_nothing_and_loses_nothing(fleet: MakeFleet, point: str) -> None:
    """No older value of L2 hides what the archive has; after a restart, everybody has it."""
    both = fleet()
    version = both["a"].submit("x", b"0").version
    both.settle()
    with failpoints.during(point, kill), pytest.raises(Killed):
        both["a"].submit("x", b"1", SubmitOptions(if_version=version))
    decided = both.archive.get_many(["x"])["x"].content
    assert decided == (b"1" if point in ("arbiter.decided", "arbiter.logged") else b"0")
    cached = both.cache.get_many(["x"]).get("x")
    assert cached is None or cached.content in (None, decided)

    both.kill("a")
    both.open("a")
    both.settle(60.0)

    assert both.content("a", "x") == both.content("b", "x") == decided
    if decided == b"1":
        assert both.cache.snapshot()["x"].content == b"1"
        assert both.archive.get_many(["x"])["x"].version in {v for _, _, v in both.feed.told}


def test_a_deleted_item_s_version_never_comes_back(fleet: MakeFleet) -> None:
    """The tombstone is ahead of this engine's clock: the new version is ahead of the tombstone."""
    both = fleet()
    ahead = both["a"].submit("x", b"0").version + (3_600_000 << 20)
    both.archive.client().apply([Change("x", ahead, None)])
    receipt = both["a"].submit("x", b"1", SubmitOptions(if_absent=True))
    assert receipt.version > ahead
    both.settle()
    assert both.content("b", "x") == b"1"


def test_items_of_the_cache_alone_are_compared_by_each_engine_alone(fleet: MakeFleet) -> None:
    both = fleet()
    cache = SubmitOptions.cache(600)
    version = both["a"].submit("x", b"0", cache).version
    both.settle()
    both["a"].submit("x", b"1", SubmitOptions(l3=False, ttl=600, if_version=version))
    with pytest.raises(Conflict):
        both["a"].submit("x", b"2", SubmitOptions(l3=False, ttl=600, if_version=version))


@pytest.mark.parametrize("seed", range(12))
def test_no_interleaving_of_engines_loses_an_update(seed: int, tmp_path: Path) -> None:
    runtime = SimulatedRuntime(seed)
    history = History()
    done: list[str] = []
    counted: list[int] = []

    def client(fleet: Fleet, site: str, name: str) -> None:
        engine = fleet[site]
        for number in range(4):
            item = engine.get("x")
            expected = 0 if item is None else item.version
            call = history.invoke(name, Action.PUT, "x", expected=expected, site=site)
            try:
                options = SubmitOptions(if_version=expected)
                call.ok(engine.submit("x", b"%d" % number, options).version)
                counted.append(1)
            except Conflict:
                call.failed()
            runtime.clock.sleep(runtime.random() * 0.02)
        done.append(name)

    def main() -> None:
        fleet = Fleet(tmp_path, "a", "b", runtime=runtime, read_timeout_s=60.0)
        for site, name in (("a", "1"), ("a", "2"), ("b", "3"), ("b", "4")):
            runtime.spawn(lambda site=site, name=name: client(fleet, site, name))
        while len(done) < 4:
            fleet.feeds["b"].down = runtime.random() < 0.2
            runtime.clock.sleep(0.01)
        fleet.feeds["b"].down = False
        for engine in fleet.engines.values():
            engine.flush(60)
        runtime.clock.sleep(8.0)
        final = fleet.archive.get_many(["x"])["x"].version
        for site in ("a", "b"):
            item = fleet[site].get("x")
            assert item is not None
            assert item.version == final
        fleet.close()
        kinds = {v.kind for v in check(history.entries, {"x": final}, scope="site")}
        assert "lost-update" not in kinds
        assert "lost" not in kinds

    runtime.run(main)
    assert counted


def test_it_is_the_archive_that_does_it(fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines that both take themselves for the only one lose an update."""
    both = fleet()
    version = both["a"].submit("x", b"0").version
    both.settle()
    assert both.content("b", "x") == b"0"
    for name in ("a", "b"):
        monkeypatch.setattr(both[name]._house.atomic, "_alone", lambda: True)  # type: ignore[union-attr]
    options = SubmitOptions(if_version=version)
    both["a"].submit("x", b"a", options)
    both["b"].submit("x", b"b", options)
