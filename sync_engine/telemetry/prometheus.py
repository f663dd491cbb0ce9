"""The meters for ``prometheus_client``, read when Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sync_engine.errors import ConfigError
from sync_engine.telemetry.exposition import number
from sync_engine.telemetry.metrics import Family, HistogramValue, Metrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

__all__ = ["PrometheusExporter"]


class PrometheusExporter:
    """Shows the meters of one engine in a registry, until closed.

    Args:
        metrics: The meters.
        registry: Where they are shown; None is the process-wide one.

    Raises:
        ConfigError: The extra ``prometheus`` is not installed.
    """

    def __init__(self, metrics: Metrics, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY
        except ImportError as exc:
            raise ConfigError(
                "prometheus_client is not installed: pip install 'sync-engine[prometheus]'"
            ) from exc
        self._metrics = metrics
        registry = REGISTRY if registry is None else registry
        registry.register(self)
        self._registry: CollectorRegistry | None = registry

    def describe(self) -> list[Metric]:
        """Return nothing: names come and go, so the registry must not ask for them ahead."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric as it stands now."""
        return map(_metric, self._metrics.collect())

    def close(self) -> None:
        """Leave the registry; safe twice."""
        registry, self._registry = self._registry, None
        if registry is not None:
            registry.unregister(self)


def _metric(family: Family) -> Metric:
    from prometheus_client import Metric

    metric = Metric(family.name.removesuffix("_total"), family.help, family.kind)
    for series in family.series:
        labels = dict(series.labels)
        if isinstance(series.value, HistogramValue):
            for bound, count in series.value.buckets:
                metric.add_sample(f"{family.name}_bucket", {**labels, "le": number(bound)}, count)
            metric.add_sample(f"{family.name}_count", labels, series.value.count)
            metric.add_sample(f"{family.name}_sum", labels, series.value.sum)
        else:
            metric.add_sample(family.name, labels, series.value)
    return metric
