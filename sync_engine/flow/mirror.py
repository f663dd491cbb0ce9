"""The mirror of the tree: its first levels, kept in Redis at the position of the archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sync_engine.core.merkle import (
    MerkleMirrored,
    MerkleNode,
    MerklePage,
    PathMerkle,
    generation_of,
)
from sync_engine.core.policies import RetryConfig
from sync_engine.errors import ConfigError, StorageError, StoreUnavailable
from sync_engine.flow.guard import Backoff
from sync_engine.flow.tier import Tier
from sync_engine.ports import ArchiveStore, MirroredTree, Runtime
from sync_engine.telemetry import get_logger

__all__ = ["Mirror"]

_log = get_logger("flow.mirror")
_LOOK_S = 5.0
_LEVELS = 2
_CHILDREN = 64
_NODES_MAX = 256

Answers = Mapping[str, tuple[MerkleNode, MerklePage]]


class Mirror:
    """Keeps the root and the levels below it in the mirror, and tells what is there.

    What is written at once is of one moment of the archive, and at most 256 nodes: up to 64
    children of the root, and of its children in turn as far as the number goes.

    Thread-safety: `read` and `stats`; `step` is owned by one job.

    Args:
        l3: The archive; its store may have a ``merkle`` that is a `ports.MirroredTree`.
        tier: The mirror, a `ports.MirrorStore`; None: there is none.
        runtime: Clock and randomness.
        retry: Pauses after failures.
        enabled: Whether the tree is kept.
    """

    JOB = "merkle_mirror"

    def __init__(
        self,
        l3: Tier[ArchiveStore],
        tier: Tier[Any] | None,
        runtime: Runtime,
        *,
        retry: RetryConfig,
        enabled: bool,
    ) -> None:
        self._l3 = l3
        self._clock = runtime.clock
        self._backoff = Backoff(retry, runtime.random)
        self._tree: MirroredTree | None = getattr(l3.store, "merkle", None) if enabled else None
        self.tier = tier if self._tree is not None else None
        self._position = self._error = ""

    # -- upkeep -----------------------------------------------------------------------------------

    def step(self) -> float:
        """Bring the mirror to where the archive is; return the seconds to wait."""
        if self._tree is None or self.tier is None or not self._l3.attached:
            return 1.0
        try:
            self._keep(self._tree, self.tier)
        except StorageError as exc:
            _log.limited("merkle_mirror_failed", error=exc)
            self._error = str(exc)
            return self._backoff.failed()
        self._backoff.succeeded()
        self._error = ""
        return _LOOK_S

    def _keep(self, tree: MirroredTree, tier: Tier[Any]) -> None:
        tier.ready()
        now_ms = self._clock.now_ms()
        position = self._l3.call("merkle", tree.position)
        if not tier.call("prolong", tier.store.prolong, position, now_ms):
            position, answers = self._l3.call("merkle", _gathered, tree)
            tier.call("fill", tier.store.fill, position, answers, now_ms)
        self._position = position

    # -- reading ----------------------------------------------------------------------------------

    def stats(self) -> dict[str, str]:
        """Return the archive position that the mirror was last seen at, and what is wrong since."""
        return {"position": self._position, "error": self._error}

    def read(self, path: str) -> MerkleMirrored:
        """Return what the mirror has of a path; the archive is asked how far on it is, at most.

        Raises:
            ConfigError: The mirror is off.
            StoreUnavailable: The mirror cannot be asked, does not have the path, or is of another
                archive.
        """
        tier = self.tier
        if tier is None:
            raise ConfigError("merkle_mirror: the mirror is off; set merkle_mirror = true")
        tier.ready()
        found: MerkleMirrored | None = tier.call_with_retry("mirrored", tier.store.mirrored, path)
        if found is None:
            raise StoreUnavailable(
                tier.name,
                "mirrored",
                f"it does not have {path!r}: that says nothing of the archive",
            )
        return msgspec.structs.replace(found, behind=self._behind(tier, found.position))

    def _behind(self, tier: Tier[Any], position: str) -> int | None:
        archive, generation = generation_of(position)
        try:
            info = self._l3.call("info", self._l3.store.info)
        except StorageError:
            return None
        if info.uuid != archive:
            raise StoreUnavailable(tier.name, "mirrored", f"it is of another archive, {archive}")
        return max(0, info.generation - generation)


def _gathered(tree: MirroredTree) -> tuple[str, Answers]:
    """Return the first levels of the tree of one moment, and its position."""
    with tree.view() as view:
        return view.position, dict(_levels(view))


def _levels(view: PathMerkle) -> Iterator[tuple[str, tuple[MerkleNode, MerklePage]]]:
    left = _NODES_MAX - 1
    level = [view.root()]
    for _ in range(_LEVELS):
        below: list[MerkleNode] = []
        for node in level:
            if left <= 0:
                return
            page = view.children(node.path, None, min(_CHILDREN, left))
            left -= len(page.nodes)
            below += [child for child in page.nodes if child.below.count]
            yield node.path, (node, page)
        level = below
