"""What one transaction does to a tree, small enough to be stored with it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from xxhash import xxh3_64_digest

from sync_engine.core.merkle.digest import SetDigest, entry_hash
from sync_engine.errors import CorruptData

__all__ = ["MerkleBatch", "sums_by_block"]

_ADD, _REMOVE, _DEAD = 0, 1, 2  # a leg's code: one of the first two, with or without the third
_MAGIC = b"M1"
_HEAD = len(_MAGIC) + 8


class MerkleBatch:
    """Entries that come and go, as *legs*: id, direction, and the hash of the entry.

    An insert is one leg, an update is two. The packed form is a checksum, and columns: a count, one
    byte a leg, 16 bytes a leg, and the ids, parted by the NUL that no id has.

    Not thread-safe.
    """

    __slots__ = ("codes", "hashes", "ids")

    def __init__(self) -> None:
        self.codes = bytearray()
        self.hashes: list[bytes] = []
        self.ids: list[bytes] = []

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, id: bytes, version: int, deleted: bool | int, checksum: int) -> None:
        """Note an entry that comes."""
        self.codes.append(_DEAD if deleted else _ADD)
        self.hashes.append(entry_hash(id, version, deleted, checksum))
        self.ids.append(id)

    def remove(self, id: bytes, version: int, deleted: bool | int, checksum: int) -> None:
        """Note an entry that goes."""
        self.codes.append(_DEAD | _REMOVE if deleted else _REMOVE)
        self.hashes.append(entry_hash(id, version, deleted, checksum))
        self.ids.append(id)

    def pack(self) -> bytes:
        """Return the batch as bytes."""
        count = len(self.ids).to_bytes(4, "little")
        body = b"".join((count, bytes(self.codes), *self.hashes, b"\0".join(self.ids)))
        return _MAGIC + xxh3_64_digest(body) + body

    @classmethod
    def unpack(cls, data: bytes) -> MerkleBatch:
        """Return the batch of packed bytes.

        Raises:
            CorruptData: They are not a packed batch.
        """
        if data[:2] != _MAGIC or data[2:_HEAD] != xxh3_64_digest(data[_HEAD:]):
            raise CorruptData("merkle delta", "it cannot be read: rebuild the tree")
        codes = _HEAD + 4
        count = int.from_bytes(data[_HEAD:codes], "little")
        hashes, ids = codes + count, codes + 17 * count
        made = cls()
        made.codes = bytearray(data[codes:hashes])
        made.hashes = [data[at : at + 16] for at in range(hashes, ids, 16)]
        made.ids = data[ids:].split(b"\0") if count else []
        return made

    def split(self, legs_max: int) -> Iterator[MerkleBatch]:
        """Yield the batch in parts of at most so many legs."""
        for start in range(0, len(self.ids), legs_max):
            made = MerkleBatch()
            made.ids = self.ids[start : start + legs_max]
            made.codes = self.codes[start : start + legs_max]
            made.hashes = self.hashes[start : start + legs_max]
            yield made

    def legs(self) -> Iterator[tuple[bytes, int, SetDigest]]:
        """Yield id, sign (1 or -1) and digest of each leg."""
        for id, code, hash in zip(self.ids, self.codes, self.hashes, strict=True):
            yield id, -1 if code & _REMOVE else 1, SetDigest.of(hash, deleted=bool(code & _DEAD))

    def below(self, end: bytes) -> MerkleBatch:
        """Return the legs of ids before `end`."""
        made = MerkleBatch()
        for index, id in enumerate(self.ids):
            if id < end:
                made.ids.append(id)
                made.codes.append(self.codes[index])
                made.hashes.append(self.hashes[index])
        return made


def sums_by_block(
    firsts: Sequence[bytes], batches: Iterable[MerkleBatch]
) -> dict[int, tuple[int, ...]]:
    """Add legs up by the block that their id lies in.

    Args:
        firsts: First id of each block, ascending; a block reaches to the next one. No leg may lie
            before the first block.
        batches: At most 2^20 legs in all.

    Returns:
        Index of each touched block, and what to add to the ten numbers of its digest
        (`SetDigest.limbs`); the numbers may be negative and are not normalised.

    Cost: a binary search a leg, the rest in numpy. The sums are exact: 2^20 numbers of 32 bits fit
    into the 53 bits of a float.
    """
    import numpy as np

    blocks_of: list[int] = []
    codes = bytearray()
    hashes: list[bytes] = []
    for batch in batches:
        blocks_of += [bisect_right(firsts, id) for id in batch.ids]
        codes += batch.codes
        hashes += batch.hashes
    if not blocks_of:
        return {}
    blocks = np.array(blocks_of) - 1
    code = np.frombuffer(codes, np.uint8)
    sign = np.where(code & _REMOVE, -1.0, 1.0)
    touched, place = np.unique(blocks, return_inverse=True)
    limbs = np.frombuffer(b"".join(hashes), "<u4").reshape(-1, 4)
    columns = []
    for dead in (False, True):
        weight = np.where((code & _DEAD != 0) == dead, sign, 0.0)
        columns.append(np.bincount(place, weight, len(touched)))
        columns += [np.bincount(place, weight * limbs[:, n], len(touched)) for n in range(4)]
    order = (0, 5, 1, 2, 3, 4, 6, 7, 8, 9)  # counts first
    table = np.stack([columns[n] for n in order], axis=1).astype(np.int64).tolist()
    return {int(block): tuple(row) for block, row in zip(touched.tolist(), table, strict=True)}
