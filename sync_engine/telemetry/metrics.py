"""Counters, gauges and histograms that cost next to nothing, read when somebody asks.

Nothing is exported while the engine works: an increment is one addition, and exporters read the
totals at their own pace.

Thread-safety of an increment: each is one statement of the form ``self.value += n`` on a slot that
holds an int or float. CPython with its GIL changes threads only on entering a function, on jumping
back, and after a call, none of which lies between the load and the store. A test reads the
bytecode of every such method to keep it so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

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
]

NAMESPACE = "sync_engine"
SERIES_MAX = 200
"""Label combinations of one name; those beyond share one series labelled ``other``."""

Labels = tuple[tuple[str, str], ...]

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


class _Cell:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0

    def inc(self) -> None:
        self.n += 1


class Histogram:
    """Observations in buckets whose bounds double.

    Args:
        scale: Observations are counted in whole units of ``1 / scale``: 1e6 sorts seconds by
            microseconds, 1 sorts bytes or items. The first bound is one such unit.
    """

    __slots__ = ("_incs", "_cells", "_last", "scale", "sum")

    BUCKETS = 40

    def __init__(self, scale: float = 1e6) -> None:
        self.scale = scale
        self.sum: float = 0
        self._last = self.BUCKETS - 1
        self._cells = [_Cell() for _ in range(self.BUCKETS)]
        self._incs = [cell.inc for cell in self._cells]

    def observe(self, value: float) -> None:
        """Count one observation; what is below 0 counts as 0."""
        bucket = math.ceil(value * self.scale - 1).bit_length() if value > 0 else 0
        self._incs[bucket if bucket < self._last else self._last]()
        self._add(value)

    def _add(self, value: float) -> None:
        self.sum += value

    def read(self) -> HistogramValue:
        """Return counts and sum; consistent with each other to within the calls under way."""
        counts = [cell.n for cell in self._cells]
        total, buckets = 0, []
        for power, n in enumerate(counts):
            total += n
            bound = math.inf if power == self._last else (1 << power) / self.scale
            buckets.append((bound, total))
        return HistogramValue(total, self.sum, tuple(buckets))
