"""Delivery to L2: a follower, the fills, and the cut when it can no longer keep up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sync_engine.core.item import Change, Route
from sync_engine.errors import StorageError, StoreRejected, StoreUnavailable
from sync_engine.flow.arrivals import Arrivals
from sync_engine.flow.follower import Follower
from sync_engine.flow.tier import Tier
from sync_engine.ports import CacheStore
from sync_engine.telemetry import Metrics, get_logger

__all__ = ["L2Delivery", "abandon_keys"]

_log = get_logger("flow.l2_delivery")
_L2, _L3 = "l2", int(Route.L3)
_CUT = "l2_cut"
_PART_ITEMS = 1000


def abandon_keys(log: Any) -> None:
    """Note, over crashes too, that L2 moves to a new epoch before it is read again."""
    log.put_snapshot(_CUT, b"1")


class L2Delivery:
    """Brings L2 what the log has, and lets it go when it fell too far behind.

    `step` belongs to one job.

    Args:
        tier: L2 behind its guard.
        log: The write-ahead log.
        arrivals: Who waits for its cursor.
        metrics: Where cuts are counted.
        now_ms: Wall-clock milliseconds.
        lag_items_max: Positions it may lag before it is cut off.
        deliver_fills: Copies answers of L3 up to L2.
    """

    def __init__(
        self,
        tier: Tier[CacheStore],
        log: Any,
        arrivals: Arrivals,
        metrics: Metrics,
        *,
        now_ms: Callable[[], int],
        lag_items_max: int,
        deliver_fills: Callable[[], None],
    ) -> None:
        self._tier = tier
        self._log = log
        self._arrivals = arrivals
        self._metrics = metrics
        self._now_ms = now_ms
        self._lag_items_max = lag_items_max
        self._deliver_fills = deliver_fills
        log.follow(_L2)
        if log.get_snapshot(_CUT):
            tier.renew = self._renew

    def step(self, follower: Follower) -> float:
        """Deliver at most one batch and some fills; return the seconds until the next step."""
        if self._log.lag(_L2) > self._lag_items_max and not follower.paused:
            self._cut()
        delay = follower.step()
        if self._tier.store.identity_changed():
            self._metrics.counter("l2_replaced").inc()
        try:
            self._deliver_fills()
        except StorageError as exc:
            _log.limited("fill_failed", error=exc)
        return delay

    def refused(self, change: Change) -> bool:
        """Mark an id whose value L2 refuses, so that no older value of it is read again.

        Returns:
            Whether that is all: the archive has the value. Else it goes to the dead letters.

        Raises:
            StoreUnavailable: L2 refuses the mark too: the fault is not the item's. It lags, and
                reads see the overlay, until it takes it or is cut off.
        """
        mark = Change(change.id, change.version, None, routes=_L3)
        try:
            self._tier.apply([mark])
        except StoreRejected as exc:
            raise StoreUnavailable(_L2, "apply", str(exc)) from exc
        return bool(change.routes & _L3)

    def _cut(self) -> None:
        """Let L2 go: its keys are abandoned before anything is read from it again."""
        abandon_keys(self._log)
        self._tier.renew = self._renew
        head = self._log.head()
        position = self._log.cursor(_L2)
        while position < head:
            part = self._log.read(position, _PART_ITEMS, 1 << 62)
            kept = [change for change in part.changes if self._only_here(change)]
            if kept:  # only L2 will ever hold these: they go to the end of the line
                last, _ = self._log.append(kept, soft=False)
                self._log.commit(last, len(kept))
            position = part.last
        self._log.advance(_L2, head)
        self._arrivals.reached(_L2)
        self._metrics.counter("l2_cuts").inc()
        _log.warning("l2_cut_off", skipped_to=head)

    def _only_here(self, change: Change | None) -> bool:
        return (
            change is not None
            and change.content is not None
            and not change.routes & _L3
            and not change.expired(self._now_ms())
            and self._log.pending(change.id) == change
        )

    def _renew(self) -> None:
        self._tier.store.new_epoch()
        self._log.put_snapshot(_CUT, b"")
