"""What a target holds, and which of it belongs together: one listing, then kept by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sync_engine.errors import CorruptData
from sync_engine.ports import BlobInfo
from sync_engine.sinks.snapshot.errors import NoBackup
from sync_engine.sinks.snapshot.format import unseal
from sync_engine.sinks.snapshot.keys import (
    CHUNK,
    HEAD,
    MANIFEST,
    ROOT,
    SegmentKey,
    epoch_of,
    start_key,
)
from sync_engine.sinks.snapshot.objects import Objects

__all__ = ["Branch", "Group", "Head", "Inventory", "read_head", "read_inventory"]


@dataclass(frozen=True, slots=True)
class Head:
    """Who writes to a target.

    Attributes:
        document: As read.
        etag: To replace exactly this one.
    """

    document: dict[str, Any]
    etag: str

    @property
    def db_id(self) -> str:
        """Identity of the database."""
        return str(self.document["db_id"])

    @property
    def epoch(self) -> int:
        """The epoch that is written."""
        return int(self.document["epoch"])


@dataclass(frozen=True, slots=True)
class Branch:
    """One epoch of the lineage.

    Attributes:
        epoch: Its number.
        fork: Last transaction of its parent that counts.
        last: Last transaction of its own that counts; None in the newest.
    """

    epoch: int
    fork: int
    last: int | None


@dataclass(frozen=True, slots=True)
class Group:
    """A whole segment: all its parts.

    Attributes:
        keys: One a part, in order.
        size: Bytes of all.
    """

    keys: tuple[SegmentKey, ...]
    size: int

    @property
    def first(self) -> int:
        """First transaction."""
        return self.keys[0].txid_min

    @property
    def last(self) -> int:
        """Last transaction."""
        return self.keys[0].txid_max

    @property
    def level(self) -> int:
        """Level, 0 to 3."""
        return self.keys[0].level


@dataclass(slots=True)
class Inventory:
    """The objects of one target.

    Thread-safety: one thread changes it.

    Attributes:
        head: HEAD as it was read.
        lineage: Epochs from the newest to the oldest.
        sizes: Every object below the database's identity, by key.
    """

    head: Head
    lineage: list[Branch]
    sizes: dict[str, int] = field(default_factory=dict)

    def groups(self, branch: Branch) -> list[Group]:
        """Return the whole segments of an epoch that count, by first and last transaction."""
        parts: dict[tuple[int, int, int], dict[int, SegmentKey]] = {}
        for text in list(self.sizes):
            key = SegmentKey.parse(text)
            if key is None or key.epoch != branch.epoch or key.db_id != self.head.db_id:
                continue
            if branch.last is None or key.txid_max <= branch.last:
                name = (key.txid_min, key.txid_max, key.level)
                parts.setdefault(name, {})[key.part] = key
        return [
            Group(
                tuple(found[place] for place in sorted(found)),
                sum(self.sizes[str(key)] for key in found.values()),
            )
            for _, found in sorted(parts.items())
            if len(found) == next(iter(found.values())).parts
        ]

    def snapshots(self, branch: Branch) -> list[tuple[int, str]]:
        """Return transaction and manifest key of an epoch's snapshots that count, ascending."""
        found = []
        for text in list(self.sizes):
            match = MANIFEST.fullmatch(text)
            if match is None or match[1] != self.head.db_id or int(match[2]) != branch.epoch:
                continue
            txid = int(match[3], 16)
            if branch.last is None or txid <= branch.last:
                found.append((txid, text))
        return sorted(found)

    def chunks(self) -> list[str]:
        """Return the keys of all chunks."""
        return [key for key in list(self.sizes) if CHUNK.fullmatch(key)]

    def beyond(self) -> list[str]:
        """Return what a former owner wrote after its epoch was over: it never counts."""
        ends = {branch.epoch: branch.last for branch in self.lineage}
        found = []
        for text in self.sizes:
            epoch = epoch_of(text)
            if epoch is None:
                continue
            if epoch not in ends:
                found.append(text)
                continue
            end = ends[epoch]
            key, manifest = SegmentKey.parse(text), MANIFEST.fullmatch(text)
            txid = key.txid_max if key else int(manifest[3], 16) if manifest else 0
            if end is not None and txid > end:
                found.append(text)
        return sorted(found)

    def chain_end(self) -> int:
        """Return the last transaction that can be reached without a gap; 0 in an empty target."""
        for branch in self.lineage:
            snapshots = self.snapshots(branch)
            if snapshots:
                return reach(self.groups(branch), snapshots[-1][0])
        return 0


def reach(groups: Iterable[Group], start: int) -> int:
    """Return how far segments follow one another from a transaction."""
    end = start
    for group in sorted(groups, key=lambda g: (g.first, g.last)):
        if group.first <= end + 1:
            end = max(end, group.last)
    return end


def read_head(objects: Objects) -> Head | None:
    """Return HEAD; None in an empty target. Cost: one request.

    Raises:
        CorruptData: It is damaged.
    """
    found = objects.get(HEAD)
    return None if found is None else Head(unseal(HEAD, found.data), found.etag)


def read_inventory(objects: Objects) -> Inventory:
    """List a target. Cost: two requests, one an epoch, and one a thousand objects.

    Raises:
        NoBackup: There is nothing of ours.
        CorruptData: HEAD or the beginning of an epoch is damaged.
    """
    head = read_head(objects)
    if head is None:
        for info in objects.list(ROOT):
            raise CorruptData(
                HEAD, f"it is missing, and there are objects such as {info.key}: put it back"
            )
        raise NoBackup(f"{objects.url} holds no replica: nothing was replicated there yet")
    inventory = Inventory(head, list(_lineage(objects, head)))
    for info in objects.list(f"{ROOT}{head.db_id}/"):
        note(inventory, info)
    return inventory


def note(inventory: Inventory, info: BlobInfo) -> None:
    """Add one object."""
    inventory.sizes[info.key] = info.size


def _lineage(objects: Objects, head: Head) -> Iterator[Branch]:
    epoch, last = head.epoch, None
    while True:
        key = start_key(head.db_id, epoch)
        found = objects.get(key)
        if found is None:
            raise CorruptData(key, "the beginning of an epoch is missing")
        start = unseal(key, found.data)
        fork, parent = int(start["fork"]), start["parent"]
        yield Branch(epoch, fork, last)
        if parent is None:
            return
        epoch, last = int(parent), fork
