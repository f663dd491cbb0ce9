"""The doors of the house: which sources and sinks hang on an engine, by name."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sync_engine.core.batcher import BatchConfig, FlushBatch, FlushReason
from sync_engine.core.filters import FilterManager
from sync_engine.core.item import Change, Route
from sync_engine.core.options import Durability
from sync_engine.core.policies import CircuitConfig, RetryConfig
from sync_engine.core.pressure import BackpressureLevel
from sync_engine.core.results import Health
from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.flow.arrivals import Arrivals
from sync_engine.flow.backfill import Progress, Stage, normal_prefixes
from sync_engine.flow.circuits import BackendCircuits
from sync_engine.flow.feed_outlet import FeedOutlet
from sync_engine.flow.guard import Guard
from sync_engine.flow.intake import Intake
from sync_engine.flow.outlet import OnFull, Outlet
from sync_engine.flow.tier import Tier
from sync_engine.flow.writer import Writer
from sync_engine.ports import AdapterContext, ArchiveStore, NearCache, Runtime, Sink, Source
from sync_engine.telemetry import Metrics, get_logger

__all__ = ["Doors"]

_log = get_logger("flow.doors")
_L3 = int(Route.L3)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_FULL_AT = 0.8
_STOP_S = 30.0
_HOLD_S_MAX = 1.0
_BUSY = "it is still at work and ends with that; remove it again then"
_SINK_BATCH = BatchConfig(items_max=1000, bytes_max=4 << 20, age_s_max=0.05)


class Doors:
    """Sources and sinks of one engine.

    Thread-safety: all methods.

    Args:
        log: The write-ahead log.
        writer: The way in.
        l1: What memory knows, beside the log.
        filters: Told about what comes in.
        archive: L3.
        arrivals: Who waits for which cursor.
        runtime: Runs the jobs.
        circuits: Where breakers are shown.
        metrics: Where meters are kept.
        retry: Pauses after failures.
        data_dir: For files of adapters.
        hurry_archive: Delivers to the archive what waits.
        keeps_cache: Whether there is an L2.
    """

    def __init__(
        self,
        *,
        log: Any,
        writer: Writer,
        l1: NearCache,
        filters: FilterManager,
        archive: Tier[ArchiveStore],
        arrivals: Arrivals,
        runtime: Runtime,
        circuits: BackendCircuits,
        metrics: Metrics,
        retry: RetryConfig,
        data_dir: Path,
        hurry_archive: Callable[[], None],
        keeps_cache: bool,
    ) -> None:
        self._log = log
        self._archive = archive
        self._arrivals = arrivals
        self._runtime = runtime
        self._circuits = circuits
        self._metrics = metrics
        self._retry = retry
        self._data_dir = data_dir
        self._keeps_cache = keeps_cache
        self._door = _Door(log, writer, l1, filters, hurry_archive)
        self._lock = runtime.lock()
        self.sinks: dict[str, Outlet] = {}
        self.sources: dict[str, Intake] = {}

    def context(self, kind: str, name: str) -> AdapterContext:
        """Return what the factory of a source or sink is given.

        Args:
            kind: ``source`` or ``sink``.
            name: Of the instance.
        """
        job = f"{kind}:{_checked_name(name)}"
        return AdapterContext(
            name=name,
            runtime=self._runtime,
            data_dir=self._data_dir,
            wake=lambda: self._runtime.wake(job),
        )

    # -- sinks ------------------------------------------------------------------------------------

    def add_sink(
        self,
        name: str,
        sink: Sink,
        *,
        prefix: str | Sequence[str] = "",
        batch: BatchConfig | None = None,
        on_full: OnFull = "block",
    ) -> None:
        """Begin, or go on, to deliver to a sink; see `SyncEngine.add_sink`."""
        _checked_name(name)
        if on_full not in ("block", "cut"):
            raise ConfigError(f"sink {name}: on_full must be 'block' or 'cut', got {on_full!r}")
        job = f"sink:{name}"
        guard = Guard(job, self._runtime, circuit=CircuitConfig.cache(), metrics=self._metrics)
        seconds = self._metrics.histogram("flush_seconds", tier=job)

        def flushed(done: FlushBatch, took_s: float) -> None:
            seconds.observe(took_s)
            self._metrics.counter("flushes", tier=job, reason=done.reason.value).inc()
            self._metrics.counter("delivered_items", tier=job).add(len(done.changes))

        make: Callable[..., Outlet] = Outlet
        if getattr(sink, "is_feed", False):
            make = functools.partial(FeedOutlet, arrivals=self._arrivals)
        outlet = make(
            name,
            Tier(job, sink, guard),
            self._log,
            self._archive,
            self._runtime,
            prefixes=normal_prefixes(prefix),
            batch=batch or _SINK_BATCH,
            retry=self._retry,
            on_full=on_full,
            reached=self._arrivals.reached,
            flushed=flushed,
        )
        with self._lock:
            if name in self.sinks:
                raise ConfigError(f"there is a sink {name!r} already")
            self.sinks[name] = outlet
        try:
            outlet.open()
            self._runtime.add_job(outlet.job, outlet.step)
        except BaseException:
            del self.sinks[name]
            raise
        self._circuits.add(guard.breaker)
        self._metrics.gauge_callback("sink_lag_items", lambda: self._lag(name), sink=name)

    def remove_sink(self, name: str, *, forget: bool = False) -> bool:
        """Stop delivering to a sink; see `SyncEngine.remove_sink`."""
        with self._lock:
            outlet = self.sinks.pop(name, None)
        job = f"sink:{name}"
        if outlet is not None:
            if not self._runtime.remove_job(job, _STOP_S):
                self.sinks[name] = outlet
                raise StoreUnavailable(job, "remove", _BUSY)
            outlet.close()
        there = outlet is not None or job in self._log.followers
        if forget and there:
            # It is remembered that there was one: added again, it is told of deletions, too.
            known = Progress.decoded(self._log.get_snapshot(job)) or Progress(Stage.ASK)
            self._log.put_snapshot(
                job, Progress(Stage.ASK, known.prefixes, restarts=known.restarts).encoded()
            )
            self._log.unfollow(job)
        return there

    def _lag(self, name: str) -> float:
        return float(self._log.lag(self.sinks[name].job))  # one that is gone has no series

    def relieve(self, fullness: float) -> None:
        """Let go of the sink that holds the log back most, where the log is full and it may."""
        if fullness < _FULL_AT:
            return
        followers: Mapping[str, int] = self._log.followers
        slowest = min(followers, key=lambda name: followers[name], default="")
        outlet = self.sinks.get(slowest.removeprefix("sink:")) if ":" in slowest else None
        if outlet is None or outlet.on_full != "cut":
            return
        # Nothing is won by letting go of one that another holds the log with.
        if all(followers[slowest] < at for name, at in followers.items() if name != slowest):
            outlet.cut()

    def left(self, target: int, deadline_s: float) -> dict[str, int]:
        """Deliver up to a position, until a monotonic deadline; return what is left by sink."""
        outlets = list(self.sinks.values())
        for outlet in outlets:
            outlet.hurry(FlushReason.MANUAL)
        left, monotonic = {}, self._runtime.clock.monotonic
        for outlet in outlets:
            if outlet.wait_copied(max(0.0, deadline_s - monotonic())):
                self._arrivals.wait(outlet.job, target, max(0.0, deadline_s - monotonic()))
            if rest := outlet.left(target):
                left[outlet.job] = rest
        return left

    # -- sources ----------------------------------------------------------------------------------

    def add_source(self, name: str, source: Source, *, items_max: int = 1000) -> None:
        """Begin to take changes from a source; see `SyncEngine.add_source`."""
        _checked_name(name)
        if items_max < 1:
            raise ConfigError(f"source {name}: items_max must be at least 1, got {items_max!r}")
        taken = self._metrics.counter("source_items", source=name)
        intake = Intake(
            name,
            source,
            self._door,
            self._runtime,
            retry=self._retry,
            items_max=items_max,
            keeps_cache=self._keeps_cache,
            taken=taken.add,
        )
        with self._lock:
            if name in self.sources:
                raise ConfigError(f"there is a source {name!r} already")
            self.sources[name] = intake
        try:
            self._runtime.add_job(intake.job, intake.step)
        except BaseException:
            del self.sources[name]
            raise

    def remove_source(self, name: str) -> bool:
        """Stop taking changes from a source; see `SyncEngine.remove_source`."""
        with self._lock:
            intake = self.sources.pop(name, None)
        if intake is None:
            return False
        if not self._runtime.remove_job(intake.job, _STOP_S):
            self.sources[name] = intake
            raise StoreUnavailable(intake.job, "remove", _BUSY)
        intake.close()
        return True

    # -- both -------------------------------------------------------------------------------------

    def get(self, name: str) -> Outlet | Intake | None:
        """Return a sink or source by ``sink:NAME``, ``source:NAME`` or its bare name."""
        kind, colon, rest = name.partition(":")
        if colon:
            return self.sinks.get(rest) if kind == "sink" else self.sources.get(rest)
        return self.sinks.get(name) or self.sources.get(name)

    @property
    def names(self) -> list[str]:
        """Every sink and source, as ``sink:NAME`` and ``source:NAME``."""
        return [f"sink:{name}" for name in self.sinks] + [f"source:{n}" for n in self.sources]

    def hold_sources(self, timeout_s: float) -> None:
        """Take nothing more: the engine is about to close.

        Waits for the steps under way, a second at most: what they write is to be delivered with
        the rest.
        """
        until = self._runtime.clock.monotonic() + min(_HOLD_S_MAX, timeout_s)
        intakes = list(self.sources.values())
        for intake in intakes:
            intake.pause()
        for intake in intakes:
            left_s = max(0.0, until - self._runtime.clock.monotonic())
            self._runtime.remove_job(intake.job, left_s)

    def stats(self) -> dict[str, Any]:
        """Return how every sink and source does."""
        return {
            "sinks": {name: asdict(outlet.status()) for name, outlet in list(self.sinks.items())},
            "sources": {
                name: asdict(intake.status()) for name, intake in list(self.sources.items())
            },
        }

    def told_in(self, health: Health) -> Health:
        """Return the health with what sinks and sources add to it."""
        stats = self.stats()
        amiss = [
            f"sink {name} {'is stopped' if not status['attached'] else 'fails'}: {status['error']}"
            for name, status in stats["sinks"].items()
            if status["error"]
        ]
        amiss += [
            f"delivery to sink {n} is paused" for n, s in stats["sinks"].items() if s["paused"]
        ]
        amiss += [
            f"source {name} {'is stopped' if status['stopped'] else 'fails'}: {status['error']}"
            for name, status in stats["sources"].items()
            if status["error"]
        ]
        amiss += [f"source {n} is paused" for n, s in stats["sources"].items() if s["paused"]]
        amiss += [f"source {n}: {told}" for n, s in stats["sources"].items() for told in s["amiss"]]
        amiss += [
            f"the log waits for {job}, which is not there; remove_sink(…, forget=True) lets it go"
            for job in self._log.followers
            if job.startswith("sink:") and job.removeprefix("sink:") not in self.sinks
        ]
        return replace(
            health,
            degraded=(*health.degraded, *amiss),
            details={**health.details, **stats},
        )

    def close(self, stuck: Sequence[str]) -> None:
        """Close every source and sink whose job has ended."""
        for intake in self.sources.values():
            if intake.job not in stuck:
                intake.close()
        for outlet in self.sinks.values():
            if outlet.job not in stuck:
                outlet.close()


class _Door:
    """The front door, for intakes."""

    def __init__(
        self,
        log: Any,
        writer: Writer,
        l1: NearCache,
        filters: FilterManager,
        hurry: Callable[[], None],
    ) -> None:
        self._log = log
        self._writer = writer
        self._l1 = l1
        self._filters = filters
        self.hurry = hurry
        self.check = writer.check

    def level(self) -> BackpressureLevel:
        return self._writer.level()

    def write(self, drafts: Sequence[Change], durability: Durability) -> object:
        if drafts[0].content is None:  # the writer looks at the first alone
            self._filters.add_many(
                [d.id for d in drafts if d.content is not None and d.routes & _L3]
            )
        for draft in drafts:
            if draft.version:
                self._log.observe(draft.version)
        return self._writer.write(drafts, durability, 0.0)  # a job does not wait for room

    def known_version(self, change_id: str) -> int:
        known: Change | None = self._log.pending(change_id) or self._l1.get(change_id)
        return 0 if known is None else known.version

    def give_version(self) -> int:
        return int(self._log.give_version(0))

    def put_aside(self, follower: str, position: int, change: Change, error: str) -> None:
        self._log.dead_letter(follower, position, change, error)


def _checked_name(name: str) -> str:
    """Return the name of a source or sink.

    Raises:
        ConfigError: It is not 1 to 64 letters, digits, dots, hyphens or underscores.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} must be 1 to 64 letters, digits, or any of . _ -")
    return name
