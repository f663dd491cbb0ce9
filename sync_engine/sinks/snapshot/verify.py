"""Whether a replica can be relied on: walked by its names, read byte for byte, or restored."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from sync_engine.errors import CorruptData
from sync_engine.ports import Runtime
from sync_engine.sinks.snapshot.errors import ChainGap
from sync_engine.sinks.snapshot.format import (
    SEGMENT_HEADER_SIZE,
    SegmentHeader,
    read_segment,
    read_segment_header,
)
from sync_engine.sinks.snapshot.inventory import Branch, Group, Inventory, read_inventory
from sync_engine.sinks.snapshot.objects import Objects
from sync_engine.sinks.snapshot.place import quick_look
from sync_engine.sinks.snapshot.plan import Manifest, chain_from, make_plan
from sync_engine.sinks.snapshot.restore import restore_plan

__all__ = ["Drill", "Verification", "drill", "verify"]


@dataclass(slots=True)
class Verification:
    """What was found.

    Attributes:
        points: First and last transaction that can be restored; zeros where none can.
        snapshots: How many were looked at.
        segments: How many were looked at.
        read_bytes: Bytes that were read.
        problems: Sentences that name an object or a range; empty is healthy.
        ignored: Objects that a former owner wrote after its time; harmless, and never restored.
    """

    points: tuple[int, int] = (0, 0)
    snapshots: int = 0
    segments: int = 0
    read_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(objects: Objects, *, full: bool) -> Verification:
    """Check a replica.

    Args:
        objects: The target.
        full: Read every object and compare its checksums. Otherwise names, manifests and the
            headers of segments only: one small request an object.

    Raises:
        NoBackup: There is nothing.
        StoreUnavailable: Try again later.
    """
    found = Verification()
    try:
        inventory = read_inventory(objects)
    except CorruptData as exc:
        found.problems.append(str(exc))
        return found
    found.ignored = inventory.beyond()
    for branch in reversed(inventory.lineage):
        _verify_branch(objects, inventory, branch, found, full=full)
    if not found.snapshots:
        found.problems.append("there is no complete snapshot")
    return found


def _verify_branch(
    objects: Objects, inventory: Inventory, branch: Branch, found: Verification, *, full: bool
) -> None:
    manifests: list[Manifest] = []
    for _, key in inventory.snapshots(branch):
        try:
            manifests.append(Manifest.read(objects, key))
            _verify_chunks(objects, inventory, manifests[-1], found, full=full)
        except CorruptData as exc:
            found.problems.append(str(exc))
        found.snapshots += 1
    headers: dict[tuple[int, int, int], SegmentHeader] = {}
    groups = inventory.groups(branch)
    for group in groups:
        try:
            headers[group.first, group.last, group.level] = _verify_group(
                objects, group, found, full=full
            )
        except CorruptData as exc:
            found.problems.append(str(exc))
        found.segments += 1
    if not manifests:
        return
    _verify_chain(objects, groups, manifests, headers, found)


def _verify_chunks(
    objects: Objects, inventory: Inventory, manifest: Manifest, found: Verification, *, full: bool
) -> None:
    for chunk in manifest.chunks:
        key = str(chunk["key"])
        if inventory.sizes.get(key) != chunk["size"]:
            raise CorruptData(key, f"it is not there as {manifest.key} needs it")
        if full:
            data = _read(objects, key, found)
            if hashlib.sha256(data).hexdigest() != chunk["sha256"]:
                raise CorruptData(key, "its bytes are not those that were written")


def _verify_group(
    objects: Objects, group: Group, found: Verification, *, full: bool
) -> SegmentHeader:
    header: SegmentHeader | None = None
    for key in group.keys:
        name = str(key)
        if full:
            header, pages = read_segment(name, _read(objects, name, found))
            for _ in pages:
                pass
        else:
            part = objects.get(name, length=SEGMENT_HEADER_SIZE)
            if part is None:
                raise CorruptData(name, "it was listed and is gone")
            found.read_bytes += len(part.data)
            header = read_segment_header(name, part.data)
        said = (header.epoch, header.txid_min, header.txid_max, header.part, header.parts)
        if said != (key.epoch, key.txid_min, key.txid_max, key.part, key.parts):
            raise CorruptData(name, "it is another segment than its name says")
    if header is None:
        raise CorruptData(str(group.keys), "it has no parts")
    return header


def _verify_chain(
    objects: Objects,
    groups: list[Group],
    manifests: list[Manifest],
    headers: dict[tuple[int, int, int], SegmentHeader],
    found: Verification,
) -> None:
    """Follow the segments from the oldest snapshot to the end, checksum to checksum."""
    start = manifests[0].txid
    end = max([start, *(group.last for group in groups)])
    reached, checksum = start, manifests[0].checksum
    sums = {manifest.txid: manifest.checksum for manifest in manifests}
    for group in chain_from(groups, start, end):
        header = headers.get((group.first, group.last, group.level))
        if header is not None:
            if group.first == reached + 1 and header.pre != checksum:
                name = str(group.keys[0])
                found.problems.append(f"{name}: it does not follow what is before it")
            if sums.get(group.last, header.post) != header.post:
                found.problems.append(
                    f"{group.keys[0]}: its end is not what the snapshot at {group.last} holds"
                )
            checksum = header.post
        reached = group.last
    later = [manifest.txid for manifest in manifests if manifest.txid > reached]
    if reached < end or later:
        after = [group.first for group in groups if group.first > reached + 1]
        last = min([*after, *(txid + 1 for txid in later)], default=end + 1) - 1
        found.problems.append(str(ChainGap(objects.url, reached + 1, last)))
    first = found.points[0] or start
    found.points = (first, max(reached, end if not later else later[-1]))


def _read(objects: Objects, key: str, found: Verification) -> bytes:
    fetched = objects.get(key)
    if fetched is None:
        raise CorruptData(key, "it was listed and is gone")
    found.read_bytes += len(fetched.data)
    return fetched.data


@dataclass(frozen=True, slots=True)
class Drill:
    """A trial restore that worked.

    Attributes:
        txid: The transaction that was restored.
        snapshot: Transaction of the snapshot that it began with.
        checksum: Of the database.
        seconds: It took.
    """

    txid: int
    snapshot: int
    checksum: int
    seconds: float


def drill(objects: Objects, directory: Path, runtime: Runtime) -> Drill:
    """Restore the newest point into a directory, let SQLite check it, and remove it again.

    Raises:
        CorruptData: It cannot be restored; names the object.
        NoBackup: There is nothing.
    """
    began = runtime.clock.monotonic()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    try:
        path = directory / "drill.db"
        path.touch(mode=0o600)
        plan = make_plan(objects, read_inventory(objects))
        checksum, _ = restore_plan(objects, path, runtime, plan)
        quick_look(path, "full")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    seconds = runtime.clock.monotonic() - began
    return Drill(plan.txid, plan.snapshot.txid, checksum, seconds)
