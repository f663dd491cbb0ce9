"""The feed of one engine: what the archive has taken, in the order of the log."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from sync_engine.core.item import Change, Route, SyncItem
from sync_engine.errors import ConfigError, CorruptData, EngineClosed, FeedGap, InvalidItem
from sync_engine.flow.arrivals import Arrivals
from sync_engine.flow.backfill import tombstone_of
from sync_engine.ports import LogSlice, Runtime

__all__ = ["ArchivedChange", "Feed", "FeedLog", "Feeds", "Patience", "consumer_cursor", "parse"]

_ARCHIVE = "l3"
_L3 = int(Route.L3)
_BATCH_ITEMS = 500
_BATCH_BYTES = 4 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_TOKEN = re.compile(r"([0-9a-f]{32}):(\d{1,19})")
_SLICE_S = 0.2
CONSUMER = "feed:"
TEMPORARY = "reading:"
KEPT = "kept"


class FeedLog(Protocol):
    """What a feed needs of a log: the engine's own, or a look at the file of another process."""

    uuid: str

    @property
    def released(self) -> int: ...  # noqa: D102 - positions up to here may be gone
    def head(self) -> int: ...  # noqa: D102 - as ports.ChangeLog
    def cursor(self, name: str) -> int: ...  # noqa: D102
    def read(self, after: int, items_max: int, bytes_max: int) -> LogSlice: ...  # noqa: D102
    def dead_error(self, follower: str, position: int) -> str | None: ...  # noqa: D102


class ArchivedChange(msgspec.Struct, frozen=True):
    """One change that the archive has taken.

    Attributes:
        id: The item's id.
        version: Of the change.
        item: The item as it was written; None where it was deleted. A write that is kept in the
            cache alone counts as a deletion: that is what it does to the archive.
        position: Place in the engine's log.
        token: Continues after this change; see `SyncEngine.changes`.
    """

    id: str
    version: int
    item: SyncItem | None
    position: int
    token: str

    @property
    def deleted(self) -> bool:
        """Whether the item was deleted."""
        return self.item is None


def parse(token: str, log_uuid: str) -> int:
    """Return the position that a token names.

    Raises:
        InvalidItem: It is no token.
        FeedGap: It is of another log.
    """
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise InvalidItem(f"not a token of a change feed: {token!r}")
    if found[1] != log_uuid:
        raise FeedGap(
            f"the token is of the log {found[1]}, this engine's log is {log_uuid}: begin with a"
            " scan of the archive"
        )
    return int(found[2])


def consumer_cursor(name: str) -> str:
    """Return the name of a consumer's cursor.

    Raises:
        ConfigError: The name cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} must be 1 to 64 letters, digits, or any of . _ -")
    return CONSUMER + name


class Feed:
    """Reads archived changes after a position; nothing is ever skipped in silence.

    Owned by one caller at a time.

    Args:
        log: The log.
        after: Position to begin after.
        keep: Told how far the caller is, so that the log keeps the rest.
        make_safe: Sees to it that no crash undoes what is about to be told.

    Raises:
        FeedGap: The log no longer reaches back to it, or never reached it.
    """

    def __init__(
        self,
        log: FeedLog,
        after: int,
        keep: Callable[[int], None] = lambda _: None,
        make_safe: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._log = log
        self._keep = keep
        self._make_safe = make_safe
        self.position = after
        if after > log.head():
            raise FeedGap(
                f"position {after} lies beyond the log, which ends at {log.head()}: the log is an"
                " older copy of itself; begin with a scan of the archive"
            )
        self._check()

    def archived(self) -> int:
        """Return the last position that may be read."""
        return min(self._log.head(), self._log.cursor(_ARCHIVE))

    def _check(self) -> None:
        if self.position < self._log.released:
            raise FeedGap(
                f"the log no longer reaches back to position {self.position}: begin with a scan of"
                " the archive, or read as a named consumer, for whom the log waits"
            )

    def take(self) -> tuple[list[ArchivedChange], int]:
        """Return some of what is archived by now, and the position that it ends at.

        The same is returned again until `done` is told that position, or one on the way.

        Raises:
            FeedGap: The log no longer reaches back.
            CorruptData: A stored record fails its check.
        """
        room = self.archived() - self.position
        if room <= 0:
            return [], self.position
        try:
            part = self._log.read(self.position, min(room, _BATCH_ITEMS), _BATCH_BYTES)
        except CorruptData:
            self._check()  # positions that were let go meanwhile look like missing ones
            raise
        if not part.changes:
            self._check()
        self._make_safe(part.last)
        refused = self._log.dead_error
        told = [
            self._told(change, position)
            for position, change in enumerate(part.changes, part.after + 1)
            if change is not None and refused(_ARCHIVE, position) is None
        ]
        return told, part.last

    def done(self, position: int) -> None:
        """Note that everything up to a position was taken."""
        self.position = position
        self._keep(position)

    def hand_out(self, changes: Sequence[ArchivedChange], upto: int) -> Iterator[ArchivedChange]:
        """Yield what was taken; what the reader went past, and then all up to the end, is done."""
        for change in changes:
            yield change
            self.done(change.position)
        if upto > self.position:
            self.done(upto)

    def _told(self, change: Change, position: int) -> ArchivedChange:
        if not change.routes & _L3:
            change = tombstone_of(change)
        token = f"{self._log.uuid}:{position}"
        return ArchivedChange(change.id, change.version, change.item(), position, token)


class Patience:
    """How long a reader of a feed waits for more: in slices, and until it was quiet for too long.

    Args:
        timeout_s: Seconds without a change after which the reader ends; None never ends.
        now: Seconds that only grow.
    """

    def __init__(self, timeout_s: float | None, now: Callable[[], float]) -> None:
        self._timeout_s = timeout_s
        self._now = now
        self._quiet_since = now()

    def left(self, *, came: bool) -> float | None:
        """Return the seconds to wait now: 0 where something came, None at the end."""
        if came:
            self._quiet_since = self._now()
            return 0.0
        if self._timeout_s is None:
            return _SLICE_S
        left = self._quiet_since + self._timeout_s - self._now()
        return None if left <= 0 else min(_SLICE_S, left)


class Feeds:
    """Opens feeds of an engine's own log.

    Thread-safety: all methods.

    Args:
        log: The log.
        arrivals: Who waits for which cursor.
        runtime: Locks, events, clock.
        items_kept: Archived changes that the log keeps for readers who come back.
    """

    def __init__(self, log: Any, arrivals: Arrivals, runtime: Runtime, items_kept: int) -> None:
        self._log = log
        self._arrivals = arrivals
        self._runtime = runtime
        self._items_kept = items_kept
        self._numbers = itertools.count(1)

    def begin(self) -> None:
        """Drop what readers of an earlier process left, and keep as much as is wanted."""
        for name in self._log.followers:
            if name.startswith(TEMPORARY) or (name == KEPT and not self._items_kept):
                self._log.unfollow(name)
        if self._items_kept:
            self._log.follow(KEPT)

    def tidy(self) -> None:
        """Let go of what is older than what is to be kept."""
        if self._items_kept:
            self._log.advance(KEPT, self._log.cursor(_ARCHIVE) - self._items_kept)

    def open(self, after: str | None, name: str) -> tuple[Feed, str]:
        """Return a feed, and the cursor that it holds the log by.

        Raises:
            InvalidItem: `after` is no token.
            ConfigError: The name cannot be used.
            FeedGap: The log no longer reaches back.
        """
        start = None if after is None else parse(after, self._log.uuid)
        cursor = consumer_cursor(name) if name else f"{TEMPORARY}{next(self._numbers)}"
        known = cursor in self._log.followers
        self._log.follow(cursor)
        try:
            if start is None:
                start = self._log.cursor(cursor)
                if not name:
                    start = max(start, self._log.cursor(_ARCHIVE))
            feed = Feed(
                self._log,
                start,
                lambda position: self._log.advance(cursor, position),
                self._make_safe,
            )
        except BaseException:
            if not known:
                self._log.unfollow(cursor)
            raise
        self._log.advance(cursor, start)
        return feed, cursor

    def _make_safe(self, position: int) -> None:
        """A token must not name a place that the power can take, and that is given out again."""
        if self._log.synced < position:
            if self._log.written < position:
                self._log.write()
            self._log.sync(position)

    def leave(self, cursor: str) -> None:
        """Let go of what a reader without a name held."""
        if cursor.startswith(TEMPORARY):
            self._log.unfollow(cursor)

    def forget(self, name: str) -> bool:
        """Let go of what a named consumer holds; return whether there was one."""
        cursor = consumer_cursor(name)
        known = cursor in self._log.followers
        self._log.unfollow(cursor)
        return known

    def when_more(self, feed: Feed, callback: Callable[[], None]) -> None:
        """Call back, in some thread, once there is something after what was taken."""
        self._arrivals.when(_ARCHIVE, feed.position + 1, callback)

    def iterate(
        self,
        after: str | None,
        name: str,
        timeout_s: float | None,
        check_open: Callable[[], object],
    ) -> Iterator[ArchivedChange]:
        """Yield changes; see `SyncEngine.changes`."""
        feed, cursor = self.open(after, name)
        patience = Patience(timeout_s, self._runtime.clock.monotonic)
        try:
            came = self._runtime.event()
            waits_at = -1
            while True:
                check_open()
                try:
                    changes, upto = feed.take()
                except Exception:
                    check_open()  # it was closed under our hands
                    raise
                yield from feed.hand_out(changes, upto)
                left = patience.left(came=bool(changes))
                if left is None:
                    return
                if left == 0:
                    continue
                if waits_at != feed.position:
                    waits_at = feed.position
                    came.clear()
                    self.when_more(feed, came.set)
                if came.wait(left):
                    waits_at = -1
        finally:
            with contextlib.suppress(EngineClosed):  # then the next start drops what it held
                check_open()
                self.leave(cursor)
