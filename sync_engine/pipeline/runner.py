"""A pipeline that runs: sources, engine and sinks of one file, started, changed and stopped."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from sync_engine import adapters
from sync_engine.core.results import EngineState, FlushReport
from sync_engine.engine import SyncEngine
from sync_engine.errors import ConfigError, EngineClosed, SyncEngineError
from sync_engine.house import Stores
from sync_engine.pipeline.endpoint import Answer, Endpoint
from sync_engine.pipeline.model import PipelineConfig, SinkSpec, SourceSpec
from sync_engine.pipeline.reload import Difference, difference
from sync_engine.ports import AdapterContext, Runtime
from sync_engine.replication import Replicator
from sync_engine.runtime import SystemRuntime
from sync_engine.telemetry import get_logger
from sync_engine.telemetry.exposition import CONTENT_TYPE, render_text
from sync_engine.telemetry.metrics import Gauge

__all__ = ["Pipeline", "Stopped"]

_log = get_logger("pipeline")
_HTTP = "http"
_LOOK = "http.look"
_FRESH_S = 1.0
_LOOK_S_MAX = 0.8
_OLD_S = 10.0
_JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """What a pipeline left behind.

    Attributes:
        left: Changes that are safe in the log and not yet delivered, by destination.
        dead_letters: Changes put aside.
        seconds: How long stopping took.
    """

    left: dict[str, int]
    dead_letters: int
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether everything taken is where it belongs."""
        return not self.left


class Pipeline:
    """Runs what a file describes.

    Thread-safety: `start`, `reload` and `stop` belong to one thread; all else to any.

    Args:
        config: What to run.
        runtime: Time, locks and jobs; None is the real ones.
        stores: Stores to use in place of the configured ones.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        runtime: Runtime | None = None,
        stores: Stores | None = None,
    ) -> None:
        self.config = config
        self.runtime = runtime or SystemRuntime(config.engine.engine_name)
        self.engine = SyncEngine(config.engine, runtime=self.runtime, stores=stores)
        self.replicator: Replicator | None = None
        self.endpoint: Endpoint | None = None
        self._ready_at = float("-inf")
        self._ready: Answer = (503, _JSON, b"{}\n")
        self._told: set[Gauge] = set()
        self._looked = self.runtime.event()  # lowered while somebody waits for it
        self._looked.set()

    # -- checking ---------------------------------------------------------------------------------

    @classmethod
    def check(cls, config: PipelineConfig) -> None:
        """Make every source and sink, and connect to none: are types and settings usable?

        Raises:
            ConfigError: Something cannot be used; lists all.
        """
        runtime = SystemRuntime("check")
        try:
            _build_all(config, runtime)
        finally:
            runtime.close(1.0)

    # -- running ----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the engine, its sinks, its sources, and the endpoint, in this order.

        A sink that has a method `prepare` is asked first, before the engine opens any file: this
        is where a lost archive is restored.

        Raises:
            ConfigError: Something cannot be used; nothing runs then.
            StoreUnavailable: A sink could not prepare now; nothing runs then.
            CorruptData: The log file is damaged or foreign.
        """
        config = self.config
        try:
            sinks = [(spec, self._prepared(spec)) for spec in config.sinks]
        except BaseException:
            self.runtime.close(1.0)
            raise
        self.engine.start()
        try:
            sources = [(spec, self._made("source", spec)) for spec in config.sources]
            for sink_spec, sink in sinks:
                self._add_sink(sink_spec, sink)
            if config.http.port is not None:
                self._open_endpoint()
            for source_spec, source in sources:
                self._add_source(source_spec, source)
            self.replicator = Replicator(self.engine, config.peers)
        except BaseException:
            self._close_endpoint()
            self.engine.close(0.0)
            raise
        _log.info(
            "pipeline_started",
            sources=[spec.name for spec in config.sources],
            sinks=[spec.name for spec in config.sinks],
            listen=None if self.endpoint is None else "{}:{}".format(*self.endpoint.address),
        )
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _prepared(self, spec: SinkSpec) -> Any:
        """Return a sink that has done what has to be done before the engine opens its files."""
        context = AdapterContext(  # the same as the engine gives, which is not there yet
            name=spec.name,
            runtime=self.runtime,
            data_dir=Path(self.config.engine.data_dir),
            wake=partial(self.runtime.wake, f"sink:{spec.name}"),
        )
        sink = adapters.build("sink", spec.type, context, spec.settings)
        prepare = getattr(sink, "prepare", None)
        if prepare is not None:
            prepare()
        return sink

    def _made(self, kind: adapters.Kind, spec: SourceSpec | SinkSpec) -> Any:
        context = self.engine.adapter_context(kind, spec.name)
        return adapters.build(kind, spec.type, context, spec.settings)

    def _add_sink(self, spec: SinkSpec, sink: Any) -> None:
        self.engine.add_sink(
            spec.name, sink, prefix=spec.prefixes, batch=spec.batch, on_full=spec.on_full
        )

    def _add_source(self, spec: SourceSpec, source: Any) -> None:
        self.engine.add_source(spec.name, source, items_max=spec.items_max)

    def reload(self, new: PipelineConfig) -> Difference:
        """Change what runs to what a new configuration says, as far as that goes without a restart.

        What is new is made before anything is stopped: a configuration that cannot be used changes
        nothing. A sink that is no longer named keeps its place in the log.

        Returns:
            What was done, and the settings that only a restart takes.

        Raises:
            ConfigError: The new configuration cannot be used, or a source or sink did not stop in
                time; all others are as configured.
        """
        found = difference(self.config, new)
        sinks = [(spec, self._made("sink", spec)) for spec in found.sinks_new]
        sources = [(spec, self._made("source", spec)) for spec in found.sources_new]
        sources_now = {spec.name: spec for spec in self.config.sources}
        sinks_now = {spec.name: spec for spec in self.config.sinks}
        errors: list[str] = []
        for name in found.sources_gone:
            if self._attempt(errors, partial(self.engine.remove_source, name)):
                del sources_now[name]
        for name in found.sinks_gone:
            if self._attempt(errors, partial(self.engine.remove_sink, name)):
                del sinks_now[name]
        for sink_spec, sink in sinks:
            if self._attempt(errors, partial(self._add_sink, sink_spec, sink)):
                sinks_now[sink_spec.name] = sink_spec
        for source_spec, source in sources:
            if self._attempt(errors, partial(self._add_source, source_spec, source)):
                sources_now[source_spec.name] = source_spec
        self.config = replace(  # what runs now: engine and endpoint are as they were
            self.config,
            sources=tuple(sources_now.values()),
            sinks=tuple(sinks_now.values()),
            run=new.run,
        )
        if errors:
            raise ConfigError("; ".join(errors))
        _log.info(
            "pipeline_reloaded",
            stopped=[*found.sources_gone, *found.sinks_gone],
            started=[s.name for s in found.sources_new] + [s.name for s in found.sinks_new],
            needs_restart=list(found.needs_restart),
        )
        return found

    def _attempt(self, errors: list[str], action: Callable[[], object]) -> bool:
        try:
            action()
        except SyncEngineError as exc:
            errors.append(str(exc))
        except Exception as exc:  # of somebody's adapter: the others are changed all the same
            errors.append(f"{type(exc).__name__}: {exc}")
        else:
            return True
        return False

    def forget(self, name: str) -> bool:
        """Let the log go on without a sink that is not configured; return whether it was known.

        Raises:
            ConfigError: The sink is configured.
        """
        if any(spec.name == name for spec in self.config.sinks):
            raise ConfigError(f"sink {name!r} is in the file: take it out first")
        return self.engine.remove_sink(name, forget=True)

    def stop(self, timeout_s: float | None = None) -> Stopped:
        """Take nothing more, deliver what was taken, to the sinks too, and close.

        Args:
            timeout_s: Seconds; None is the engine's ``close_timeout_s``.

        Blocking: up to the timeout and a little more; at once where nothing waits.
        """
        started = self.runtime.clock.monotonic()
        timeout_s = self.config.engine.close_timeout_s if timeout_s is None else timeout_s
        left: dict[str, int] = {}
        dead = 0
        if self.engine.state is EngineState.RUNNING:
            self.engine.hold_sources(timeout_s)
            if self.replicator is not None:
                with contextlib.suppress(SyncEngineError):
                    self.replicator.close()
            with contextlib.suppress(SyncEngineError):
                report = self.engine.flush(timeout_s, sinks=True)
                left, dead = dict(report.left), report.dead_letters
        self._close_endpoint()
        closed: FlushReport = self.engine.close(0.0)
        left = {**left, **closed.left}
        stopped = Stopped(
            left=left,
            dead_letters=max(dead, closed.dead_letters),
            seconds=self.runtime.clock.monotonic() - started,
        )
        _log.info("pipeline_stopped", left=left, dead_letters=stopped.dead_letters)
        return stopped

    def abandon(self) -> None:
        """Close at once; what was not delivered stays in the log."""
        self._close_endpoint()
        self.engine.close(0.0)

    # -- how it does ------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return how every source and sink does, and the log; asks no server."""
        stats = self.engine.stats()
        return {name: stats[name] for name in ("sources", "sinks", "log", "backpressure")}

    def _open_endpoint(self) -> None:
        endpoint = Endpoint(
            self.config.http,
            {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics},
            self.runtime.clock,
        )
        endpoint.open()
        self.endpoint = endpoint
        self.runtime.add_job(_LOOK, self._look)
        self.runtime.add_job(_HTTP, endpoint.step)

    def _close_endpoint(self) -> None:
        endpoint, self.endpoint = self.endpoint, None
        if endpoint is not None:
            endpoint.close()
            self.runtime.wake(_HTTP)
            if self.runtime.remove_job(_HTTP, 5.0):
                endpoint.release()
            self.runtime.remove_job(_LOOK, 0.0)  # it may wait for a tier: nobody waits for it

    def _healthz(self) -> Answer:
        state = self.engine.state
        live = state is EngineState.RUNNING
        return (200 if live else 503), _JSON, _encoded({"state": state.value})

    def _readyz(self) -> Answer:
        clock = self.runtime.clock
        if clock.monotonic() - self._ready_at >= _FRESH_S:
            self._looked.clear()
            self.runtime.wake(_LOOK)
            self._looked.wait(_LOOK_S_MAX)
        if clock.monotonic() - self._ready_at < _OLD_S:
            return self._ready
        told = "the tiers do not answer in time"
        return 503, _JSON, _encoded({"ready": False, "degraded": [told]})

    def _look(self) -> float:
        """Ask every tier, in a job of its own: one that hangs keeps `/healthz` from nobody."""
        if not self._looked.is_set():
            with contextlib.suppress(EngineClosed):
                self._ready = self._asked()
                self._ready_at = self.runtime.clock.monotonic()
        self._looked.set()
        return float("inf")

    def _asked(self) -> Answer:
        health = self.engine.health()
        body = {
            "ready": health.ready,
            "state": health.state.value,
            "degraded": list(health.degraded),
            "pending_items": health.pending_items,
            "backpressure": health.backpressure,
            "dead_letters": health.dead_letters,
            **{name: health.details.get(name, {}) for name in ("sinks", "sources")},
        }
        return (200 if health.ready else 503), _JSON, _encoded(body)

    def _metrics(self) -> Answer:
        metrics, status = self.engine.metrics, self.status()
        told: set[Gauge] = set()

        def tell(gauge: Gauge, value: float) -> None:
            gauge.set(float(value))
            told.add(gauge)

        for name, sink in status["sinks"].items():
            tell(metrics.gauge("sink_lag_bytes", sink=name), sink["lag_bytes"])
            tell(metrics.gauge("sink_lag_seconds", sink=name), sink["lag_s"])
            tell(metrics.gauge("sink_copying", sink=name), sink["stage"] != "follow")
        for name, source in status["sources"].items():
            for key, value in source["progress"].items():
                tell(metrics.gauge("source_progress", source=name, of=str(key)), value)
        for gauge in self._told - told:  # of what is gone: its last value would stand for ever
            gauge.set(math.nan)
        self._told = told
        log = status["log"]
        metrics.gauge("log_pending_items").set(log["pending_items"])
        metrics.gauge("log_pending_bytes").set(log["pending_bytes"])
        metrics.gauge("log_file_bytes").set(log["file_bytes"])
        metrics.gauge("log_dead_letters").set(log["dead_letters"])
        return 200, CONTENT_TYPE, render_text(metrics).encode()


def _encoded(body: object) -> bytes:
    return (json.dumps(body, default=str) + "\n").encode()


def _build_all(config: PipelineConfig, runtime: Runtime) -> None:
    errors = []
    specs: Sequence[tuple[adapters.Kind, SourceSpec | SinkSpec]] = [
        *(("source", spec) for spec in config.sources),
        *(("sink", spec) for spec in config.sinks),
    ]
    for kind, spec in specs:
        context = AdapterContext(
            name=spec.name,
            runtime=runtime,
            data_dir=Path(config.engine.data_dir),
            wake=lambda: None,
        )
        try:
            adapters.build(kind, spec.type, context, spec.settings)
        except ConfigError as exc:
            errors.append(f"[[{kind}]] {spec.name}: {exc}")
    if errors:
        raise ConfigError("\n".join(errors))
