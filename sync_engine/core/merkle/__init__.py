"""The path Merkle tree: digests of sets of entries, a tree of paths over them, and its diff."""

from sync_engine.core.merkle.batch import MerkleBatch, sums_by_block
from sync_engine.core.merkle.diff import Divergence, MerkleDiff, MerkleTree, diff
from sync_engine.core.merkle.digest import EMPTY, SetDigest, entry_hash
from sync_engine.core.merkle.mirror import MerkleMirrored, generation_of, position_of
from sync_engine.core.merkle.tree import (
    CheckedRow,
    MemorySource,
    MerkleEntry,
    MerkleNode,
    MerklePage,
    MerkleSource,
    MerkleState,
    PathMerkle,
    TreeCheck,
    check_separator,
)

__all__ = [
    "EMPTY",
    "CheckedRow",
    "Divergence",
    "MemorySource",
    "MerkleBatch",
    "MerkleDiff",
    "MerkleEntry",
    "MerkleMirrored",
    "MerkleNode",
    "MerklePage",
    "MerkleSource",
    "MerkleState",
    "MerkleTree",
    "PathMerkle",
    "SetDigest",
    "TreeCheck",
    "check_separator",
    "diff",
    "entry_hash",
    "generation_of",
    "position_of",
    "sums_by_block",
]
