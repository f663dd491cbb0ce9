"""Archive positions, and what a mirror of the tree says: as of one of them."""

from __future__ import annotations

import msgspec

from sync_engine.core.merkle.tree import MerkleNode, MerklePage

__all__ = ["MerkleMirrored", "generation_of", "position_of"]


def position_of(archive: str, generation: int) -> str:
    """Return the position of an archive after so many batches."""
    return f"{archive}:{generation}"


def generation_of(position: str) -> tuple[str, int]:
    """Return the archive of a position, and its batches.

    Raises:
        ValueError: It is no position.
    """
    archive, _, generation = position.rpartition(":")
    return archive, int(generation)


class MerkleMirrored(msgspec.Struct, frozen=True):
    """A node as the mirror has it: what the archive said at a position, not what it says now.

    Attributes:
        node: The node.
        page: Its first children.
        position: The archive position that both are of; opaque.
        seen_at_ms: When an engine last saw the archive at this position, wall-clock milliseconds.
        behind: Batches that the archive has taken since; None: it could not be asked.
    """

    node: MerkleNode
    page: MerklePage
    position: str
    seen_at_ms: int
    behind: int | None = None
