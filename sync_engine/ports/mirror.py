"""What a mirror of the archive's tree needs, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from sync_engine.core.merkle import MerkleMirrored, MerkleNode, MerklePage, PathMerkle

__all__ = ["MirrorStore", "MirroredTree"]


class MirroredTree(Protocol):
    """A tree that can name its position, and be read at one moment; an archive's ``merkle``."""

    def position(self) -> str:
        """Return the archive position now.

        Raises:
            StoreUnavailable: Try again later.
        """

    def view(self) -> AbstractContextManager[PathMerkle]:
        """Give the tree of one moment; hold it briefly.

        Raises:
            StoreUnavailable: Try again later, or the tree is not built.
        """


class MirrorStore(Protocol):
    """Answers of the tree as of one archive position, which may be forgotten at any time.

    What belongs to different positions is never mixed. Thread-safety: every method.
    """

    def attach(self) -> None:
        """Connect; safe to repeat.

        Raises:
            StoreUnavailable: Not now.
            ConfigError: It can never serve us as configured.
        """

    def fill(
        self, position: str, answers: Mapping[str, tuple[MerkleNode, MerklePage]], now_ms: int
    ) -> None:
        """Write nodes by path, each with its first children, as those of the newest position.

        Args:
            position: That all of them are of.
            answers: By path; the root is among them.
            now_ms: When the archive was seen there, wall-clock milliseconds.

        Raises:
            StoreUnavailable: Try again later; what can be read is right.
        """

    def prolong(self, position: str, now_ms: int) -> bool:
        """Keep what is there for longer if the newest position is this one; return whether it is.

        Raises:
            StoreUnavailable: Try again later.
        """

    def mirrored(self, path: str) -> MerkleMirrored | None:
        """Return what is known of a path at the newest position; None says nothing of the archive.

        Raises:
            StoreUnavailable: Try again later.
        """

    def close(self) -> None:
        """Close connections; safe twice."""
