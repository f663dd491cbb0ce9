"""Intakes: each takes what one source gives into the log, and acknowledges it there."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from sync_engine.core import codec, failpoints
from sync_engine.core.item import Change, Route
from sync_engine.core.options import Durability
from sync_engine.core.policies import RetryConfig
from sync_engine.core.pressure import BackpressureLevel
from sync_engine.core.version import ms_of_version
from sync_engine.errors import (
    Backpressure,
    ConfigError,
    CorruptData,
    EngineClosed,
    EngineFailed,
    InvalidItem,
    StorageError,
    StoreBusy,
    StoreUnavailable,
    SyncEngineError,
)
from sync_engine.flow.guard import Backoff
from sync_engine.ports import Runtime, Source, SourceBatch
from sync_engine.telemetry import get_logger

__all__ = ["FrontDoor", "Intake", "SourceStatus"]

_log = get_logger("flow.intake")
_L3 = int(Route.L3)
_REATTACH_EVERY = 5
_PRESSURE_WAIT_S = 0.25
_IDLE_POLLS = 8
_IDLE_WAIT_S = 0.01
_AHEAD_MS_MAX = 86_400_000
_LETTER_BYTES_MAX = 64 << 20


class FrontDoor(Protocol):
    """What an intake needs of the engine."""

    def level(self) -> BackpressureLevel:
        """Return how much room is left on the way to the archive."""

    def check(self, change: Change) -> None:
        """Check a draft against every limit; raises `InvalidItem`."""

    def write(self, drafts: Sequence[Change], durability: Durability) -> object:
        """Take drafts into the log, in order; return once they are as durable as asked."""

    def known_version(self, change_id: str) -> int:
        """Return the newest version of an id that memory knows; 0 where it knows none."""

    def give_version(self) -> int:
        """Return a version newer than all before."""

    def put_aside(self, follower: str, position: int, change: Change, error: str) -> None:
        """Store a dead letter."""

    def hurry(self) -> None:
        """Deliver to the archive what waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """How one source does.

    Attributes:
        attached: Whether it was reached and checked.
        stopped: Whether it waits for `resume`: its settings cannot be used.
        taken: Changes taken into the log since the engine started.
        skipped: Changes that came with a version no newer than the engine's own.
        refused: Changes outside the engine's limits.
        held: Changes polled, and not yet taken.
        paused: Whether it is paused on request.
        waits_for: ``room`` while back-pressure holds it up, else empty.
        error: The last failure, if the last step failed.
        progress: Counters and gauges of the source itself.
        amiss: What is amiss although it works; see `ports.CandidSource`.
    """

    attached: bool
    stopped: bool
    taken: int
    skipped: int
    refused: int
    held: int
    paused: bool
    waits_for: str
    error: str
    progress: dict[str, float] = field(default_factory=dict)
    amiss: tuple[str, ...] = ()


class Intake:
    """Takes changes of one source into the log.

    Poll, write, wait until the disk has it, acknowledge, in this order: a crash anywhere repeats
    changes and never loses one. What was polled is held until it is taken; nothing is polled
    meanwhile, so a source is never more than one batch ahead.

    `step` belongs to one job; `pause`, `resume` and `status` to any thread.

    Args:
        name: Of the source; its job is ``source:<name>``.
        source: The source.
        door: The engine's front door.
        runtime: Clock, randomness, wake.
        retry: Pauses after failures.
        items_max: Changes asked for at a time.
        keeps_cache: Whether there is an L2; without, values meant for it alone are archived.
        taken: Told how many changes were taken.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        door: FrontDoor,
        runtime: Runtime,
        *,
        retry: RetryConfig,
        items_max: int = 1000,
        keeps_cache: bool = True,
        taken: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.job = f"source:{name}"
        self.source = source
        self.paused = False
        self.error = ""
        self._door = door
        self._runtime = runtime
        self._clock = runtime.clock
        self._backoff = Backoff(retry, runtime.random)
        self._items_max = self._part = items_max
        self._keeps_cache = keeps_cache
        self._on_taken = taken
        self._attached = False
        self._stopped = False
        self._batch: SourceBatch | None = None
        self._drafts: list[Change] | None = None
        self._empty_polls = 0
        self._waits_for = ""
        self.taken = self.skipped = self.refused = 0

    def step(self) -> float:
        """Take at most one batch; return the seconds to wait before the next step."""
        if self.paused or self._stopped:
            return math.inf
        try:
            return self._take()
        except ConfigError as exc:
            return self._stop(exc)
        except EngineFailed as exc:
            return self._stop(exc)
        except Backpressure as exc:  # where the whole batch has no room, a part of it may have
            self._part = max(1, self._part // 2)
            return self._wait_for_room(exc.retry_after_s)
        except StorageError as exc:
            return self._failed(exc)
        except EngineClosed:
            return math.inf

    def _take(self) -> float:
        if not self._attached:
            with self._translated("attach"):
                self.source.attach()
            self._attached = True
            _log.info("attached", source=self.name)
        if self._batch is None:
            with self._translated("poll"):
                self._batch = self.source.poll(self._items_max)
            if failpoints.armed:
                failpoints.hit("intake.polled")
        batch = self._batch
        if self._drafts is None:
            self._drafts = self._checked(batch.changes)
        if self._drafts:
            if self._door.level() >= BackpressureLevel.THROTTLE:
                return self._wait_for_room(_PRESSURE_WAIT_S)
            part = self._drafts[: self._part]
            # The source forgets with the acknowledgement: not even a power cut may undo this.
            self._door.write(part, Durability.FSYNC)
            self.taken += len(part)
            self._on_taken(len(part))
            del self._drafts[: len(part)]
            if self._drafts:
                return 0.0
        return self._acknowledge(batch)

    def _acknowledge(self, batch: SourceBatch) -> float:
        if failpoints.armed:
            failpoints.hit("intake.written")
        if batch.changes or batch.token:
            with self._translated("ack"):
                self.source.ack(batch.token)
        if failpoints.armed:
            failpoints.hit("intake.acked")
        self._batch = self._drafts = None
        self._part = self._items_max
        self._succeeded()
        return self._pause_after(batch)

    def _pause_after(self, batch: SourceBatch) -> float:
        wait_s = max(0.0, batch.wait_s)
        if batch.changes:
            self._empty_polls = 0
            return wait_s
        self._empty_polls += 1
        return wait_s if self._empty_polls < _IDLE_POLLS else max(wait_s, _IDLE_WAIT_S)

    # -- what may come in -------------------------------------------------------------------------

    def _checked(self, changes: Sequence[Change]) -> list[Change]:
        """Return drafts of what is within the limits and not known to be old."""
        drafts = []
        for change in changes:
            try:
                draft = self._draft(change)
                self._door.check(draft)
                self._check_version(draft)
            except (InvalidItem, AttributeError, TypeError) as exc:
                self._refuse(change, exc)
                continue
            if draft.version and draft.version <= self._door.known_version(draft.id):
                self.skipped += 1
            else:
                drafts.append(draft)
        return drafts

    def _draft(self, change: Change) -> Change:
        """Return what is to be written: values need a tier that keeps them, deletions need none.

        A deletion of the caches alone supersedes an older row of the archive, and makes none: not
        here, and not where it comes from. Thus both archives end alike.
        """
        routes = change.routes
        if routes & _L3 or self._keeps_cache or change.content is None:
            return change
        return Change(
            change.id,
            change.version,
            change.content,
            change.content_type,
            change.state,
            change.expires_at_ms,
            routes | _L3,
            change.trace_parent,
        )

    def _check_version(self, draft: Change) -> None:
        if draft.version < 0 or ms_of_version(draft.version) > self._clock.now_ms() + _AHEAD_MS_MAX:
            raise InvalidItem(
                f"version {draft.version} lies more than a day in the future: it would outlive"
                " every later write"
            )

    def _refuse(self, change: Change, exc: Exception) -> None:
        """Put a change aside that the engine cannot take; its neighbours flow."""
        self.refused += 1
        _log.limited("source_item_refused", source=self.name, error=exc)
        # What has no id that can be stored, or is larger than a disk should be asked to keep for
        # somebody's mistake, is only counted and told.
        unfit = (CorruptData, InvalidItem, AttributeError, TypeError, ValueError, StorageError)
        with contextlib.suppress(*unfit):
            if change.size_bytes > _LETTER_BYTES_MAX:
                return
            version = self._door.give_version()
            letter = Change(
                change.id, version, change.content, change.content_type, routes=change.routes
            )
            codec.decode(codec.encode(letter))  # types are not what they are said to be
            self._door.put_aside(self.job, version, letter, str(exc))

    # -- failures ---------------------------------------------------------------------------------

    def _wait_for_room(self, seconds: float) -> float:
        if not self._waits_for:
            _log.limited("source_held_up", source=self.name)
        self._waits_for = "room"
        self._door.hurry()
        return seconds

    def _succeeded(self) -> None:
        if self._backoff.attempts:
            _log.info("recovered", source=self.name, failures=self._backoff.attempts)
            self._backoff.succeeded()
        self.error = self._waits_for = ""

    def _failed(self, exc: StorageError) -> float:
        self.error = str(exc)
        delay_s = self._backoff.failed()
        if isinstance(exc, StoreBusy):
            delay_s = max(0.001, exc.retry_after_s)
        _log.limited("source_failed", source=self.name, failures=self._backoff.attempts, error=exc)
        if self._backoff.attempts % _REATTACH_EVERY == 0:
            self.close()
        return delay_s

    def _stop(self, exc: SyncEngineError) -> float:
        self._stopped = True
        self.error = str(exc)
        _log.error("source_stopped", source=self.name, error=exc)
        return math.inf

    @contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        """Take what a source raises against its contract for an outage."""
        try:
            yield
        except SyncEngineError as exc:
            if isinstance(exc, ConfigError | StorageError):
                raise
            raise StoreUnavailable(self.name, operation, str(exc)) from exc
        except Exception as exc:
            told = f"{type(exc).__name__}: {exc}"
            raise StoreUnavailable(self.name, operation, told) from exc

    # -- from any thread --------------------------------------------------------------------------

    def pause(self) -> None:
        """Ask for nothing until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Ask again, also where a setting had stopped it."""
        self.paused = self._stopped = False
        self._runtime.wake(self.job)

    def status(self) -> SourceStatus:
        """Return how the source does; never blocks."""
        batch = self._batch
        progress: dict[str, float] = {}
        amiss: tuple[str, ...] = ()
        with contextlib.suppress(Exception):  # a report that fails must not fail ours
            progress = dict(self.source.progress())
            amiss = tuple(getattr(self.source, "amiss", tuple)())
        return SourceStatus(
            attached=self._attached,
            stopped=self._stopped,
            taken=self.taken,
            skipped=self.skipped,
            refused=self.refused,
            held=0 if batch is None else len(batch.changes),
            paused=self.paused,
            waits_for=self._waits_for,
            error=self.error,
            progress=progress,
            amiss=amiss,
        )

    def close(self) -> None:
        """Close the source; what was not acknowledged is given again. Not while `step` runs."""
        self._attached = False
        self._batch = self._drafts = None
        try:
            self.source.close()
        except Exception as exc:
            _log.limited("source_not_closed", source=self.name, error=exc)
