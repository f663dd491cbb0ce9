"""Writers that cannot be heard, engines that cannot hear: nobody stays behind for long."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.sites import Fleet, agreed, warm

from sync_engine.config import SyncEngineConfig
from sync_engine.errors import CorruptData

MakeFleet = Callable[..., Fleet]
LEASE_TTL_S = SyncEngineConfig().lease_ttl_s


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")], ids=["two", "three"])
def test_what_an_engine_cannot_tell_is_seen_while_it_is_cut_off(
    fleet: MakeFleet, names: tuple[str, ...]
) -> None:
    """It reaches the archive and nothing else: neither L1 nor L2 of the others may hide it."""
    all_of_them = agreed(fleet, *names)
    others = names[1:]
    all_of_them.feeds["a"].down_for_telling = all_of_them.l2["a"].down = True
    all_of_them["a"].submit("x", b"2")
    all_of_them.settle(1.5 * LEASE_TTL_S)
    assert all_of_them.cache.snapshot()["x"].content == b"1"
    assert {all_of_them.content(name, "x") for name in others} == {b"2"}

    all_of_them["a"].submit("x", b"3")  # that it is cut off is known by now
    all_of_them.settle()
    assert {all_of_them.content(name, "x") for name in others} == {b"3"}
    assert {all_of_them[name].stats()["coherence"]["sight"] for name in others} == {"archive"}
    assert all(all_of_them[name].health().degraded for name in others)

    all_of_them.feeds["a"].down_for_telling = all_of_them.l2["a"].down = False
    all_of_them.settle(30.0)
    assert {all_of_them[name].stats()["coherence"]["sight"] for name in others} == {"feed"}
    assert {all_of_them[name].health().degraded for name in others} == {()}
    all_of_them["a"].submit("x", b"4")
    all_of_them.settle()
    assert {all_of_them.content(name, "x") for name in others} == {b"4"}
    assert all(warm(all_of_them, name, "x") for name in others)


def test_an_answer_of_l2_that_the_archive_does_not_have_yet_counts_while_somebody_is_cut_off(
    fleet: MakeFleet,
) -> None:
    three = agreed(fleet, "a", "b", "c")
    three.feeds["a"].down_for_telling = True
    three["a"].submit("other", b"1")
    three.settle(1.5 * LEASE_TTL_S)
    three["c"].pause("l3")
    three["c"].submit("x", b"2")
    three.settle()
    assert three.archive.get_many(["x"])["x"].content == b"1"
    assert three.content("b", "x") == b"2"

    three.l3["b"].down = True
    three.settle(1.0)
    assert not warm(three, "b", "x")
    assert three.content("b", "x") == b"2"  # better than nothing


def test_an_engine_that_closes_without_its_last_word_leaves_it_with_the_archive(
    fleet: MakeFleet,
) -> None:
    three = agreed(fleet, "a", "b", "c")
    three.feeds["a"].down_for_telling = True
    three["a"].submit("x", b"2")
    three.engines.pop("a").close(5)
    three.settle(1.5)
    assert {three.content(name, "x") for name in ("b", "c")} == {b"2"}
    three.settle(1.5)
    assert {three[name].stats()["coherence"]["sight"] for name in ("b", "c")} == {"feed"}


def test_a_writer_that_has_no_feed_is_noticed_by_those_that_have_one(fleet: MakeFleet) -> None:
    """As a command that is given the archive alone."""
    both = agreed(fleet)
    both.with_feed = False
    both.open("c")
    both["c"].submit("x", b"2")
    both.settle(1.5 * LEASE_TTL_S)
    assert both.content("b", "x") == b"2"
    both["c"].submit("x", b"3")
    both.settle()
    assert both.content("b", "x") == b"3"

    both["c"].submit("x", b"4")
    both.engines.pop("c").close(5)
    both.settle(1.5)
    assert both.content("b", "x") == b"4"
    assert both["b"].stats()["coherence"]["sight"] == "feed"


def test_a_word_that_was_missed_does_not_let_an_older_value_of_l2_stay(fleet: MakeFleet) -> None:
    """It was told while b was deaf, and L2 still has the old value when b hears again."""
    both = agreed(fleet)
    both.feeds["b"].down = True
    both["a"].pause("l2")
    both["a"].submit("x", b"2")
    both.settle(5.0)
    both.feeds["b"].down = False
    both.settle(5.0)
    assert both["b"].stats()["coherence"]["sight"] == "feed"
    assert both.cache.snapshot()["x"].content == b"1"
    both["b"].submit("other", b"1")
    assert both.content("b", "x") == b"2"

    both["a"].resume("l2")
    both.settle(3.0)
    assert both.content("b", "x") == b"2"


@pytest.mark.parametrize("deaf", [False, True], ids=["hearing", "deaf"])
def test_an_own_write_that_waits_for_l2_hides_nothing_that_others_wrote(
    fleet: MakeFleet, *, deaf: bool
) -> None:
    both = agreed(fleet)
    both.l2["a"].down = True
    both.feeds["a"].down = deaf
    both["a"].submit("x", b"2")
    both.settle()
    assert both.content("a", "x") == b"2"
    both["b"].submit("x", b"3")
    both.settle()
    assert both.content("a", "x") == b"3"
    assert [item.content for item in both["a"].scan_prefix("x")] == [b"3"]
    both["a"].update("x", lambda old: old.content + b"+")
    both.settle(8.0)
    assert both.content("b", "x") == both.content("a", "x") == b"3+"

    both.l3["a"].down = True
    both["a"].submit("x", b"4")
    both.settle()
    assert both.content("a", "x") == b"4"  # its own words it always reads


def test_a_new_engine_does_not_believe_what_l2_has_not_been_told_yet(fleet: MakeFleet) -> None:
    both = agreed(fleet)
    both["a"].pause("l2")
    both["a"].submit("x", b"2")
    both.settle()
    assert both.cache.snapshot()["x"].content == b"1"
    both.open("c")
    assert both.content("c", "x") == b"2"
    both.settle(30.0)
    assert both.content("c", "x") == b"2"


def test_l2_is_believed_again_once_words_are_heard_and_everybody_has_caught_up(
    fleet: MakeFleet,
) -> None:
    both = agreed(fleet)
    both.settle(10.0)
    both["a"].submit("y", b"1")
    both.settle(5.0)
    assert "y" in both.cache.snapshot()
    asked = both.l3["b"].calls["get_many"]
    assert both.content("b", "y") == b"1"
    assert both.l3["b"].calls["get_many"] == asked

    both.feeds["b"].down = True
    both.settle()
    both["a"].submit("y", b"2")
    both.settle()
    assert both.content("b", "y") == b"2"
    assert both.l3["b"].calls["get_many"] == asked + 1


def test_a_damaged_row_of_the_archive_hides_neither_l2_nor_an_own_write(
    fleet: MakeFleet,
) -> None:
    """Where words may have been missed the archive is asked as well: it may have no answer."""
    both = agreed(fleet)
    both.feeds["a"].down = both.l2["a"].down = True
    both.settle()
    both["a"].submit("mine", b"1")
    both.settle()
    both.feeds["b"].down = True
    both.settle()

    for name, id in (("a", "mine"), ("b", "x")):
        both.l3[name].fail("get_many", error=CorruptData("l3", "checksum"))
        assert both.content(name, id) == b"1"


@pytest.mark.parametrize("delay_s", [0.5, 1.0, 1.5, 2.0, 2.5])
def test_l2_is_not_believed_before_every_writer_could_say_how_it_stands(
    fleet: MakeFleet, delay_s: float
) -> None:
    """What was told to deaf ears just now, and L2 lacks, is announced a moment later."""
    both = agreed(fleet)
    both.feeds["b"].down = both.l2["a"].down = True
    both.settle(5.0)
    both["a"].submit("x", b"2")
    both.settle(0.3)
    both.feeds["b"].down = False
    both.settle(delay_s)
    assert both.cache.snapshot()["x"].content == b"1"
    assert both.content("b", "x") == b"2"


def test_an_l2_that_lets_a_writer_go_is_not_believed_until_its_keys_are_abandoned(
    fleet: MakeFleet,
) -> None:
    both = agreed(fleet, l2_lag_items_max=5)
    both.feeds["b"].down = both.l2["a"].down = True
    both["a"].submit("x", b"2")
    for n in range(20):
        both["a"].submit(f"k{n}", b"1")
    both.settle(8.0)
    both.feeds["b"].down = False
    both.settle(8.0)
    assert both.cache.snapshot()["x"].content == b"1"
    assert both.content("b", "x") == b"2"


def test_an_answer_that_was_believed_once_does_not_stay(fleet: MakeFleet) -> None:
    both = agreed(fleet)
    both.feeds["b"].down = both.l2["a"].down = True
    both["a"].submit("x", b"2")
    both.settle()
    both.l3["b"].down = True
    assert both.content("b", "x") == b"1"  # better than nothing
    both.l3["b"].down = False
    both.runtime.clock.advance(60.0)  # the circuit lets it try again; no job runs meanwhile
    assert both.content("b", "x") == b"2"


def test_what_was_read_of_others_is_not_taken_back_for_an_own_older_write(
    fleet: MakeFleet,
) -> None:
    both = agreed(fleet)
    both.l2["a"].down = True
    both["a"].submit("x", b"2")
    both.settle()
    both["b"].submit("x", b"3")
    both.settle()
    assert both.content("a", "x") == b"3"
    both.l3["a"].down = True
    assert both.content("a", "x") == b"3"


def test_news_that_come_while_the_archive_is_asked_are_not_lost_to_an_own_older_write(
    fleet: MakeFleet,
) -> None:
    both = agreed(fleet)
    both.l2["a"].down = True
    both["a"].submit("x", b"2")
    both.settle()
    both["b"].submit("x", b"3")
    both.settle()

    def news(operation: str) -> None:
        if operation == "get_many":
            both.l3["a"].on_call = None
            both["b"].submit("x", b"4")
            both.settle()

    both.l3["a"].on_call = news
    assert both.content("a", "x") == b"4"
