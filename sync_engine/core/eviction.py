"""Which entry of a bounded cache goes next: eviction policies without locks or clocks.

A policy keeps the order of entries; the cache that owns it keeps the bytes and holds its own lock
around every call. A hit only raises `Entry.mark` (and calls `touch`, where a policy has one), so
that readers need no lock; everything else happens when something is written.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from random import Random
from typing import ClassVar

import msgspec

from sync_engine.core.item import Change
from sync_engine.errors import ConfigError

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "Entry",
    "EvictionPolicy",
    "Lru",
    "S3Fifo",
    "Sieve",
    "TanCurve",
    "eviction_policy",
    "tan_curve_multiplier",
    "tan_curve_score",
]

_GONE = 0
_DEAD_MIN = 64


class Entry(msgspec.Struct, gc=False, weakref=False):
    """A cached change and what a policy remembers of it.

    Attributes:
        change: What is cached.
        cost: Bytes it counts for.
        mark: Hits since the policy last looked, up to `EvictionPolicy.mark_max`.
        queue: Which queue of its policy it is in; 0 is none.
        index: Its place there, for policies that use one.
        used_ms: When it was last read, for policies that use it.
    """

    change: Change
    cost: int
    mark: int = 0
    queue: int = _GONE
    index: int = 0
    used_ms: int = 0


class EvictionPolicy(ABC):
    """Orders entries for eviction; every method but `touch` is called under the cache's lock.

    Attributes:
        name: What configuration calls it.
        mark_max: A hit raises `Entry.mark` up to here.
        soft_from: Fill (0 to 1) from which the cache asks for a victim on every put.
        timed: Whether `now_ms` is to be kept up to date.
        now_ms: Wall-clock milliseconds of the last write.
        touch: Called on a hit, without a lock; None where the mark is enough.
    """

    name: ClassVar[str]
    mark_max: ClassVar[int] = 1
    soft_from: ClassVar[float] = 1.0
    timed: ClassVar[bool] = False

    def __init__(self) -> None:
        self.now_ms = 0
        self.touch: Callable[[Entry], object] | None = None

    @abstractmethod
    def admit(self, entry: Entry) -> None:
        """Take a new entry."""

    @abstractmethod
    def forget(self, entry: Entry) -> None:
        """Let an entry go that left for another reason than room."""

    @abstractmethod
    def evict(self, pressure: float) -> Entry | None:
        """Choose a victim and let it go; amortised O(1). Must not be called while empty.

        Args:
            pressure: Fill that the cache would have without evicting; from 1 on, a victim is due.

        Returns:
            The victim, or None below a pressure of 1 where none is cold enough.
        """

    def resized(self, entry: Entry, delta: int) -> None:  # noqa: B027 - most need not know
        """Learn that an entry's cost changed by so many bytes."""

    @abstractmethod
    def clear(self) -> None:
        """Let everything go."""


class Lru(EvictionPolicy):
    """Least recently used goes first.

    Hits are noted in a bounded queue and applied by the next write, which keeps the order exact
    unless more than 65,536 hits come between two writes: then the oldest of them are forgotten.
    """

    name = "lru"
    mark_max = 0

    def __init__(self) -> None:
        super().__init__()
        self._order: OrderedDict[str, Entry] = OrderedDict()
        self._touched: deque[Entry] = deque(maxlen=1 << 16)
        self.touch = self._touched.append

    def _settle(self) -> None:
        move, take = self._order.move_to_end, self._touched.popleft
        for _ in range(len(self._touched)):
            entry = take()
            if entry.queue:
                move(entry.change.id)

    def admit(self, entry: Entry) -> None:
        """Take an entry as the most recently used."""
        self._settle()
        entry.queue = 1
        self._order[entry.change.id] = entry

    def forget(self, entry: Entry) -> None:
        """Let an entry go."""
        entry.queue = _GONE
        del self._order[entry.change.id]

    def evict(self, pressure: float) -> Entry:
        """Let the least recently used entry go."""
        self._settle()
        _, entry = self._order.popitem(last=False)
        entry.queue = _GONE
        return entry

    def clear(self) -> None:
        """Let everything go."""
        self._order.clear()
        self._touched.clear()


class Sieve(EvictionPolicy):
    """Oldest unread goes first; a hand passes over read ones and leaves them where they are.

    Source: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU", NSDI 2024. In place of
    a linked list, an array with holes that is closed up when half of it is holes.
    """

    name = "sieve"

    def __init__(self) -> None:
        super().__init__()
        self._order: list[Entry] = []
        self._hand = 0
        self._dead = 0

    def admit(self, entry: Entry) -> None:
        """Take an entry as the newest."""
        entry.queue = 1
        self._order.append(entry)

    def forget(self, entry: Entry) -> None:
        """Let an entry go; its hole is closed up later."""
        entry.queue = _GONE
        self._buried()

    def _buried(self) -> None:
        self._dead += 1
        if self._dead > (len(self._order) >> 1) + _DEAD_MIN:
            passed = self._order[: self._hand]
            self._hand = sum(1 for entry in passed if entry.queue)
            self._order = [entry for entry in self._order if entry.queue]
            self._dead = 0

    def evict(self, pressure: float) -> Entry:
        """Let the first unread entry go that the hand meets."""
        while True:
            if self._hand >= len(self._order):
                self._hand = 0
            entry = self._order[self._hand]
            self._hand += 1
            if not entry.queue:
                continue
            if entry.mark:
                entry.mark = 0
                continue
            entry.queue = _GONE
            self._buried()
            return entry

    def clear(self) -> None:
        """Let everything go."""
        self._order.clear()
        self._hand = self._dead = 0


class S3Fifo(EvictionPolicy):
    """Three queues: newcomers (a tenth of the bytes), the proven, and ids that left lately.

    A newcomer that is not read twice leaves soon and does not displace the proven ones; if it comes
    back while its id is remembered, it counts as proven.

    Args:
        bytes_max: Bound of the cache.

    Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP
    2023, algorithm 1; sizes are in bytes, and at most as many ids are remembered as are cached.
    """

    name = "s3-fifo"
    mark_max = 3
    _SMALL, _MAIN = 1, 2

    def __init__(self, bytes_max: int) -> None:
        super().__init__()
        self._small_bytes_max = bytes_max // 10
        self._small: deque[Entry] = deque()
        self._main: deque[Entry] = deque()
        self._small_bytes = 0
        self._dead = 0
        self._ghosts: set[int] = set()
        self._ghost_order: deque[int] = deque()

    def admit(self, entry: Entry) -> None:
        """Take an entry as a newcomer, or as proven where its id left lately."""
        key = hash(entry.change.id)
        if key in self._ghosts:
            self._ghosts.discard(key)
            entry.queue = self._MAIN
            self._main.append(entry)
        else:
            entry.queue = self._SMALL
            self._small.append(entry)
            self._small_bytes += entry.cost

    def forget(self, entry: Entry) -> None:
        """Let an entry go; its hole is closed up later."""
        if entry.queue == self._SMALL:
            self._small_bytes -= entry.cost
        entry.queue = _GONE
        self._dead += 1
        if self._dead > (len(self._small) + len(self._main) >> 1) + _DEAD_MIN:
            self._small = deque(entry for entry in self._small if entry.queue)
            self._main = deque(entry for entry in self._main if entry.queue)
            self._dead = 0

    def resized(self, entry: Entry, delta: int) -> None:
        """Keep the newcomers' bytes right."""
        if entry.queue == self._SMALL:
            self._small_bytes += delta

    def evict(self, pressure: float) -> Entry:
        """Let the oldest newcomer go that was hardly read, or the oldest unread proven one."""
        small, main = self._small, self._main
        while True:
            if small and (self._small_bytes > self._small_bytes_max or not main):
                entry = small.popleft()
                if not entry.queue:
                    self._dead -= 1
                    continue
                self._small_bytes -= entry.cost
                if entry.mark > 1:
                    entry.mark = 0
                    entry.queue = self._MAIN
                    main.append(entry)
                    continue
                self._remember(hash(entry.change.id))
            else:
                entry = main.popleft()
                if not entry.queue:
                    self._dead -= 1
                    continue
                if entry.mark:
                    entry.mark -= 1
                    main.append(entry)
                    continue
            entry.queue = _GONE
            return entry

    def _remember(self, key: int) -> None:
        ghosts, order = self._ghosts, self._ghost_order
        ghosts.add(key)
        order.append(key)
        bound = len(self._small) + len(self._main)
        while len(order) > bound:
            ghosts.discard(order.popleft())

    def clear(self) -> None:
        """Let everything go."""
        for queue in (self._small, self._main, self._ghost_order):
            queue.clear()
        self._ghosts.clear()
        self._small_bytes = self._dead = 0


_READS_MAX = 1000
_IDLE_UNIT_S = 3600.0
_SIZE_UNIT = 1 << 20


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
    a victim costs O(1); those that survive one lose a quarter of their remembered hits, so that
    yesterday's hot entry does not stay for ever.

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
        entry.queue = _GONE
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
        for entry in sample:
            if entry is not victim:
                entry.mark -= (entry.mark + 3) >> 2
        if pressure < 1.0 and lowest >= 1.0 - multiplier:
            return None
        self.forget(victim)
        return victim

    def clear(self) -> None:
        """Let everything go."""
        self._entries.clear()


POLICIES: Mapping[str, Callable[[int], EvictionPolicy]] = {
    "s3-fifo": S3Fifo,
    "sieve": lambda _: Sieve(),
    "lru": lambda _: Lru(),
    "tan-curve": lambda _: TanCurve(),
}
DEFAULT_POLICY = "s3-fifo"


def eviction_policy(name: str, bytes_max: int) -> EvictionPolicy:
    """Make the policy of a name, for a cache of so many bytes.

    Raises:
        ConfigError: There is no policy of that name.
    """
    make = POLICIES.get(name)
    if make is None:
        raise ConfigError(f"l1_policy must be one of {', '.join(POLICIES)}, got {name!r}")
    return make(bytes_max)
