"""What every log has to do: one order of all changes, and cursors on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sync_engine.core.item import Change
from sync_engine.ports import Overtaken, WritableLog

__all__ = ["LogContract", "drain", "write"]

ARCHIVE = "l3"
_ALL = 1 << 62


def write(log: WritableLog, change_id: str, content: bytes | None = b"v") -> Change:
    """Append and commit one change."""
    last, changes = log.append([Change(change_id, 0, content)], soft=False)
    log.commit(last)
    return changes[0]


def drain(log: WritableLog, follower: str = ARCHIVE) -> list[Change]:
    """Read and pass everything that a follower has before it."""
    taken: list[Change] = []
    while part := log.read(log.cursor(follower), 100, 1 << 20).changes:
        taken += [change for change in part if change is not None]
        log.advance(follower, log.cursor(follower) + len(part))
    return taken


class LogContract:
    """Subclass it, and give two fixtures.

    ``log`` is an empty log whose one follower, "l3", is the archive. ``reopen`` is a function that
    lets its process die and returns the log as the next one finds it.
    """

    # -- order and versions -----------------------------------------------------------------------

    def test_positions_are_dense_from_one(self, log: WritableLog) -> None:
        assert log.head() == log.appended == 0

        written = [write(log, f"id{n}") for n in range(5)]

        assert log.head() == log.appended == 5
        part = log.read(0, 100, _ALL)
        assert (part.after, list(part.changes), part.last) == (0, written, 5)

    def test_versions_are_unique_and_grow(self, log: WritableLog) -> None:
        last, changes = log.append([Change(f"i{n}", 0, b"v") for n in range(100)], soft=False)
        log.commit(last, 100)
        versions = [change.version for change in changes] + [write(log, "one more").version]

        assert versions == sorted(set(versions))
        assert versions[0] > 0

    def test_a_version_given_elsewhere_is_kept(self, log: WritableLog) -> None:
        known = write(log, "a").version

        last, (change,) = log.append([Change("a", known + 1, b"elsewhere")], soft=False)
        log.commit(last)

        assert change.version == known + 1
        assert log.pending("a") == change

    def test_what_is_read_is_what_was_written(self, log: WritableLog) -> None:
        draft = Change("ä", 0, b"\0\xff" * 50, 1, "state", 1 << 42, 3, "00-trace")
        last, (written,) = log.append([draft, Change("ä", 0, None)][:1], soft=False)
        log.commit(last)
        deleted = write(log, "ä", None)

        assert log.read(0, 10, _ALL).changes == [written, deleted]
        assert written.content == draft.content
        assert (written.state, written.expires_at_ms) == ("state", 1 << 42)
        assert (written.routes, written.trace_parent) == (3, "00-trace")

    # -- reading ----------------------------------------------------------------------------------

    def test_reading_is_bounded_and_never_empty_before_the_head(self, log: WritableLog) -> None:
        for n in range(20):
            write(log, f"i{n}", b"x" * 1000)

        assert len(log.read(3, 5, _ALL).changes) == 5
        assert len(log.read(3, 100, 1).changes) == 1
        assert 1 < len(log.read(3, 100, 5_000).changes) < 17
        assert log.read(20, 100, _ALL).changes == []

    def test_a_change_is_not_delivered_before_it_is_committed(self, log: WritableLog) -> None:
        last, _ = log.append([Change("a", 0, b"v")], soft=False)

        assert (log.head(), log.appended) == (0, 1)
        assert log.pending("a") is None
        assert log.read(0, 10, _ALL).changes == []

        log.commit(last)
        assert log.head() == 1
        assert log.pending("a") is not None

    def test_a_soft_change_is_visible_at_once(self, log: WritableLog) -> None:
        _, (change,) = log.append([Change("a", 0, b"v")], soft=True)

        assert log.pending("a") == change
        assert log.read(0, 10, _ALL).changes == [change]

    def test_committing_takes_along_what_was_appended_before(self, log: WritableLog) -> None:
        first, _ = log.append([Change("a", 0, b"1")], soft=False)
        second, _ = log.append([Change("b", 0, b"2")], soft=False)

        log.commit(second)
        log.commit(first)

        assert log.head() == 2

    # -- cursors ----------------------------------------------------------------------------------

    def test_a_cursor_begins_at_zero_and_only_grows(self, log: WritableLog) -> None:
        assert log.cursor(ARCHIVE) == 0
        for n in range(3):
            write(log, f"i{n}")
        log.advance(ARCHIVE, 2)

        log.advance(ARCHIVE, 1)

        assert log.cursor(ARCHIVE) == 2
        assert log.cursor("never heard of") == 0

    def test_a_change_is_pending_until_the_archive_has_passed_it(self, log: WritableLog) -> None:
        first, second = write(log, "a", b"1"), write(log, "a", b"2")
        assert log.pending("a") == second

        log.advance(ARCHIVE, 1)
        assert log.pending("a") == second, f"{first} was passed, the newer one was not"

        log.advance(ARCHIVE, 2)
        assert log.pending("a") is None

    def test_what_is_pending_is_counted(self, log: WritableLog) -> None:
        assert (log.pending_items, log.pending_bytes) == (0, 0)
        for n in range(10):
            write(log, f"i{n}", bytes(1000))
        assert log.pending_items == 10
        assert 10_000 <= log.pending_bytes < 20_000

        log.advance(ARCHIVE, 4)
        assert log.pending_items == 6
        assert 6_000 <= log.pending_bytes < 12_000

        drain(log)
        assert (log.pending_items, log.pending_bytes) == (0, 0)

    # -- conditions -------------------------------------------------------------------------------

    def test_an_overtaken_append_appends_nothing(self, log: WritableLog) -> None:
        write(log, "a")
        seen = log.head()
        write(log, "b")
        write(log, "a")

        with pytest.raises(Overtaken):
            log.append([Change("c", 0, b"v"), Change("a", 0, b"v")], soft=False, unless_after=seen)

        assert log.appended == 3
        last, _ = log.append([Change("c", 0, b"v")], soft=False, unless_after=log.appended)
        assert last == 4

    def test_a_condition_sees_what_is_not_committed_yet(self, log: WritableLog) -> None:
        seen = log.head()
        log.append([Change("a", 0, b"v")], soft=False)

        with pytest.raises(Overtaken):
            log.append([Change("a", 0, b"w")], soft=False, unless_after=seen)

    # -- dead letters -----------------------------------------------------------------------------

    def test_a_dead_letter_stays_readable_with_its_error(self, log: WritableLog) -> None:
        change = write(log, "a")
        assert log.dead_error(ARCHIVE, 1) is None

        log.dead_letter(ARCHIVE, 1, change, "refused")
        log.advance(ARCHIVE, 1)

        assert log.dead_error(ARCHIVE, 1) == "refused"
        assert log.pending("a") == change, "no tier has it: nobody else could answer"

    # -- death of the process ---------------------------------------------------------------------

    def test_what_was_committed_survives(
        self, log: WritableLog, reopen: Callable[[], WritableLog]
    ) -> None:
        written = [write(log, f"i{n}", b"%d" % n) for n in range(50)]
        written.append(write(log, "i0", None))

        log = reopen()

        assert log.head() == 51
        assert log.pending("i0") == written[-1]
        assert log.pending("i1") == written[1]
        assert drain(log) == written

    def test_positions_and_versions_go_on_where_they_were(
        self, log: WritableLog, reopen: Callable[[], WritableLog]
    ) -> None:
        before = write(log, "a")
        drain(log)

        log = reopen()
        after = write(log, "b")

        assert log.head() == 2
        assert after.version > before.version

    def test_a_cursor_never_stands_beyond_what_was_passed(
        self, log: WritableLog, reopen: Callable[[], WritableLog]
    ) -> None:
        """It may fall back: work is repeated, never skipped."""
        written = [write(log, f"i{n}") for n in range(10)]
        log.advance(ARCHIVE, 4)

        log = reopen()

        assert log.cursor(ARCHIVE) <= 4
        assert drain(log)[-6:] == written[4:]

    def test_dead_letters_survive(
        self, log: WritableLog, reopen: Callable[[], WritableLog]
    ) -> None:
        change = write(log, "a")
        log.dead_letter(ARCHIVE, 1, change, "refused")

        log = reopen()

        assert log.dead_error(ARCHIVE, 1) == "refused"
        drain(log)
        assert log.pending("a") == change
