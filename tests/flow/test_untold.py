"""What is archived and not told: noticed at the second look, over once everybody can see it."""

from __future__ import annotations

from sync_engine.flow.untold import Untold


class Cursors:
    """The cursors of archive, feed and L2, moved by hand."""

    def __init__(self) -> None:
        self.archived = self.told = self.cached = 10
        self.well = True

    def untold(self) -> Untold:
        return Untold(
            lambda: self.archived,
            lambda: self.told,
            well=lambda: self.well,
            cached=lambda: self.cached,
        )


def test_what_is_told_by_the_next_look_was_never_untold() -> None:
    at = Cursors()
    untold = at.untold()
    for _ in range(3):
        at.archived += 5
        assert not untold.look()
        at.told = at.archived


def test_what_waits_for_a_whole_look_is_untold() -> None:
    at = Cursors()
    untold = at.untold()
    at.archived = 11
    assert not untold.look()
    assert untold.look()


def test_it_is_over_once_feed_and_l2_have_what_was_archived_by_the_last_look() -> None:
    at = Cursors()
    untold = at.untold()
    at.archived = 20
    untold.look()
    assert untold.look()

    at.told = 20
    assert untold.look()  # others read the old value from L2
    at.cached = 19
    assert untold.look()
    at.cached, at.archived = 20, 25  # it goes on writing
    assert not untold.look()


def test_a_feed_that_was_given_up_is_not_one_that_was_told() -> None:
    """After too much of it, the cursors are moved on: the gap is only told when the feed is back."""
    at = Cursors()
    untold = at.untold()
    at.archived = 20
    untold.look()
    assert untold.look()
    at.told = at.cached = 20
    at.well = False
    assert untold.look()
    at.well = True
    assert not untold.look()


def test_at_the_end_nothing_waits_for_a_second_look() -> None:
    at = Cursors()
    untold = at.untold()
    assert not untold.at_the_end()
    at.archived = 11
    assert untold.at_the_end()
    at.told = 11
    assert not untold.at_the_end()


def test_without_a_feed_everything_archived_from_the_beginning_on_is_untold() -> None:
    archived = 10
    untold = Untold(lambda: archived, None, well=lambda: False)
    assert not untold.look()
    assert not untold.at_the_end()
    archived = 11
    assert not untold.look()
    assert untold.look()
    assert untold.at_the_end()
