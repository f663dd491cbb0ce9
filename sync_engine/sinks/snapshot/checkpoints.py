"""Keeps the write-ahead log of a live database short, and never in the way of who waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sync_engine.ports import Clock
from sync_engine.sinks.snapshot.database import Database
from sync_engine.sinks.snapshot.settings import ReplicationSettings

__all__ = ["CheckpointCounts", "Checkpoints", "Reader"]

_IDLE_S = 0.5
_CHECKPOINT_EVERY_S = 0.2
_YIELD_S = 0.15
_SEAL_WAIT_S = 0.5
_SEAL_RETRY_S = 0.0003
_SEAL_PATIENCE_S = 0.1
_SEAL_PAUSE_S = 0.2


class Reader(Protocol):
    """Who reads the log, and holds it by pins.

    Attributes:
        database: The live database.
        frames: Published frames in its log at the last look.
        imaging: Whether an image of it is being read.
    """

    database: Database
    frames: int
    imaging: bool

    def look(self) -> bool:
        """Read everything that is published; tell whether there was something."""

    def stage_pending(self) -> bool:
        """Stage what is pending; False where there is no room for it."""

    def let_go(self, seconds: float) -> None:
        """Drop the pins for a moment."""

    def release(self) -> None:
        """Drop them until the next look."""


@dataclass(slots=True)
class CheckpointCounts:
    """What was done since the process began; a plain record for `status`."""

    checkpoints: int = 0
    seals: int = 0
    seal_s_max: float = 0.0
    yields: int = 0


class Checkpoints:
    """Decides when the log is copied into the database, and does it.

    Thread-safety: owned by the job that captures; `counts` may be read by any thread.

    Args:
        reader: Who reads the log.
        clock: Time.
        settings: How long it may be.

    Attributes:
        quiet: Whether nothing was committed since the log was emptied.
    """

    def __init__(self, reader: Reader, clock: Clock, settings: ReplicationSettings) -> None:
        self._reader = reader
        self._clock = clock
        self._settings = settings
        self._checkpoint_at = 0.0
        self._busy_at = clock.monotonic()
        self._published: object = None
        self.quiet = False
        self._copied = False  # all of the log: the next commit begins it anew
        self._seal_at = 0.0
        self._frames = 0
        self.counts = CheckpointCounts()

    def moved(self, now: float) -> None:
        """Something was committed."""
        self._busy_at, self.quiet, self._copied = now, False, False

    @property
    def behind(self) -> bool:
        """Whether the log is longer than it should ever be, and the next commit makes it longer."""
        return self._reader.frames >= self._settings.seal_pages and not self._copied

    @property
    def wait_s(self) -> float:
        """Seconds until the next look.

        A tenth of `poll_s` after a long log, even one that was copied: our pin keeps writers from
        copying anything of the next one until a look moves it there.
        """
        poll_s = self._settings.poll_s
        return poll_s / 10 if self._reader.frames >= self._settings.seal_pages else poll_s

    def step(self, now: float) -> None:
        """Do what is worth it.

        Args:
            now: Monotonic seconds at which the last look began.
        """
        self._copied &= self._reader.frames == self._frames
        if self.behind and not self._reader.imaging and now >= self._seal_at:
            self._seal()
        elif (
            self._reader.frames >= self._settings.checkpoint_pages
            and now - self._checkpoint_at >= _CHECKPOINT_EVERY_S
        ):
            self._checkpoint_at = now
            self._checkpoint()
        if not self.quiet and now - self._busy_at >= _IDLE_S:
            self._busy_at = now  # however long the log is: who waits holds up all writers
            self._rest()
        self._frames = self._reader.frames

    def without_room(self, now: float) -> None:
        """Keep the place in the log, which nobody reads for want of room, but in nobody's way.

        Who waits for readers gets through, and from then on nobody has to wait: the place is lost
        then. A log that grows tells that nobody waits, as long as it does.

        Args:
            now: Monotonic seconds.
        """
        published = self._reader.database.published()
        if published != self._published:
            self._published = published
            self.moved(now)
        elif now - self._busy_at >= _IDLE_S:
            self._busy_at = now
            if self._reader.database.waited_for():
                self.counts.yields += 1
                self._reader.release()

    def _checkpoint(self, patience_s: float = 0.0) -> bool | None:
        """Copy the log; the next hand-over then lets the next writer restart it.

        Args:
            patience_s: How long to try while somebody else is at it.

        Returns:
            Whether all of it was copied; None where somebody else is still at it.
        """
        self.counts.checkpoints += 1
        until = self._clock.monotonic() + patience_s
        while (copied := self._reader.database.checkpoint()) is None:
            if self._clock.monotonic() >= until:
                return None
            self._clock.sleep(_SEAL_RETRY_S)
        if copied:
            self._copied = not self._reader.look() and not self._reader.imaging
        return copied

    def _seal(self) -> None:
        """Hold writers up for one look and one checkpoint: the log is too long otherwise."""
        began = self._clock.monotonic()
        # SQLite's own waiting sleeps longer each time: against a writer that hardly ever lets go of
        # the lock, short and frequent attempts get it, and so hold it for less time in all.
        while self._clock.monotonic() - began < _SEAL_WAIT_S:
            with self._reader.database.writers_held(0.0) as held:
                if held:
                    taken = self._clock.monotonic()
                    self._reader.look()
                    # The lock is had most easily while a writer that just committed copies the log
                    # itself. Nothing would be gained then, so it is given the time to end.
                    if self._checkpoint(_SEAL_PATIENCE_S) is None:  # not all the time, though
                        self._seal_at = self._clock.monotonic() + _SEAL_PAUSE_S
                    self.counts.seals += 1
                    held_s = self._clock.monotonic() - taken
                    self.counts.seal_s_max = max(self.counts.seal_s_max, held_s)
                    return
            self._clock.sleep(_SEAL_RETRY_S)

    def _rest(self) -> None:
        """Nothing was committed for a while: empty the log, or let somebody pass who waits."""
        if self._reader.database.waited_for():
            if not self._reader.look() and self._reader.stage_pending():
                self.counts.yields += 1
                self._reader.let_go(_YIELD_S)
        else:
            self.quiet = self._checkpoint() is True
