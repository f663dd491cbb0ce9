"""What may be deleted: only what no kept point needs, and only a while after nobody needs it.

The plan is made from what is kept, never from what is old. The waiting is measured by a clock that
nobody can set, from the moment an object was found superfluous: a restore under way has that long.
"""

from __future__ import annotations

from dataclasses import dataclass

from sync_engine.ports import Clock
from sync_engine.sinks.snapshot.inventory import Branch, Group, Inventory
from sync_engine.sinks.snapshot.keys import MANIFEST, SegmentKey, epoch_of
from sync_engine.sinks.snapshot.lease import Lease
from sync_engine.sinks.snapshot.objects import Objects
from sync_engine.sinks.snapshot.plan import Manifest, chain_from, make_plan
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.telemetry import get_logger

__all__ = ["Retention", "RetentionCounts"]

_log = get_logger("sinks.snapshot")
_BATCH = 500


@dataclass(slots=True)
class RetentionCounts:
    """What was deleted since the process began."""

    deleted: int = 0
    failed: int = 0
    refused: int = 0


class Retention:
    """Deletes what is superfluous.

    Thread-safety: owned by one job.

    Args:
        objects: The target.
        lease: Asked before every deletion.
        inventory: Read, and told of every deletion.
        settings: What is kept.
        clock: Time.

    Attributes:
        verified: Transaction of the newest snapshot that a drill restored; 0 where none did.
    """

    def __init__(
        self,
        objects: Objects,
        lease: Lease,
        inventory: Inventory,
        settings: ReplicationSettings,
        clock: Clock,
    ) -> None:
        self._objects = objects
        self._lease = lease
        self._inventory = inventory
        self._settings = settings
        self._clock = clock
        self._manifests: dict[str, Manifest] = {}
        self._since: dict[str, float] = {}
        self._merged: dict[str, float] = {}  # when each was first seen merged into a higher level
        self.verified = 0
        self.counts = RetentionCounts()

    def step(self) -> int:
        """Look what is superfluous, and delete what has been for long enough; return how many.

        Raises:
            CorruptData: A manifest is damaged: nothing is deleted while one is.
            StoreUnavailable: Try again later.
        """
        superfluous = self.superfluous()
        now = self._clock.monotonic()
        self._since = {key: self._since.get(key, now) for key in superfluous}
        due = [key for key in superfluous if now - self._since[key] >= self._settings.grace_s]
        if not due or not self._plans_hold(set(due)):
            return 0
        due.sort(key=lambda key: MANIFEST.fullmatch(key) is None)  # a manifest before its chunks
        for at in range(0, len(due), _BATCH):
            self._lease.ensure()
            batch = due[at : at + _BATCH]
            failed = set(self._objects.delete(batch))
            self.counts.failed += len(failed)
            self.counts.deleted += len(batch) - len(failed)
            for key in batch:
                if key not in failed:
                    self._inventory.sizes.pop(key, None)
                    self._manifests.pop(key, None)
        return len(due)

    def superfluous(self) -> list[str]:
        """Return the keys that no kept point needs."""
        kept = self._kept()
        if not kept:
            return []
        boundary = kept[0].txid
        needed = {manifest.key for manifest in kept}
        needed |= {str(chunk["key"]) for manifest in kept for chunk in manifest.chunks}
        for branch in self._inventory.lineage:
            needed |= self._needed_segments(branch, boundary)
        old = self._outlived(boundary)
        return [
            key
            for key in list(self._inventory.sizes)
            if key not in needed
            and not key.endswith("START.json")  # the lineage is read through them
            and (old.get(epoch_of(key) or 0, False) or self._ours(key))
        ]

    def _kept(self) -> list[Manifest]:
        """Return the snapshots that stay, by transaction."""
        known: list[Manifest] = []
        for branch in self._inventory.lineage:
            for _, key in self._inventory.snapshots(branch):
                if key not in self._manifests:
                    self._manifests[key] = Manifest.read(self._objects, key)
                known.append(self._manifests[key])
        known.sort(key=lambda manifest: manifest.txid)
        since_ms = self._clock.now_ms() - self._settings.retain_s * 1000
        young = [place for place, found in enumerate(known) if found.time_ms >= since_ms]
        # The one before the oldest young one is what points between the two begin with.
        first = max(0, (young[0] if young else len(known)) - 1)
        first = min(first, max(0, len(known) - self._settings.snapshots_min))
        verified = [place for place, found in enumerate(known) if found.txid == self.verified]
        return known[min([first, *verified]) :]

    def _needed_segments(self, branch: Branch, boundary: int) -> set[str]:
        """Return the segments of an epoch that lead to a kept point."""
        groups = [group for group in self._inventory.groups(branch) if group.last > boundary]
        fine_s = self._settings.fine_s
        now = self._clock.monotonic()
        needed: set[str] = set()
        for group in groups:
            covered = self._covered(group, groups)
            for key in map(str, group.keys):
                if not covered:
                    needed.add(key)
                    self._merged.pop(key, None)
                elif now - self._merged.setdefault(key, now) < fine_s:
                    needed.add(key)
        return needed

    @staticmethod
    def _covered(group: Group, groups: list[Group]) -> bool:
        """Tell whether segments of higher levels lead over the whole of a segment."""
        above = [g for g in groups if g.level > group.level and g.first <= group.last]
        holding = [g for g in above if g.first <= group.first and g.last >= group.last]
        if holding:
            return True
        chain = chain_from(above, group.first - 1, group.last)
        return bool(chain) and chain[-1].last == group.last

    def _outlived(self, boundary: int) -> dict[int, bool]:
        """Tell for each epoch whether nothing that follows the boundary belongs to it."""
        return {
            branch.epoch: branch.last is not None and branch.last < boundary
            for branch in self._inventory.lineage
        }

    def _ours(self, key: str) -> bool:
        """Tell whether an object is one that counts: what a fenced writer left stays to be seen.

        Chunks without a manifest are those of a snapshot that was not finished, or is under way:
        waiting tells the two apart.
        """
        segment = SegmentKey.parse(key)
        if segment is None:
            return epoch_of(key) is not None
        branch = next((b for b in self._inventory.lineage if b.epoch == segment.epoch), None)
        return branch is not None and (branch.last is None or segment.txid_max <= branch.last)

    def _plans_hold(self, due: set[str]) -> bool:
        """Make sure that oldest and newest kept point can be restored without what goes."""
        rest = Inventory(
            self._inventory.head,
            self._inventory.lineage,
            {k: size for k, size in list(self._inventory.sizes.items()) if k not in due},
        )
        kept = self._kept()
        for txid in (kept[0].txid, None):
            plan = make_plan(self._objects, rest, txid=txid)
            keys = {plan.snapshot.key, *(str(chunk["key"]) for chunk in plan.snapshot.chunks)}
            keys |= {str(key) for group in plan.groups for key in group.keys}
            if keys & due or not keys <= rest.sizes.keys():
                self.counts.refused += 1
                _log.error("retention_refused", point=plan.txid)
                return False
        return True
