"""What every sink has to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from sync_engine.core.item import Change
from sync_engine.errors import StoreRejected
from sync_engine.ports import PositionedSink, Sink

__all__ = ["PositionedSinkContract", "SinkContract"]

HOSTILE = ["a", "A", "a ", "ä", "a\u0308", "😀", "*", "%", "_", "a/b", "a'b", 'a"b', "x" * 512]
_LOG = "0123456789abcdef0123456789abcdef"
_OTHER_LOG = "fedcba9876543210fedcba9876543210"


def put(change_id: str, version: int, content: bytes = b"v") -> Change:
    """Make a put."""
    return Change(change_id, version, content)


def gone(change_id: str, version: int) -> Change:
    """Make a tombstone."""
    return Change(change_id, version, None)


class SinkContract:
    """Subclass it, name the class ``Test…``, and say how to make a sink and how to look into it.

    What is declared is proved, in both directions: neither a sink that lost an ability nor one that
    won one passes unnoticed.

    Attributes:
        remembers_deletions: Whether an old put that comes after a newer deletion is known to be
            old. A sink that keeps nothing of what is deleted sets this to False, and says in its
            documentation that a repeated batch can show a deleted item until its deletion is
            repeated, too.
        refuses: Whether there is a change that the sink can never take, which `refused_change`
            then has to return. A sink that takes everything sets this to False.
    """

    remembers_deletions = True
    refuses = True

    def make_sink(self) -> Sink:
        """Return a new sink on the target of this test, not attached; called several times."""
        raise NotImplementedError

    def stored(self) -> Mapping[str, bytes]:
        """Return what the target holds, by id, read without the sink under test."""
        raise NotImplementedError

    def content_of(self, name: str) -> bytes:
        """Return a content that the sink can store, a different one for each name."""
        return name.encode()

    def refused_change(self) -> Change | None:
        """Return a change that the sink can never take; None where `refuses` is False."""
        return None

    @pytest.fixture
    def sink(self) -> Sink:
        """A sink, attached."""
        made = self.make_sink()
        made.attach()
        return made

    def _refused(self) -> Change:
        """Return the change that is refused; skips only where it is declared that there is none."""
        refused = self.refused_change()
        assert (refused is not None) is self.refuses, "`refuses` and `refused_change` disagree"
        if refused is None:
            pytest.skip("declared: this sink takes everything")
        return refused

    def _put(self, change_id: str, version: int, content: str = "value") -> Change:
        return put(change_id, version, self.content_of(content))

    def _holds(self, **contents: str) -> None:
        assert dict(self.stored()) == {id: self.content_of(c) for id, c in contents.items()}

    def test_what_was_applied_is_there(self, sink: Sink) -> None:
        sink.apply([self._put("a", 1, "one"), self._put("b", 2, "two")])
        self._holds(a="one", b="two")

    def test_ids_are_kept_exactly(self, sink: Sink) -> None:
        content = self.content_of("value")
        sink.apply([put(id, n, content) for n, id in enumerate(HOSTILE, 1)])
        assert dict(self.stored()) == dict.fromkeys(HOSTILE, content)

    def test_an_empty_batch_changes_nothing(self, sink: Sink) -> None:
        sink.apply([self._put("a", 1)])
        sink.apply([])
        self._holds(a="value")

    def test_a_newer_version_replaces(self, sink: Sink) -> None:
        sink.apply([self._put("a", 1, "old")])
        sink.apply([self._put("a", 2, "new")])
        self._holds(a="new")

    def test_a_batch_delivered_twice_changes_nothing(self, sink: Sink) -> None:
        batch = [self._put("a", 1), self._put("b", 2), gone("c", 3)]
        sink.apply(batch)
        sink.apply(batch)
        self._holds(a="value", b="value")

    def test_an_older_version_changes_nothing(self, sink: Sink) -> None:
        sink.apply([self._put("a", 2, "new"), self._put("b", 2, "new")])
        sink.apply([self._put("a", 1, "old"), gone("b", 1)])
        self._holds(a="new", b="new")

    @pytest.mark.parametrize("low", [1, 999_999_999, (1 << 53) - 1, (1 << 62) + 7])
    def test_neighbouring_versions_are_told_apart(self, sink: Sink, low: int) -> None:
        """They are beyond what a double holds."""
        sink.apply([self._put("a", low + 1, "new")])
        sink.apply([self._put("a", low, "old")])
        self._holds(a="new")

        sink.apply([self._put("a", low + 2, "newer")])
        self._holds(a="newer")

    def test_a_tombstone_deletes(self, sink: Sink) -> None:
        sink.apply([self._put("a", 1), self._put("b", 2)])
        sink.apply([gone("a", 3)])
        self._holds(b="value")

    def test_a_tombstone_of_what_never_was_is_harmless(self, sink: Sink) -> None:
        sink.apply([gone("never", 1), self._put("a", 2)])
        self._holds(a="value")

    def test_what_was_deleted_can_come_again(self, sink: Sink) -> None:
        sink.apply([self._put("a", 1)])
        sink.apply([gone("a", 2)])
        sink.apply([self._put("a", 3, "again")])
        self._holds(a="again")

    def test_an_old_put_does_not_undo_a_deletion(self, sink: Sink) -> None:
        sink.apply([self._put("a", 1)])
        sink.apply([gone("a", 3)])
        sink.apply([self._put("a", 2, "late")])
        if not self.remembers_deletions:
            self._holds(a="late")
            sink.apply([gone("a", 3)])
        self._holds()

    def test_a_refused_batch_leaves_nothing_behind(self, sink: Sink) -> None:
        refused = self._refused()
        with pytest.raises(StoreRejected):
            sink.apply([self._put("a", 1), refused, self._put("b", 2)])
        self._holds()

        sink.apply([self._put("a", 1), self._put("b", 2)])
        self._holds(a="value", b="value")

    def test_a_large_batch_is_taken_whole(self, sink: Sink) -> None:
        content = self.content_of("value")
        sink.apply([put(f"row.{n:05}", n + 1, content) for n in range(3000)])
        assert len(self.stored()) == 3000

    def test_it_answers_a_ping(self, sink: Sink) -> None:
        assert sink.ping() >= 0

    def test_closing_is_safe_at_any_time(self) -> None:
        made = self.make_sink()
        made.close()
        made.attach()
        made.close()
        made.close()

    def test_it_can_be_attached_again(self, sink: Sink) -> None:
        sink.apply([self._put("a", 1)])
        sink.close()
        sink.attach()
        sink.apply([self._put("b", 2)])
        self._holds(a="value", b="value")

    def test_the_next_process_goes_on_with_what_is_there(self, sink: Sink) -> None:
        """It is not closed: the process before was killed."""
        sink.apply([self._put("a", 2, "new"), self._put("b", 3)])

        after = self.make_sink()
        after.attach()
        after.apply([self._put("a", 1, "old"), gone("b", 4), self._put("c", 5)])

        self._holds(a="new", c="value")
        after.close()


class PositionedSinkContract(SinkContract):
    """For sinks that keep positions: all of `SinkContract`, and that effects happen once."""

    @pytest.fixture
    def placed(self, sink: Sink) -> PositionedSink:
        """The sink, as one that keeps positions."""
        return cast("PositionedSink", sink)

    def test_an_unknown_log_has_no_position(self, placed: PositionedSink) -> None:
        assert placed.position(_LOG) is None

    def test_a_batch_is_kept_with_its_position(self, placed: PositionedSink) -> None:
        placed.apply_at([self._put("a", 1)], _LOG, 7)
        assert placed.position(_LOG) == 7
        self._holds(a="value")

    def test_a_batch_at_or_below_the_position_changes_nothing(self, placed: PositionedSink) -> None:
        """Not even where its versions are newer: it was taken already."""
        placed.apply_at([self._put("a", 1)], _LOG, 7)
        placed.apply_at([self._put("a", 9, "again")], _LOG, 7)
        placed.apply_at([self._put("b", 10)], _LOG, 3)
        assert placed.position(_LOG) == 7
        self._holds(a="value")

    def test_an_empty_batch_moves_the_position(self, placed: PositionedSink) -> None:
        placed.apply_at([], _LOG, 5)
        assert placed.position(_LOG) == 5
        placed.apply_at([self._put("a", 1)], _LOG, 6)
        assert placed.position(_LOG) == 6
        self._holds(a="value")

    def test_position_zero_is_a_position(self, placed: PositionedSink) -> None:
        """The copy of an empty archive ends there."""
        placed.apply_at([], _LOG, 0)
        assert placed.position(_LOG) == 0

    def test_each_log_has_a_position_of_its_own(self, placed: PositionedSink) -> None:
        placed.apply_at([self._put("a", 1)], _LOG, 7)
        assert placed.position(_OTHER_LOG) is None
        placed.apply_at([self._put("b", 2)], _OTHER_LOG, 3)
        assert (placed.position(_LOG), placed.position(_OTHER_LOG)) == (7, 3)

    def test_a_batch_without_position_leaves_it(self, placed: PositionedSink) -> None:
        """The copy of a new sink is delivered so."""
        placed.apply([self._put("a", 1)])
        assert placed.position(_LOG) is None
        self._holds(a="value")

    def test_older_versions_lose_here_too(self, placed: PositionedSink) -> None:
        placed.apply([self._put("a", 5, "new")])
        placed.apply_at([self._put("a", 4, "old"), gone("b", 6)], _LOG, 2)
        self._holds(a="new")

    def test_positions_outlive_the_process(self, placed: PositionedSink) -> None:
        placed.apply_at([self._put("a", 1)], _LOG, 7)
        after = cast("PositionedSink", self.make_sink())
        after.attach()
        assert after.position(_LOG) == 7
        after.apply_at([gone("a", 2)], _LOG, 8)
        assert after.position(_LOG) == 8
        self._holds()
        after.close()

    def test_a_refused_batch_moves_no_position(self, placed: PositionedSink) -> None:
        refused = self._refused()
        placed.apply_at([], _LOG, 1)
        with pytest.raises(StoreRejected):
            placed.apply_at([self._put("a", 1), refused], _LOG, 3)
        assert placed.position(_LOG) == 1
        self._holds()
