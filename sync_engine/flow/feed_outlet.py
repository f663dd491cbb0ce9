"""Outlets of feeds: only what the archive has taken, nothing copied, every loss told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from sync_engine.core.item import Change
from sync_engine.flow.arrivals import Arrivals
from sync_engine.flow.backfill import Progress, Stage
from sync_engine.flow.outlet import Outlet, OutletLog
from sync_engine.flow.tier import Tier
from sync_engine.ports import ArchiveStore, FeedSink, LogSlice, Runtime, Sink
from sync_engine.telemetry import get_logger

__all__ = ["ArchivedLog", "FeedOutlet"]

_log = get_logger("flow.feed")
_ARCHIVE = "l3"


class ArchivedLog:
    """The log up to where the archive has taken it, without what the archive refused.

    Args:
        log: The log.
        arrivals: Who waits for which cursor.
        wake: Ends the waiting of a job.
    """

    def __init__(self, log: Any, arrivals: Arrivals, wake: Callable[[str], None]) -> None:
        self._log = log
        self._arrivals = arrivals
        self._wake = wake
        self._wanted = 0
        self.uuid: str = log.uuid

    @property
    def followers(self) -> dict[str, int]:
        """Cursors by name."""
        return cast("dict[str, int]", self._log.followers)

    @property
    def written(self) -> int:
        """Last position in the file."""
        return int(self._log.written)

    @property
    def synced(self) -> int:
        """Last position that is safe from power loss."""
        return int(self._log.synced)

    @property
    def end(self) -> int:
        """Last position of the log, archived or not."""
        return int(self._log.head())

    def head(self) -> int:
        """Return the last position that the archive has taken."""
        return min(int(self._log.head()), int(self._log.cursor(_ARCHIVE)))

    def read(self, after: int, items_max: int, bytes_max: int) -> LogSlice:
        """Return archived changes after a position; None where the archive refused one."""
        room = min(items_max, self.head() - after)
        if room <= 0:
            return LogSlice(after, ())
        part: LogSlice = self._log.read(after, room, bytes_max)
        refused = self._log.dead_error
        changes: list[Change | None] = [
            None if refused(_ARCHIVE, position) is not None else change
            for position, change in enumerate(part.changes, after + 1)
        ]
        return LogSlice(after, changes)

    def want(self, name: str, position: int) -> None:
        """Ask to be woken once the archive has passed a position."""
        if not self._wanted or position < self._wanted:
            self._wanted = position
            self._arrivals.when(_ARCHIVE, position, lambda: self._came(name))

    def _came(self, name: str) -> None:
        self._wanted = 0
        self._wake(name)

    def cursor(self, name: str) -> int:
        """Return a follower's position."""
        return int(self._log.cursor(name))

    def advance(self, name: str, position: int) -> None:
        """Move a cursor forward."""
        self._log.advance(name, position)

    def follow(self, name: str, *, at_head: bool = False) -> None:
        """Register a follower."""
        self._log.follow(name, at_head=at_head)

    def unfollow(self, name: str) -> None:
        """Forget a follower."""
        self._log.unfollow(name)

    def write(self) -> None:
        """Write what is only in memory."""
        self._log.write()

    def sync(self, position: int) -> None:
        """Make everything up to a position safe from power loss."""
        self._log.sync(position)

    def put_snapshot(self, name: str, data: bytes) -> None:
        """Store a named blob beside the log."""
        self._log.put_snapshot(name, data)

    def get_snapshot(self, name: str) -> bytes | None:
        """Return a named blob."""
        return cast("bytes | None", self._log.get_snapshot(name))

    def dead_letter(self, follower: str, position: int, change: Change, error: str) -> None:
        """Put a change aside."""
        self._log.dead_letter(follower, position, change, error)


class FeedOutlet(Outlet):
    """Delivers to a feed what the archive has taken, in order.

    A feed begins with the oldest change that the log still holds. Nothing is copied: whoever wants
    the whole reads the archive. Where the feed has lost entries, or was let go because the log was
    full, it begins anew where the log stands, and its readers are told of a gap.
    """

    def __init__(
        self,
        name: str,
        tier: Tier[Sink],
        log: OutletLog,
        archive: Tier[ArchiveStore],
        runtime: Runtime,
        *,
        arrivals: Arrivals,
        **options: Any,
    ) -> None:
        self._archived = ArchivedLog(log, arrivals, runtime.wake)
        super().__init__(name, tier, self._archived, archive, runtime, **options)
        self._feed = cast("FeedSink", tier.store)

    def open(self) -> None:
        """Register the cursor, so that the log keeps what the feed has not taken."""
        known = Progress.decoded(self._log.get_snapshot(self.job))
        if known is not None:
            self._progress = known
        if self.job not in self._log.followers and known is not None:
            self._progress.stage = Stage.FOLLOW  # it had begun, and was let go: a gap
        self._log.follow(self.job)

    def _place(self, stored: int | None) -> None:
        cursor = self._log.cursor(self.job)
        if stored is not None and stored > self._archived.end:
            self._stop(
                f"the feed is at position {stored}, the log ends at {self._archived.end}: the log"
                " is an older copy of itself; give the engine a new log"
            )
            return
        if stored is None or stored < cursor:
            after_gap = stored is not None or self._progress.stage == Stage.FOLLOW
            if after_gap:
                _log.warning("feed_gap", sink=self.name, stored=stored, cursor=cursor)
            self.destination.call(
                "begin", self._feed.begin, self._log.uuid, cursor, after_gap=after_gap
            )
        else:
            self._log.advance(self.job, stored)
            self._reached(self.job)
        self._follow()

    def _let_go(self) -> None:
        """Skip what waits: the log is full, and the feed does not take it."""
        self._cut_wanted = False
        self._log.advance(self.job, self._log.head())
        self._reached(self.job)
        self._located = False
