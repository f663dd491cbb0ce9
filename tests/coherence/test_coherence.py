"""Engines on one archive learn of each other's changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.killed import Killed, kill
from support.sites import Fleet, agreed, warm

from sync_engine import SubmitOptions
from sync_engine.config import SyncEngineConfig
from sync_engine.core import failpoints
from sync_engine.core.item import Change

MakeFleet = Callable[..., Fleet]
LEASE_TTL_S = SyncEngineConfig().lease_ttl_s


@pytest.mark.parametrize("with_feed", [True, False], ids=["feed", "archive"])
def test_a_write_of_another_engine_is_seen(fleet: MakeFleet, *, with_feed: bool) -> None:
    both = agreed(fleet, with_feed=with_feed)
    both["a"].submit("x", b"2")
    both.settle()
    assert both.content("b", "x") == b"2"


@pytest.mark.parametrize("with_feed", [True, False], ids=["feed", "archive"])
def test_a_deletion_of_another_engine_is_seen(fleet: MakeFleet, *, with_feed: bool) -> None:
    both = agreed(fleet, with_feed=with_feed)
    both["a"].delete("x")
    both.settle()
    assert both.content("b", "x") is None


@pytest.mark.parametrize("with_feed", [True, False], ids=["feed", "archive"])
def test_what_was_known_to_be_absent_is_found_once_another_engine_wrote_it(
    fleet: MakeFleet, *, with_feed: bool
) -> None:
    both = fleet(with_feed=with_feed)
    assert both.content("b", "x") is None
    both["a"].submit("x", b"1")
    both.settle()
    assert not both["b"].definitely_missing("x")
    assert both.content("b", "x") == b"1"


def test_coherence_is_what_does_it(fleet: MakeFleet) -> None:
    """The test above fails where it is switched off."""
    both = agreed(fleet, coherence="off", with_feed=False)
    both["a"].submit("x", b"2")
    both.settle(5.0)
    assert both.content("b", "x") == b"1"


def test_an_engine_s_own_writes_leave_its_cache_alone(fleet: MakeFleet) -> None:
    both = fleet()
    both["a"].submit("x", b"1")
    both.settle()
    assert warm(both, "a", "x")
    assert both["a"].stats()["l1"].items == 1


def test_only_ids_travel(fleet: MakeFleet) -> None:
    both = fleet()
    receipt = both["a"].submit("x", b"secret")
    both.settle()
    assert ("x", receipt.version) in {(id, version) for _, id, version in both.feed.told}
    assert all(
        change.content in (None, b"")
        for _, changes in both.feed._stream.entries
        for change in changes
    )


def test_nothing_is_told_before_the_archive_has_it(fleet: MakeFleet) -> None:
    both = fleet()
    both["a"].pause("l3")
    both["a"].submit("x", b"1")
    both.settle()
    both.runtime.wake("a/coherence-out")
    both.settle()
    assert both.feed.told == []
    both["a"].resume("l3")
    both.settle()
    assert [id for _, id, _ in both.feed.told] == ["x"]


def test_an_older_value_in_l2_does_not_come_back_after_the_news(fleet: MakeFleet) -> None:
    """The writer's L2 lags behind its archive: the reader passes L2 by."""
    both = agreed(fleet)
    both["a"].pause("l2")
    both["a"].submit("x", b"2")
    both.settle()
    assert both.cache.snapshot()["x"].content == b"1"
    assert both.content("b", "x") == b"2"
    assert both.content("b", "x") == b"2"


def test_one_s_own_older_write_does_not_come_back_when_it_leaves_the_log(fleet: MakeFleet) -> None:
    """It was overtaken in the archive by another engine, while L2 held it up."""
    both = fleet()
    both["b"].pause("l2")
    both["b"].submit("x", b"mine")
    both.settle()
    both["a"].submit("x", b"theirs")
    both.settle()
    both["b"].resume("l2")
    both.settle()
    assert both.content("b", "x") == b"theirs"


def read_across(both: Fleet, meanwhile: Callable[[], None]) -> bytes | None:
    """Let `b` read `x` from the archive, where the row is read before `meanwhile` happens."""
    rows = both.archive._rows.by_id
    newer: list[Change] = []

    def interrupt(operation: str) -> None:
        if operation == "get_many":
            both.l3["b"].on_call = None
            row = rows["x"]
            meanwhile()
            newer.append(rows["x"])
            rows["x"] = row

    both.l3["b"].on_call = interrupt
    try:
        return both.content("b", "x")
    finally:
        rows["x"] = newer[0]


def test_a_read_that_is_under_way_when_the_news_comes_leaves_nothing_in_l1(
    fleet: MakeFleet,
) -> None:
    both = fleet()
    both["a"].submit("x", b"1", SubmitOptions.durable())
    both.settle()

    def write() -> None:
        both["a"].submit("x", b"2", SubmitOptions.durable())
        both.settle()

    assert read_across(both, write) == b"1"  # asked before the news: either answer is right
    assert both.content("b", "x") == b"2"


def test_a_read_that_is_under_way_when_l1_begins_anew_leaves_nothing_in_it(
    fleet: MakeFleet,
) -> None:
    """Nobody will ever say that what it found was replaced."""
    both = fleet()
    both["a"].submit("x", b"1", SubmitOptions.durable())
    both.settle()

    def write_unheard() -> None:
        both.feeds["b"].down = True
        both["a"].submit("x", b"2", SubmitOptions.durable())
        both.settle()

    assert read_across(both, write_unheard) == b"1"
    both.settle()
    assert both["b"].stats()["coherence"]["l1_open"] == 1
    assert both.content("b", "x") == b"2"


def test_the_version_clock_moves_with_what_others_write(fleet: MakeFleet) -> None:
    """A clock that is slow by a minute: a later blind write wins all the same."""
    both = fleet()
    version = both["a"].submit("x", b"1").version
    ahead = Change("x", version + (60_000 << 20), b"from the future")
    both.archive.client().apply([ahead])
    told = both.feed.client()
    told.begin("f" * 32, 0, after_gap=False)
    told.apply_at([ahead], "f" * 32, 1)
    both.settle()
    assert both["b"].submit("y", b"1").version > ahead.version
    both["b"].submit("x", b"2")
    both.settle()
    assert both.content("a", "x") == b"2"


# -- losing the feed ------------------------------------------------------------------------------


def test_a_lost_connection_empties_l1_and_the_archive_takes_over(fleet: MakeFleet) -> None:
    both = agreed(fleet)
    both.feeds["b"].down = True
    both["a"].submit("x", b"2")
    both.settle()
    assert both.content("b", "x") == b"2"
    both["a"].submit("x", b"3")
    both.settle()
    assert both.content("b", "x") == b"3"

    both.feeds["b"].down = False
    both.settle(3.0)
    both["a"].submit("x", b"4")
    both.settle(0.1)
    assert both.content("b", "x") == b"4"


def test_while_neither_feed_nor_archive_can_be_asked_l1_is_put_aside(fleet: MakeFleet) -> None:
    both = agreed(fleet)
    both.feeds["b"].down = both.l3["b"].down = True
    both.settle()
    assert not warm(both, "b", "x")
    assert both.content("b", "x") == b"1"  # L2 has it
    assert not warm(both, "b", "x")

    both.feeds["b"].down = both.l3["b"].down = False
    both.settle(8.0)
    assert both.content("b", "x") == b"1"
    assert warm(both, "b", "x")


def test_an_engine_that_never_noticed_another_one_keeps_its_l1_through_everything(
    fleet: MakeFleet,
) -> None:
    alone = fleet("a")
    alone["a"].submit("x", b"1")
    alone.settle()
    alone.feeds["a"].down = alone.l3["a"].down = alone.l2["a"].down = True
    alone.settle(30.0)
    assert warm(alone, "a", "x")
    assert alone.content("a", "x") == b"1"


def test_a_feed_that_was_trimmed_before_it_was_read_empties_l1(fleet: MakeFleet) -> None:
    both = agreed(fleet)
    both["a"].submit("x", b"2")
    for job in ("a/l2", "a/l3", "a/log", "a/coherence-out"):
        for _ in range(20):
            both.runtime.step(job)
            both.runtime.clock.advance(0.001)
    assert any(id == "x" for _, id, _ in both.feed.told)
    both.feed.trim()
    both.settle()
    assert both.content("b", "x") == b"2"


def test_what_could_not_be_told_is_told_once_the_feed_is_back(fleet: MakeFleet) -> None:
    both = agreed(fleet)
    both.feeds["a"].down_for_telling = True
    both["a"].submit("x", b"2")
    both.settle()
    both.feeds["a"].down_for_telling = False
    both.settle(30.0)
    assert both.content("b", "x") == b"2"


def test_what_could_not_be_told_for_too_long_is_told_as_a_gap(fleet: MakeFleet) -> None:
    both = agreed(fleet, l2_lag_items_max=10)
    both.feeds["a"].down_for_telling = True
    untold = both["a"].submit("x", b"2").version
    for n in range(30):
        both["a"].submit(f"k{n}", b"1")
    both.settle(5.0)
    both.feeds["a"].down_for_telling = False
    both.settle(30.0)
    assert both.content("b", "x") == b"2"
    assert untold not in {version for _, _, version in both.feed.told}


def test_what_an_engine_had_not_told_when_it_died_is_told_when_it_comes_back(
    fleet: MakeFleet,
) -> None:
    both = agreed(fleet)
    both.feeds["a"].down_for_telling = True
    both["a"].submit("x", b"2")
    both.settle()
    both["a"].close(1)
    both.open("a")
    both.settle(3.0)
    assert both.content("b", "x") == b"2"


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")], ids=["two", "three"])
def test_what_an_engine_took_to_its_grave_is_seen_once_it_is_found_dead(
    fleet: MakeFleet, names: tuple[str, ...]
) -> None:
    """It was killed between the archive and the feed, and nobody ever opens its log again."""
    all_of_them = agreed(fleet, *names)
    all_of_them["a"].pause("l3")
    all_of_them["a"].submit("x", b"2")
    all_of_them.settle()

    all_of_them["a"].resume("l3")
    with failpoints.during("l3.delivered", kill), pytest.raises(Killed):
        all_of_them.settle()
    all_of_them.kill("a")
    assert all_of_them.archive.get_many(["x"])["x"].content == b"2"
    all_of_them.settle(1.0)
    assert {warm(all_of_them, name, "x") for name in names[1:]} == {True}  # nobody knows yet

    all_of_them.settle(2 * LEASE_TTL_S)
    assert {all_of_them.content(name, "x") for name in names[1:]} == {b"2"}
    assert [id for _, id, _ in all_of_them.feed.told] == ["x"]  # the first word was the last


def test_a_passive_engine_looks_and_tells_nothing(fleet: MakeFleet, tmp_path: Path) -> None:
    from sync_engine import SyncEngine
    from sync_engine.config import SyncEngineConfig
    from sync_engine.house import Stores
    from sync_engine.testing import ManualRuntime

    both = fleet()
    runtime = ManualRuntime(both.runtime.clock)
    config = SyncEngineConfig(data_dir=tmp_path / "passive", passive=True)
    stores = Stores(both.cache, both.archive.client(), None)
    passive = SyncEngine(config, runtime=runtime, stores=stores).start()
    both["a"].submit("x", b"1")
    both.settle()
    runtime.run_for(0.5)
    item = passive.get("x")
    assert item is not None
    both["a"].submit("x", b"2")
    both.settle()
    runtime.run_for(0.5)
    item = passive.get("x")
    assert item is not None
    assert item.content == b"2"
    passive.close(0)


def test_four_engines_agree(fleet: MakeFleet) -> None:
    names = ("a", "b", "c", "d")
    four = fleet(*names)
    for turn in range(12):
        writer = names[turn % 4]
        four[writer].submit("x", b"%d" % turn)
        four.settle(0.3)
        assert {four.content(name, "x") for name in names} == {b"%d" % turn}


def test_an_engine_s_last_word_is_heard(fleet: MakeFleet) -> None:
    """It closes at once after its write: nobody would say it later."""
    both = agreed(fleet)
    both["a"].submit("x", b"2")
    both.engines.pop("a").close(10)
    both.settle()
    assert both.content("b", "x") == b"2"


def test_a_feed_that_cannot_be_heard_is_said(fleet: MakeFleet) -> None:
    both = fleet()
    assert both["b"].stats()["coherence"]["sight"] == "feed"
    assert both["b"].health().degraded == ()
    both.feeds["b"].down = True
    both.settle()
    assert both["b"].stats()["coherence"]["sight"] == "archive"
    assert any("not heard on the feed" in line for line in both["b"].health().degraded)
    both.feeds["b"].down = False
    both.settle(3.0)
    assert both["b"].health().degraded == ()


def test_positions_that_the_power_took_are_not_taken_for_repetitions(fleet: MakeFleet) -> None:
    """The feed is further on than the log that came back: what follows is news all the same."""
    both = agreed(fleet)
    house = both["a"]._house
    assert house is not None
    assert house.publisher is not None
    origin, end = house.publisher.origin, house.log.head()
    told = both.feed.client()
    told.apply_at([Change("lost", 1, b"")], origin, end + 5)
    both.settle()

    both["a"].close(5)
    both.open("a")
    both["a"].submit("x", b"2")
    both.settle(8.0)
    assert both.content("b", "x") == b"2"
    assert both["a"]._house.publisher.origin != origin  # type: ignore[union-attr]
