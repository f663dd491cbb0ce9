"""Coherence: several engines on one archive learn of each other's changes."""

from __future__ import annotations

import enum
import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from sync_engine.core.batcher import newest_per_id
from sync_engine.core.filters import FilterManager
from sync_engine.core.item import Change
from sync_engine.core.policies import RetryConfig
from sync_engine.errors import ConfigError, FeedGap, StorageError
from sync_engine.flow.arrivals import Arrivals
from sync_engine.flow.feed_outlet import ArchivedLog
from sync_engine.flow.guard import Backoff
from sync_engine.flow.heard import Gate, Heard
from sync_engine.flow.reader import Reader
from sync_engine.flow.stale import StaleCopies
from sync_engine.flow.tier import Tier
from sync_engine.ports import ArchiveInfo, ArchiveStore, ChangeFeed, Runtime
from sync_engine.telemetry import Metrics, get_logger

__all__ = ["Coherence", "Publisher", "Sight"]

_log = get_logger("flow.coherence")
_LISTEN_S = 0.1
_POLL_S = 0.25
_WATCH_S = 1.0
_BATCH_ITEMS = 2000
_ORIGIN = "feed_origin"


class Sight(enum.Enum):
    """How this engine sees what others write."""

    FEED = "feed"
    ARCHIVE = "archive"
    NONE = "none"


class Publisher:
    """Tells the others the ids that this engine has brought into the archive.

    A follower of the log behind the archive's. What it cannot tell for too long it leaves out, and
    the feed tells everybody of the gap.

    Owned by one job.

    Args:
        log: The log.
        feed: Where it is told.
        arrivals: Says when the archive has taken something.
        runtime: Clock, randomness, wake.
        retry: Pauses after failures.
        lag_items_max: Positions after which it leaves out what waits.
    """

    JOB = "coherence-out"

    def __init__(
        self,
        log: Any,
        feed: ChangeFeed,
        arrivals: Arrivals,
        runtime: Runtime,
        *,
        retry: RetryConfig,
        lag_items_max: int,
    ) -> None:
        self._log = ArchivedLog(log, arrivals, runtime.wake)
        self._feed = feed
        self._backoff = Backoff(retry, runtime.random)
        self._arrivals = arrivals
        self._lag_items_max = lag_items_max
        self._located = False
        stored = log.get_snapshot(_ORIGIN)
        self.origin: str = stored.decode() if stored else log.uuid

    @property
    def healthy(self) -> bool:
        """Whether the last word was taken."""
        return self._located

    def step(self) -> float:
        """Tell one batch; return the seconds to wait."""
        try:
            return self._tell()
        except ConfigError as exc:
            _log.limited("feed_misconfigured", error=exc)
            return self._failed()
        except StorageError as exc:
            _log.limited("feed_not_told", error=exc)
            return self._failed()

    def _failed(self) -> float:
        self._located = False
        lag = self._log.head() - self._log.cursor(self.JOB)
        if lag > self._lag_items_max:  # whoever reads the feed is going to find the gap
            self._log.advance(self.JOB, self._log.head())
        return self._backoff.failed()

    def _tell(self) -> float:
        cursor = self._log.cursor(self.JOB)
        if not self._located:
            cursor = self._locate(cursor)
        part = self._log.read(cursor, _BATCH_ITEMS, 1 << 62)
        if not part.changes:
            self._backoff.succeeded()
            self._log.want(self.JOB, cursor + 1)
            return math.inf
        self._feed.apply_at(newest_per_id(part.changes), self.origin, part.last)
        self._log.advance(self.JOB, part.last)
        self._arrivals.reached(self.JOB)
        self._backoff.succeeded()
        return 0.0

    def _locate(self, cursor: int) -> int:
        self._feed.attach()
        stored = self._feed.position(self.origin)
        if stored is not None and stored > self._log.end:
            # The power took the end of the log: its positions are given out once more, and would be
            # taken for repetitions. From now on this is somebody else.
            self.origin = uuid.uuid4().hex
            self._log.put_snapshot(_ORIGIN, self.origin.encode())
            stored = None
        if stored is None or stored < cursor:
            # Also where it is new: an earlier log of this engine may have left things untold.
            self._feed.begin(self.origin, cursor, after_gap=cursor > 0)
        elif stored > cursor:
            cursor = stored
            self._log.advance(self.JOB, stored)
        self._located = True
        return cursor


class Coherence:
    """Keeps L1 in step with what other engines write.

    It listens to the feed of ids. What another engine archived leaves L1 and the stale copies, goes
    into the filter, moves the version clock, and is held against older answers of L2. What this
    engine wrote itself is passed by.

    While the feed cannot be heard, L1 is put aside, and then kept in step by the archive itself:
    its generation grows with every batch of every writer, and if others wrote, L1 is emptied. That
    is also the way where there is no feed. While neither can be asked, L1 stays aside, unless no
    other engine was ever noticed. An engine that provably is the only writer needs none of this.

    The archive is also looked at, once a second, for those whom the feed does not know. A writer
    that cannot reach the feed says so there (`ArchiveInfo.untold`): until it can, this engine goes
    by the archive. A writer that died, or left, before its last word (`ArchiveInfo.lost`) is reason
    to empty L1.

    L2 may lag behind the archive. An older answer of it is known by what was heard; so while words
    may have been missed, it is held against the archive: until the feed has been heard for
    `settle_s`, and no writer says that L2 lacks what it archived (`ArchiveInfo.uncached`).

    Owned by one job; `sight`, `error` and `stats` may be read from any thread.

    Args:
        feed: The feed; None where there is none.
        is_own: Tells whether an origin is this engine.
        gate: The way into L1.
        heard: What was heard.
        reader: Told which of its questions were overtaken.
        stale: Copies past their deadline.
        filters: Told about what others put.
        archive: L3.
        observe_version: Moves the version clock.
        alone: Tells whether this engine provably is the only writer.
        metrics: Where meters are kept.
        runtime: Clock, randomness.
        retry: Pauses after failures.
        settle_s: Seconds after which every writer has said how it stands.
    """

    JOB = "coherence"

    def __init__(
        self,
        feed: ChangeFeed | None,
        *,
        is_own: Callable[[str], bool],
        gate: Gate,
        heard: Heard,
        reader: Reader,
        stale: StaleCopies,
        filters: FilterManager,
        archive: Tier[ArchiveStore],
        observe_version: Callable[[int], None],
        alone: Callable[[], bool],
        metrics: Metrics,
        runtime: Runtime,
        retry: RetryConfig,
        settle_s: float,
    ) -> None:
        self._feed = feed
        self._settle_s = settle_s
        self._heard_since = math.inf
        self._missed_words = feed is not None
        self._is_own = is_own
        self._gate = gate
        self._heard = heard
        self._reader = reader
        reader.l2_doubted = self._missed_words
        self._stale = stale
        self._filters = filters
        self._archive = archive
        self._observe_version = observe_version
        self._alone = alone
        self._clock = runtime.clock
        self._backoff = Backoff(retry, runtime.random)
        self._listen_at = -math.inf
        self._poll_at = -math.inf
        self._others: int | None = None
        self._others_noticed = False
        self._watched_at = -math.inf
        self._lost_writers: int | None = None
        self._left_in_the_dark = False
        self.sight = Sight.NONE
        self.error = ""
        self._told = metrics.counter("coherence_changes")
        self._drops = {
            why: metrics.counter("coherence_drops", reason=why)
            for why in ("feed_lost", "feed_gap", "archive_moved", "blind", "writer_lost", "untold")
        }

    def stats(self) -> dict[str, float | str]:
        """Return how others are seen, whether L1 takes anything, and how many ids were heard."""
        return {
            "sight": self.sight.value,
            "l1_open": int(self._gate.is_open),
            "heard_ids": len(self._heard),
            "error": self.error,
        }

    # -- the job ----------------------------------------------------------------------------------

    def step(self) -> float:
        """Listen for a moment, or look at the archive; return the seconds to wait."""
        if self._feed is not None:
            if self._clock.monotonic() - self._watched_at >= _WATCH_S:
                self._watch()
            self._reader.l2_doubted = self._missed_words and not self._alone()
        feed = self._audible
        if feed is not None and self._clock.monotonic() >= self._listen_at:
            try:
                came = self._listen(feed)
            except (StorageError, ConfigError, FeedGap) as exc:
                self._lost(exc)
            else:
                return 0.0 if came else feed.idle_s
        return self._look()

    @property
    def _audible(self) -> ChangeFeed | None:
        """The feed, while it tells what everybody writes."""
        return None if self._left_in_the_dark else self._feed

    def _listen(self, feed: ChangeFeed) -> bool:
        """Take what was told; return whether there was anything."""
        if self.sight is not Sight.FEED:
            feed.attach()
            feed.seek_end()
            self._heard_since = self._clock.monotonic()
            self._see(Sight.FEED)  # from here on, nothing is missed
            self._backoff.succeeded()
            self.error = ""
            _log.info("feed_heard", feed=feed.name)
        told = feed.read(_LISTEN_S)
        for origin, changes in told:
            if not self._is_own(origin):
                self._hear(changes)
        return bool(told)

    def _hear(self, changes: Sequence[Change]) -> None:
        """Take what another engine has archived. The order of the lines matters."""
        self._others_noticed = True
        self._heard.note(changes)  # from now on an older answer of L2 is none
        self._reader.overtake(changes)  # and whoever had asked before fills nothing
        self._gate.discard_many([change.id for change in changes])
        self._stale.forget(changes)
        self._filters.add_many([c.id for c in changes if c.content is not None])
        self._observe_version(max(change.version for change in changes))
        self._told.add(len(changes))

    # -- those whom the feed does not know --------------------------------------------------------

    def _watch(self) -> None:
        """Look for writers that cannot tell what they write, or never will."""
        self._watched_at = self._clock.monotonic()
        try:
            info = self._info()
        except StorageError:
            return  # who cannot be asked takes no writes that we could miss
        dark, self._left_in_the_dark = self._left_in_the_dark, info.untold > 0
        if self._heard_since + self._settle_s <= self._watched_at and not info.uncached:
            self._missed_words = False
        if self._left_in_the_dark and not dark:
            self._others_noticed = True
            self._go_blind("untold")
            self.error = f"{info.untold} of them cannot reach it"
            _log.warning("others_cannot_tell", writers=info.untold)
        known, self._lost_writers = self._lost_writers, info.lost
        if known is not None and info.lost != known and self._gate.is_open:
            self._begin_anew()
            self._drops["writer_lost"].inc()

    def _info(self) -> ArchiveInfo:
        return self._archive.call("info", self._archive.store.info)

    # -- losing and gaining sight -----------------------------------------------------------------

    def _lost(self, exc: Exception) -> None:
        if self.sight is Sight.FEED:
            self._go_blind("feed_gap" if isinstance(exc, FeedGap) else "feed_lost")
        _log.limited("feed_lost", error=exc)
        self.error = str(exc)
        # A gap says that the server is well: what is missing is made good by beginning anew.
        delay_s = 0.0 if isinstance(exc, FeedGap) else min(self._backoff.failed(), 1.0)
        self._listen_at = self._clock.monotonic() + delay_s

    def _go_blind(self, why: str) -> None:
        self.sight = Sight.NONE
        self._heard_since = math.inf
        self._missed_words = self._reader.l2_doubted = True
        self._others = None
        self._poll_at = -math.inf
        if self._others_noticed and not self._alone():
            self._gate.shut()
            self._drops[why].inc()

    def _see(self, sight: Sight) -> None:
        """Begin anew with an empty L1: everything that comes from now on is noticed."""
        if not self._alone() or not self._gate.is_open:
            self._begin_anew()
        self.sight = sight

    def _begin_anew(self) -> None:
        self._gate.shut()
        self._reader.overtake_all()
        self._gate.open()

    def _look(self) -> float:
        """See by the archive whether others wrote."""
        now = self._clock.monotonic()
        if self._alone():
            if not self._gate.is_open:
                self._see(self.sight)
            self._others = None
            self.sight = Sight.NONE if self.sight is Sight.ARCHIVE else self.sight
        elif now >= self._poll_at:
            self._poll_at = now + _POLL_S
            try:
                self._poll()
            except StorageError as exc:
                _log.limited("archive_not_seen", error=exc)
                self._unseen()
        until = _POLL_S if self._audible is None else self._listen_at - now
        return min(_POLL_S, max(0.001, until))

    def _poll(self) -> None:
        info = self._info()
        if self.sight is not Sight.ARCHIVE:
            self._see(Sight.ARCHIVE)
        elif info.others != self._others:
            self._others_noticed = True
            self._see(Sight.ARCHIVE)
            self._drops["archive_moved"].inc()
        self._others = info.others

    def _unseen(self) -> None:
        if self.sight is not Sight.NONE:
            self.sight = Sight.NONE
            self._others = None
        if self._others_noticed and self._gate.is_open:
            self._gate.shut()
            self._drops["blind"].inc()
