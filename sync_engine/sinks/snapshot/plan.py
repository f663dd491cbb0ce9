"""Which objects bring a database back to a point: decided before a single one is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sync_engine.errors import CorruptData, SyncEngineError
from sync_engine.sinks.snapshot.errors import ChainGap, NoBackup
from sync_engine.sinks.snapshot.format import SEGMENT_HEADER_SIZE, read_segment_header, unseal
from sync_engine.sinks.snapshot.inventory import Branch, Group, Inventory
from sync_engine.sinks.snapshot.objects import Objects

__all__ = ["Manifest", "NoSuchPoint", "Plan", "Point", "chain_from", "make_plan", "points"]


class NoSuchPoint(SyncEngineError):
    """The wanted transaction or time is not one that can be restored; the message names those."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot.

    Attributes:
        key: Of the manifest.
        epoch: Its epoch.
        txid: The transaction that it holds.
        time_ms: Wall-clock milliseconds of that transaction.
        page_size: Bytes of a page.
        pages: Size of the database in pages.
        checksum: Of the database.
        chunk_pages: Pages of every chunk but the last.
        chunks: Documents with ``key``, ``size``, ``sha256`` and ``digest``.
    """

    key: str
    epoch: int
    txid: int
    time_ms: int
    page_size: int
    pages: int
    checksum: int
    chunk_pages: int
    chunks: Sequence[dict[str, Any]]

    @classmethod
    def read(cls, objects: Objects, key: str) -> Manifest:
        """Fetch a manifest.

        Raises:
            CorruptData: It is damaged or gone.
        """
        found = objects.get(key)
        if found is None:
            raise CorruptData(key, "it was listed and is gone: plan again")
        document = unseal(key, found.data)
        return cls(
            key=key,
            epoch=document["epoch"],
            txid=document["txid"],
            time_ms=document["time_ms"],
            page_size=document["page_size"],
            pages=document["pages"],
            checksum=int(document["checksum"], 16),
            chunk_pages=document["chunk_pages"],
            chunks=document["chunks"],
        )

    @property
    def size(self) -> int:
        """Bytes of all chunks."""
        return sum(int(chunk["size"]) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to restore a point.

    Attributes:
        snapshot: To begin with.
        groups: Segments to apply, in order.
        txid: The transaction that is restored.
        time_ms: Its wall-clock milliseconds.
    """

    snapshot: Manifest
    groups: tuple[Group, ...]
    txid: int
    time_ms: int

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return self.snapshot.size + sum(group.size for group in self.groups)


@dataclass(frozen=True, slots=True)
class Point:
    """A transaction that can be restored.

    Attributes:
        txid: Its number.
        branch: Epoch that it belongs to.
        manifest_key: Of the snapshot, where it is one.
        group: Of the segment that ends with it, where it is one.
    """

    txid: int
    branch: Branch
    manifest_key: str | None
    group: Group | None

    def time_ms(self, objects: Objects) -> int:
        """Return its wall-clock milliseconds. Cost: one small request."""
        if self.manifest_key is not None:
            return Manifest.read(objects, self.manifest_key).time_ms
        if self.group is None:
            raise ValueError("a point is the end of something")
        return _header_time(objects, self.group)


def points(inventory: Inventory) -> list[Point]:
    """Return every point that can be restored, ascending; gaps end a run of them."""
    found: list[Point] = []
    for branch in reversed(inventory.lineage):
        snapshots = dict(inventory.snapshots(branch))
        groups = inventory.groups(branch)
        seen: set[int] = set()
        for txid, key in sorted(snapshots.items()):
            if txid not in seen:
                found.append(Point(txid, branch, key, None))
                seen.add(txid)
            for target in sorted({g.last for g in groups if g.last > txid} - seen):
                chain = chain_from(groups, txid, target)
                if not chain or chain[-1].last != target:
                    continue
                if target in snapshots:
                    continue  # told as a snapshot, in its turn
                found.append(Point(target, branch, None, chain[-1]))
                seen.add(target)
    return sorted(found, key=lambda point: point.txid)


def chain_from(groups: Sequence[Group], start: int, target: int) -> list[Group]:
    """Return the fewest segments that lead on from a transaction, as far as the target or a gap.

    A segment may begin before the place that was reached: it holds the newest copy of every page
    that changed in it, so applying it is right all the same. Greedy, the longest step first.
    """
    usable = sorted((g for g in groups if start < g.last <= target), key=lambda g: g.first)
    chain: list[Group] = []
    at, place = start, 0
    best: Group | None = None
    while at < target:
        while place < len(usable) and usable[place].first <= at + 1:
            group = usable[place]
            if best is None or (group.last, group.level) > (best.last, best.level):
                best = group
            place += 1
        if best is None or best.last <= at:
            break
        chain.append(best)
        at, best = best.last, None if best.last >= target else best
    return chain


def make_plan(
    objects: Objects,
    inventory: Inventory,
    *,
    txid: int | None = None,
    time_ms: int | None = None,
) -> Plan:
    """Decide what to fetch.

    Args:
        objects: The target.
        inventory: What it holds.
        txid: Restore exactly this transaction.
        time_ms: Restore the last point at or before this time; neither is the newest point.

    Raises:
        NoBackup: No snapshot is complete yet.
        NoSuchPoint: That transaction was merged away, or is before or after everything kept.
        ChainGap: Segments are missing on the way.
        CorruptData: A document on the way is damaged.
    """
    if time_ms is not None:
        txid = _point_at(objects, inventory, time_ms).txid
    for branch in inventory.lineage:
        snapshots = inventory.snapshots(branch)
        usable = [item for item in snapshots if txid is None or item[0] <= txid]
        if not usable:
            continue
        if txid is not None and branch.last is not None and txid > branch.last:
            raise _no_such_point(inventory, txid)
        start, key = usable[-1]
        groups = inventory.groups(branch)
        target = txid if txid is not None else _last(groups, start)
        chain = chain_from(groups, start, target)
        reached = chain[-1].last if chain else start
        if reached != target:
            _raise_gap(objects, inventory, groups, reached, target)
        manifest = Manifest.read(objects, key)
        end_ms = _header_time(objects, chain[-1]) if chain else manifest.time_ms
        return Plan(manifest, tuple(chain), target, end_ms)
    if txid is not None and any(inventory.snapshots(b) for b in inventory.lineage):
        raise _no_such_point(inventory, txid)
    raise NoBackup(f"{objects.url} holds no complete snapshot yet")


def _last(groups: Sequence[Group], start: int) -> int:
    return max([start, *(group.last for group in groups)])


def _raise_gap(
    objects: Objects, inventory: Inventory, groups: Sequence[Group], reached: int, target: int
) -> None:
    after = [group.first for group in groups if group.first > reached + 1]
    inside = any(group.first <= target < group.last for group in groups)
    if inside or (not after and target > _last(groups, reached)):
        raise _no_such_point(inventory, target)
    raise ChainGap(objects.url, reached + 1, min(after, default=target + 1) - 1)


def _no_such_point(inventory: Inventory, txid: int) -> NoSuchPoint:
    known = [point.txid for point in points(inventory)]
    before = max((t for t in known if t < txid), default=None)
    after = min((t for t in known if t > txid), default=None)
    near = " and ".join(str(t) for t in (before, after) if t is not None)
    return NoSuchPoint(
        f"transaction {txid} is no point that is kept; the nearest: {near or 'none'}"
    )


def _point_at(objects: Objects, inventory: Inventory, time_ms: int) -> Point:
    """Find the last point at or before a time, with about log2(n) small requests."""
    known = points(inventory)
    low, high = 0, len(known)
    while low < high:
        middle = (low + high) // 2
        if known[middle].time_ms(objects) <= time_ms:
            low = middle + 1
        else:
            high = middle
    if not low:
        raise NoSuchPoint("there is no point at or before that time")
    return known[low - 1]


def _header_time(objects: Objects, group: Group) -> int:
    key = str(group.keys[0])
    found = objects.get(key, length=SEGMENT_HEADER_SIZE)
    if found is None:
        raise CorruptData(key, "it was listed and is gone: plan again")
    return read_segment_header(key, found.data).last_ms
