"""Counters, gauges and histograms that cost next to nothing, read when somebody asks.

Nothing is exported while the engine works: an increment is one addition, and exporters read the
totals at their own pace.

Thread-safety of an increment: each is one statement of the form ``self.value += n``, on a slot or
list entry that holds an int or float. CPython with its GIL changes threads only on entering a
function, on jumping back and after a call, none of which lies between the load and the store; a
test reads the bytecode of every such method to keep it so. Without a GIL, counts would be lost.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import TypeVar, cast

from sync_engine.telemetry.catalogue import describe

__all__ = [
    "NAMESPACE",
    "SERIES_MAX",
    "Counter",
    "Family",
    "Gauge",
    "Histogram",
    "HistogramValue",
    "Labels",
    "Metrics",
    "Series",
    "SpanHook",
    "full_name",
    "render_labels",
]

NAMESPACE = "sync_engine"
SERIES_MAX = 200
"""Label combinations of one name; those beyond share one series labelled ``other``."""

Labels = tuple[tuple[str, str], ...]
SpanHook = Callable[[str, Mapping[str, str]], AbstractContextManager[None]]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class Counter:
    """A total that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self) -> None:
        """Add one."""
        self.value += 1

    def add(self, amount: float) -> None:
        """Add an amount of 0 or more."""
        self.value += amount


class Gauge:
    """A number that goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def set(self, value: float) -> None:
        """Replace the number."""
        self.value = value

    def add(self, amount: float) -> None:
        """Add an amount, which may be negative."""
        self.value += amount


@dataclass(frozen=True, slots=True)
class HistogramValue:
    """A histogram at one moment.

    Attributes:
        count: Observations.
        sum: Their sum, in the unit of the metric.
        buckets: Pairs of an upper bound and the observations up to it, cumulative, ascending; the
            last bound is infinity.
    """

    count: int
    sum: float
    buckets: tuple[tuple[float, int], ...]

    def quantile(self, q: float) -> float:
        """Return an upper bound of a quantile (q in 0 to 1), exact to a factor of two.

        An empty histogram gives 0.
        """
        rank = q * self.count
        return next((bound for bound, seen in self.buckets if seen and seen >= rank), 0.0)


class Histogram:
    """Observations in buckets whose bounds double.

    Args:
        first: Upper bound of the first bucket, in the unit of the metric (above 0).
    """

    __slots__ = ("_bounds", "_counts", "sum")

    BOUNDS = 28

    def __init__(self, first: float = 1e-6) -> None:
        self.sum: float = 0
        self._bounds = [first * 2**power for power in range(self.BOUNDS)]
        self._counts = [0] * (self.BOUNDS + 1)

    def observe(self, value: float) -> None:
        """Count one observation; what is below 0 falls into the first bucket."""
        bucket = bisect_left(self._bounds, value)
        self._counts[bucket] += 1
        self.sum += value

    def read(self) -> HistogramValue:
        """Return counts and sum; consistent with each other to within the calls under way."""
        counts = list(accumulate(self._counts))
        bounds = (*self._bounds, math.inf)
        return HistogramValue(counts[-1], self.sum, tuple(zip(bounds, counts, strict=True)))


@dataclass(frozen=True, slots=True)
class Series:
    """One metric with one combination of labels.

    Attributes:
        labels: Pairs of name and value, in the order of the names.
        value: A number, or the buckets of a histogram.
    """

    labels: Labels
    value: float | HistogramValue


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one metric at one moment.

    Attributes:
        name: Full name, such as ``sync_engine_reads_total``.
        kind: ``counter``, ``gauge`` or ``histogram``.
        help: One sentence.
        series: One entry per combination of labels, in order of labels.
    """

    name: str
    kind: str
    help: str
    series: tuple[Series, ...]


Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)


class Metrics:
    """The meters of one engine, by name and labels.

    A name is ``<noun>_<unit>``, as in ``flush_seconds``; the namespace goes before it, and
    ``_total`` behind it for counters: ``sync_engine_flushes_total``. A name keeps the kind and the
    label names
    of its first use. Label values must come from a small set (tiers, operations, outcomes), never
    from users' data; combinations beyond `SERIES_MAX` share one series labelled ``other``.

    Attributes:
        spans: Makes the context of a store call from its name and attributes; None makes none.

    Thread-safety: every method may be called from any thread. Cost: a look-up is about 0.5 µs, so
    hot paths keep the meter they were given.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._series: dict[tuple[str, frozenset[tuple[str, str]]], _Meter] = {}
        self._families: dict[str, _Registered] = {}
        self._watchers: list[Callable[[str, str], None]] = []
        self.spans: SpanHook | None = None

    def counter(self, name: str, **labels: str) -> Counter:
        """Return the counter of a name and labels; always the same one.

        Raises:
            ValueError: The name or a label name is malformed, or in use with another kind or other
                label names.
        """
        return self._get(Counter, Counter, name, labels)

    def gauge(self, name: str, **labels: str) -> Gauge:
        """Return the gauge of a name and labels; always the same one.

        Raises:
            ValueError: As for `counter`.
        """
        return self._get(Gauge, Gauge, name, labels)

    def histogram(self, name: str, **labels: str) -> Histogram:
        """Return the histogram of a name and labels; always the same one.

        The first bucket ends at 1 µs for names in ``_seconds``, at 64 B for names in ``_bytes``,
        and at 1 for all others.

        Raises:
            ValueError: As for `counter`.
        """
        return self._get(Histogram, lambda: Histogram(_first_bound(name)), name, labels)

    def gauge_callback(self, name: str, read: Callable[[], float], **labels: str) -> None:
        """Ask a function for a gauge whenever it is read; replaces an earlier function.

        The function is called from the reader's thread, outside any lock; it must not block. If it
        raises, the series is left out of that reading.

        Raises:
            ValueError: As for `counter`.
        """
        self._place(_Callback(read), name, labels, replace=True)

    def collect(self) -> list[Family]:
        """Read everything: one entry a metric, in order of names."""
        with self._lock:
            found = sorted((name, family.kind) for name, family in self._families.items())
        return [
            Family(full_name(name, kind), kind, describe(name), self.read(name))
            for name, kind in found
        ]

    def read(self, name: str) -> tuple[Series, ...]:
        """Read the series of one metric, in order of labels; empty where there is none."""
        with self._lock:
            family = self._families.get(name)
            meters = sorted(family.series.items(), key=_labels) if family else []
        return tuple(_read(meters))

    def watch(self, watcher: Callable[[str, str], None]) -> None:
        """Tell a function name and kind of every metric there is, and later of every new one."""
        with self._lock:
            self._watchers.append(watcher)
            known = [(name, family.kind) for name, family in self._families.items()]
        for name, kind in known:
            watcher(name, kind)

    def unwatch(self, watcher: Callable[[str, str], None]) -> None:
        """Tell a function no more; unknown ones are ignored."""
        with self._lock:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    def snapshot(self) -> dict[str, float | HistogramValue]:
        """Return every series as ``name{label="value"}`` and its value."""
        return {
            family.name + render_labels(series.labels): series.value
            for family in self.collect()
            for series in family.series
        }

    def _get(
        self,
        kind: type[Instrument],
        make: Callable[[], Instrument],
        name: str,
        labels: Mapping[str, str],
    ) -> Instrument:
        meter = self._series.get((name, frozenset(labels.items())))
        if isinstance(meter, kind):
            return meter
        return cast("Instrument", self._place(make(), name, labels))

    def _place(
        self, meter: _Meter, name: str, labels: Mapping[str, str], *, replace: bool = False
    ) -> _Meter:
        kind = _KINDS[type(meter)]
        for word in (name, *labels):
            if not _NAME.fullmatch(word):
                raise ValueError(f"{word!r} is no name for a metric or label")
        key = tuple(sorted((label, str(value)) for label, value in labels.items()))
        with self._lock:
            watchers = () if name in self._families else tuple(self._watchers)
            family = self._families.setdefault(name, _Registered(kind, frozenset(labels)))
            if (family.kind, family.labels) != (kind, frozenset(labels)):
                raise ValueError(
                    f"{name!r} is a {family.kind} with labels {sorted(family.labels)}, "
                    f"not a {kind} with labels {sorted(labels)}"
                )
            if key not in family.series and len(family.series) >= SERIES_MAX:
                key = tuple((label, "other") for label, _ in key)
            if replace or type(family.series.get(key)) is not type(meter):
                family.series[key] = meter
            meter = family.series[key]
            if len(family.series) <= SERIES_MAX:
                self._series[name, frozenset(labels.items())] = meter
        for watcher in watchers:
            watcher(name, kind)
        return meter


class _Callback:
    __slots__ = ("read",)

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read


_Meter = Counter | Gauge | Histogram | _Callback
_KINDS: Mapping[type[_Meter], str] = {
    Counter: "counter",
    Gauge: "gauge",
    Histogram: "histogram",
    _Callback: "gauge",
}


class _Registered:
    __slots__ = ("kind", "labels", "series")

    def __init__(self, kind: str, labels: frozenset[str]) -> None:
        self.kind = kind
        self.labels = labels
        self.series: dict[Labels, _Meter] = {}


def _read(meters: Iterable[tuple[Labels, _Meter]]) -> Iterator[Series]:
    for labels, meter in meters:
        if isinstance(meter, Counter | Gauge):
            yield Series(labels, meter.value)
        elif isinstance(meter, Histogram):
            yield Series(labels, meter.read())
        else:
            with suppress(Exception):  # one broken gauge must not hide the others
                yield Series(labels, float(meter.read()))


def _labels(item: tuple[Labels, _Meter]) -> Labels:
    return item[0]


def _first_bound(name: str) -> float:
    if name.endswith("_seconds"):
        return 1e-6
    return 64.0 if name.endswith("_bytes") else 1.0


def full_name(name: str, kind: str) -> str:
    """Return the exported name of a metric."""
    return f"{NAMESPACE}_{name}_total" if kind == "counter" else f"{NAMESPACE}_{name}"


def render_labels(labels: Labels) -> str:
    """Return labels as Prometheus writes them; empty without labels."""
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
