"""A database at one transaction: its file, overlaid with what the log holds newer.

Valid while a pin holds that is not younger than the transaction: a checkpoint then copies nothing
newer into the file, and the log does not restart.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sync_engine.sinks.snapshot.checksums import (
    U64,
    FrameChecksums,
    hashes_of,
    lock_page,
)
from sync_engine.sinks.snapshot.database import Database
from sync_engine.sinks.snapshot.errors import PositionLost
from sync_engine.sinks.snapshot.state import NOWHERE, U32, WalPosition
from sync_engine.sinks.snapshot.wal_file import HEADER_SIZE, FrameBlock, WalHeader, frames

__all__ = ["Found", "Image", "differing_pages", "image_at", "newest_pages", "whole_image"]

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What the log holds between two places; both are ends of transactions.

    Attributes:
        newest: Page to the place of its newest copy in the log.
        pages: Size of the database at the end, in pages.
        smallest: Smallest size that any transaction left.
        end: The position at the end.
    """

    newest: dict[int, int]
    pages: int
    smallest: int
    end: WalPosition


def newest_pages(
    database: Database,
    header: WalHeader,
    checksums: FrameChecksums,
    start: WalPosition,
    end: int,
    pages_max: float = math.inf,
) -> Found:
    """Read the log between two places.

    Args:
        database: Whose log.
        header: Of the log.
        checksums: For its page size.
        start: Where to begin.
        end: Offset of the end.
        pages_max: Stop before the transaction with which there would be more pages than this; the
            first one is read however large it is.

    Raises:
        PositionLost: The frames are not what they have to be.
    """
    newest: dict[int, int] = {}
    tail: dict[int, int] = {}  # of a transaction that goes on
    pages = smallest = 0
    place = start
    with os.fdopen(database.open_log(), "rb", buffering=0) as file:
        for block in frames(
            file,
            header,
            checksums,
            start=start.offset,
            seed=start.seed,
            end=end,
        ):
            numbers, offsets = block.numbers.tolist(), block.offsets.tolist()
            roomy = len(newest) + len(tail) + len(numbers) <= pages_max
            first = 0
            for stop in _ends(block, last_only=roomy):
                tail.update(zip(numbers[first:stop], offsets[first:stop], strict=True))
                grown = sum(number not in newest for number in tail)
                if newest and len(newest) + grown > pages_max:
                    return _found(newest, pages, smallest, place)
                newest |= tail
                tail = {}
                sizes = block.commits[first:stop]
                pages = int(sizes[-1])
                least = int(sizes[sizes > 0].min())
                smallest = min(smallest or least, least)
                end_offset = offsets[stop - 1] + database.page_size
                place = WalPosition(header.salts, end_offset, block.chain[stop - 1])
                first = stop
            tail.update(zip(numbers[first:], offsets[first:], strict=True))
    if tail or not newest:
        raise PositionLost("the published part of the log does not end with a commit")
    return _found(newest, pages, smallest, place)


def _ends(block: FrameBlock, *, last_only: bool) -> list[int]:
    """Return the places in a block behind which a transaction ends."""
    ends: list[int] = (np.flatnonzero(block.commits) + 1).tolist()
    return ends[-1:] if last_only else ends


def _found(newest: dict[int, int], pages: int, smallest: int, end: WalPosition) -> Found:
    kept = {number: place for number, place in newest.items() if number <= pages}
    return Found(kept, pages, smallest, end)


class Image:
    """All pages of a database at one transaction.

    Thread-safety: any thread may read; `close` it once.

    Args:
        database: Where the file is.
        pages: Size in pages.
        newest: Page to its place in the log, where it is in the log.
        salts: Of that log.
    """

    def __init__(
        self,
        database: Database,
        pages: int,
        newest: dict[int, int],
        salts: tuple[int, int] = (0, 0),
    ) -> None:
        self._database = database
        self._salts = salts
        self._newest = newest
        self._log = database.open_log() if newest else -1
        self.page_size = database.page_size
        self.pages = pages
        self.lock_page = lock_page(database.page_size)

    def page(self, number: int) -> bytes:
        """Return one page.

        Raises:
            PositionLost: It is not there.
        """
        place = self._newest.get(number)
        page = b""
        if place is not None:
            page = os.pread(self._log, self.page_size, place)
            if self._restarted():
                place = None
        if place is None:
            page = self._database.read((number - 1) * self.page_size, self.page_size)
        if len(page) != self.page_size:
            raise PositionLost(f"page {number} is nowhere")
        return page

    def _restarted(self) -> bool:
        """Tell whether the log was begun anew since; if so, look into it no more.

        A pin on an empty or wholly copied log does not keep writers from restarting it. All of the
        old log is in the file then, and nothing of the new one gets there under the pin. The header
        is written before the first frame, so one that is unchanged after a read proves the read.
        """
        header = self._database.header()
        if header is not None and header.salts == self._salts:
            return False
        self._newest = {}
        return True

    def run(self, first: int, count: int) -> memoryview:
        """Return neighbouring pages; the lock page is zeros."""
        while True:
            data = self._run(first, count)
            if not self._newest or not self._restarted():
                return data

    def _run(self, first: int, count: int) -> memoryview:
        size = self.page_size
        data = bytearray(self._database.read((first - 1) * size, count * size))
        on_file = len(data) // size
        data.extend(bytes(count * size - len(data)))
        for number in self._overlaid(first, count):
            at = (number - first) * size
            data[at : at + size] = os.pread(self._log, size, self._newest[number])
        for number in range(first + on_file, first + count):
            if number not in self._newest and number != self.lock_page:
                raise PositionLost(f"page {number} is nowhere")
        if first <= self.lock_page < first + count:
            at = (self.lock_page - first) * size
            data[at : at + size] = bytes(size)
        return memoryview(data)

    def _overlaid(self, first: int, count: int) -> list[int]:
        if len(self._newest) < count:
            return [n for n in self._newest if first <= n < first + count]
        return [n for n in range(first, first + count) if n in self._newest]

    def hashes(self) -> Iterator[tuple[int, list[int]]]:
        """Yield first page and hashes of neighbouring pages, over the whole database."""
        step = max(1, _BLOCK_BYTES // self.page_size)
        for first in range(1, self.pages + 1, step):
            data = self.run(first, min(step, self.pages + 1 - first))
            yield first, hashes_of(first, data, self.page_size, self.lock_page)

    def table(self) -> U64:
        """Return the hash of every page."""
        table = np.zeros(self.pages, np.uint64)
        for first, hashes in self.hashes():
            table[first - 1 : first - 1 + len(hashes)] = hashes
        return table

    def close(self) -> None:
        """Close the log's descriptor; safe twice."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1


def differing_pages(image: Image, table: U64) -> U32:
    """Return the pages of an image whose hash is not that of a table, ascending.

    Args:
        image: All of it is read.
        table: Hash of every page, from page 1 on; pages behind its end differ.

    Raises:
        PositionLost: A page is not there.
    """
    found = []
    for first, hashes in image.hashes():
        fresh = np.array(hashes, np.uint64)
        known = np.zeros(len(fresh), np.uint64)
        part = table[first - 1 : first - 1 + len(fresh)]
        known[: len(part)] = part
        found.append(np.flatnonzero(fresh != known) + first)
    return np.concatenate(found).astype(np.uint32) if found else np.zeros(0, np.uint32)


def image_at(
    database: Database, checksums: FrameChecksums, position: WalPosition, pages: int
) -> Image:
    """Return the image at a position that was read up to.

    Raises:
        PositionLost: The log has moved on.
    """
    if position.offset <= HEADER_SIZE:
        return Image(database, pages, {})
    header = database.header()
    if header is None or header.salts != position.salts:
        raise PositionLost("the log was restarted under a pin")
    start = WalPosition(header.salts, HEADER_SIZE, header.seed)
    found = newest_pages(database, header, checksums, start, position.offset)
    if found.end.seed != position.seed:
        raise PositionLost("the log is another one")
    return Image(database, pages, found.newest, header.salts)


def whole_image(database: Database, checksums: FrameChecksums) -> tuple[Image, WalPosition]:
    """Return the image of now under the current pin, and the position that it stands for.

    Raises:
        PositionLost: Writers moved the log too often meanwhile; try again.
    """
    for _ in range(20):
        header, count = database.published()
        if header is None or not count:
            image = _image_without_log(database)
            if image is not None:
                return image, NOWHERE
            continue
        start = WalPosition(header.salts, HEADER_SIZE, header.seed)
        end = HEADER_SIZE + count * checksums.frame_size
        try:
            found = newest_pages(database, header, checksums, start, end)
        except PositionLost:
            continue
        return Image(database, found.pages, found.newest, header.salts), found.end
    raise PositionLost("the log does not hold still")


def _image_without_log(database: Database) -> Image | None:
    """With an empty log the file is the image, once a pin keeps checkpoints off it."""
    with database.writers_held(1.0) as held:
        if not held:
            return None
        _, count = database.published()
        if count:
            return None
        database.repin()
        return Image(database, database.pages(), {})
