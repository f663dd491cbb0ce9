"""Outlets: each carries what is archived to one sink: first a copy, then the log, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

from sync_engine.core import failpoints
from sync_engine.core.batcher import BatchConfig, FlushBatch, FlushReason
from sync_engine.core.item import Change, Route
from sync_engine.core.policies import RetryConfig
from sync_engine.errors import (
    CircuitOpen,
    ConfigError,
    EngineFailed,
    StorageError,
    StoreBusy,
    StoreRejected,
    StoreUnavailable,
    SyncEngineError,
)
from sync_engine.flow.backfill import Backfill, Progress, Stage, covers
from sync_engine.flow.follower import Follower
from sync_engine.flow.guard import Backoff
from sync_engine.flow.outlet_status import SinkStatus, measure_lag
from sync_engine.flow.outlet_view import Delivery, OutletLog, View
from sync_engine.flow.tier import Tier
from sync_engine.ports import ArchiveStore, PositionedSink, Runtime, Sink
from sync_engine.telemetry import get_logger

__all__ = ["OnFull", "Outlet", "OutletLog", "SinkStatus"]

_log = get_logger("flow.outlet")
_L3 = int(Route.L3)  # a plain number: flags are slow on hot paths
_ARCHIVE = "l3"
_REATTACH_EVERY = 5
_ARCHIVE_WAIT_S = 0.02

OnFull = Literal["block", "cut"]


class Outlet:
    """Delivers to one sink what the archive keeps.

    A new sink gets a copy of the archive's rows first. The log's head at that moment is noted, the
    copy begins once the archive has passed it, and the log is followed from there: rows and log
    together cover everything, whatever was written meanwhile. A sink that keeps positions of its
    own is asked where it stands, and that is the truth; where the log no longer reaches back to it,
    it is copied anew, deletions included.

    Only what is safe on disk is delivered, so that no sink ever knows what this engine has
    forgotten. Of several changes of an id in a batch the newest is delivered, in the order of the
    log. A change that is kept in the cache alone arrives as a deletion of its version: that is what
    it does to the archive. A change that has expired on the way arrives so, too.

    `step` belongs to one job; `hurry`, `pause`, `resume`, `cut` and `status` to any thread.

    Args:
        name: Of the sink; its job and cursor are ``sink:<name>``.
        tier: The sink behind its guard.
        log: The log.
        archive: Where the copy is read.
        runtime: Clock, randomness, wake.
        prefixes: Ids to deliver, normalised.
        batch: When to deliver.
        retry: Pauses after failures.
        on_full: What to do when the log is full because of this sink: let writers wait, or let it
            go and copy everything again later.
        reached: Told when the cursor moved.
        flushed: Told about every delivery and its seconds.
    """

    def __init__(
        self,
        name: str,
        tier: Tier[Sink],
        log: OutletLog,
        archive: Tier[ArchiveStore],
        runtime: Runtime,
        *,
        prefixes: tuple[str, ...],
        batch: BatchConfig,
        retry: RetryConfig,
        on_full: OnFull = "block",
        reached: Callable[[str], None] = lambda _: None,
        flushed: Callable[[FlushBatch, float], None] = lambda _batch, _seconds: None,
    ) -> None:
        self.name = name
        self.job = f"sink:{name}"
        self.destination = tier
        self.prefixes = prefixes
        self.on_full = on_full
        self.delivered = 0
        self._sink = tier.store
        self.positioned = hasattr(tier.store, "apply_at") and hasattr(tier.store, "position")
        self._log = log
        self._clock = runtime.clock
        self._runtime = runtime
        self._reached = reached
        self._flushed = flushed
        self._located = False
        self._cut_wanted = False
        self._stopped = ""
        self._error = self._cause = ""
        self._backoff = Backoff(retry, runtime.random)
        self._view = View(self, log, runtime.clock)
        self._progress = Progress(Stage.ASK, prefixes)
        self._follows = runtime.event()
        self._follower = Follower(
            self.job,
            self._view,
            Delivery(self, self._view),
            runtime,
            batch=batch,
            retry=retry,
            reached=reached,
            flushed=self._count,
        )
        self._backfill = Backfill(
            archive,
            self._apply_rows,
            self._refuse_row,
            self._save,
            runtime.clock.now_ms,
            items_max=batch.items_max,
            bytes_max=batch.bytes_max,
        )

    # -- before the job runs ----------------------------------------------------------------------

    def open(self) -> None:
        """Register the cursor, so that the log keeps what the sink has not taken.

        Blocking: touches the log's file.
        """
        known = Progress.decoded(self._log.get_snapshot(self.job))
        if known is not None:
            self._progress = known
        if known is not None and known.stage != Stage.ASK and self._log_reaches_back(known):
            if covers(known.prefixes, self.prefixes):
                self._go_on(known)
            else:
                self._begin_copy("prefixes", tombstones=True)
        elif self.positioned:
            self._progress = Progress(Stage.ASK, self.prefixes, restarts=self._progress.restarts)
            self._log.follow(self.job)  # how much more it needs, it has to be asked
        else:
            self._begin_copy("" if known is None else "cursor", tombstones=known is not None)

    def _log_reaches_back(self, known: Progress) -> bool:
        """Tell whether the log holds all that the sink lacks; a cursor may not have been saved."""
        if self.job in self._log.followers:
            return True
        self._log.follow(self.job)
        return self._log.cursor(self.job) <= known.noted

    def _go_on(self, known: Progress) -> None:
        if known.stage == Stage.FOLLOW:
            if known.prefixes != self.prefixes:
                known.prefixes = self.prefixes
                self._save(known)
            if not self.positioned:
                self._follows.set()

    def _save(self, progress: Progress) -> None:
        self._log.put_snapshot(self.job, progress.encoded())

    def _begin_copy(self, why: str, *, tombstones: bool) -> None:
        """Note where the archive is, and copy from the start."""
        if why:
            _log.warning("resync", sink=self.name, reason=why, cursor=self._log.cursor(self.job))
        self._follows.clear()
        restarts = self._progress.restarts + 1
        self._save(Progress(Stage.ASK, self.prefixes, restarts=restarts))
        if self.job in self._log.followers:
            self._log.unfollow(self.job)
        self._log.follow(self.job)
        self._progress = Progress(
            Stage.COPY,
            self.prefixes,
            # Read after the cursor holds the log: from here on nothing is released.
            noted=self._safe_head(),
            tombstones=tombstones,
            restarts=restarts,
        )
        self._save(self._progress)
        _log.info("copy_began", sink=self.name, noted=self._progress.noted)

    def _safe_head(self) -> int:
        head = self._log.head()
        self._view.make_safe(head)
        return head

    # -- the job ----------------------------------------------------------------------------------

    def step(self) -> float:
        """Copy one chunk, or deliver at most one batch; return the seconds until the next step."""
        if self._stopped:
            return math.inf
        if self._cut_wanted:
            self._let_go()
        if self._follower.paused:
            return math.inf
        try:
            with self._translated("attach"):
                self.destination.ready()
            if not self._located:
                self._locate()
            if self._stopped:
                return math.inf
            if self._progress.stage == Stage.COPY:
                return self._copy()
            delay = self._follower.step()
        except (StoreUnavailable, StoreRejected) as exc:
            return self._failed(exc)
        except EngineFailed as exc:
            self._stop(str(exc))
            return math.inf
        self._after_step()
        return delay

    def _after_step(self) -> None:
        failures = self._follower.failures
        if failures and failures % _REATTACH_EVERY == 0 and self.destination.attached:
            self._reattach()
        if not failures:
            self._error = ""
            self._backoff.succeeded()

    def _reattach(self) -> None:
        """Begin anew with a sink that goes on failing: what it needs may be gone."""
        with self._translated("close"):
            self.destination.detach()
        self._located = False

    def _failed(self, exc: StorageError) -> float:
        self._error = str(exc)
        if isinstance(exc, CircuitOpen | StoreBusy):  # why it is open says more than that it is
            return max(0.001, exc.retry_after_s)
        delay_s = self._backoff.failed()
        _log.limited("sink_failed", sink=self.name, failures=self._backoff.attempts, error=exc)
        if self._backoff.attempts % _REATTACH_EVERY == 0 and self.destination.attached:
            self._reattach()
        return delay_s

    def _stop(self, why: str) -> None:
        self._stopped = self._error = self._cause = why
        self._follows.clear()
        _log.error("sink_stopped", sink=self.name, error=why)

    # -- where it stands --------------------------------------------------------------------------

    def _locate(self) -> None:
        """Ask a sink that keeps positions where it stands; that is the truth."""
        if self.positioned:
            with self._translated("position"):
                stored = self.destination.call(
                    "position", cast("PositionedSink", self._sink).position, self._log.uuid
                )
            self._place(stored)
        self._located = not self._stopped

    def _place(self, stored: int | None) -> None:
        cursor = self._log.cursor(self.job)
        if self._progress.stage == Stage.COPY:
            return
        if stored is None:
            again = self._progress.stage == Stage.FOLLOW
            self._begin_copy("empty" if again else "", tombstones=again)
        elif stored < cursor:
            self._begin_copy("gap", tombstones=True)
        elif stored > self._log.head():
            self._stop(
                f"the sink is at position {stored}, the log ends at {self._log.head()}: the log is"
                " an older copy of itself; forget the sink, and let it follow into an empty target"
            )
        else:
            self._log.advance(self.job, stored)
            self._reached(self.job)
            self._follow()

    def _follow(self) -> None:
        progress = self._progress
        if progress.stage != Stage.FOLLOW:
            self._progress = Progress(
                Stage.FOLLOW,
                self.prefixes,
                noted=progress.noted,
                rows=progress.rows,
                restarts=progress.restarts,
            )
            self._save(self._progress)
        self._follows.set()

    def _copy(self) -> float:
        progress = self._progress
        if not progress.begun and self._log.cursor(_ARCHIVE) < progress.noted:
            return _ARCHIVE_WAIT_S  # rows and log cover everything once the archive is as far
        if self._backfill.step(self._progress):
            noted = self._progress.noted
            if self.positioned:
                self.apply_at((), noted)
            if failpoints.armed:
                failpoints.hit("backfill.placed")
            # First the cursor, then the word: a crash in between repeats the last chunk.
            self._log.advance(self.job, noted)
            self._reached(self.job)
            self._follow()
            _log.info("copy_done", sink=self.name, rows=self._progress.rows, position=noted)
            self._located = False  # a target that was further on says so now
        self._error = ""
        self._backoff.succeeded()
        return 0.0

    def _apply_rows(self, changes: Sequence[Change]) -> None:
        with self._translated("apply"):
            self.destination.apply(changes)
        self.delivered += len(changes)

    def _refuse_row(self, change: Change, exc: StoreRejected) -> None:
        """Put a row of the copy aside; it has no place in the log, so its version stands in."""
        error = f"{exc}" + (f" ({exc.__cause__})" if exc.__cause__ else "")
        self._log.dead_letter(self.job, change.version, change, error)
        _log.error("dead_letter", follower=self.job, id=change.id, error=error)

    def apply_at(self, changes: Sequence[Change], position: int) -> None:
        """Deliver a batch to a sink that keeps positions, and move the cursor to where it ends."""
        sink = cast("PositionedSink", self._sink)
        try:
            with self._translated("apply"):
                self.destination.call("apply", sink.apply_at, changes, self._log.uuid, position)
        except StoreUnavailable:
            self._located = False  # it may have been taken: ask before anything is sent again
            raise

    def moved(self, position: int) -> None:
        """Move the cursor to what the sink says it has."""
        self._log.advance(self.job, position)

    # -- letting go -------------------------------------------------------------------------------

    def cut(self) -> None:
        """Give up this sink's place in the log, with its next step, and copy everything again."""
        if not self._cut_wanted and self._progress.stage != Stage.ASK:
            self._cut_wanted = True
            self._runtime.wake(self.job)

    def _let_go(self) -> None:
        self._cut_wanted = False
        self._begin_copy("log full", tombstones=True)

    def close(self) -> None:
        """Close the sink; what it raises is only told. Not while `step` runs."""
        try:
            self.destination.detach()
        except Exception as exc:
            _log.limited("sink_not_closed", sink=self.name, error=exc)

    # -- from any thread --------------------------------------------------------------------------

    def hurry(self, reason: FlushReason = FlushReason.MANUAL) -> None:
        """Deliver what waits now, whatever its age."""
        self._follower.hurry(reason)

    def pause(self) -> None:
        """Deliver nothing until `resume`; the log keeps what comes."""
        self._follower.pause()

    def resume(self) -> None:
        """Deliver again, also where delivery had stopped for good."""
        self._stopped = ""
        self._follower.resume()

    @property
    def paused(self) -> bool:
        """Whether delivery is paused on request."""
        return self._follower.paused

    @property
    def copying(self) -> bool:
        """Whether the sink has yet to be brought to a position of the log."""
        return not self._follows.is_set()

    @property
    def error(self) -> str:
        """The last failure, if the last delivery failed."""
        told = self._error or self._follower.last_error
        return (self._cause or told) if told else ""

    def wait_copied(self, timeout_s: float) -> bool:
        """Block until the sink follows the log; return False at the timeout."""
        return self._follows.wait(timeout_s)

    def left(self, target: int) -> int:
        """Return how many positions up to a target it has not taken; at least 1 while it copies."""
        left = max(0, target - self._log.cursor(self.job))
        return max(1, left) if self.copying else left

    def status(self) -> SinkStatus:
        """Return how the sink does. Blocking: may read a piece of the log's file."""
        items, size_bytes, age_s = measure_lag(self._log, self.job, self._clock.now_ms())
        return SinkStatus(
            stage=self._progress.stage,
            attached=self.destination.attached,
            circuit=self.destination.guard.breaker.state.value,
            lag_items=items,
            lag_bytes=size_bytes,
            lag_s=age_s,
            copied_rows=self._progress.rows,
            delivered=self.delivered,
            copies=self._progress.restarts,
            paused=self.paused,
            error=self.error,
        )

    def _count(self, batch: FlushBatch, seconds: float) -> None:
        self.delivered += len(batch.changes)
        self._flushed(batch, seconds)

    @contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        """Take what a sink raises against its contract for an outage."""
        try:
            yield
        except SyncEngineError as exc:
            if not isinstance(exc, CircuitOpen):
                self._cause = str(exc)
            if isinstance(exc, ConfigError):
                raise StoreUnavailable(self.name, operation, str(exc)) from exc
            raise
        except Exception as exc:
            self._cause = told = f"{type(exc).__name__}: {exc}"
            raise StoreUnavailable(self.name, operation, told) from exc

    def translated(self, operation: str) -> Any:
        """Return the context in which the sink is called."""
        return self._translated(operation)
