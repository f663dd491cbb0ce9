"""A Bloom filter that grows, on pybloom-live; nothing can be taken out of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from sync_engine.core.filters.base import FilterFormatError
from sync_engine.core.filters.hashing import hash_id, new_seed

__all__ = ["BloomFilter"]

_HEAD = struct.Struct("<4sQQdI")
_SLICE = struct.Struct("<dQQQ")
_MAGIC = b"BLM1"
_GROWTH = 4
_SLICES_MAX = 32


class BloomFilter:
    """A set of ids that only grows; see `ExistenceFilter`.

    pybloom-live's own hashes have no key, so it is given the keyed hash of an id, not the id.

    Args:
        capacity: Ids to have room for at once (at least 1).
        error_rate: False positives aimed at, above 0 and below 1.
        seed: Of the keyed hash; random when None.

    Cost: about 2 bytes an id at the default rate, and some microseconds an add or a look-up.
    """

    KIND = "bloom"

    def __init__(
        self, capacity: int = 100_000, *, error_rate: float = 0.0005, seed: int | None = None
    ) -> None:
        from pybloom_live import ScalableBloomFilter

        self.seed = new_seed() if seed is None else seed
        self._bloom: Any = ScalableBloomFilter(max(1, capacity), error_rate, _GROWTH)

    @property
    def count(self) -> int:
        """Ids added that were not known before."""
        return len(self._bloom)

    @property
    def capacity(self) -> int:
        """Ids it has room for before it grows."""
        return int(self._bloom.capacity) or int(self._bloom.initial_capacity)

    @property
    def size_bytes(self) -> int:
        """Bytes of its tables."""
        return sum(len(part.bitarray) for part in self._bloom.filters) // 8

    def add(self, id: str) -> None:
        """Add an id; one that looks known is not added again."""
        self._bloom.add(str(hash_id(id, self.seed)))

    add_new = add

    def add_many(self, ids: Sequence[str]) -> None:
        """Add ids; no cheaper than one by one."""
        for id in ids:
            self.add(id)

    def might_contain(self, id: str) -> bool:
        """Tell whether an id may have been added; False is certain. Cost: some µs."""
        return str(hash_id(id, self.seed)) in self._bloom

    def might_contain_many(self, ids: Sequence[str]) -> list[bool]:
        """Answer for several ids, in their order."""
        return [self.might_contain(id) for id in ids]

    def to_bytes(self) -> bytes:
        """Return everything that is needed to make it again, seed included."""
        bloom = self._bloom
        head = _HEAD.pack(
            _MAGIC, self.seed, bloom.initial_capacity, bloom.error_rate, len(bloom.filters)
        )
        parts = [head]
        for part in bloom.filters:
            bits = part.bitarray.tobytes()
            parts.append(_SLICE.pack(part.error_rate, part.capacity, part.count, len(bits)))
            parts.append(bits)
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> BloomFilter:
        """Make a filter again; lengths are checked before anything is allocated.

        Raises:
            FilterFormatError: These are not the bytes of a Bloom filter.
        """
        from pybloom_live import BloomFilter as Part

        if len(data) < _HEAD.size:
            raise FilterFormatError("too short for a Bloom filter")
        magic, seed, capacity, error_rate, parts = _HEAD.unpack_from(data)
        if magic != _MAGIC or parts > _SLICES_MAX or not 0 < error_rate < 1 or not capacity:
            raise FilterFormatError("not a Bloom filter")
        filter = cls(capacity, error_rate=error_rate, seed=seed)
        at = _HEAD.size
        for _ in range(parts):
            if at + _SLICE.size > len(data):
                raise FilterFormatError("truncated")
            rate, room, count, length = _SLICE.unpack_from(data, at)
            at += _SLICE.size
            # An honest part has more than one bit for each id that it has room for.
            if not 0 < rate < 1 or not count <= room <= 8 * length or at + length > len(data):
                raise FilterFormatError("lengths do not add up")
            part = Part(room, rate)
            if -(-part.num_bits // 8) != length:
                raise FilterFormatError("length does not match the capacity")
            part.bitarray.clear()
            part.bitarray.frombytes(data[at : at + length])
            del part.bitarray[part.num_bits :]
            part.count = count
            filter._bloom.filters.append(part)
            at += length
        if at != len(data):
            raise FilterFormatError("more bytes than the filter has")
        return filter
