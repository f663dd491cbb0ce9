"""The tree over the archive, for asyncio: compare, verify, repair."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sync_engine.aio.face import AsyncFace
from sync_engine.core.item import Change
from sync_engine.core.merkle import (
    MerkleDiff,
    MerkleMirrored,
    MerkleNode,
    MerklePage,
    MerkleState,
    MerkleTree,
)
from sync_engine.flow.repair import MerklePeer, RepairReport
from sync_engine.flow.verify import VerifyReport

__all__ = ["AsyncChecks"]


class AsyncChecks(AsyncFace):
    """Compares, verifies and repairs what is stored."""

    async def merkle_root(self) -> MerkleNode:
        """As `SyncEngine.merkle_root`."""
        return await self.in_thread(self.sync.merkle_root)

    async def merkle_node(self, path: str) -> MerkleNode:
        """As `SyncEngine.merkle_node`."""
        return await self.in_thread(self.sync.merkle_node, path)

    async def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """As `SyncEngine.merkle_children`."""
        return await self.in_thread(
            functools.partial(self.sync.merkle_children, path, after, limit, grouped=grouped)
        )

    async def merkle_state(self) -> MerkleState:
        """As `SyncEngine.merkle_state`."""
        return await self.in_thread(self.sync.merkle_state)

    async def merkle_mirrored(self, path: str = "") -> MerkleMirrored:
        """As `SyncEngine.merkle_mirrored`."""
        return await self.in_thread(self.sync.merkle_mirrored, path)

    async def merkle_rebuild(self, progress: Callable[[int], object] = lambda _: None) -> int:
        """As `SyncEngine.merkle_rebuild`; `progress` is called in a worker thread."""
        return await self.in_thread(self.sync.merkle_rebuild, progress)

    async def merkle_changes(self, ids: Sequence[str]) -> Mapping[str, Change]:
        """As `SyncEngine.merkle_changes`."""
        return await self.in_thread(self.sync.merkle_changes, ids)

    async def diff(
        self, other: MerkleTree | AsyncFace, *, path: str = "", **options: Any
    ) -> MerkleDiff:
        """As `SyncEngine.diff`; the other side may be an engine for asyncio, too."""
        there = other.sync if isinstance(other, AsyncFace) else other
        return await self.in_thread(functools.partial(self.sync.diff, there, path=path, **options))

    async def verify(self, **options: Any) -> VerifyReport:
        """As `SyncEngine.verify`."""
        return await self.in_thread(functools.partial(self.sync.verify, **options))

    async def repair(
        self, other: MerklePeer | AsyncFace | None = None, **options: Any
    ) -> RepairReport:
        """As `SyncEngine.repair`; the other side may be an engine for asyncio, too."""
        there = other.sync if isinstance(other, AsyncFace) else other
        return await self.in_thread(functools.partial(self.sync.repair, there, **options))
