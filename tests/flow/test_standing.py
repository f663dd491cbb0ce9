"""What is archived and not seen: noticed at the second look, over once everybody can see it."""

from __future__ import annotations

from sync_engine.flow.standing import OwnStanding
from sync_engine.ports import Standing

SEEN, UNCACHED, UNTOLD = Standing


class Cursors:
    """The cursors of archive, feed and L2, moved by hand."""

    def __init__(self) -> None:
        self.archived = self.told = self.cached = 10
        self.healthy = True
        self.standing = OwnStanding(
            lambda: self.archived, lambda: self.told, lambda: self.healthy, lambda: self.cached
        )


def test_what_is_told_by_the_next_look_was_never_untold() -> None:
    at = Cursors()
    for _ in range(3):
        at.archived += 5
        assert at.standing.look() is SEEN
        at.told = at.cached = at.archived


def test_what_waits_for_a_whole_look_is_untold() -> None:
    at = Cursors()
    at.archived = 11
    assert at.standing.look() is SEEN
    assert at.standing.look() is UNTOLD


def test_what_is_told_and_not_in_l2_is_uncached() -> None:
    at = Cursors()
    at.archived = at.told = 11
    assert at.standing.look() is SEEN
    assert at.standing.look() is UNCACHED
    at.cached = 11
    assert at.standing.look() is SEEN


def test_it_is_over_once_feed_and_l2_have_what_was_archived_by_the_last_look() -> None:
    at = Cursors()
    at.archived = 20
    at.standing.look()
    assert at.standing.look() is UNTOLD

    at.told = 20
    assert at.standing.look() is UNTOLD  # others read the old value from L2
    at.cached = 19
    assert at.standing.look() is UNTOLD
    at.cached, at.archived = 20, 25  # it goes on writing
    assert at.standing.look() is SEEN


def test_a_feed_that_was_given_up_is_not_one_that_was_told() -> None:
    """After too much of it the cursors are moved on: the gap is told when the feed is back."""
    at = Cursors()
    at.archived = 20
    at.standing.look()
    assert at.standing.look() is UNTOLD
    at.told = at.cached = 20
    at.healthy = False
    assert at.standing.look() is UNTOLD
    at.healthy = True
    assert at.standing.look() is SEEN


def test_at_the_end_nothing_waits_for_a_second_look() -> None:
    at = Cursors()
    assert at.standing.at_the_end() is SEEN
    at.archived = 11
    assert at.standing.at_the_end() is UNTOLD
    at.told = 11
    assert at.standing.at_the_end() is SEEN


def test_without_a_feed_everything_archived_from_the_beginning_on_is_untold() -> None:
    archived = 10
    standing = OwnStanding(lambda: archived)
    assert standing.look() is SEEN
    assert standing.at_the_end() is SEEN
    archived = 11
    assert standing.look() is SEEN
    assert standing.look() is UNTOLD
    assert standing.at_the_end() is UNTOLD
