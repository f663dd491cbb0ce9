"""Compare-and-set that holds between engines: the archive decides, and then the log is told."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import msgspec

from sync_engine.core import failpoints
from sync_engine.core.filters import FilterManager
from sync_engine.core.item import Change, Route
from sync_engine.core.options import Durability
from sync_engine.core.pressure import BackpressureLevel
from sync_engine.errors import (
    Backpressure,
    StorageError,
    StoreBusy,
    StoreRejected,
    StoreUnavailable,
)
from sync_engine.flow.tier import Tier
from sync_engine.flow.writer import Writer
from sync_engine.ports import ArchiveStore, CacheStore, NearCache, Runtime
from sync_engine.telemetry import get_logger

__all__ = ["Arbiter", "Seen"]

_log = get_logger("flow.arbiter")
_ARCHIVE = "l3"
_L2, _L3 = int(Route.L2), int(Route.L3)
_SLOTS = 256
_BEHIND_S = 0.5
_BEHIND_STEP_S = 0.01
_DOUBT_S = 30.0


class Seen(msgspec.Struct, frozen=True):
    """What was found of an id.

    Attributes:
        row_version: Of the archive's row, tombstones included; 0 where there is none.
        newest: The newest change, of the archive or kept in L2 alone; None where there is none.
    """

    row_version: int
    newest: Change | None


class _Intent(msgspec.Struct, frozen=True, array_like=True):
    id: str
    version: int


class Arbiter:
    """Puts changes over exactly the row that was seen.

    The order of the steps is the guarantee. First the *intent* (id and version) goes into the log's
    file. Then L2 gets a mark that refuses values older than the new one. Then the archive compares
    and writes, in one transaction. Then the change goes into the log with the version it has, so
    that L2, the feed and every sink get it; the archive knows it already, and takes the repetition
    for one. A crash before the archive's commit leaves an intent of something that never was, and a
    mark that costs L2 a miss. A crash after it leaves a mark, under which no older value of L2 is
    read, and the intent: at the next start, the archive is asked for it, and what it has is
    appended to the log.

    Thread-safety: all methods but `step`, which belongs to one job. Blocking: two to three round
    trips and one commit of the log.

    Args:
        log: The log.
        l2: The cache tier, if there is one.
        l3: The archive.
        l1: Takes what was read.
        filters: Told before the archive is.
        writer: Says how much room there is.
        runtime: Clock, locks, randomness.
        timeout_s: Longest wait for the sole writer to give way, and for a place for an intent.
    """

    JOB = "intents"

    def __init__(
        self,
        log: Any,
        *,
        l2: Tier[CacheStore] | None,
        l3: Tier[ArchiveStore],
        l1: NearCache,
        filters: FilterManager,
        writer: Writer,
        runtime: Runtime,
        timeout_s: float,
    ) -> None:
        self._log = log
        self._l2 = l2
        self._l3 = l3
        self._l1 = l1
        self._filters = filters
        self._writer = writer
        self._runtime = runtime
        self._clock = runtime.clock
        self._timeout_s = timeout_s
        self._lock = runtime.lock()
        self._taken: set[int] = set()
        self._used: set[int] = set()
        self._doubtful: dict[int, tuple[_Intent, float]] = {}

    # -- looking ----------------------------------------------------------------------------------

    def look(self, change_id: str) -> Seen:
        """Return what the archive has of an id, this engine's own earlier changes included.

        What L2 alone keeps counts if it is newer. A value that L2 has and the archive is about to
        get is waited for, half a second at most.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        self._archive_own(change_id)
        deadline = self._clock.monotonic() + _BEHIND_S
        while True:
            row = self._l3.call_with_retry("get_many", self._l3.store.get_many, (change_id,)).get(
                change_id
            )
            version = 0 if row is None else row.version
            cached = self._kept(change_id)
            if cached is None or cached.version <= version:
                break
            if not cached.routes & _L3:
                self._log.observe(cached.version)
                return Seen(version, cached)
            if self._clock.monotonic() >= deadline:
                break
            self._clock.sleep(_BEHIND_STEP_S)
        if row is not None:
            self._log.observe(row.version)
            self._l1.put(row)
        return Seen(version, row)

    def _archive_own(self, change_id: str) -> None:
        """Bring this engine's own change of an id to the archive, ahead of its follower.

        The follower delivers it once more: versions make that harmless.
        """
        change: Change | None = self._log.pending(change_id)
        if change is None:
            return
        position = self._log.position_of(change) or self._log.appended
        self._log.commit(position, 0)
        if self._log.cursor(_ARCHIVE) < position:
            with contextlib.suppress(StoreRejected):  # its follower puts it aside
                self._l3.apply([change])

    def _kept(self, change_id: str) -> Change | None:
        """Return the live value of L2, or the one that is on its way to L2 alone."""
        pending = self._log.pending(change_id)
        if pending is not None and not pending.routes & _L3:
            return cast("Change", pending)
        return self._cached(change_id)

    def _cached(self, change_id: str) -> Change | None:
        """Return the live value that L2 has, if it can be asked."""
        if self._l2 is None or not self._l2.usable:
            return None
        try:
            found = self._l2.call("get_many", self._l2.store.get_many, (change_id,)).get(change_id)
        except StorageError as exc:
            _log.limited("l2_read_failed", error=exc)
            return None
        return None if found is None or found.content is None else found

    # -- writing ----------------------------------------------------------------------------------

    def put(
        self, draft: Change, row_version: int, durability: Durability
    ) -> tuple[int, Change] | None:
        """Write a checked draft over the row that was seen; None where it is another one by now.

        Returns:
            Its position in the log, and the change with its version.

        Raises:
            Backpressure: No room; nothing was written.
            StoreUnavailable: Whether it was written is not known. If it was, the log learns of it
                as soon as the archive answers.
        """
        if draft.content is not None:
            if self._writer.level() is BackpressureLevel.CRITICAL:
                raise Backpressure("no room in the log; nothing was accepted", retry_after_s=1.0)
            self._filters.add(draft.id)
        # One above the row is for the mark: newer than all there is, older than what comes.
        version = self._log.give_version(row_version + 1)
        change = msgspec.structs.replace(draft, version=version)
        slot = self._take_slot()
        try:
            self._log.put_snapshot(_name(slot), msgspec.msgpack.encode(_Intent(draft.id, version)))
            self._reached("arbiter.intent")
            self._mark(draft.id, version - 1)
            self._reached("arbiter.marked")
            found = self._decide(change, row_version)
            self._reached("arbiter.decided")
            if found is not None:
                self._log.observe(found.version)
                self._free(slot)
                return None
            position = self._append(change, durability)
        except BaseException:
            self._doubt(slot, _Intent(draft.id, version))
            raise
        self._free(slot)
        return position, change

    @staticmethod
    def _reached(point: str) -> None:
        if failpoints.armed:
            failpoints.hit(point)

    def _mark(self, change_id: str, version: int) -> None:
        """Let L2 refuse values older than the one to come."""
        if self._l2 is None or not self._l2.usable:
            return
        try:
            mark = Change(change_id, version, None, routes=_L3)
            self._l2.call("apply", self._l2.store.apply, [mark])
        except StorageError as exc:  # L2 is told by the log, later
            _log.limited("l2_not_marked", error=exc)

    def _decide(self, change: Change, row_version: int) -> Change | None:
        deadline = self._clock.monotonic() + self._timeout_s
        while True:
            try:
                return self._l3.call_with_retry(
                    "put_if", self._l3.store.put_if, change, row_version
                )
            except StoreBusy as exc:  # the sole writer has yet to give way: nothing was written
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    raise
                self._clock.sleep(min(left, max(0.01, exc.retry_after_s), 0.1))

    def _append(self, change: Change, durability: Durability) -> int:
        position: int
        position, _ = self._log.append([change], soft=False)
        self._log.commit(position)
        self._reached("arbiter.logged")
        if durability in (Durability.FSYNC, Durability.ARCHIVE):
            self._log.sync(position)
        return position

    # -- intents ----------------------------------------------------------------------------------

    def _take_slot(self) -> int:
        deadline = self._clock.monotonic() + self._timeout_s
        while True:
            with self._lock:
                for slot in range(_SLOTS):
                    if slot not in self._taken:
                        self._taken.add(slot)
                        self._used.add(slot)
                        return slot
            if self._clock.monotonic() >= deadline:
                raise StoreUnavailable(
                    self._l3.name, "put_if", f"of {_SLOTS} writes nobody knows yet what became"
                )
            self._clock.sleep(0.001)

    def _free(self, slot: int) -> None:
        with self._lock:
            self._taken.discard(slot)

    def _doubt(self, slot: int, intent: _Intent) -> None:
        self._doubtful[slot] = (intent, self._clock.monotonic() + _DOUBT_S)
        self._runtime.wake(self.JOB)

    def open(self) -> None:
        """Find the intents that an earlier process left."""
        for slot in range(_SLOTS):
            data = self._log.get_snapshot(_name(slot))
            if data:
                self._taken.add(slot)
                self._used.add(slot)
                intent = msgspec.msgpack.decode(data, type=_Intent)
                self._doubtful[slot] = (intent, self._clock.monotonic() + _DOUBT_S)

    def step(self) -> float:
        """Ask the archive what became of doubtful intents; return the seconds to wait."""
        if not self._doubtful:
            return 3600.0
        doubtful = dict(self._doubtful)
        ids = list({intent.id for intent, _ in doubtful.values()})
        try:
            rows = self._l3.call("get_many", self._l3.store.get_many, ids)
        except StorageError as exc:
            _log.limited("intents_not_asked", error=exc)
            return 1.0
        now = self._clock.monotonic()
        for slot, (intent, until) in doubtful.items():
            row = rows.get(intent.id)
            if row is not None and row.version == intent.version:
                self._append(row, Durability.LOG)
                _log.info("intent_kept", id=intent.id, version=intent.version)
            elif now < until and (row is None or row.version < intent.version):
                continue  # its transaction may still be under way
            del self._doubtful[slot]
            self._log.put_snapshot(_name(slot), b"")
            self._free(slot)
        return 1.0 if self._doubtful else 3600.0

    def close(self) -> None:
        """Forget the intents of what went well."""
        for slot in self._used - set(self._doubtful):
            self._log.put_snapshot(_name(slot), b"")


def _name(slot: int) -> str:
    return f"intent:{slot}"
