"""Followers: each delivers the log to one destination, in order, at its own pace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from sync_engine.core import failpoints
from sync_engine.core.batcher import (
    BatchConfig,
    FlushBatch,
    FlushReason,
    HybridBatcher,
    newest_per_id,
)
from sync_engine.core.item import Change
from sync_engine.core.policies import RetryConfig
from sync_engine.errors import (
    CircuitOpen,
    StorageError,
    StoreBusy,
    StoreRejected,
    StoreUnavailable,
)
from sync_engine.flow.guard import Backoff
from sync_engine.ports import LogSlice, Runtime
from sync_engine.telemetry import get_logger

__all__ = ["Destination", "Follower", "FollowerLog"]

_log = get_logger("flow.follower")

# A destination that answers pings and still refuses one batch this often has a poison item in it.
_SUSPECT_AFTER = 5
_CONDEMN_AFTER = 10
_WITNESSES_MAX = 8


class FollowerLog(Protocol):
    """What a follower needs of the log."""

    def head(self) -> int: ...  # noqa: D102 - see ports.ChangeLog
    def read(self, after: int, items_max: int, bytes_max: int) -> LogSlice: ...  # noqa: D102
    def cursor(self, name: str) -> int: ...  # noqa: D102
    def advance(self, name: str, position: int) -> None: ...  # noqa: D102
    def want(self, name: str, position: int) -> None: ...  # noqa: D102
    def dead_letter(  # noqa: D102
        self, follower: str, position: int, change: Change, error: str
    ) -> None: ...


class Destination(Protocol):
    """Where a follower delivers to: a store or sink behind its guard."""

    def ready(self) -> None:
        """Connect if that is still to be done.

        Raises:
            StoreUnavailable: Try again later.
        """

    def apply(self, changes: Sequence[Change]) -> None:
        """Take a batch, as `ports.Sink`."""

    def alive(self) -> bool:
        """Tell whether the destination answers at all."""


class Follower:
    """Delivers the log to one destination.

    The cursor moves only after the destination has accepted the batch: a crash repeats work and
    never skips it. Destinations make repetition harmless, so no other bookkeeping is needed.

    Owned by one job; `hurry`, `pause` and `resume` may be called from any thread.
    """

    def __init__(
        self,
        name: str,
        log: FollowerLog,
        destination: Destination,
        runtime: Runtime,
        *,
        batch: BatchConfig,
        retry: RetryConfig,
        reached: Callable[[str], None] = lambda _: None,
        flushed: Callable[[FlushBatch, float], None] = lambda _batch, _seconds: None,
        refused: Callable[[Change], bool] = lambda _: False,
    ) -> None:
        self.name = name
        self.destination = destination
        self.last_error: str = ""
        self.paused = False
        self._log = log
        self._clock = runtime.clock
        self._runtime = runtime
        self._batcher = HybridBatcher(batch)
        self._backoff = Backoff(retry, runtime.random)
        self._reached = reached
        self._flushed = flushed
        self._refused = refused
        self._items_max = batch.items_max

    @property
    def failures(self) -> int:
        """Failures in a row; 0 when the last step went well."""
        return self._backoff.attempts

    def hurry(self, reason: FlushReason = FlushReason.MANUAL) -> None:
        """Deliver what waits now, whatever its age."""
        self._batcher.force(reason)
        self._runtime.wake(self.name)

    def pause(self) -> None:
        """Deliver nothing until `resume`; the log keeps what comes."""
        self.paused = True

    def resume(self) -> None:
        """Deliver again."""
        self.paused = False
        self._runtime.wake(self.name)

    def step(self) -> float:
        """Deliver at most one batch; return the seconds to wait before the next step."""
        if self.paused:
            return math.inf
        try:
            self.destination.ready()
            return self._deliver_due()
        except StoreUnavailable as exc:
            return self._failed(exc)

    def _deliver_due(self) -> float:
        cursor = self._log.cursor(self.name)
        waiting = self._log.head() - cursor
        due = self._batcher.due(items=waiting, size_bytes=0, now_s=self._clock.monotonic())
        if not isinstance(due, FlushReason):
            ahead = 1 if waiting == 0 else self._batcher.config.items_max
            self._log.want(self.name, cursor + ahead)
            return due
        part = self._log.read(cursor, self._items_max, self._batcher.config.bytes_max)
        if len(part.changes) < min(waiting, self._items_max):
            due = FlushReason.BYTES
        batch = FlushBatch(newest_per_id(part.changes), due)
        started = self._clock.monotonic()
        if batch.changes:
            self._deliver(batch.changes, part)
        if failpoints.armed:
            failpoints.hit(f"{self.name}.delivered")
        self._log.advance(self.name, part.last)
        self._batcher.taken()
        self._recovered()
        self._flushed(batch, self._clock.monotonic() - started)
        self._reached(self.name)
        return 0.0

    def _deliver(self, changes: Sequence[Change], part: LogSlice) -> None:
        """Deliver a batch; halve a refused one until the culprit is alone and put aside."""
        try:
            self.destination.apply(changes)
        except StoreRejected as exc:
            if len(changes) == 1:
                self._bury(changes[0], part, exc)
                return
            middle = len(changes) // 2
            self._deliver(changes[:middle], part)
            self._deliver(changes[middle:], part)

    def _bury(self, change: Change, part: LogSlice, exc: Exception) -> None:
        if self._refused(change):
            return
        position = next(
            position
            for position, candidate in enumerate(part.changes, part.after + 1)
            if candidate is change
        )
        error = f"{exc}" + (f" ({exc.__cause__})" if exc.__cause__ else "")
        self._log.dead_letter(self.name, position, change, error)
        _log.error("dead_letter", follower=self.name, id=change.id, position=position, error=error)

    def _recovered(self) -> None:
        if self.failures:
            _log.info("recovered", follower=self.name, failures=self.failures)
            self._backoff.succeeded()
        self.last_error = ""
        if self._items_max < self._batcher.config.items_max:
            self._items_max = min(self._items_max * 2, self._batcher.config.items_max)

    def _failed(self, exc: StoreUnavailable) -> float:
        self.last_error = str(exc)
        if isinstance(exc, CircuitOpen | StoreBusy):
            return max(0.001, exc.retry_after_s)
        delay_s = self._backoff.failed()
        _log.limited("delivery_failed", follower=self.name, failures=self.failures, error=exc)
        if self.failures >= _SUSPECT_AFTER and self.destination.alive():
            self._suspect(exc)
        return delay_s

    def _suspect(self, exc: StoreUnavailable) -> None:
        """It answers and still refuses: look for a poison item in ever smaller batches."""
        if self._items_max > 1:
            self._items_max = max(1, self._items_max // 8)
        elif self.failures >= _CONDEMN_AFTER:
            part = self._log.read(self._log.cursor(self.name), 1, 1)
            (culprit,) = part.changes
            if culprit is None or not self._takes_others(part.last, culprit.id):
                return  # it takes nothing at all: the fault is not the item's
            self._bury(culprit, part, exc)
            self._log.advance(self.name, part.last)
            self._backoff.succeeded()
            self._reached(self.name)

    def _takes_others(self, after: int, culprit: str) -> bool:
        """Tell whether a later change is taken; versions make it harmless to deliver it early."""
        for change in self._log.read(after, _WITNESSES_MAX, 1 << 62).changes:
            if change is not None and change.id != culprit:
                try:
                    self.destination.apply([change])
                except StorageError:
                    continue
                return True
        return False
