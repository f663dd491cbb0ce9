"""What every source has to do."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest

from sync_engine.core.item import Change
from sync_engine.ports import Source, SourceBatch

__all__ = ["SourceContract", "drain"]

_POLLS_MAX = 2000


def drain(source: Source, items_max: int = 100, *, ack: bool = True) -> list[Change]:
    """Poll until nothing comes any more, and return what came."""
    changes: list[Change] = []
    idle = 0
    for _ in range(_POLLS_MAX):
        batch = source.poll(items_max)
        changes += batch.changes
        if ack and (batch.changes or batch.token):
            source.ack(batch.token)
        idle = 0 if batch.changes else idle + 1
        if idle and (batch.wait_s > 0 or idle > _POLLS_MAX // 4):
            return changes
    raise AssertionError(f"a source still gives changes after {_POLLS_MAX} polls")


class SourceContract:
    """Subclass it, name the class ``Test…``, and say how to make a source and let things happen.

    Attributes:
        settle: Polls, at most, until a change that `produce` made is given, beyond those that give
            something. A source that looks at its origin now and then raises it.
    """

    settle = 10

    def make_source(self) -> Source:
        """Return a new source, not attached, on the origin and the memory of this test.

        Called several times: what an earlier one acknowledged is remembered. Where the memory can
        be opened once at a time, `abandon` is called for the earlier one before.
        """
        raise NotImplementedError

    def produce(self, count: int) -> Collection[str]:
        """Let `count` things happen at the origin; return the ids of the changes they make."""
        raise NotImplementedError

    def abandon(self, source: Source) -> None:
        """Let go of a source as a crash would; closes it where nothing else is possible."""
        source.close()

    @pytest.fixture
    def source(self) -> Source:
        """A source, attached."""
        made = self.make_source()
        made.attach()
        return made

    def _again(self, source: Source) -> Source:
        self.abandon(source)
        made = self.make_source()
        made.attach()
        return made

    def _next(self, source: Source, items_max: int = 100) -> SourceBatch:
        """Return the next batch that has something in it."""
        for _ in range(self.settle + 1):
            batch = source.poll(items_max)
            if batch.changes:
                return batch
        raise AssertionError(f"nothing was given in {self.settle + 1} polls")

    def test_everything_that_happened_is_given(self, source: Source) -> None:
        produced = set(self.produce(25))
        assert {change.id for change in drain(source)} == produced

    def test_nothing_that_was_acknowledged_is_given_again(self, source: Source) -> None:
        self.produce(5)
        drain(source)
        assert drain(source) == []
        assert drain(self._again(source)) == []

    def test_what_was_not_acknowledged_is_given_again(self, source: Source) -> None:
        produced = set(self.produce(5))
        drain(source, ack=False)
        after = self._again(source)
        assert {change.id for change in drain(after)} == produced

    def test_closing_gives_up_what_was_not_acknowledged(self, source: Source) -> None:
        produced = set(self.produce(5))
        drain(source, ack=False)
        source.close()
        source.attach()
        assert {change.id for change in drain(source)} == produced

    def test_a_token_acknowledges_all_before_it_and_nothing_after(self, source: Source) -> None:
        produced = set(self.produce(30))
        first = self._next(source, 10)
        second = self._next(source, 10)
        source.ack(second.token)
        taken = {change.id for change in (*first.changes, *second.changes)}
        rest = {change.id for change in drain(self._again(source))}
        assert rest >= produced - taken
        assert not rest & taken

    def test_an_older_token_changes_nothing(self, source: Source) -> None:
        self.produce(30)
        first = self._next(source, 10)
        second = self._next(source, 10)
        source.ack(second.token)
        source.ack(first.token)
        taken = {change.id for change in (*first.changes, *second.changes)}
        rest = {change.id for change in drain(self._again(source))}
        assert not rest & taken

    def test_a_poll_gives_no_more_than_asked_for(self, source: Source) -> None:
        produced = set(self.produce(10))
        given: set[str] = set()
        for _ in range(len(produced) * (self.settle + 1)):
            batch = source.poll(1)
            assert len(batch.changes) <= 1
            given |= {change.id for change in batch.changes}
            if batch.changes:
                source.ack(batch.token)
            if given == produced:
                break
        assert given == produced

    def test_where_nothing_happens_a_poll_returns_and_asks_to_wait(self, source: Source) -> None:
        drain(source)
        for _ in range(self.settle + 1):
            batch = source.poll(100)
            assert batch.changes == [] or not list(batch.changes)
            if batch.wait_s > 0:
                return
        pytest.fail("a source with nothing to give asks to be polled again and again")

    def test_what_happens_later_is_given_later(self, source: Source) -> None:
        drain(source)
        produced = set(self.produce(3))
        given: set[str] = set()
        for _ in range(self.settle):
            given |= {change.id for change in drain(source)}
            if given >= produced:
                break
        assert given == produced

    def test_versions_are_the_engine_s_or_positive(self, source: Source) -> None:
        self.produce(3)
        assert all(change.version >= 0 for change in drain(source))

    def test_closing_is_safe_at_any_time(self) -> None:
        made = self.make_source()
        made.close()
        made.attach()
        made.close()
        made.close()

    def test_progress_is_numbers(self, source: Source) -> None:
        self.produce(3)
        drain(source)
        progress = source.progress()
        assert all(isinstance(name, str) for name in progress)
        assert all(not math.isnan(float(value)) for value in progress.values())
