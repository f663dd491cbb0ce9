"""Hit ratio and cost of the L1 eviction policies.

    python benchmarks/l1_hit_ratio.py [--ids 100000] [--reads 1000000]

Two loads, at a cache of 10 % of the bytes of all items: Zipf(1.0), and the same with sequential
scans of ids that are read once mixed in (a third of the reads). A miss is followed by a put, as the
engine does. W-TinyLFU is here for comparison only. Figures are hits by reads of the Zipf part; the
second half of the reads is measured, the first warms up.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from sync_engine.core.eviction import POLICIES
from sync_engine.core.item import Change
from sync_engine.stores.memory import MemoryCache, entry_cost

SEED = 7
CONTENT = b"x" * 200


def zipf(ids: int, reads: int, exponent: float = 1.0) -> list[int]:
    """Draw ids by rank, in a fixed random order of ranks."""
    random = np.random.default_rng(SEED)
    weights = 1.0 / np.arange(1, ids + 1) ** exponent
    bounds = np.cumsum(weights) / weights.sum()
    ranks = np.searchsorted(bounds, random.random(reads))
    drawn: list[int] = random.permutation(ids)[np.minimum(ranks, ids - 1)].tolist()
    return drawn


def scanned(draws: list[int], ids: int) -> Iterator[tuple[int, bool]]:
    """Mix scans of 5,000 ids in after every 10,000 draws; the flag tells a scan's reads."""
    scan = ids
    for start in range(0, len(draws), 10_000):
        for draw in draws[start : start + 10_000]:
            yield draw, False
        for _ in range(5_000):
            scan += 1
            yield scan, True


class WTinyLfu:
    """Window of 1 %, segmented main space, four-row sketch with ageing; counts items, not bytes."""

    def __init__(self, items_max: int) -> None:
        self.window_max = max(1, items_max // 100)
        self.main_max = items_max - self.window_max
        self.protected_max = self.main_max * 8 // 10
        self.window: OrderedDict[str, None] = OrderedDict()
        self.probation: OrderedDict[str, None] = OrderedDict()
        self.protected: OrderedDict[str, None] = OrderedDict()
        self.width = 1 << (items_max - 1).bit_length()
        self.rows = [bytearray(self.width) for _ in range(4)]
        self.adds = 0
        self.adds_max = 10 * items_max

    def _cells(self, id: str) -> list[int]:
        low, high = hash(id) & 0xFFFFFFFF, hash(id) >> 32
        return [(low + i * high) * 0x9E3779B1 >> 7 & self.width - 1 for i in range(4)]

    def frequency(self, id: str) -> int:
        return min(row[cell] for row, cell in zip(self.rows, self._cells(id), strict=True))

    def read(self, id: str) -> bool:
        for row, cell in zip(self.rows, self._cells(id), strict=True):
            row[cell] = min(15, row[cell] + 1)
        self.adds += 1
        if self.adds >= self.adds_max:
            self.rows = [bytearray(value >> 1 for value in row) for row in self.rows]
            self.adds //= 2
        if id in self.protected:
            self.protected.move_to_end(id)
        elif id in self.probation:
            del self.probation[id]
            self.protected[id] = None
            if len(self.protected) > self.protected_max:
                self.probation[self.protected.popitem(last=False)[0]] = None
        elif id in self.window:
            self.window.move_to_end(id)
        else:
            self._admit(id)
            return False
        return True

    def _admit(self, id: str) -> None:
        self.window[id] = None
        if len(self.window) <= self.window_max:
            return
        candidate, _ = self.window.popitem(last=False)
        if len(self.probation) + len(self.protected) < self.main_max:
            self.probation[candidate] = None
            return
        victim = next(iter(self.probation))
        if self.frequency(candidate) > self.frequency(victim):
            del self.probation[victim]
            self.probation[candidate] = None


class Cached:
    """A `MemoryCache` that is read through."""

    def __init__(self, policy: str, bytes_max: int) -> None:
        self.now = 0.0
        self.cache = MemoryCache(bytes_max, policy=policy, now_ms=lambda: int(self.now))
        self.version = 0

    def read(self, id: str) -> bool:
        self.now += 0.01  # a read takes 10 µs of the cache's time
        if self.cache.get(id) is not None:
            return True
        self.version += 1
        self.cache.put(Change(id, self.version, CONTENT))
        return False


def run(cache: Cached | WTinyLfu, load: list[tuple[str, bool]]) -> tuple[float, float]:
    half = len(load) // 2
    hits = asked = 0
    read = cache.read
    began = time.perf_counter()
    for number, (id, scan) in enumerate(load):
        hit = read(id)
        if number >= half and not scan:
            hits += hit
            asked += 1
    return hits / asked, (time.perf_counter() - began) / len(load) * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ids", type=int, default=100_000)
    parser.add_argument("--reads", type=int, default=1_000_000)
    options = parser.parse_args()
    ids = options.ids
    draws = zipf(ids, options.reads)
    names = {number: f"item.{number:07d}" for number in draws}
    plain = [(names[number], False) for number in draws]
    polluted = [
        (f"scan.{number:07d}" if scan else names[number], scan)
        for number, scan in scanned(draws, ids)
    ]
    items_max = ids // 10
    bytes_max = items_max * entry_cost(Change("item.0000000", 1, CONTENT))
    print(f"{ids:,} ids, {options.reads:,} reads, room for {items_max:,} items")
    print(f"{'policy':<12}{'Zipf(1.0)':>12}{'with scans':>12}{'ns a read':>12}")
    for policy in POLICIES:
        clean, ns = run(Cached(policy, bytes_max), plain)
        dirty, _ = run(Cached(policy, bytes_max), polluted)
        print(f"{policy:<12}{clean:>12.4f}{dirty:>12.4f}{ns:>12,.0f}")
    clean, ns = run(WTinyLfu(items_max), plain)
    dirty, _ = run(WTinyLfu(items_max), polluted)
    print(f"{'w-tinylfu':<12}{clean:>12.4f}{dirty:>12.4f}{ns:>12,.0f}")


if __name__ == "__main__":
    main()
