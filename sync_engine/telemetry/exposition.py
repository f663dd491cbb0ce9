"""The meters as text that Prometheus reads; needs no extra."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sync_engine.telemetry.metrics import Family, HistogramValue, Metrics, Series, render_labels

__all__ = ["CONTENT_TYPE", "number", "render_text"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render_text(metrics: Metrics) -> str:
    """Return every series in Prometheus' text format, ending in a newline; empty without series.

    Serve it with `CONTENT_TYPE`.

    Source: Prometheus documentation, Exposition formats, text-based format 0.0.4.
    """
    return "".join(f"{line}\n" for family in metrics.collect() for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help}"
    yield f"# TYPE {family.name} {family.kind}"
    for series in family.series:
        if isinstance(series.value, HistogramValue):
            yield from _histogram(family.name, series, series.value)
        else:
            yield f"{family.name}{render_labels(series.labels)} {number(series.value)}"


def _histogram(name: str, series: Series, value: HistogramValue) -> Iterator[str]:
    for bound, count in value.buckets:
        labels = render_labels((*series.labels, ("le", number(bound))))
        yield f"{name}_bucket{labels} {count}"
    labels = render_labels(series.labels)
    yield f"{name}_sum{labels} {number(value.sum)}"
    yield f"{name}_count{labels} {value.count}"


def number(value: float) -> str:
    """Return a number as Prometheus writes it."""
    if value == math.inf:
        return "+Inf"
    if value == -math.inf:
        return "-Inf"
    return "NaN" if value != value else repr(value)
