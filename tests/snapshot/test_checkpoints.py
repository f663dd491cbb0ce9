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
        self.room = True
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

    def checkpoint(self) -> bool:
        self.done.append("checkpoint")
        return True

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
