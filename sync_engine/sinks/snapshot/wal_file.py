"""Reads SQLite's write-ahead log: its header, and frames proved by salts and checksum chain.

Opening and closing the log file is harmless to SQLite's locks; the same is not true of the database
file and of its index (``-shm``), see `database.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from sync_engine.sinks.snapshot.checksums import FRAME_HEADER, FrameChecksums, plain_checksum
from sync_engine.sinks.snapshot.errors import PositionLost

__all__ = ["HEADER_SIZE", "FrameBlock", "WalHeader", "frames", "header_of"]

HEADER_SIZE = 32
_MAGIC = 0x377F0682
_VERSION = 3007000
_BLOCK_FRAMES = 2048


@dataclass(frozen=True, slots=True)
class WalHeader:
    """The header of a write-ahead log.

    Attributes:
        big: Whether checksums take words as big-endian.
        page_size: Bytes of a page.
        sequence: Number of the checkpoint that the log was begun after.
        salts: Pair that every valid frame repeats; changes when the log restarts.
        seed: Checksum that the first frame continues.
    """

    big: bool
    page_size: int
    sequence: int
    salts: tuple[int, int]
    seed: tuple[int, int]


def header_of(data: bytes) -> WalHeader | None:
    """Return the header in the first 32 bytes of a log, or None where there is no valid one."""
    if len(data) < HEADER_SIZE:
        return None
    magic, version, size, sequence, salt0, salt1, c0, c1 = struct.unpack_from(">8I", data)
    if magic & ~1 != _MAGIC or version != _VERSION:
        return None
    big = bool(magic & 1)
    if plain_checksum((0, 0), data[:24], big=big) != (c0, c1):
        return None
    return WalHeader(big, size or 65536, sequence, (salt0, salt1), (c0, c1))


@dataclass(frozen=True, slots=True)
class FrameBlock:
    """Neighbouring frames of a log, all of them proved.

    Attributes:
        numbers: Page of each frame.
        commits: Size of the database in pages where the frame ends a transaction, else 0.
        offsets: Place of each page in the file, in bytes.
        chain: Checksum after each frame.
    """

    numbers: npt.NDArray[np.uint32]
    commits: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    chain: Sequence[tuple[int, int]]


def frames(
    file: BinaryIO,
    header: WalHeader,
    checksums: FrameChecksums,
    *,
    start: int,
    seed: tuple[int, int],
    end: int,
) -> Iterator[FrameBlock]:
    """Yield the frames between two places of a log.

    Args:
        file: The log, opened for reading in bytes.
        header: Its header.
        checksums: For its page size.
        start: Offset of the first frame.
        seed: Checksum before it.
        end: Offset after the last published frame; all frames before it must be valid.

    Raises:
        PositionLost: A frame is missing, or is not what the chain promises.
    """
    size = checksums.frame_size
    while start < end:
        file.seek(start)
        data = file.read(min(_BLOCK_FRAMES * size, end - start))
        count = len(data) // size
        if not count:
            raise PositionLost("the log is shorter than its index says")
        data = data[: count * size]
        words = checksums.words(data)
        chain = checksums.run(data, seed, big=header.big)
        valid = (
            (words[:, 2] == header.salts[0])
            & (words[:, 3] == header.salts[1])
            & (words[:, 4:6] == np.array(chain, np.uint32)).all(axis=1)
            & (words[:, 0] > 0)
        )
        if not valid.all():
            raise PositionLost("a published frame does not continue the chain")
        seed = chain[-1]
        places = start + FRAME_HEADER + size * np.arange(count, dtype=np.int64)
        yield FrameBlock(words[:, 0], words[:, 1], places, chain)
        start += count * size
