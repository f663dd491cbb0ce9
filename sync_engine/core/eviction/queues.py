"""Policies that keep entries in queues: LRU, SIEVE and S3-FIFO.

An entry that leaves a queue's middle stays in it as a hole (`Entry.queue` is 0), and holes are
closed up when there are more of them than entries: O(1) amortised.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from sync_engine.core.eviction.base import Entry, EvictionPolicy

__all__ = ["Lru", "S3Fifo", "Sieve"]

_HOLES_MIN = 64


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
        entry.queue = 0
        del self._order[entry.change.id]

    def evict(self, pressure: float) -> Entry:
        """Let the least recently used entry go."""
        self._settle()
        _, entry = self._order.popitem(last=False)
        entry.queue = 0
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
        self._holes = 0

    def admit(self, entry: Entry) -> None:
        """Take an entry as the newest."""
        entry.queue = 1
        self._order.append(entry)

    def forget(self, entry: Entry) -> None:
        """Let an entry go; its hole is closed up later."""
        entry.queue = 0
        self._add_hole()

    def _add_hole(self) -> None:
        self._holes += 1
        if self._holes > (len(self._order) >> 1) + _HOLES_MIN:
            passed = self._order[: self._hand]
            self._hand = sum(1 for entry in passed if entry.queue)
            self._order = [entry for entry in self._order if entry.queue]
            self._holes = 0

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
            entry.queue = 0
            self._add_hole()
            return entry

    def clear(self) -> None:
        """Let everything go."""
        self._order.clear()
        self._hand = self._holes = 0


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
        self._holes = 0
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
        entry.queue = 0
        self._holes += 1
        if self._holes > (len(self._small) + len(self._main) >> 1) + _HOLES_MIN:
            self._small = deque(entry for entry in self._small if entry.queue)
            self._main = deque(entry for entry in self._main if entry.queue)
            self._holes = 0

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
                    self._holes -= 1
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
                    self._holes -= 1
                    continue
                if entry.mark:
                    entry.mark -= 1
                    main.append(entry)
                    continue
            entry.queue = 0
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
        self._small_bytes = self._holes = 0
