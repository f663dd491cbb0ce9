"""One table of a cuckoo filter.

Source: Fan, Andersen, Kaminsky, Mitzenmacher, "Cuckoo Filter: Practically Better Than Bloom",
CoNEXT 2014 (partial-key cuckoo hashing, buckets of four). The search for a free slot goes breadth
first, as in libcuckoo, so that a search that fails changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LOAD_MAX", "SLOTS", "CuckooTable"]

SLOTS = 4
LOAD_MAX = 0.85
_SPREAD = 0x5BD1E995
_SEARCH_MAX = 256


class CuckooTable:
    """Buckets of four 16-bit fingerprints; 0 is an empty slot, and taken slots come first.

    Args:
        log2_buckets: Binary logarithm of the number of buckets.
        table: Slots to take over; fresh ones when None.
    """

    __slots__ = ("count", "mask", "room", "slots", "table")

    def __init__(self, log2_buckets: int, table: NDArray[np.uint16] | None = None) -> None:
        import numpy as np

        size = SLOTS << log2_buckets
        self.table = np.zeros(size, np.uint16) if table is None else table
        self.slots: memoryview[int] = memoryview(self.table.data)
        self.mask = (1 << log2_buckets) - 1
        self.room = int(size * LOAD_MAX)
        self.count = int(np.count_nonzero(self.table))

    def holds(self, hash: int) -> bool:
        """Tell whether the fingerprint of a hash is in one of its buckets."""
        slots = self.slots
        tag = hash >> 48 or 1
        i = (hash & self.mask) << 2
        if slots[i] == tag or slots[i + 1] == tag or slots[i + 2] == tag or slots[i + 3] == tag:
            return True
        i = ((hash ^ tag * _SPREAD) & self.mask) << 2
        return slots[i] == tag or slots[i + 1] == tag or slots[i + 2] == tag or slots[i + 3] == tag

    def insert(self, hash: int) -> bool:
        """Put a fingerprint in; False leaves the table as it was."""
        slots = self.slots
        tag = hash >> 48 or 1
        first = hash & self.mask
        second = (hash ^ tag * _SPREAD) & self.mask
        for slot in (first << 2, second << 2):
            if not slots[slot + 3]:  # taken slots come first
                while slots[slot]:
                    slot += 1
                slots[slot] = tag
                self.count += 1
                return True
        path = self._search(first, second)
        if path is None:
            return False
        for target, source in path:
            self.slots[target] = self.slots[source]
        self.slots[path[-1][1]] = tag
        self.count += 1
        return True

    def _free(self, bucket: int) -> int:
        slots = self.slots
        for slot in range(bucket << 2, (bucket << 2) + SLOTS):
            if not slots[slot]:
                return slot
        return -1

    def _search(self, first: int, second: int) -> list[tuple[int, int]] | None:
        # Moves (target, source) that free a slot of one of the buckets, the last hop first: while
        # they are made, every fingerprint is in the table at least once. A bucket is met once, so
        # that no move undoes another.
        slots, mask = self.slots, self.mask
        came_from: dict[int, tuple[int, int]] = {first: (-1, -1), second: (-1, -1)}
        queue = [first, second]
        for bucket in queue:
            for slot in range(bucket << 2, (bucket << 2) + SLOTS):
                other = (bucket ^ slots[slot] * _SPREAD) & mask
                if other in came_from:
                    continue
                came_from[other] = (bucket, slot)
                free = self._free(other)
                if free >= 0:
                    return list(self._moves(free, other, came_from))
                queue.append(other)
            if len(queue) > _SEARCH_MAX:
                return None
        return None

    @staticmethod
    def _moves(
        free: int, bucket: int, came_from: dict[int, tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        bucket, source = came_from[bucket]
        while source >= 0:
            yield free, source
            free = source
            bucket, source = came_from[bucket]

    def remove(self, hash: int) -> bool:
        """Take one copy of a fingerprint out; the bucket's last one moves into its slot."""
        tag = hash >> 48 or 1
        slots = self.slots
        for bucket in (hash & self.mask, (hash ^ tag * _SPREAD) & self.mask):
            start = bucket << 2
            for slot in range(start, start + SLOTS):
                if slots[slot] == tag:
                    free = self._free(bucket)
                    last = (start + SLOTS if free < 0 else free) - 1
                    slots[slot] = slots[last]
                    slots[last] = 0
                    self.count -= 1
                    return True
        return False

    def full_of(self, hash: int) -> bool:
        """Whether both buckets hold nothing but this fingerprint: no more copies fit, ever."""
        tag = hash >> 48 or 1
        slots = self.slots
        return all(
            slots[slot] == tag
            for bucket in (hash & self.mask, (hash ^ tag * _SPREAD) & self.mask)
            for slot in range(bucket << 2, (bucket << 2) + SLOTS)
        )

    # -- many at once -----------------------------------------------------------------------------

    def places(
        self, hashes: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.int64]]:
        """Return fingerprints and both buckets of hashes."""
        import numpy as np

        tags = hashes >> np.uint64(48)
        tags[tags == 0] = 1
        mask = np.uint64(self.mask)
        first = hashes & mask
        second = (hashes ^ tags * np.uint64(_SPREAD)) & mask
        return tags.astype(np.uint16), first.astype(np.int64), second.astype(np.int64)

    def holds_many(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Answer `holds` for several hashes."""
        tags, first, second = self.places(hashes)
        buckets = self.table.reshape(-1, SLOTS)
        column = tags[:, None]
        found: NDArray[np.bool_] = (buckets[first] == column).any(axis=1)
        found |= (buckets[second] == column).any(axis=1)
        return found

    def insert_many(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Put fingerprints in where either bucket has room; return the hashes left over."""
        if len(hashes):
            tags, first, _ = self.places(hashes)
            hashes = self._insert_at(hashes, tags, first)
        if len(hashes):
            tags, _, second = self.places(hashes)
            hashes = self._insert_at(hashes, tags, second)
        return hashes

    def _insert_at(
        self, hashes: NDArray[np.uint64], tags: NDArray[np.uint16], bucket: NDArray[np.int64]
    ) -> NDArray[np.uint64]:
        import numpy as np

        # Sorted by bucket, an id's rank in its group is the free slot that it gets.
        order = np.argsort(bucket, kind="stable")
        bucket = bucket[order]
        begins = np.flatnonzero(np.concatenate(([True], bucket[1:] != bucket[:-1])))
        sizes = np.diff(np.append(begins, len(bucket)))
        rank = np.arange(len(bucket)) - np.repeat(begins, sizes)
        taken = np.count_nonzero(self.table.reshape(-1, SLOTS)[bucket], axis=1)
        fits = taken + rank < SLOTS
        self.table[(bucket * SLOTS + taken + rank)[fits]] = tags[order[fits]]
        self.count += int(np.count_nonzero(fits))
        left: NDArray[np.uint64] = hashes[order[~fits]]
        return left
