"""Upkeep of what the archive knows of this engine, and of the filter.

The lease, the log's number, how this engine stands towards the others, tombstones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from sync_engine.core.filters import FilterManager, Warmup
from sync_engine.core.version import version_of_ms
from sync_engine.errors import StorageError, StoreUnavailable
from sync_engine.flow.standing import OwnStanding
from sync_engine.flow.tier import Tier
from sync_engine.ports import ArchiveStore, Runtime, Standing
from sync_engine.telemetry import get_logger

__all__ = ["Keeper"]

_log = get_logger("flow.keeper")
_PAGE = 5000
_PURGE_EVERY_S = 60.0
_PURGE_LIMIT = 1000
_SETTLE_S = 0.01
_CLAIM_EVERY_S = 60.0


class Keeper:
    """Keeps the lease that a trusted *absent* needs, warms the filter, and purges tombstones.

    It also renews the claim of the log's engine number, and says to the others while this engine
    cannot tell them what it writes.

    The filter may say *absent* only while this engine provably is the archive's only writer: while
    the lease is held, judged by this process's monotonic clock from before it was asked for.

    Owned by one job; `covered` may be called from any thread and never blocks.
    """

    def __init__(
        self,
        l3: Tier[ArchiveStore],
        filters: FilterManager,
        runtime: Runtime,
        *,
        owner: str,
        lease_ttl_s: float,
        retention_s: float,
        pending_ids: Callable[[], Iterable[str]],
        oldest_pending_ms: Callable[[], int],
        restore: Callable[[], bool],
        enabled: bool,
        settled: Callable[[], bool] = lambda: True,
        claim_number: Callable[[Callable[[str, int], int]], None] = lambda _: None,
        standing: OwnStanding | None = None,
    ) -> None:
        self._l3 = l3
        self._filters = filters
        self._clock = runtime.clock
        self._owner = owner
        self._lease_ttl_s = lease_ttl_s
        self._retention_s = retention_s
        self._pending_ids = pending_ids
        self._oldest_pending_ms = oldest_pending_ms
        self._restore: Callable[[], bool] | None = restore
        self._enabled = enabled
        self._settled = settled
        self._claim_number = claim_number
        self._claim_at = -math.inf
        self._standing = standing
        self._announced = Standing.SEEN
        self._giving_up = False
        self._asked = False
        self._epoch = -1  # our log is locked: no other process alive bears our name
        self._lease_until = -math.inf
        self._renew_at = -math.inf
        self._purge_at = -math.inf
        self._warmup: Warmup | None = None
        self._after: str | None = None

    def covered(self) -> bool:
        """Tell whether this engine is, at this moment, provably the archive's only writer."""
        return self._clock.monotonic() < self._lease_until

    def step(self) -> float:
        """Renew, warm one page, or purge a few; return the seconds to wait."""
        if not self._l3.attached:
            return 0.5
        try:
            due = self._clock.monotonic() >= self._renew_at
            self._keep_lease()
            if due:
                self._announce()
                self._claim()
            if self._enabled and self.covered() and self._warm_page():
                return 0.0
            self._purge()
        except StorageError as exc:
            _log.limited("upkeep_failed", error=exc)
            return self._lease_ttl_s / 3
        return _SETTLE_S if self._giving_up else self._lease_ttl_s / 3

    def _keep_lease(self) -> None:
        asked = self._clock.monotonic()
        if self._giving_up:
            self._give_up()
        # To ask again would give the lease up.
        if asked < self._renew_at or self._giving_up:
            return
        self._asked = True
        epoch = self._l3.call(
            "lease", self._l3.store.lease, self._owner, self._lease_ttl_s, steal=self._epoch < 0
        )
        if epoch:
            if epoch != self._epoch:  # somebody else may have written since the last one
                self._lose("the lease is new")
            self._epoch = epoch
            self._lease_until = asked + self._lease_ttl_s
            self._renew_at = asked + self._lease_ttl_s / 3
            return
        if self._lease_until > -math.inf:
            _log.info("lease_lost", owner=self._owner)
        self._lose("another engine writes to the archive")
        self._epoch = 0
        self._renew_at = asked + self._lease_ttl_s / 3
        self._giving_up = True
        self._give_up()

    def _claim(self) -> None:
        """Let the archive see, now and then, that the log's number is in use."""
        now = self._clock.monotonic()
        if now >= self._claim_at:
            self._claim_number(self._number)
            self._claim_at = now + _CLAIM_EVERY_S

    def _announce(self) -> None:
        if self._standing is not None:
            self._say(self._standing.look())

    def _say(self, standing: Standing) -> None:
        if standing is not self._announced:
            self._l3.call("announce", self._l3.store.announce, standing)
            self._announced = standing
            _log.info("announced", standing=standing.name.lower())

    def _number(self, log_uuid: str, wanted: int) -> int:
        return self._l3.call("claim_number", self._l3.store.claim_number, log_uuid, wanted)

    def _give_up(self) -> None:
        """Let the others write once the archive has what was decided while nobody else could."""
        if self._settled():
            self._l3.call("release_lease", self._l3.store.release_lease, self._owner)
            self._giving_up = False

    def _lose(self, reason: str) -> None:
        self._lease_until = -math.inf
        if self._warmup is not None:
            self._warmup.abort()
            self._warmup = None
        self._filters.distrust(reason)

    def _warm_page(self) -> bool:
        """Take one page of ids into the filter; tell whether there is more to do."""
        if self._warmup is None:
            if not self._filters.needs_warmup():
                return False
            restore, self._restore = self._restore, None
            if restore is not None and restore():  # only now, under the lease, is it sure to hold
                return False
            expected = self._l3.call("count", self._l3.store.count)
            self._warmup = self._filters.begin_warmup(expected)
            self._after = None
            self._warmup.add_many(list(self._pending_ids()))
        page = self._l3.call(
            "warm_up", self._l3.store.scan, after=self._after, limit=_PAGE, keys_only=True
        )
        if not self._warmup.add_many([change.id for change in page]):
            self._warmup = None  # doubt was cast on it meanwhile: begin again
            return True
        if len(page) == _PAGE:
            self._after = page[-1].id
            return True
        if not self.covered():
            raise StoreUnavailable(self._l3.name, "warm_up", "the lease ran out meanwhile")
        if self._warmup.complete():
            _log.info("filter_trusted", ids=self._filters.stats().get("count", 0))
        self._warmup = None
        return False

    def _purge(self) -> None:
        now = self._clock.monotonic()
        if now < self._purge_at:
            return
        before_ms = min(
            self._clock.now_ms() - int(self._retention_s * 1000), self._oldest_pending_ms()
        )
        gone = self._l3.call(
            "purge_tombstones",
            self._l3.store.purge_tombstones,
            below_version=version_of_ms(max(0, before_ms)),
            limit=_PURGE_LIMIT,
        )
        self._purge_at = now if gone == _PURGE_LIMIT else now + _PURGE_EVERY_S

    def close(self) -> None:
        """Give the lease up, if it was ever asked for and the archive can be told.

        And leave word where the others were not told everything.
        """
        self._lease_until = -math.inf
        if self._l3.attached and self._asked:
            try:
                if self._standing is not None:
                    self._say(self._standing.at_the_end())
                self._l3.call("release_lease", self._l3.store.release_lease, self._owner)
            except StorageError as exc:
                _log.info("lease_left_to_run_out", error=exc)
