"""Merges neighbouring segments, so that a restore needs few objects: L0 into L1, L2, L3.

A merged segment holds the newest copy of every page, begins with the first checksum and ends with
the last one: the chain can be verified through it as through those that it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from sync_engine.errors import CorruptData
from sync_engine.sinks.snapshot.errors import Changed
from sync_engine.sinks.snapshot.format import SegmentHeader, make_segment, read_segment
from sync_engine.sinks.snapshot.inventory import Branch, Group, Inventory
from sync_engine.sinks.snapshot.keys import SegmentKey
from sync_engine.sinks.snapshot.lease import Lease
from sync_engine.sinks.snapshot.objects import Objects
from sync_engine.sinks.snapshot.plan import chain_from

__all__ = ["CompactionCounts", "Compactor", "merge", "runs_to_merge"]


@dataclass(slots=True)
class CompactionCounts:
    """What was merged since the process began."""

    merged: int = 0
    put_bytes: int = 0


def runs_to_merge(inventory: Inventory, branch: Branch, level: int) -> Iterator[list[Group]]:
    """Yield runs of segments below a level that no segment of it covers yet.

    A segment of several parts ends a run: it is large already, and stays as it is.
    """
    groups = inventory.groups(branch)
    snapshots = inventory.snapshots(branch)
    if not snapshots:
        return
    done = max([snapshots[0][0], *(g.last for g in groups if g.level == level)])
    below = [group for group in groups if group.level < level]
    run: list[Group] = []
    for group in chain_from(below, done, max([done, *(g.last for g in below)])):
        if len(group.keys) == 1:
            run.append(group)
            continue
        if len(run) > 1:
            yield run
        run = []
    if len(run) > 1:
        yield run


def merge(
    objects: Objects, run: list[Group], level: int, compression_level: int, bytes_max: int
) -> tuple[SegmentKey, bytes, int] | None:
    """Merge the beginning of a run.

    Args:
        objects: The target.
        run: Segments of one part, each following the one before.
        level: Level of the result.
        compression_level: Of zstd.
        bytes_max: Stop before the merged pages outgrow this.

    Returns:
        Name, bytes, and how many segments went in; None where even two are too much.

    Raises:
        CorruptData: One of them is damaged, or does not follow the one before.
    """
    pages: dict[int, bytes] = {}
    first: SegmentHeader | None = None
    last: SegmentHeader | None = None
    taken = 0
    for group in run:
        key = str(group.keys[0])
        found = objects.get(key)
        if found is None:
            raise CorruptData(key, "it was listed and is gone")
        header, fresh = read_segment(key, found.data)
        size = (len(pages) + header.page_count) * header.page_size
        if taken >= 1 and size > bytes_max:
            break
        if last is not None and header.txid_min == last.txid_max + 1 and header.pre != last.post:
            raise CorruptData(key, "it does not follow the segment before it")
        pages |= {number: bytes(page) for number, page in fresh}
        pages = {n: page for n, page in pages.items() if n <= header.commit_pages}
        first = first or header
        last = header
        taken += 1
    if first is None or last is None or taken < 2:
        return None
    header = replace(
        last,
        txid_min=first.txid_min,
        first_ms=first.first_ms,
        pre=first.pre,
        salts=(0, 0),
        wal_start=0,
        wal_end=0,
    )
    name = SegmentKey(header.db_id, header.epoch, level, header.txid_min, header.txid_max)
    return name, make_segment(header, pages, compression_level), taken


class Compactor:
    """Merges the segments of the epoch that is written.

    Thread-safety: owned by one job.

    Args:
        objects: The target.
        lease: Asked before every upload.
        inventory: Read, and told of every upload.
        compression_level: Of zstd.
        bytes_max: Pages that one merged segment may hold, in bytes: the bound of memory.
    """

    def __init__(
        self,
        objects: Objects,
        lease: Lease,
        inventory: Inventory,
        *,
        compression_level: int,
        bytes_max: int,
    ) -> None:
        self._objects = objects
        self._lease = lease
        self._inventory = inventory
        self._compression_level = compression_level
        self._bytes_max = bytes_max
        self.counts = CompactionCounts()

    def compact(self, level: int) -> int:
        """Merge everything that waits for a level; return how many segments were made.

        Raises:
            CorruptData: An object is damaged.
            StoreUnavailable: Try again later.
        """
        made = 0
        for run in list(runs_to_merge(self._inventory, self._inventory.lineage[0], level)):
            while len(run) > 1:
                merged = merge(self._objects, run, level, self._compression_level, self._bytes_max)
                if merged is None:
                    run = run[1:]  # the first is as large as one may be
                    continue
                key, data, taken = merged
                self._lease.ensure()
                with suppress(Changed):  # merged before, by a process that did not live to know
                    self._objects.put(str(key), data, if_absent=self._lease.conditional)
                self._inventory.sizes[str(key)] = len(data)
                self.counts.merged += 1
                self.counts.put_bytes += len(data)
                made += 1
                run = run[taken:]
        return made
