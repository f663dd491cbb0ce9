"""Digests of sets that are added to and taken from, an entry at a time.

The digest of a set is the sum, modulo 2^128, of one 128-bit hash for each entry. So it is the same
in whatever order a set came about; an entry is replaced by subtracting the old hash and adding the
new one, whatever else is in the set; and two sets that do not overlap have the sum of their
digests. Together with the number of entries it tells two sets apart but for an accident of 2^-128.
It is no defence against whoever chooses entries to make sums collide.

Source: Bellare and Micciancio, "A New Paradigm for Collision-Free Hashing: Incrementality at
Reduced Cost" (EUROCRYPT 1997), AdHASH, with XXH3 of 128 bits as the hash of one entry.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import msgspec
from xxhash import xxh3_128_digest

__all__ = ["EMPTY", "MODULUS", "SetDigest", "entry_hash"]

MODULUS = 1 << 128
_MASK = MODULUS - 1
_LIMB = (1 << 32) - 1
_pack = struct.Struct("<qqB").pack


def entry_hash(id: bytes, version: int, deleted: bool | int, checksum: int) -> bytes:
    """Return the 16-byte hash of one entry.

    Args:
        id: The id, in UTF-8.
        version: Its version, up to 63 bits.
        deleted: Whether it is a tombstone.
        checksum: Signed 64-bit hash of everything else about the item, its content included.
    """
    return xxh3_128_digest(_pack(version, checksum, 1 if deleted else 0) + id)


class SetDigest(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is known of a set of entries: live ones and tombstones, each by number and sum.

    Tombstones are counted apart, so that what two archives hold alive can be compared although one
    of them has purged more of the dead.

    Attributes:
        live: Number of live entries.
        dead: Number of tombstones.
        live_sum: Sum of the hashes of live entries, 16 bytes, little end first.
        dead_sum: The same of the tombstones.
    """

    live: int = 0
    dead: int = 0
    live_sum: bytes = bytes(16)
    dead_sum: bytes = bytes(16)

    @classmethod
    def of(cls, hash: bytes, *, deleted: bool) -> SetDigest:
        """Return the digest of one entry."""
        return cls(0, 1, bytes(16), hash) if deleted else cls(1, 0, hash)

    @classmethod
    def of_numbers(cls, live: int, dead: int, live_sum: int, dead_sum: int) -> SetDigest:
        """Return a digest from plain numbers; sums are taken modulo 2^128."""
        return cls(
            live, dead, (live_sum & _MASK).to_bytes(16, "little"),
            (dead_sum & _MASK).to_bytes(16, "little"),
        )  # fmt: skip

    @classmethod
    def of_limbs(cls, numbers: tuple[int, ...]) -> SetDigest:
        """Return a digest from counts and 32-bit limbs, or from column-wise sums of such rows.

        Args:
            numbers: Live, dead, four limbs of the live sum (low first), four of the dead one.
        """
        live, dead, *limbs = numbers
        low, high = (
            sum(int(limb) << (32 * place) for place, limb in enumerate(part))
            for part in (limbs[:4], limbs[4:])
        )
        return cls.of_numbers(int(live), int(dead), low, high)

    def limbs(self) -> tuple[int, ...]:
        """Return ten numbers that `of_limbs` takes: what a table holds and a database can add."""
        made = [self.live, self.dead]
        for total in (self.live_sum, self.dead_sum):
            value = int.from_bytes(total, "little")
            made += [(value >> shift) & _LIMB for shift in (0, 32, 64, 96)]
        return tuple(made)

    def __add__(self, other: SetDigest) -> SetDigest:
        return self._combined(other, 1)

    def __sub__(self, other: SetDigest) -> SetDigest:
        return self._combined(other, -1)

    def _combined(self, other: SetDigest, sign: int) -> SetDigest:
        live, dead = (
            int.from_bytes(mine, "little") + sign * int.from_bytes(theirs, "little")
            for mine, theirs in (
                (self.live_sum, other.live_sum),
                (self.dead_sum, other.dead_sum),
            )
        )
        return SetDigest.of_numbers(
            self.live + sign * other.live, self.dead + sign * other.dead, live, dead
        )

    @property
    def count(self) -> int:
        """Number of entries, tombstones included."""
        return self.live + self.dead

    @property
    def hex(self) -> str:
        """32 hexadecimal digits for people and logs; equal digests have equal ones."""
        numbers = b"%d %d " % (self.live, self.dead)
        return blake2b(numbers + self.live_sum + self.dead_sum, digest_size=16).hexdigest()


EMPTY = SetDigest()
