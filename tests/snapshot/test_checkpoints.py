"""The log is kept short, and whoever waits for readers is let through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from sync_engine.sinks.snapshot.checkpoints import Checkpoints, Reader
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.testing import ManualRuntime


class FakeReader:
    """A reader of a database that tells who waits for it; it is its own database."""

    def __init__(self) -> None:
        self.database = self
        self.frames = 10
        self.imaging = self.waited = self.fresh = False
        self.room = self.copies = True
        self.foreign = 0
        """So many attempts to copy the log find somebody else at it."""
        self.done: list[str] = []

    def look(self) -> bool:
        self.done.append("look")
        return self.fresh

    def stage_pending(self) -> bool:
        return self.room

    def let_go(self, seconds: float) -> None:
        assert 0 < seconds < 1
        self.done.append("let go")

    def release(self) -> None:
        self.done.append("release")

    def published(self) -> int:
        return self.frames

    def checkpoint(self) -> bool | None:
        if self.foreign:
            self.foreign -= 1
            return None
        self.done.append("checkpoint")
        return self.copies

    def waited_for(self) -> bool:
        return self.waited

    @contextmanager
    def writers_held(self, timeout_s: float) -> Iterator[bool]:
        self.done.append("hold")
        yield not self.waited


@pytest.fixture
def reader() -> FakeReader:
    return FakeReader()


@pytest.fixture
def checkpoints(reader: FakeReader, runtime: ManualRuntime) -> Checkpoints:
    settings = ReplicationSettings(checkpoint_pages=100, seal_pages=400)
    return Checkpoints(cast("Reader", reader), runtime.clock, settings)


def rest(checkpoints: Checkpoints, clock: Any) -> None:
    checkpoints.moved(clock.monotonic())
    clock.advance(1)
    checkpoints.step(clock.monotonic())


@pytest.mark.parametrize("frames", [10, 100, 400])
def test_who_waits_for_readers_is_let_through_however_long_the_log_is(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime, frames: int
) -> None:
    reader.frames, reader.waited = frames, True

    rest(checkpoints, runtime.clock)

    assert reader.done[-1] == "let go"
    assert checkpoints.counts.yields == 1
    assert not checkpoints.quiet


@pytest.mark.parametrize("reason", ["something is unread", "there is no room"])
def test_nobody_is_let_through_before_everything_is_staged(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime, reason: str
) -> None:
    reader.waited = True
    reader.fresh = reason == "something is unread"
    reader.room = reason != "there is no room"

    rest(checkpoints, runtime.clock)

    assert "let go" not in reader.done


def test_without_room_who_waits_is_let_through_though_nothing_is_staged(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime
) -> None:
    reader.waited, reader.room = True, False
    checkpoints.without_room(runtime.clock.monotonic())
    assert reader.done == []  # it may be a moment's coincidence

    runtime.clock.advance(0.6)
    checkpoints.without_room(runtime.clock.monotonic())

    assert reader.done == ["release"]
    assert checkpoints.counts.yields == 1


@pytest.mark.parametrize("reason", ["the log grows", "nobody waits"])
def test_without_room_the_place_in_the_log_is_kept_where_nobody_waits(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime, reason: str
) -> None:
    reader.waited = reason == "the log grows"

    for _ in range(20):
        reader.frames += reason == "the log grows"
        checkpoints.without_room(runtime.clock.monotonic())
        runtime.clock.advance(0.6)

    assert reader.done == []


def test_an_idle_log_is_emptied_once(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime
) -> None:
    rest(checkpoints, runtime.clock)
    assert checkpoints.quiet
    done = list(reader.done)

    runtime.clock.advance(10)
    checkpoints.step(runtime.clock.monotonic())

    assert done == ["checkpoint", "look"]
    assert reader.done == done


def test_writers_are_held_up_for_a_log_that_is_much_too_long_but_never_for_an_image(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime
) -> None:
    reader.frames = 400
    reader.imaging = True
    checkpoints.step(runtime.clock.monotonic())
    assert "hold" not in reader.done

    reader.imaging = False
    checkpoints.step(runtime.clock.monotonic())

    assert reader.done[-4:] == ["hold", "look", "checkpoint", "look"]
    assert checkpoints.counts.seals == 1


def test_writers_are_held_until_one_of_them_has_ended_its_own_copying(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime
) -> None:
    """The lock is had most easily just then; let go of too early, the log would go on growing."""
    reader.frames, reader.foreign = 400, 100
    began = runtime.clock.monotonic()

    checkpoints.step(began)

    assert reader.done == ["hold", "look", "checkpoint", "look"]
    assert not checkpoints.behind
    assert 0 < runtime.clock.monotonic() - began <= 0.1


def test_writers_are_held_a_third_of_the_time_at_most_while_somebody_copies_for_long(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime
) -> None:
    reader.frames, reader.foreign = 400, 1_000_000
    began = runtime.clock.monotonic()
    held_s = 0.0

    while runtime.clock.monotonic() - began < 10:
        now = runtime.clock.monotonic()
        checkpoints.step(now)
        held_s += runtime.clock.monotonic() - now
        runtime.clock.advance(0.01)

    assert 1 < held_s < 10 / 3
    assert checkpoints.behind
    assert "checkpoint" not in reader.done


def test_writers_are_not_held_for_somebody_who_reads_what_is_old(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime
) -> None:
    """Not all of the log can be copied then, however long one waits."""
    reader.frames, reader.copies = 400, False
    began = runtime.clock.monotonic()

    checkpoints.step(began)

    assert reader.done == ["hold", "look", "checkpoint"]
    assert runtime.clock.monotonic() == began


def test_a_long_log_that_is_copied_is_left_alone_until_it_goes_on(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime
) -> None:
    reader.frames = 400
    checkpoints.step(runtime.clock.monotonic())
    assert not checkpoints.behind

    for _ in range(3):
        runtime.clock.advance(0.1)
        checkpoints.step(runtime.clock.monotonic())
    assert checkpoints.counts.seals == 1

    reader.frames = 402
    runtime.clock.advance(0.1)
    checkpoints.step(runtime.clock.monotonic())
    assert checkpoints.counts.seals == 2


def test_what_is_committed_while_a_log_is_copied_makes_it_too_long_again(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime
) -> None:
    reader.frames, reader.fresh = 400, True

    checkpoints.step(runtime.clock.monotonic())

    assert checkpoints.behind
    assert checkpoints.wait_s == pytest.approx(0.01)


def test_the_pin_follows_soon_into_a_log_that_is_begun_anew(
    checkpoints: Checkpoints, reader: FakeReader, runtime: ManualRuntime
) -> None:
    """Where it stays behind, every commit tries to copy the log, in vain."""
    assert checkpoints.wait_s == 0.1
    reader.frames = 400

    checkpoints.step(runtime.clock.monotonic())

    assert not checkpoints.behind
    assert checkpoints.wait_s == pytest.approx(0.01)
