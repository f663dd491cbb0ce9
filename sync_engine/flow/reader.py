"""The way out: overlay, L1, L2, filter, L3, and the answer copied up.

One flight per id: however many callers miss at once, the tiers are asked once. A flight that a
write overtook answers its callers and fills nothing.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from sync_engine.core.filters import FilterManager
from sync_engine.core.item import Change, Route
from sync_engine.errors import CorruptData, StorageError, StoreUnavailable
from sync_engine.flow.heard import Heard
from sync_engine.flow.stale import StaleCopies
from sync_engine.flow.tier import Tier
from sync_engine.ports import ArchiveStore, CacheStore, Event, NearCache, Runtime
from sync_engine.telemetry import Metrics, get_logger

__all__ = ["Reader"]

_log = get_logger("flow.reader")
_FILLS_MAX = 10_000
_L2 = int(Route.L2)  # a plain number: flags are slow on hot paths


def _newer(one: Change | None, other: Change | None) -> Change | None:
    """Return the newer of two changes, of equals the first."""
    if one is None or (other is not None and other.version > one.version):
        return other
    return one


class _Flight:
    """One question to the tiers, and everybody who waits for its answer."""

    __slots__ = ("answer", "error", "landed", "overtaken")

    def __init__(self, landed: Event) -> None:
        self.landed = landed
        self.overtaken = False
        self.answer: Change | None = None
        self.error: Exception | None = None


class Reader:
    """Finds the newest change of an id.

    Attributes:
        l2_doubted: Whether L2 may hold older values than the archive of which nobody told us. The
            archive is asked as well then, and the larger version is the answer.

    Thread-safety: all methods. Blocking: only what neither overlay nor L1 can answer touches the
    network, within the tiers' time budgets.
    """

    def __init__(
        self,
        pending: Callable[[str], Change | None],
        l1: NearCache,
        l2: Tier[CacheStore] | None,
        l3: Tier[ArchiveStore],
        filters: FilterManager,
        runtime: Runtime,
        metrics: Metrics,
        *,
        stale: StaleCopies,
        observe_version: Callable[[int], None],
        timeout_s: float,
        wake_l2: Callable[[], None],
        heard: Heard | None = None,
    ) -> None:
        self._pending = pending
        self._l1 = l1
        self._l2 = l2
        self._l3 = l3
        self._filters = filters
        self._runtime = runtime
        self._now_ms = runtime.clock.now_ms
        self._stale = stale
        self._observe_version = observe_version
        self._timeout_s = timeout_s
        self._wake_l2 = wake_l2
        self._heard = Heard() if heard is None else heard
        self._lock = runtime.lock()
        self._flights: dict[str, _Flight] = {}
        self.l2_doubted = False
        self._fills: deque[Change] = deque(maxlen=_FILLS_MAX)
        self._hits = {
            tier: metrics.counter("reads", tier=tier)
            for tier in ("overlay", "l2", "l3", "filter", "absent", "stale")
        }

    # -- the log's side ---------------------------------------------------------------------------

    def overtake(self, changes: Sequence[Change]) -> None:
        """Changes are becoming visible: no flight of their ids may fill anything any more."""
        if self._flights:
            for change in changes:
                flight = self._flights.get(change.id)
                if flight is not None:
                    flight.overtaken = True

    def overtake_all(self) -> None:
        """Let no question that is under way fill anything: nobody knows what it missed."""
        with self._lock:
            for flight in self._flights.values():
                flight.overtaken = True

    # -- reading ----------------------------------------------------------------------------------

    def near(self, change_id: str) -> Change | None:
        """Return what overlay or L1 know of an id, tombstones included; None is "not known here".

        Never touches the network; reads the log file where the overlay left the bytes to it. An own
        change that others have, or may have, replaced in the archive is no answer: it waits in the
        overlay for an L2 that is away.
        """
        change = self._pending(change_id)
        if change is None:
            return self._l1.get(change_id)
        if not self.superseded(change):
            self._hits["overlay"].inc()
            return change
        held = self._l1.get(change_id)
        return held if held is not None and held.version > change.version else None

    def superseded(self, own: Change | int) -> bool:
        """Tell whether others replaced an entry of the overlay in the archive, or may have."""
        if self.l2_doubted:
            return True
        return type(own) is Change and own.version < self._heard.version(own.id)

    def get(self, change_id: str) -> Change | None:
        """Return the newest change of an id; None where it has none, is deleted, or expired.

        Raises:
            StoreUnavailable: The tier that would know cannot be asked.
        """
        change = self.near(change_id)
        if change is None:
            change = self.get_far((change_id,)).get(change_id)
        if change is None or change.content is None:
            return None
        return None if change.expired(self._now_ms()) else change

    def get_stale(self, change_id: str, within_ms: int) -> Change | None:
        """Return the newest copy known here or in the archive, if it expired not long ago.

        For callers whose question failed, and who allowed an old answer. What is known to be
        deleted is not answered.

        Args:
            change_id: The item's id.
            within_ms: The longest time since its deadline, in milliseconds.
        """
        change = self._pending(change_id) or self._stale.get(change_id)
        if change is None:
            with contextlib.suppress(StorageError, CorruptData):
                change = self.archived((change_id,)).get(change_id)
        if change is None or change.content is None:
            return None
        if change.expired(self._now_ms() - within_ms):
            return None
        self._hits["stale"].inc()
        _log.limited("served_stale", id=change_id, expired_at_ms=change.expires_at_ms)
        return change

    def get_many(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return the live items among ids; one L2 and one L3 query for all that are not near.

        Raises:
            StoreUnavailable: A tier that would know cannot be asked.
        """
        found: dict[str, Change] = {}
        far: dict[str, None] = {}
        for change_id in ids:
            change = self.near(change_id)
            if change is None:
                far[change_id] = None
            else:
                found[change_id] = change
        if far:
            found.update(self.get_far(tuple(far)))
        now_ms = self._now_ms()
        return {
            change_id: change
            for change_id, change in found.items()
            if change.content is not None and not change.expired(now_ms)
        }

    def get_far(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return what L2 and L3 know of ids that are not near, tombstones included.

        Raises:
            StoreUnavailable: A tier that would know cannot be asked.
        """
        mine: dict[str, _Flight] = {}
        others: dict[str, _Flight] = {}
        landed = self._runtime.event()  # one for all: they are asked, and land, together
        with self._lock:
            for change_id in ids:
                flight = self._flights.get(change_id)
                if flight is None or flight.overtaken:  # its answer may be older than this call
                    mine[change_id] = self._flights[change_id] = _Flight(landed)
                else:
                    others[change_id] = flight
        found = self._fly(mine) if mine else {}
        for change_id, flight in others.items():
            if not flight.landed.wait(self._timeout_s):
                raise StoreUnavailable("engine", "get", f"no answer within {self._timeout_s} s")
            if flight.error is not None:
                raise flight.error
            answer = _newer(self._pending(change_id), flight.answer)
            if answer is not None:
                found[change_id] = answer
        return found

    def _fly(self, flights: dict[str, _Flight]) -> dict[str, Change]:
        error: Exception | None = None
        found: dict[str, Change] = {}
        try:
            found = self._ask(flights)
        except Exception as exc:
            error = exc
            raise
        finally:
            with self._lock:
                for change_id, flight in flights.items():
                    if self._flights.get(change_id) is flight:
                        del self._flights[change_id]
                    flight.answer = found.get(change_id)
                    flight.error = error
            next(iter(flights.values())).landed.set()  # they share it
        return found

    def _ask(self, flights: dict[str, _Flight]) -> dict[str, Change]:
        # The flights are registered: a write from here on marks them. One that came before is seen
        # in the overlay now, or has been archived and is found below.
        found: dict[str, Change] = {}
        for change_id in flights:
            change = self.near(change_id)
            if change is not None:
                found[change_id] = change
        missing = [change_id for change_id in flights if change_id not in found]
        if missing:
            self._ask_l2(missing, found, flights)
            doubtful = [change_id for change_id in missing if self._doubts(change_id, found)]
            missing = [change_id for change_id in missing if change_id not in found]
            if doubtful:
                self._ask_again(doubtful, found, flights)
        if missing:
            self._ask_l3(missing, found, flights)
        for change_id, flight in flights.items():
            if flight.overtaken:
                newest = _newer(self._pending(change_id), found.get(change_id))
                if newest is not None:
                    found[change_id] = newest
        return found

    def _doubts(self, change_id: str, found: dict[str, Change]) -> bool:
        """Take the newer of an own change and L2's answer; tell whether the archive may know more.

        An own change is only still here if it may be old.
        """
        own = self._pending(change_id)
        newest = _newer(own, found.get(change_id))
        if newest is None:
            return False
        found[change_id] = newest
        return own is not None or self.l2_doubted

    def _ask_l2(
        self, ids: Sequence[str], found: dict[str, Change], flights: dict[str, _Flight]
    ) -> None:
        if self._l2 is None or not self._l2.usable:
            return
        try:
            cached = self._l2.call("get_many", self._l2.store.get_many, ids)
        except StorageError as exc:
            _log.limited("l2_read_failed", error=exc)
            return
        now_ms = self._now_ms()
        for change_id, change in cached.items():
            # A mark without a value only says that an older value must not come back.
            # Nor is a value that another engine was heard to have replaced in the archive.
            if (
                change.content is not None
                and change.version >= self._heard.version(change_id)
                and not change.expired(now_ms)
            ):
                found[change_id] = change
                self._hits["l2"].inc()
                self._observe_version(change.version)
                if not self.l2_doubted:
                    self._fill_l1(change, flights[change_id])

    def _ask_l3(
        self, ids: Sequence[str], found: dict[str, Change], flights: dict[str, _Flight]
    ) -> None:
        asked = [change_id for change_id in ids if not self._surely_absent(change_id)]
        if not asked:
            return
        rows = self._l3.call_with_retry("get_many", self._l3.store.get_many, asked)
        for change_id in asked:
            change = rows.get(change_id)
            present = change is not None and change.content is not None
            self._filters.outcome(change_id, present=present)
            if change is None:
                self._hits["absent"].inc()
                continue
            found[change_id] = change
            self._hits["l3"].inc()
            self._observe_version(change.version)
            self._fill_l1(change, flights[change_id])
            if present and change.routes & _L2 and self._l2 is not None:
                self._fill_l2(change, flights[change_id])

    def _ask_again(
        self, ids: Sequence[str], found: dict[str, Change], flights: dict[str, _Flight]
    ) -> None:
        """Hold answers against the archive; where it cannot tell, they are believed once."""
        try:
            rows = self.archived(ids)
        except (StorageError, CorruptData) as exc:
            _log.limited("not_checked", error=exc)
            return
        for change_id in ids:
            row, flight = rows.get(change_id), flights[change_id]
            if row is not None and row.version > found[change_id].version:
                found[change_id] = row
                self._hits["l3"].inc()
                self._observe_version(row.version)
                if row.content is not None and row.routes & _L2:
                    self._fill_l2(row, flight)
            self._fill_l1(found[change_id], flight)

    def _surely_absent(self, change_id: str) -> bool:
        if not self._filters.definitely_absent(change_id):
            return False
        if self._filters.audit_due():
            return False
        self._hits["filter"].inc()
        return True

    def _fill_l1(self, change: Change, flight: _Flight) -> None:
        if not flight.overtaken:
            self._l1.put(change)
            if flight.overtaken:  # a write came in between: whatever is there now may be ours
                self._l1.discard(change.id)
                self._stale.discard(change.id)

    def _fill_l2(self, change: Change, flight: _Flight) -> None:
        if not flight.overtaken and self._l2 is not None and self._l2.usable:
            self._fills.append(change)
            self._wake_l2()

    def deliver_fills(self) -> None:
        """Copy answers of L3 up to L2; called by the L2 job before it delivers.

        Raises:
            StoreUnavailable: L2 did not take them; they are forgotten.
        """
        if self._l2 is None or not self._fills:
            return
        fills: list[Change] = []
        while self._fills and len(fills) < 1000:
            change = self._fills.popleft()
            old = change.version < self._heard.version(change.id)
            if not old and self._pending(change.id) is None:
                fills.append(change)
        if fills:
            newest = {change.id: change for change in fills}
            self._l2.call("fill", self._l2.store.fill, list(newest.values()))

    def get_fresh(self, change_id: str) -> Change | None:
        """Return the newest change that overlay, L2 or archive know, passing by L1.

        An L2 that cannot be asked is left out, as one that is known to be down.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        newest = _newer(self._pending(change_id), self.archived((change_id,)).get(change_id))
        newest = _newer(newest, self._cached(change_id))
        if newest is not None:
            self._observe_version(newest.version)
        return newest

    def _cached(self, change_id: str) -> Change | None:
        if self._l2 is None or not self._l2.usable:
            return None
        try:
            cached = self._l2.call_with_retry("get_many", self._l2.store.get_many, (change_id,))
        except StorageError as exc:
            _log.limited("l2_read_failed", error=exc)
            return None
        return cached.get(change_id)

    def get_existing(self, ids: Sequence[str]) -> list[str]:
        """Return those of the ids that have an item.

        Raises:
            StoreUnavailable: A tier that would know cannot be asked.
        """
        found = self.get_many(ids)
        return [change_id for change_id in ids if change_id in found]

    # -- the archive alone ------------------------------------------------------------------------

    def archived(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return the archive's rows of ids, tombstones included, whatever is nearer.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        return self._l3.call_with_retry("get_many", self._l3.store.get_many, ids)
