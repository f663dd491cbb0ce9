"""The tree over the archive: compare, verify, repair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sync_engine.core.item import Change, check_part
from sync_engine.core.merkle import (
    MerkleDiff,
    MerkleMirrored,
    MerkleNode,
    MerklePage,
    MerkleState,
    MerkleTree,
)
from sync_engine.face.life import Face
from sync_engine.flow.repair import MerklePeer, RepairReport
from sync_engine.flow.verify import VerifyReport

__all__ = ["Checks"]


class Checks(Face):
    """Compares, verifies and repairs what is stored."""

    def merkle_root(self) -> MerkleNode:
        """Return the root of the archive's Merkle tree: equal archives have equal hashes.

        The tree is the archive's: what is still on its way there is not in it. `flush` first.

        Raises:
            ConfigError: The tree is off.
            StoreUnavailable: The archive cannot be asked, or its tree is being built.

        Blocking: the archive. Cost: a few queries, whatever the archive holds.
        """
        return self._open().trees.root()

    def merkle_node(self, path: str) -> MerkleNode:
        """Return the node of a path, an empty one where nothing is stored; see `merkle_root`."""
        return self._open().trees.node(check_part(path))

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """Return up to `limit` children of a node; see `merkle_root`.

        Args:
            path: The node's path; with `grouped`, what ids begin with, literally.
            after: `MerklePage.next` of the page before; None begins.
            limit: 1 to 10,000.
            grouped: Return entries, or groups of ids that begin alike, in place of children.
        """
        return self._open().trees.children(check_part(path), after, limit, grouped=grouped)

    def merkle_state(self) -> MerkleState:
        """Return how the tree does: whether it is built, its separator, its archive position.

        Raises:
            ConfigError: The tree is off.
            StoreUnavailable: The archive cannot be asked.
        """
        return self._open().trees.state()

    def merkle_mirrored(self, path: str = "") -> MerkleMirrored:
        """Return a node and its first children as the mirror in Redis has them.

        That is what the archive said at the position it names, not what it says now; `behind` and
        `seen_at_ms` tell how old that is. It works while the archive is down.

        Args:
            path: The node's path. The mirror has the root, and the first of the levels below it.

        Raises:
            ConfigError: The mirror is off.
            StoreUnavailable: Redis cannot be asked, the mirror does not have the path, or it is of
                another archive.

        Blocking: Redis; and the archive, if it is there, for how far on it is.
        """
        return self._open().mirror.read(check_part(path))

    def merkle_rebuild(self, progress: Callable[[int], object] = lambda _: None) -> int:
        """Throw the tree away and build it from the rows; return how many.

        Safe to interrupt: the next engine goes on. Others may write meanwhile, and cannot read the
        tree until it is built. Blocking: until done.

        Args:
            progress: Called now and then with the rows read so far.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        return self._open().trees.build(progress)

    def merkle_changes(self, ids: Sequence[str]) -> Mapping[str, Change]:
        """Return the archive's changes of ids, tombstones included; absent ids are left out.

        What `repair` of another engine asks for. Blocking: the archive, one query per 500 ids.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        return self._open().trees.changes(ids)

    def diff(self, other: MerkleTree, *, path: str = "", **options: Any) -> MerkleDiff:
        """Compare this engine's archive with another, without listing what they have in common.

        Args:
            other: Another engine, or anything with `merkle_root`, `merkle_node` and
                `merkle_children`.
            path: Compare only this node and what is below it.
            options: As `core.merkle.diff`: `tombstones`, `limit`, `page`, `pause`.

        Raises:
            StoreUnavailable: One of the two cannot be asked, or its tree is being built.

        Blocking: both archives. Cost: for each difference a few questions a side, see
        `core.merkle.diff`.
        """
        return self._open().trees.diff(other, path=check_part(path), **options)

    def verify(
        self,
        *,
        after: str | None = None,
        sample: float = 1.0,
        items_max: int | None = None,
        items_per_s: float | None = None,
        progress: Callable[[VerifyReport], object] = lambda _: None,
    ) -> VerifyReport:
        """Compare archive rows with their checksums and the tree, L2 and filter with the archive.

        Changes nothing.

        Args:
            after: `VerifyReport.next` of a verification to go on with; None begins.
            sample: Share of the ranges to look at, above 0 and at most 1.
            items_max: Stop after about so many rows; None goes on to the end.
            items_per_s: Rows to read in a second at most; None is as fast as it goes.
            progress: Called after each range of some 500 rows, with what was seen so far.

        Raises:
            ConfigError: A number is out of range, or the tree is off.
            StoreUnavailable: The archive cannot be asked, or its tree is being built.

        Blocking: until done. Cost: reads every row it looks at.
        """
        return self._open().trees.verify(
            after=after,
            sample=sample,
            items_max=items_max,
            items_per_s=items_per_s,
            progress=progress,
        )

    def repair(
        self,
        other: MerklePeer | None = None,
        *,
        dry_run: bool = False,
        path: str = "",
        tombstones: bool = True,
        **options: Any,
    ) -> RepairReport:
        """Verify and mend; or compare with another engine, and take what is newer there.

        The larger version wins, and what is absent on one side deletes nothing on the other: to
        make two engines equal, let each repair from the other.

        Args:
            other: The other engine; None mends what `verify` finds.
            dry_run: Only tell what would be done.
            path: With `other`: only this node and what is below it.
            tombstones: With `other`: whether a tombstone on one side alone counts.
            options: Without `other`: as `verify`.

        Raises:
            StoreUnavailable: A side cannot be asked; what is done is done.

        Blocking: until done; what was taken is in the log then.
        """
        return self._open().trees.repair(
            other, dry_run=dry_run, path=path, tombstones=tombstones, **options
        )
