"""Repair: what verification or a comparison has found, mended through the front door.

The larger version wins, here as everywhere; a change taken from elsewhere goes into the log with
the version it has, and from there to every tier. That something is absent on one side deletes
nothing on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from sync_engine.core.filters import FilterManager
from sync_engine.core.item import Change
from sync_engine.core.merkle import Divergence, MerkleDiff, MerkleTree
from sync_engine.core.options import Durability
from sync_engine.errors import CorruptData, InvalidItem
from sync_engine.flow.reader import Reader
from sync_engine.flow.tier import Tier
from sync_engine.flow.verify import VerifyReport
from sync_engine.flow.writer import Writer
from sync_engine.ports import (
    ArchiveStore,
    CacheStore,
    MerkleStore,
    Overtaken,
    Runtime,
    WritableLog,
)

__all__ = ["Mended", "MerklePeer", "RepairAction", "RepairReport", "Repairer"]

_BATCH = 200
_ATTEMPTS = 10


class MerklePeer(MerkleTree, Protocol):
    """The other side of a repair: a tree, and the changes behind its entries."""

    def merkle_changes(self, ids: Sequence[str]) -> Mapping[str, Change]:
        """Return the stored changes of ids, tombstones included; absent ids are left out."""


class Mended(Enum):
    """What was done about a finding."""

    TREE = "tree built anew"
    L2 = "cached value replaced"
    FILTER = "filter emptied, to be filled anew"
    ROW = "row written again from a copy"
    TAKEN = "newer change taken from the other side"
    OURS = "ours is newer, or theirs is absent: left to the other side"
    LOST = "no good copy is left"
    RACED = "changed meanwhile: look again"


class RepairAction(msgspec.Struct, frozen=True, array_like=True):
    """One thing that was mended, or would be.

    Attributes:
        id: The id; empty for what concerns all.
        mended: What was done, or would be.
    """

    id: str
    mended: Mended


class RepairReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a repair has found and done.

    Attributes:
        dry_run: Whether nothing was changed.
        verified: What the verification before it has seen; None where it was a comparison.
        compared: What the comparison has shown; None where it was a verification.
        actions: In the order they were done.
    """

    dry_run: bool
    verified: VerifyReport | None = None
    compared: MerkleDiff | None = None
    actions: tuple[RepairAction, ...] = ()

    def count(self, mended: Mended) -> int:
        """Return the number of actions of a kind."""
        return sum(action.mended is mended for action in self.actions)

    @property
    def ok(self) -> bool:
        """Whether everything that was found could be mended."""
        return not any(a.mended in {Mended.LOST, Mended.RACED} for a in self.actions)


class Repairer:
    """Mends through the front door.

    Thread-safety: every method. Blocking: as the tiers and the log.
    """

    def __init__(
        self,
        l3: Tier[ArchiveStore],
        l2: Tier[CacheStore] | None,
        merkle: MerkleStore,
        filters: FilterManager,
        reader: Reader,
        writer: Writer,
        log: WritableLog,
        runtime: Runtime,
        *,
        observe_version: Callable[[int], None],
    ) -> None:
        self._l3 = l3
        self._l2 = l2
        self._merkle = merkle
        self._filters = filters
        self._reader = reader
        self._writer = writer
        self._log = log
        self._clock = runtime.clock
        self._observe_version = observe_version

    # -- what verification has found --------------------------------------------------------------

    def mend(self, found: VerifyReport, *, dry_run: bool) -> RepairReport:
        """Mend what a verification has found.

        Raises:
            StoreUnavailable: The archive cannot be asked; what is done is done.
        """
        actions: list[RepairAction] = []
        actions += [RepairAction(id, self._rewrite(id, dry_run=dry_run)) for id in found.corrupt]
        actions += [
            RepairAction(id, self._replace_in_l2(id, dry_run=dry_run)) for id in found.l2_stale
        ]
        if found.filter_missed:
            if not dry_run:
                self._filters.distrust("verification found an id that it denied")
            actions.append(RepairAction("", Mended.FILTER))
        if found.unmatched:
            if not dry_run:
                self._l3.call_with_retry("merkle", self._merkle.begin_build)
                self.build()
            actions.append(RepairAction("", Mended.TREE))
        return RepairReport(dry_run=dry_run, verified=found, actions=tuple(actions))

    def build(self, progress: Callable[[int], object] = lambda _: None) -> int:
        """Build an unbuilt tree to its end; return the number of rows read.

        Raises:
            StoreUnavailable: The archive cannot be asked; the next call goes on.
        """
        done = 0
        while count := self._l3.call_with_retry("merkle", self._merkle.build_step):
            done += count
            progress(done)
        return done

    def _rewrite(self, id: str, *, dry_run: bool) -> Mended:
        """Write a damaged row again from a copy that is still good."""
        seen = self._log.head()
        copy = self._reader.near(id)
        if copy is None and self._l2 is not None and self._l2.usable:
            copy = self._l2.call("get_many", self._l2.store.get_many, [id]).get(id)
        if copy is None or copy.content is None:
            return Mended.LOST
        if dry_run:
            return Mended.ROW
        # As a new version: the damaged row may claim the one that the copy has.
        return self._write(msgspec.structs.replace(copy, version=0), seen, Mended.ROW)

    def _replace_in_l2(self, id: str, *, dry_run: bool) -> Mended:
        if dry_run or self._l2 is None:
            return Mended.L2
        seen = self._log.head()
        try:
            row = self._l3.call("get_many", self._l3.store.get_many, [id]).get(id)
        except CorruptData:
            return self._rewrite(id, dry_run=False)
        if row is None:
            return Mended.RACED
        self._l2.apply([row])
        now = self._l2.call("get_many", self._l2.store.get_many, [id]).get(id)
        if now is None or now.version > row.version or now.content in (row.content, None):
            return Mended.L2
        # The same version with another content: only a newer one replaces it.
        return self._write(msgspec.structs.replace(row, version=0), seen, Mended.L2)

    # -- what a comparison has shown --------------------------------------------------------------

    def take(self, found: MerkleDiff, other: MerklePeer, *, dry_run: bool) -> RepairReport:
        """Take from another side what is newer there.

        Raises:
            StoreUnavailable: One side cannot be asked; what is done is done.
        """
        actions: list[RepairAction] = []
        for start in range(0, len(found.divergent), _BATCH):
            part = found.divergent[start : start + _BATCH]
            wanted = [one for one in part if _theirs_wins(one)]
            actions += [RepairAction(one.id, Mended.OURS) for one in part if one not in wanted]
            if dry_run:
                actions += [RepairAction(one.id, Mended.TAKEN) for one in wanted]
            elif wanted:
                there = other.merkle_changes([one.id for one in wanted])
                actions += [RepairAction(one.id, self._take(one.id, there)) for one in wanted]
        return RepairReport(dry_run=dry_run, compared=found, actions=tuple(actions))

    def _take(self, id: str, there: Mapping[str, Change]) -> Mended:
        change = there.get(id)
        if change is None:
            return Mended.RACED
        try:
            self._writer.check(change)
        except InvalidItem:
            return Mended.LOST
        for _ in range(_ATTEMPTS):
            seen = self._log.head()
            mine = self._log.pending(id)
            if mine is None:
                try:
                    mine = self._reader.archived([id]).get(id)
                except CorruptData:
                    mine = None
            if mine is not None and mine.version >= change.version:
                return Mended.OURS
            self._observe_version(change.version)
            if self._write(change, seen, Mended.TAKEN) is Mended.TAKEN:
                return Mended.TAKEN
        return Mended.RACED

    def _write(self, draft: Change, seen: int, mended: Mended) -> Mended:
        if draft.content is None:
            self._filters.add(draft.id)
        try:
            self._writer.write((draft,), Durability.LOG, unless_after=seen)
        except Overtaken:
            self._log.commit(self._log.appended, 0)
            return Mended.RACED
        return mended


def _theirs_wins(one: Divergence) -> bool:
    if one.theirs is None:
        return False  # absence alone deletes nothing
    return one.mine is None or one.theirs.version > one.mine.version
