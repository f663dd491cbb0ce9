"""A cuckoo filter: fingerprints in one of two buckets each, and more tables as it fills.

Source: Fan, Andersen, Kaminsky, Mitzenmacher, "Cuckoo Filter: Practically Better Than Bloom", CoNEXT
2014 (partial-key cuckoo hashing, buckets of four); the search for a free slot goes breadth first, as
in libcuckoo, so that a failed search changes nothing. Growth by a chain of tables is our own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sync_engine.core.filters.base import FilterFormatError
from sync_engine.core.filters.hashing import hash_id, hash_ids, new_seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CuckooFilter"]

_SLOTS = 4
_LOAD_MAX = 0.85
_SPREAD = 0x5BD1E995
_SEARCH_MAX = 256
_LOG2_BUCKETS_MAX = 32
_HEAD = struct.Struct("<4sQQII")
_TABLE = struct.Struct("<BQ")
_REPEAT = struct.Struct("<QQ")
_MAGIC = b"CKO1"


class _Table:
    """Buckets of four 16-bit fingerprints; 0 is an empty slot, and taken slots come first."""

    __slots__ = ("count", "mask", "room", "slots", "table")

    def __init__(self, log2_buckets: int, table: NDArray[np.uint16] | None = None) -> None:
        import numpy as np

        size = _SLOTS << log2_buckets
        self.table = np.zeros(size, np.uint16) if table is None else table
        self.slots = memoryview(self.table)
        self.mask = (1 << log2_buckets) - 1
        self.room = int(size * _LOAD_MAX)
        self.count = 0

    def holds(self, hash: int) -> bool:
        slots = self.slots
        tag = hash >> 48 or 1
        i = (hash & self.mask) << 2
        if slots[i] == tag or slots[i + 1] == tag or slots[i + 2] == tag or slots[i + 3] == tag:
            return True
        i = ((hash ^ tag * _SPREAD) & self.mask) << 2
        return slots[i] == tag or slots[i + 1] == tag or slots[i + 2] == tag or slots[i + 3] == tag

    def insert(self, hash: int) -> bool:
        """Put a fingerprint in; False leaves the table as it was."""
        tag = hash >> 48 or 1
        first = hash & self.mask
        second = (hash ^ tag * _SPREAD) & self.mask
        for bucket in (first, second):
            slot = self._free(bucket)
            if slot >= 0:
                self.slots[slot] = tag
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
        for slot in range(bucket << 2, (bucket << 2) + _SLOTS):
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
            for slot in range(bucket << 2, (bucket << 2) + _SLOTS):
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
            for slot in range(start, start + _SLOTS):
                if slots[slot] == tag:
                    free = self._free(bucket)
                    last = (start + _SLOTS if free < 0 else free) - 1
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
            for slot in range(bucket << 2, (bucket << 2) + _SLOTS)
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
        tags, first, second = self.places(hashes)
        buckets = self.table.reshape(-1, _SLOTS)
        column = tags[:, None]
        found: NDArray[np.bool_] = (buckets[first] == column).any(axis=1)
        found |= (buckets[second] == column).any(axis=1)
        return found

    def insert_many(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Put fingerprints in where either bucket has room; return the hashes left over."""
        for choice in (1, 2):
            if not len(hashes):
                break
            places = self.places(hashes)
            hashes = self._insert_at(hashes, places[0], places[choice])
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
        taken = np.count_nonzero(self.table.reshape(-1, _SLOTS)[bucket], axis=1)
        fits = taken + rank < _SLOTS
        self.table[(bucket * _SLOTS + taken + rank)[fits]] = tags[order[fits]]
        self.count += int(np.count_nonzero(fits))
        return hashes[order[~fits]]


class CuckooFilter:
    """A multiset of ids that can be taken out again; see `ExistenceFilter` for the rest.

    Every add stores a copy, so an id that was added n times is gone after n discards and not
    before, and discarding an id that was added never hides another one. (Discarding one that was
    *not* added may: it can take away a look-alike's copy.)

    It never refuses: when a table is full, or finds no place for a fingerprint, a larger one is
    put before it. Copies beyond the eight that two buckets hold are counted beside the tables.

    Args:
        capacity: Ids to have room for at once (at least 1).
        seed: Of the keyed hash; random when None.

    Cost: 4 to 5 bytes an id at the size it was made for. False positives: about 8 in 65,536 times
    the load, for each table of the chain.
    """

    KIND = "cuckoo"

    def __init__(self, capacity: int = 100_000, *, seed: int | None = None) -> None:
        self.seed = new_seed() if seed is None else seed
        self._tables = [_Table(_log2_buckets(capacity))]  # newest, and largest, first
        self._repeats: dict[int, int] = {}

    @property
    def count(self) -> int:
        """Adds minus discards that found something."""
        return sum(table.count for table in self._tables) + sum(self._repeats.values())

    @property
    def capacity(self) -> int:
        """Ids it has room for before it grows."""
        return sum(table.room for table in self._tables)

    @property
    def size_bytes(self) -> int:
        """Bytes of its tables."""
        return sum(table.table.nbytes for table in self._tables)

    @property
    def tables(self) -> int:
        """Length of the chain: what a miss has to look through."""
        return len(self._tables)

    def add(self, id: str) -> None:
        """Add one copy of an id."""
        self._add(hash_id(id, self.seed))

    def _add(self, hash: int) -> None:
        newest = self._tables[0]
        if newest.count < newest.room and newest.insert(hash):
            return
        if any(table.full_of(hash) for table in self._tables):
            self._repeats[hash] = self._repeats.get(hash, 0) + 1
            return
        while not self._grown(1).insert(hash):
            pass  # cannot happen in an empty table; if it did, the next is larger still

    def _grown(self, count: int) -> _Table:
        # Never smaller than the one before: two ids that look alike in a table then look alike in
        # all that are older, and a discard that starts at the newest always leaves a copy for the
        # other one.
        log2 = max(_log2_buckets(count), self._tables[0].mask.bit_length() + 1)
        table = _Table(log2)
        self._tables = [table, *self._tables]
        return table

    def add_many(self, ids: Sequence[str]) -> None:
        """Add one copy of each; duplicates are copies, too."""
        if len(ids) < 8:
            for id in ids:
                self.add(id)
            return
        hashes = hash_ids(ids, self.seed)
        newest = self._tables[0]
        room = max(0, newest.room - newest.count)
        left = [*newest.insert_many(hashes[:room]).tolist()]
        if len(hashes) > room:
            left += self._grown(len(hashes) - room).insert_many(hashes[room:]).tolist()
        for hash in left:
            self._add(hash)

    def discard(self, id: str) -> bool:
        """Take one copy of an id out; return False where there was none.

        Only for an id that was added: see the class. Not to be run beside `might_contain`.
        """
        hash = hash_id(id, self.seed)
        repeats = self._repeats.get(hash)
        if repeats is not None:
            if repeats > 1:
                self._repeats[hash] = repeats - 1
            else:
                del self._repeats[hash]
            return True
        return any(table.remove(hash) for table in self._tables)

    def might_contain(self, id: str) -> bool:
        """Tell whether an id may have been added; False is certain. Cost: below 1 µs a table."""
        hash = hash_id(id, self.seed)
        for table in self._tables:
            if table.holds(hash):
                return True
        return hash in self._repeats

    def might_contain_many(self, ids: Sequence[str]) -> list[bool]:
        """Answer for several ids, in their order."""
        if len(ids) < 8:
            return [self.might_contain(id) for id in ids]
        hashes = hash_ids(ids, self.seed)
        tables = self._tables
        found = tables[0].holds_many(hashes)
        for table in tables[1:]:
            found |= table.holds_many(hashes)
        answers: list[bool] = found.tolist()
        if self._repeats:
            repeats = self._repeats
            answers = [
                found or hash in repeats
                for found, hash in zip(answers, hashes.tolist(), strict=True)
            ]
        return answers

    def to_bytes(self) -> bytes:
        """Return everything that is needed to make it again, seed included."""
        parts = [_HEAD.pack(_MAGIC, self.seed, self.count, len(self._tables), len(self._repeats))]
        parts += [_TABLE.pack(table.mask.bit_length(), table.count) for table in self._tables]
        parts += [_REPEAT.pack(hash, count) for hash, count in self._repeats.items()]
        parts += [table.table.astype("<u2", copy=False).tobytes() for table in self._tables]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> CuckooFilter:
        """Make a filter again.

        Every length is checked against the bytes that are there before anything is allocated, and
        the counts against the tables.

        Raises:
            FilterFormatError: These are not the bytes of a cuckoo filter.
        """
        import numpy as np

        if len(data) < _HEAD.size:
            raise FilterFormatError("too short for a cuckoo filter")
        magic, seed, count, tables, repeats = _HEAD.unpack_from(data)
        fixed = _HEAD.size + tables * _TABLE.size + repeats * _REPEAT.size
        if magic != _MAGIC or not 0 < tables <= _LOG2_BUCKETS_MAX or fixed > len(data):
            raise FilterFormatError("not a cuckoo filter")
        heads = [_TABLE.unpack_from(data, _HEAD.size + i * _TABLE.size) for i in range(tables)]
        logs = [log2 for log2, _ in heads]
        if max(logs) > _LOG2_BUCKETS_MAX or logs != sorted(logs, reverse=True):
            raise FilterFormatError("tables out of range or order")
        if fixed + sum(2 * _SLOTS << log2 for log2 in logs) != len(data):
            raise FilterFormatError("length does not match the tables")
        filter = cls.__new__(cls)
        filter.seed = seed
        filter._repeats = dict(
            _REPEAT.unpack_from(data, fixed - (repeats - i) * _REPEAT.size) for i in range(repeats)
        )
        filter._tables = []
        at = fixed
        for log2, used in heads:
            size = _SLOTS << log2
            table = np.frombuffer(data, "<u2", size, at).astype(np.uint16)
            if int(np.count_nonzero(table)) != used:
                raise FilterFormatError("count does not match the table")
            filter._tables.append(_Table(log2, table))
            filter._tables[-1].count = used
            at += 2 * size
        if filter.count != count:
            raise FilterFormatError("counts do not add up")
        return filter


def _log2_buckets(capacity: int) -> int:
    buckets = max(1, -(-int(capacity / _LOAD_MAX + 1) // _SLOTS))
    return min(_LOG2_BUCKETS_MAX, max(4, (buckets - 1).bit_length()))
