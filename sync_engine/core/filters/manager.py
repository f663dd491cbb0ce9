"""Whether the existence filter may be believed, and how it stays so."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

from sync_engine.core.filters.base import ExistenceFilter, FilterFormatError
from sync_engine.core.filters.bloom import BloomFilter
from sync_engine.core.filters.cuckoo import CuckooFilter
from sync_engine.core.filters.snapshot import FilterSnapshot
from sync_engine.core.filters.warmup import Warmup, add_unknown, chunks
from sync_engine.errors import ConfigError

__all__ = ["FilterManager", "FilterTrust"]

_KINDS: Mapping[str, Callable[[int], ExistenceFilter]] = {
    "cuckoo": CuckooFilter,
    "bloom": BloomFilter,
}
_PARSERS: Mapping[str, Callable[[bytes], ExistenceFilter]] = {
    "cuckoo": CuckooFilter.from_bytes,
    "bloom": BloomFilter.from_bytes,
}
_STALE_SHARE = 4
_STALE_MIN = 1000
_ARRIVED_MAX = 16_384


class FilterTrust(enum.Enum):
    """What a filter's *absent* is worth."""

    UNTRUSTED = "untrusted"
    WARMING = "warming"
    TRUSTED = "trusted"


class FilterManager:
    """Answers *absent* for ids that are provably in no place the archive could give them from.

    An answer counts only while three things hold: the filter was filled completely (`Warmup` or
    `restore`), nothing has cast doubt on it since, and `covered` says that no one else can have
    written to the archive. What the owner has to do for it:

    1. `add` an id before its change is appended to the log.
    2. `add_many` the ids of a batch again, right before the archive's transaction: an id that was
       added before a warm-up began and appended after it listed the pending ones is in no list.
    3. Begin a warm-up when `needs_warmup`, and feed it with ids listed after that.
    4. Report what the archive said about ids (`outcome`), and ask it about every answer that
       `audit_due` picks: that is how a wrong filter would be noticed.

    Nothing is ever taken out of a live filter, since two ids may share a fingerprint. Deleted ids
    are counted; when they are a quarter of all, it is time for a new filter.

    Args:
        kind: ``cuckoo``, ``bloom``, or ``off``.
        capacity: Ids to have room for at once (at least 1); it grows beyond.
        audit_every: One in so many negatives is to be audited (0 is never).
        covered: Tells whether this engine is provably the archive's only writer now. Must not
            block, may be called from any thread.
        lock: Makes the one lock: ``runtime.lock``.

    Raises:
        ConfigError: A setting is out of range.

    Thread-safety: all methods may be called from any thread. Blocking: on other callers of the
    manager only, for at most some milliseconds. Cost: `add` of a known id and any *maybe* take no
    lock and well below 1 µs (cuckoo).
    """

    def __init__(
        self,
        kind: str = "cuckoo",
        *,
        capacity: int = 100_000,
        audit_every: int = 1000,
        covered: Callable[[], bool],
        lock: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        if kind != "off" and kind not in _KINDS:
            raise ConfigError(f"filter must be cuckoo, bloom or off, got {kind!r}")
        if capacity < 1:
            raise ConfigError(f"filter_capacity must be at least 1, got {capacity!r}")
        if audit_every < 0:
            raise ConfigError(f"filter_audit_every must be 0 or more, got {audit_every!r}")
        self.kind = kind
        self._capacity = capacity
        self._audit_every = audit_every
        self._covered = covered
        self._lock = lock()
        # The live filter is there if and only if it is trusted.
        self._live: ExistenceFilter | None = None
        self._warmup: Warmup | None = None
        self._reason = "not filled yet"
        self._deleted = 0
        self._warming_deleted = 0
        self._audits = count(1)
        self._negatives = 0
        self._false_positives = 0
        self._alarms = 0
        self._distrusted = 0
        self._completed = 0
        self._refused = 0
        # What `add_many` was told while there was no filter to put it into: `restore` has to know
        # it. None once nobody remembers all of it.
        self._arrived: set[str] | None = set() if kind != "off" else None

    # -- trust ------------------------------------------------------------------------------------

    @property
    def trust(self) -> FilterTrust:
        """What its *absent* is worth; a trusted filter stays so while its successor warms."""
        if self._live is not None:
            return FilterTrust.TRUSTED
        return FilterTrust.UNTRUSTED if self._warmup is None else FilterTrust.WARMING

    @property
    def trusted(self) -> bool:
        """Whether it was filled completely and nothing has cast doubt on it since."""
        return self._live is not None

    @property
    def reason(self) -> str:
        """Why it is not trusted; empty while it is."""
        return self._reason

    def distrust(self, reason: str) -> None:
        """Drop the filter, and a warm-up under way: neither answers any more."""
        with self._lock:
            self._distrust(reason)

    def _distrust(self, reason: str) -> None:
        if self._live is not None:
            self._distrusted += 1
            self._arrived = None
        self._live = None
        self._warmup = None
        self._reason = reason

    # -- ids in -----------------------------------------------------------------------------------

    def add(self, id: str) -> None:
        """Add an id, before its change is appended to the log."""
        if self._warmup is None:
            live = self._live
            if live is None or live.might_contain(id):
                return
        with self._lock:
            try:
                if self._live is not None:
                    self._live.add_new(id)
                if self._warmup is not None:
                    self._warmup.filter.add_new(id)
            except BaseException:
                self._distrust("an id could not be added")
                raise

    def add_many(self, ids: Sequence[str]) -> None:
        """Add ids, before the archive's transaction that stores them."""
        with self._lock:
            if self._live is None and self._arrived is not None:
                self._arrived.update(ids)
                if len(self._arrived) > _ARRIVED_MAX:
                    self._arrived = None
            for filter in self._filters():
                try:
                    add_unknown(filter, ids)
                except BaseException:
                    self._distrust("ids could not be added")
                    raise

    def _filters(self) -> list[ExistenceFilter]:
        filters = [] if self._live is None else [self._live]
        return filters if self._warmup is None else [*filters, self._warmup.filter]

    def note_deleted(self, n: int = 1) -> None:
        """Count ids that were deleted: what the filter says of them is *maybe* until it is new."""
        with self._lock:
            self._deleted += n
            self._warming_deleted += n

    # -- answers ----------------------------------------------------------------------------------

    def definitely_absent(self, id: str) -> bool:
        """Tell whether the archive has no item of this id, and no one can have put one there.

        Look in the log's overlay before, not after. Cost: no lock for *maybe*; one for *absent*.
        """
        live = self._live
        if live is None or live.might_contain(id):
            return False
        with self._lock:
            # Again, since a writer may have been moving fingerprints about.
            live = self._live
            if live is None or live.might_contain(id) or not self._covered():
                return False
            self._negatives += 1
        return True

    #: The same question, for callers about to write instead of to read.
    never_added = definitely_absent

    def might_contain(self, id: str) -> bool:
        """Tell whether an id may exist, trusting nothing that is in doubt; changes no counter."""
        live = self._live
        if live is None or live.might_contain(id):
            return True
        with self._lock:
            live = self._live
            return live is None or live.might_contain(id)

    def audit_due(self) -> bool:
        """Tell whether this negative is one to ask the archive about all the same."""
        return self._audit_every > 0 and next(self._audits) % self._audit_every == 0

    def outcome(self, id: str, *, present: bool) -> None:
        """Learn what the archive said of an id: to measure false positives, and to notice a fault.

        An item in the archive that the filter denies is an alarm: the filter is dropped at once.
        """
        if self._live is None or (present and self._live_contains(id)):
            return
        with self._lock:
            live = self._live
            if live is None:
                return
            maybe = live.might_contain(id)
            if maybe and not present:
                self._false_positives += 1
            elif present and not maybe:
                if self._covered():
                    self._alarms += 1
                self._distrust("the archive has an item that the filter denies")

    def _live_contains(self, id: str) -> bool:
        live = self._live
        return live is not None and live.might_contain(id)

    # -- filling ----------------------------------------------------------------------------------

    def needs_warmup(self) -> bool:
        """Tell whether a warm-up should begin: none is under way, and trust or freshness lack."""
        if self.kind == "off" or self._warmup is not None:
            return False
        live = self._live
        if live is None:
            return True
        return self._deleted >= max(_STALE_MIN, live.count // _STALE_SHARE)

    def begin_warmup(self, expected: int = 0) -> Warmup:
        """Begin a new filter; from here on, added ids go to the old and to the new one.

        A warm-up that is under way is aborted.

        Args:
            expected: Ids that are going to be listed, where known (0 is not known). A filter of the
                right size answers faster than one that had to grow.

        Raises:
            ConfigError: The filter is off.
        """
        make = _KINDS.get(self.kind)
        if make is None:
            raise ConfigError("the filter is off: there is nothing to warm up")
        live = self._live
        known = max(expected, live.count - self._deleted if live is not None else 0)
        warmup = Warmup(
            make(max(self._capacity, known + known // 4)),
            warm=self._warm,
            complete=self._complete,
            abort=self._abort,
        )
        with self._lock:
            self._warmup = warmup
            self._warming_deleted = 0
        return warmup

    def _warm(self, warmup: Warmup, ids: Sequence[str]) -> bool:
        with self._lock:
            if self._warmup is not warmup:
                return False
            try:
                add_unknown(warmup.filter, ids)
            except BaseException:
                self._warmup = None
                raise
            return True

    def _complete(self, warmup: Warmup) -> bool:
        with self._lock:
            if self._warmup is not warmup:
                return False
            self._warmup = None
            self._trust(warmup.filter, self._warming_deleted)
            self._completed += 1
            return True

    def _trust(self, filter: ExistenceFilter, deleted: int) -> None:
        self._live = filter
        self._arrived = None
        self._reason = ""
        self._deleted = deleted
        self._negatives = self._false_positives = 0

    def _abort(self, warmup: Warmup) -> None:
        with self._lock:
            if self._warmup is warmup:
                self._warmup = None

    # -- snapshots --------------------------------------------------------------------------------

    def snapshot(self, archive_uuid: str, generation: int, log_position: int) -> bytes:
        """Return the live filter's bytes, bound to a state of the archive.

        Args:
            archive_uuid: The archive's identity.
            generation: Its generation, read *before* this call.
            log_position: The last position of the log, for whoever reads the snapshot.

        Raises:
            FilterFormatError: The filter is not trusted; there is nothing worth keeping.
        """
        with self._lock:
            live = self._live
            if live is None:
                raise FilterFormatError(f"no trusted filter to keep: {self._reason}")
            body, held = live.to_bytes(), live.count
        return FilterSnapshot(
            kind=self.kind,
            archive_uuid=archive_uuid,
            generation=generation,
            log_position=log_position,
            count=held,
            body=body,
        ).to_bytes()

    def restore(
        self, data: bytes, *, archive_uuid: str, generation: int, ids_after: Iterable[str]
    ) -> bool:
        """Trust a snapshot, if it is whole and the archive is exactly as it was.

        The archive may be written to meanwhile: what `add_many` was told of since the manager was
        made goes into the filter, too. Where that is more than can be remembered, or there was a
        filter before, the snapshot is refused.

        Args:
            data: What `snapshot` returned.
            archive_uuid: The archive's identity now.
            generation: Its generation now: asked for after the manager was made.
            ids_after: Every id that the log holds and the archive may not.

        Returns:
            Whether the filter is trusted now. If not, nothing changed, and `reason` says why.
        """
        try:
            filter = self._parsed(data, archive_uuid, generation)
            for chunk in chunks(ids_after):
                add_unknown(filter, chunk)
            self._take_over(filter)
        except FilterFormatError as exc:
            with self._lock:
                self._refused += 1
                if self._live is None:
                    self._reason = f"snapshot refused: {exc}"
            return False
        return True

    def _take_over(self, filter: ExistenceFilter) -> None:
        with self._lock:
            if self._arrived is None:
                raise FilterFormatError("ids were added that are not remembered")
            add_unknown(filter, list(self._arrived))
            self._warmup = None
            self._trust(filter, 0)

    def _parsed(self, data: bytes, archive_uuid: str, generation: int) -> ExistenceFilter:
        snapshot = FilterSnapshot.from_bytes(data)
        if snapshot.kind != self.kind:
            raise FilterFormatError(f"it is of kind {snapshot.kind!r}, not {self.kind!r}")
        if snapshot.archive_uuid != archive_uuid:
            raise FilterFormatError("it is of another archive")
        if snapshot.generation != generation:
            raise FilterFormatError("the archive was written to since")
        filter = _PARSERS[snapshot.kind](snapshot.body)
        if filter.count != snapshot.count:
            raise FilterFormatError("counts do not match")
        return filter

    def stats(self) -> dict[str, float]:
        """Return counters and gauges of the live filter. Never blocks on anything but the lock.

        ``false_positive_rate`` is measured: *maybe* answers that the archive denied, among all
        questions about ids that it does not have. Deleted ids count in it until the next warm-up.
        """
        with self._lock:
            live = self._live
            asked = self._negatives + self._false_positives
            return {
                "trusted": float(live is not None),
                "warming": float(self._warmup is not None),
                "count": 0 if live is None else live.count,
                "capacity": 0 if live is None else live.capacity,
                "size_bytes": 0 if live is None else live.size_bytes,
                "deleted": self._deleted,
                "negatives": self._negatives,
                "false_positives": self._false_positives,
                "false_positive_rate": self._false_positives / asked if asked else 0.0,
                "alarms": self._alarms,
                "distrusted": self._distrusted,
                "warmups": self._completed,
                "snapshots_refused": self._refused,
            }
