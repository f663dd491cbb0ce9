"""Verification: archive rows against the tree, L2 and filter against the archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from xxhash import xxh3_64_intdigest

from sync_engine.core.filters import FilterManager
from sync_engine.core.item import Change, Route
from sync_engine.core.merkle import CheckedRow, TreeCheck
from sync_engine.errors import ConfigError, StorageError, StoreUnavailable
from sync_engine.flow.tier import Tier
from sync_engine.ports import ArchiveStore, CacheStore, MerkleStore, Runtime

__all__ = ["Verifier", "VerifyReport"]

_FINDINGS_MAX = 10_000
_L2_PAGE = 500
_L2 = int(Route.L2)


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification has seen.

    Attributes:
        items: Rows read, tombstones included.
        ranges: Ranges of neighbouring ids compared with the tree.
        skipped: Ranges that the sample left out.
        unmatched: First id of each range on which rows and tree disagree.
        corrupt: Ids of archive rows that fail their checksum.
        l2_checked: Rows looked up in L2; 0 where L2 could not be asked.
        l2_stale: Ids that L2 answers with something that the archive has replaced.
        filter_checked: Rows looked up in the filter; 0 where it is not trusted anyway.
        filter_missed: Live ids that the filter calls absent.
        next: Hand this in as `after` to go on; None: the end was reached.
        seconds: How long it took.
    """

    items: int = 0
    ranges: int = 0
    skipped: int = 0
    unmatched: tuple[str, ...] = ()
    corrupt: tuple[str, ...] = ()
    l2_checked: int = 0
    l2_stale: tuple[str, ...] = ()
    filter_checked: int = 0
    filter_missed: tuple[str, ...] = ()
    next: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not (self.unmatched or self.corrupt or self.l2_stale or self.filter_missed)


class _Tally:
    """What was found so far."""

    def __init__(self) -> None:
        self.items = self.ranges = self.skipped = self.l2_checked = self.filter_checked = 0
        self.unmatched: list[str] = []
        self.corrupt: list[str] = []
        self.l2_stale: list[str] = []
        self.filter_missed: list[str] = []

    def full(self) -> bool:
        found = (self.unmatched, self.corrupt, self.l2_stale, self.filter_missed)
        return max(map(len, found)) >= _FINDINGS_MAX

    def report(self, after: str | None, seconds: float) -> VerifyReport:
        return VerifyReport(
            items=self.items,
            ranges=self.ranges,
            skipped=self.skipped,
            unmatched=tuple(self.unmatched),
            corrupt=tuple(self.corrupt),
            l2_checked=self.l2_checked,
            l2_stale=tuple(self.l2_stale),
            filter_checked=self.filter_checked,
            filter_missed=tuple(self.filter_missed),
            next=after,
            seconds=seconds,
        )


class Verifier:
    """Compares what is derived from the archive with the archive; changes nothing.

    Thread-safety: `run` may be called from any thread; each call is one verification. Blocking: as
    long as the pace asks; the database keeps one moment for one range at a time only.
    """

    def __init__(
        self,
        l3: Tier[ArchiveStore],
        l2: Tier[CacheStore] | None,
        merkle: MerkleStore,
        filters: FilterManager,
        pending: Callable[[str], Change | None],
        runtime: Runtime,
    ) -> None:
        self._l3 = l3
        self._l2 = l2
        self._merkle = merkle
        self._filters = filters
        self._pending = pending
        self._runtime = runtime
        self._clock = runtime.clock

    def run(
        self,
        *,
        after: str | None = None,
        sample: float = 1.0,
        items_max: int | None = None,
        items_per_s: float | None = None,
        progress: Callable[[VerifyReport], object] = lambda _: None,
    ) -> VerifyReport:
        """Verify ranges of some 500 neighbouring rows, in id order; see `SyncEngine.verify`.

        Raises:
            ConfigError: A number is out of range.
            StoreUnavailable: The archive cannot be asked, or its tree is not built.
        """
        if not 0 < sample <= 1:
            raise ConfigError(f"sample must be above 0 and at most 1, got {sample!r}")
        if items_max is not None and items_max < 1:
            raise ConfigError(f"items_max must be 1 or more, got {items_max!r}")
        if items_per_s is not None and not items_per_s > 0:
            raise ConfigError(f"items_per_s must be positive, got {items_per_s!r}")
        started = self._clock.monotonic()
        tally = _Tally()
        while True:
            took_part = sample >= 1 or self._runtime.random() < sample
            check: TreeCheck = self._l3.call_with_retry("verify", self._merkle.check, after)
            if took_part:
                self._look(check, tally)
            else:
                tally.skipped += 1
            after = check.next
            report = tally.report(after, self._clock.monotonic() - started)
            progress(report)
            if (
                after is None
                or tally.full()
                or (items_max is not None and items_max <= tally.items)
            ):
                return report
            if items_per_s is not None:
                ahead_s = tally.items / items_per_s - (self._clock.monotonic() - started)
                if ahead_s > 0:
                    self._clock.sleep(ahead_s)

    def _look(self, check: TreeCheck, tally: _Tally) -> None:
        tally.ranges += 1
        tally.items += len(check.rows) + len(check.corrupt)
        tally.corrupt += check.corrupt
        if not check.matches:
            tally.unmatched.append(check.low)
        self._look_into_filter(check.rows, tally)
        for start in range(0, len(check.rows), _L2_PAGE):
            self._look_into_l2(check.rows[start : start + _L2_PAGE], tally)

    def _look_into_filter(self, rows: Sequence[CheckedRow], tally: _Tally) -> None:
        if not self._filters.trusted:
            return
        live = [row.id for row in rows if row.content_hash is not None]
        tally.filter_checked += len(live)
        tally.filter_missed += [id for id in live if self._filters.definitely_absent(id)]

    def _look_into_l2(self, rows: Sequence[CheckedRow], tally: _Tally) -> None:
        if self._l2 is None or not self._l2.usable:
            return
        try:
            cached = self._l2.call("verify", self._l2.store.get_many, [row.id for row in rows])
        except StorageError:
            return
        tally.l2_checked += len(rows)
        suspects = [row.id for row in rows if is_stale(cached.get(row.id), row)]
        tally.l2_stale += [id for id in suspects if self._still_stale(id)]

    def _still_stale(self, id: str) -> bool:
        """Look again: it may have been on its way, and a pending change is read before L2."""
        if self._pending(id) is not None or self._l2 is None:
            return False
        try:
            row = self._l3.call("verify", self._l3.store.get_many, [id]).get(id)
            cached = self._l2.call("verify", self._l2.store.get_many, [id]).get(id)
        except StoreUnavailable:
            return False
        if row is None or self._pending(id) is not None:
            return False
        content = None if row.content is None else xxh3_64_intdigest(row.content)
        return is_stale(cached, CheckedRow(id, row.version, content, 0, row.routes))


def is_stale(cached: Change | None, row: CheckedRow) -> bool:
    """Tell whether L2 answers with a value that the archive has replaced, or never had.

    A newer value in L2 is none of the archive's business yet.
    """
    if cached is None or cached.content is None or cached.version > row.version:
        return False
    if cached.version < row.version or row.content_hash is None:
        return True
    return xxh3_64_intdigest(cached.content) != row.content_hash
