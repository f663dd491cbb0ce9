"""What every feed between engines has to do: `ports.ChangeFeed` as tests."""

from __future__ import annotations

import pytest

from sync_engine.core.item import Change
from sync_engine.errors import FeedGap, StoreUnavailable
from sync_engine.ports import ChangeFeed

__all__ = ["ChangeFeedContract"]

_LOG = "0123456789abcdef0123456789abcdef"
_OTHER = "fedcba9876543210fedcba9876543210"
_READS = 20


def _put(change_id: str, version: int) -> Change:
    return Change(change_id, version, b"content")


class ChangeFeedContract:
    """Subclass it, name the class ``Test…``, and say how to make a client of this test's feed."""

    def make_feed(self) -> ChangeFeed:
        """Return a new client of one and the same feed, not attached; called several times."""
        raise NotImplementedError

    def trim(self) -> None:
        """Drop everything that was told so far, as age or length do."""
        raise NotImplementedError

    @pytest.fixture
    def writer(self) -> ChangeFeed:
        """A client that tells, with one log that has begun."""
        made = self.make_feed()
        made.attach()
        assert made.position(_LOG) is None
        made.begin(_LOG, 0, after_gap=False)
        return made

    @pytest.fixture
    def reader(self) -> ChangeFeed:
        """A client that listens."""
        made = self.make_feed()
        made.attach()
        made.seek_end()
        return made

    def _heard(self, reader: ChangeFeed) -> list[tuple[str, str, int, bool]]:
        heard = []
        for _ in range(_READS):
            for origin, changes in reader.read(0.01):
                heard += [(origin, c.id, c.version, c.content is None) for c in changes]
        return heard

    def test_what_is_told_is_heard_in_order(self, writer: ChangeFeed, reader: ChangeFeed) -> None:
        writer.apply_at([_put("a", 1), Change("b", 2, None)], _LOG, 2)
        writer.apply_at([_put("a", 3)], _LOG, 5)
        assert self._heard(reader) == [
            (_LOG, "a", 1, False),
            (_LOG, "b", 2, True),
            (_LOG, "a", 3, False),
        ]

    def test_what_was_told_before_is_not_heard(self, writer: ChangeFeed) -> None:
        writer.apply_at([_put("a", 1)], _LOG, 1)
        late = self.make_feed()
        late.attach()
        late.seek_end()
        assert self._heard(late) == []
        writer.apply_at([_put("b", 2)], _LOG, 2)
        assert self._heard(late) == [(_LOG, "b", 2, False)]

    def test_positions_outlive_the_process(self, writer: ChangeFeed) -> None:
        writer.apply_at([_put("a", 1)], _LOG, 7)
        after = self.make_feed()
        after.attach()
        assert after.position(_LOG) == 7
        assert after.position(_OTHER) is None

    def test_a_batch_told_twice_is_heard_once(self, writer: ChangeFeed, reader: ChangeFeed) -> None:
        for _ in range(3):
            writer.apply_at([_put("a", 1)], _LOG, 1)
        assert len(self._heard(reader)) == 1

    def test_an_empty_batch_moves_the_position_and_is_no_gap(
        self, writer: ChangeFeed, reader: ChangeFeed
    ) -> None:
        writer.apply_at([_put("a", 1)], _LOG, 1)
        writer.apply_at([], _LOG, 9)
        writer.apply_at([_put("b", 2)], _LOG, 10)
        assert writer.position(_LOG) == 10
        assert len(self._heard(reader)) == 2

    def test_several_logs_are_told_apart(self, writer: ChangeFeed, reader: ChangeFeed) -> None:
        other = self.make_feed()
        other.attach()
        other.begin(_OTHER, 0, after_gap=False)
        writer.apply_at([_put("a", 1)], _LOG, 1)
        other.apply_at([_put("b", 1)], _OTHER, 1)
        writer.apply_at([_put("c", 1)], _LOG, 2)
        assert [(origin, id) for origin, id, _, _ in self._heard(reader)] == [
            (_LOG, "a"),
            (_OTHER, "b"),
            (_LOG, "c"),
        ]

    def test_what_was_dropped_before_it_was_heard_is_a_gap(
        self, writer: ChangeFeed, reader: ChangeFeed
    ) -> None:
        writer.apply_at([_put("a", 1)], _LOG, 1)
        self.trim()
        with pytest.raises(FeedGap):
            self._heard(reader)
        reader.seek_end()
        writer.apply_at([_put("b", 2)], _LOG, 2)
        assert [id for _, id, _, _ in self._heard(reader)] == ["b"]

    def test_what_was_dropped_after_it_was_heard_is_none(
        self, writer: ChangeFeed, reader: ChangeFeed
    ) -> None:
        writer.apply_at([_put("a", 1)], _LOG, 1)
        assert len(self._heard(reader)) == 1
        self.trim()
        writer.apply_at([_put("b", 2)], _LOG, 2)
        assert len(self._heard(reader)) == 1

    def test_a_log_that_begins_again_tells_everybody_of_a_gap(
        self, writer: ChangeFeed, reader: ChangeFeed
    ) -> None:
        writer.apply_at([_put("a", 1)], _LOG, 1)
        assert len(self._heard(reader)) == 1
        writer.begin(_LOG, 50, after_gap=True)
        with pytest.raises(FeedGap):
            self._heard(reader)

    def test_a_log_that_has_not_begun_tells_nothing(self, writer: ChangeFeed) -> None:
        with pytest.raises(StoreUnavailable):
            writer.apply_at([_put("a", 1)], _OTHER, 1)

    def test_contents_stay_at_home(self, writer: ChangeFeed, reader: ChangeFeed) -> None:
        writer.apply_at([_put("a", 1)], _LOG, 1)
        told = [c for _ in range(_READS) for _, cs in reader.read(0.01) for c in cs]
        assert [change.content for change in told] == [b""]

    def test_closing_is_safe_at_any_time(self) -> None:
        made = self.make_feed()
        made.close()
        made.attach()
        made.close()
        made.close()
