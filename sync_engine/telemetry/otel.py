"""The meters and store calls for OpenTelemetry: observable instruments, read by its readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sync_engine.errors import ConfigError
from sync_engine.telemetry.catalogue import describe
from sync_engine.telemetry.metrics import HistogramValue, Metrics, Series, full_name

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import TracerProvider

__all__ = ["OtelExporter"]

_SCOPE = "sync_engine"


class OtelExporter:
    """Shows the meters of one engine to OpenTelemetry, and makes a span of every store call.

    Counters and gauges keep their names. OpenTelemetry has no observable histogram, so each becomes
    two counters, ``<name>_count`` and ``<name>_sum``. Spans are made for calls of L2, L3 and sinks,
    about 12 µs each; warm reads and writes make none.

    Args:
        metrics: The meters.
        meter_provider: Where they are shown; None is the process-wide one.
        tracer_provider: Where spans go; None is the process-wide one.
        spans: Whether to make spans at all.

    Raises:
        ConfigError: The extra ``otel`` is not installed.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
        spans: bool = True,
    ) -> None:
        try:
            from opentelemetry import metrics as otel_metrics
            from opentelemetry import trace
        except ImportError as exc:
            raise ConfigError(
                "opentelemetry is not installed: pip install 'sync-engine[otel]'"
            ) from exc
        self._metrics = metrics
        self._open = True
        self._meter = otel_metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        metrics.watch(self._instrument)
        if spans:
            self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
            metrics.spans = self._span

    def close(self) -> None:
        """Show nothing more, make no more spans; safe twice."""
        self._open = False
        self._metrics.unwatch(self._instrument)
        if self._metrics.spans == self._span:
            self._metrics.spans = None

    def _instrument(self, name: str, kind: str) -> None:
        full, unit, meaning = full_name(name, kind), _unit(name), describe(name)
        meter = self._meter
        if kind == "gauge":
            meter.create_observable_gauge(full, [self._observe(name, float)], unit, meaning)
        elif kind == "counter":
            meter.create_observable_counter(full, [self._observe(name, float)], unit, meaning)
        else:
            counts, sums = self._observe(name, _count), self._observe(name, _sum)
            meter.create_observable_counter(f"{full}_count", [counts], "1", meaning)
            meter.create_observable_counter(f"{full}_sum", [sums], unit, meaning)

    def _observe(
        self, name: str, value_of: Callable[[Any], float]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        def observe(_: CallbackOptions) -> Iterator[Observation]:
            series: Iterable[Series] = self._metrics.read(name) if self._open else ()
            for one in series:
                yield Observation(value_of(one.value), dict(one.labels))

        return observe

    @contextmanager
    def _span(self, name: str, attributes: Mapping[str, str]) -> Iterator[None]:
        with self._tracer.start_as_current_span(name, attributes=attributes):
            yield


def _unit(name: str) -> str:
    return {"seconds": "s", "bytes": "By"}.get(name.rpartition("_")[2], "1")


def _count(value: HistogramValue) -> float:
    return value.count


def _sum(value: HistogramValue) -> float:
    return value.sum
