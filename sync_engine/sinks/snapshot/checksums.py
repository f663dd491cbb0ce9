"""Checksums: SQLite's own over its write-ahead log, and ours over the pages of a database.

SQLite's checksum is a recurrence over pairs of 32-bit words, linear modulo 2^32. The effect of a
whole frame is therefore a dot product with fixed coefficients, plus a 2 x 2 matrix step from frame
to frame: numpy does the first for many frames at once, which makes it some hundred times as fast as
a loop.

Source of the recurrence: "WAL File Format", section 4.2, sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = ["FRAME_HEADER", "U64", "FrameChecksums", "lock_page", "page_hash", "plain_checksum"]

FRAME_HEADER = 24
_MASK = 0xFFFFFFFF
_LOCK_BYTE = 0x40000000
U64 = npt.NDArray[np.uint64]
_U32 = npt.NDArray[np.uint32]
Pair = tuple[int, int]


def page_hash(number: int, page: bytes | memoryview) -> int:
    """Return the 64-bit hash of a page, bound to its number (from 1)."""
    return int(xxhash.xxh3_64_intdigest(page, seed=number))


def lock_page(page_size: int) -> int:
    """Return the number of the page that SQLite keeps for its locks and never stores data in."""
    return _LOCK_BYTE // page_size + 1


def plain_checksum(seed: Pair, data: bytes | memoryview, *, big: bool) -> Pair:
    """Continue SQLite's checksum over data of a multiple of 8 bytes, word by word."""
    s0, s1 = seed
    words = iter(struct.unpack(f"{'>' if big else '<'}{len(data) // 4}I", data))
    for a, b in zip(words, words, strict=True):
        s0 = (s0 + a + s1) & _MASK
        s1 = (s1 + b + s0) & _MASK
    return s0, s1


class FrameChecksums:
    """Checks the frames of a write-ahead log, many at a time.

    Args:
        page_size: Bytes of a page.

    Thread-safety: immutable.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.frame_size = page_size + FRAME_HEADER
        self._first, self._second, self._step = _coefficients((page_size + 8) // 8)

    def words(self, frames: bytes) -> _U32:
        """Return the six words of every frame's header, one row a frame."""
        rows = np.frombuffer(frames, ">u4").reshape(-1, self.frame_size // 4)
        return rows[:, :6].astype(np.uint32)

    def run(self, frames: bytes, seed: Pair, *, big: bool) -> list[Pair]:
        """Return the checksum after every frame.

        Args:
            frames: Whole frames, one after another.
            seed: The checksum before the first.
            big: Whether the log's words are big-endian for this purpose.
        """
        rows = np.frombuffer(frames, ">u4" if big else "<u4").reshape(-1, self.frame_size // 4)
        head, page = rows[:, 0:2], rows[:, 6:]
        if big:
            head, page = head.astype(np.uint32), page.astype(np.uint32)
        effects = []
        for factors in (self._first, self._second):
            effect = head[:, 0] * factors[0] + head[:, 1] * factors[1]
            effects.append((effect + np.einsum("ij,j->i", page, factors[2:])).tolist())
        return _walk(seed, zip(*effects, strict=True), self._step)


def _walk(seed: Pair, effects: Iterable[Pair], step: tuple[Pair, Pair]) -> list[Pair]:
    s0, s1 = seed
    (a, b), (c, d) = step
    found = []
    for e0, e1 in effects:
        s0, s1 = (a * s0 + c * s1 + e0) & _MASK, (b * s0 + d * s1 + e1) & _MASK
        found.append((s0, s1))
    return found


@cache
def _coefficients(pairs: int) -> tuple[_U32, _U32, tuple[Pair, Pair]]:
    """Return what each word adds to the two sums after so many pairs, and the matrix step."""
    first, second = [0] * (2 * pairs), [0] * (2 * pairs)
    a, b = (1, 1), (0, 1)
    for place in range(pairs - 1, -1, -1):
        first[2 * place], second[2 * place] = a
        first[2 * place + 1], second[2 * place + 1] = b
        a, b = _advance(a), _advance(b)
    unit0, unit1 = (1, 0), (0, 1)
    for _ in range(pairs):
        unit0, unit1 = _advance(unit0), _advance(unit1)
    return np.array(first, np.uint32), np.array(second, np.uint32), (unit0, unit1)


def _advance(pair: Pair) -> Pair:
    return (pair[0] + pair[1]) & _MASK, (pair[0] + 2 * pair[1]) & _MASK


def hashes_of(first: int, pages: bytes | memoryview, page_size: int, skip: int) -> list[int]:
    """Return the hashes of neighbouring pages; 0 for the one to skip."""
    view = memoryview(pages)
    digest = xxhash.xxh3_64_intdigest
    found = [
        digest(view[at : at + page_size], seed=first + place)
        for place, at in enumerate(range(0, len(view), page_size))
    ]
    if first <= skip < first + len(found):
        found[skip - first] = 0
    return found


def combined(hashes: U64 | Sequence[int]) -> int:
    """Return the checksum of a database: the exclusive or of its pages' hashes."""
    return int(np.bitwise_xor.reduce(np.asarray(hashes, np.uint64))) if len(hashes) else 0
