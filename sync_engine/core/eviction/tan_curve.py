"""A score of recency, frequency and size whose weights move with memory pressure."""

from __future__ import annotations

import math
from random import Random
from typing import ClassVar

from sync_engine.core.eviction.base import Entry, EvictionPolicy

__all__ = ["TanCurve", "tan_curve_multiplier", "tan_curve_score"]

_READS_MAX = 1000
_IDLE_UNIT_S = 3600.0
_SIZE_UNIT = 1 << 20
_AGEING = 1 / 8


def tan_curve_multiplier(pressure: float) -> float:
    """Return how much recency still counts at a pressure: 1 up to 0.75, 0 from 0.95 on.

    Between the two it falls along a tangent: gently at first, then through 0.5 at 0.85.
    """
    if pressure <= 0.75:
        return 1.0
    if pressure >= 0.95:
        return 0.0
    angle = ((pressure - 0.75) / 0.20 - 0.5) * math.pi / 1.2
    return min(1.0, max(0.0, 1.0 - (math.tan(angle) + 2.0) / 4.0))


def tan_curve_score(*, idle_s: float, reads: int, size_bytes: int, pressure: float) -> float:
    """Return what an entry is worth at a pressure, 0 to 1: the lowest goes first.

    With m the multiplier: ``0.4 m`` times recency, ``0.4`` times frequency, and
    ``0.2 + 0.4 (1 - m)`` times smallness; the weights always add up to 1. Under pressure it counts
    for less that an entry is *new*, and for more that it is small; that it is *read often* counts
    the same at any pressure, so that hot entries never go at random.

    Args:
        idle_s: Seconds since it was last read or written (0 or more).
        reads: Hits remembered (0 or more).
        size_bytes: Its size.
        pressure: Fill of the cache, 0 to 1.
    """
    return _score(tan_curve_multiplier(pressure), idle_s, reads, size_bytes)


_FREQUENCY = [math.log1p(reads) / math.log1p(_READS_MAX) for reads in range(_READS_MAX + 1)]


def _score(multiplier: float, idle_s: float, reads: int, size_bytes: int) -> float:
    return (
        0.4 * multiplier * math.exp(-idle_s / _IDLE_UNIT_S)
        + 0.4 * _FREQUENCY[min(reads, _READS_MAX)]
        + (0.6 - 0.4 * multiplier) / (1.0 + size_bytes / _SIZE_UNIT)
    )


class TanCurve(EvictionPolicy):
    """Recency, frequency and size make a score; pressure shifts its weights (`tan_curve_score`).

    Cold entries leave before the cache is full: from a fill of 0.75 on, every put draws a sample,
    and its lowest goes if it scores below one minus the multiplier. Samples are of five entries, so
    a victim costs O(1). Remembered hits are halved once in about eight turnovers of the cache, so
    that yesterday's hot entry does not stay for ever.

    Source: terms and curve of the documented tan-curve eviction, where the curve scales whole
    scores and so cannot change their order; here it shifts weights. Sampling as in Redis
    (``maxmemory-samples``).
    """

    name = "tan-curve"
    mark_max = _READS_MAX
    soft_from = 0.75
    timed = True
    SAMPLES: ClassVar[int] = 5

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._entries: list[Entry] = []
        self._random = Random(seed).random  # noqa: S311 - choice of victims, not a secret
        self.touch = self._touched

    def _touched(self, entry: Entry) -> None:
        entry.used_ms = self.now_ms

    def admit(self, entry: Entry) -> None:
        """Take an entry as read just now."""
        entry.queue = 1
        entry.index = len(self._entries)
        entry.used_ms = self.now_ms
        self._entries.append(entry)

    def forget(self, entry: Entry) -> None:
        """Let an entry go."""
        entry.queue = 0
        last = self._entries.pop()
        if last is not entry:
            self._entries[entry.index] = last
            last.index = entry.index

    def evict(self, pressure: float) -> Entry | None:
        """Let the lowest of a sample go, if the pressure is high enough for its score."""
        entries, count = self._entries, len(self._entries)
        if count <= self.SAMPLES:
            sample = list(entries)
        else:
            sample = [entries[int(self._random() * count)] for _ in range(self.SAMPLES)]
        multiplier, now_ms = tan_curve_multiplier(pressure), self.now_ms
        victim, lowest = sample[0], math.inf
        for entry in sample:
            idle_s = max(0, now_ms - entry.used_ms) / 1000
            score = _score(multiplier, idle_s, entry.mark, entry.cost)
            if score < lowest:
                victim, lowest = entry, score
        if self._random() < _AGEING:
            sample[0].mark >>= 1
        if pressure < 1.0 and lowest >= 1.0 - multiplier:
            return None
        self.forget(victim)
        return victim

    def clear(self) -> None:
        """Let everything go."""
        self._entries.clear()
