"""A cuckoo filter: fingerprints in one of two buckets each, and more tables as it fills.

Source: Fan, Andersen, Kaminsky, Mitzenmacher, "Cuckoo Filter: Practically Better Than Bloom",
CoNEXT 2014. Growth by a chain of tables is our own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sync_engine.core.filters.base import FilterFormatError
from sync_engine.core.filters.hashing import hash_id, hash_ids, new_seed
from sync_engine.core.filters.table import LOAD_MAX, SLOTS, CuckooTable

__all__ = ["CuckooFilter"]

_LOG2_BUCKETS_MAX = 32
_HEAD = struct.Struct("<4sQQII")
_TABLE = struct.Struct("<BQ")
_REPEAT = struct.Struct("<QQ")
_MAGIC = b"CKO1"


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
        self._tables = [CuckooTable(_log2_buckets(capacity))]  # newest, and largest, first
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

    def add_new(self, id: str) -> None:
        """Add an id unless it looks known: for a filter that nothing is ever taken out of."""
        hash = hash_id(id, self.seed)
        for table in self._tables:
            if table.holds(hash):
                return
        if hash not in self._repeats:
            self._add(hash)

    def _add(self, hash: int) -> None:
        newest = self._tables[0]
        if newest.count < newest.room and newest.insert(hash):
            return
        if any(table.full_of(hash) for table in self._tables):
            self._repeats[hash] = self._repeats.get(hash, 0) + 1
            return
        while not self._grown(1).insert(hash):
            pass  # cannot happen in an empty table; if it did, the next is larger still

    def _grown(self, count: int) -> CuckooTable:
        # Never smaller than the one before: two ids that look alike in a table then look alike in
        # all that are older, and a discard that starts at the newest always leaves a copy for the
        # other one.
        log2 = max(_log2_buckets(count), self._tables[0].mask.bit_length() + 1)
        table = CuckooTable(log2)
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
        if fixed + sum(2 * SLOTS << log2 for log2 in logs) != len(data):
            raise FilterFormatError("length does not match the tables")
        found = dict(
            _REPEAT.unpack_from(data, fixed - (repeats - i) * _REPEAT.size) for i in range(repeats)
        )
        chain = []
        at = fixed
        for log2, used in heads:
            size = SLOTS << log2
            slots = np.frombuffer(data, "<u2", size, at).astype(np.uint16)
            chain.append(CuckooTable(log2, slots))
            if chain[-1].count != used:
                raise FilterFormatError("count does not match the table")
            at += 2 * size
        if sum(table.count for table in chain) + sum(found.values()) != count:
            raise FilterFormatError("counts do not add up")
        filter = cls(1, seed=seed)
        filter._tables = chain
        filter._repeats = found
        return filter


def _log2_buckets(capacity: int) -> int:
    buckets = max(1, -(-int(capacity / LOAD_MAX + 1) // SLOTS))
    return min(_LOG2_BUCKETS_MAX, max(4, (buckets - 1).bit_length()))
