"""The archive's Merkle tree as the engine offers it: asked, compared, verified, mended, kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sync_engine.core.filters import FilterManager
from sync_engine.core.item import Change
from sync_engine.core.merkle import (
    MerkleDiff,
    MerkleNode,
    MerklePage,
    MerkleState,
    MerkleTree,
    diff,
)
from sync_engine.errors import ConfigError, StorageError
from sync_engine.flow.reader import Reader
from sync_engine.flow.repair import MerklePeer, Repairer, RepairReport
from sync_engine.flow.tier import Tier
from sync_engine.flow.verify import Verifier, VerifyReport
from sync_engine.flow.writer import Writer
from sync_engine.ports import ArchiveStore, CacheStore, MerkleStore, Runtime, WritableLog
from sync_engine.telemetry import get_logger

__all__ = ["Trees"]

_log = get_logger("flow.trees")
_LOOK_S = 5.0


class Trees:
    """Everything about the tree.

    Thread-safety: every method; `step` is owned by one job. Blocking: each asks the archive.

    Args:
        l3: The archive; its store may have a ``merkle``.
        l2: The cache, if any.
        filters: Verified, and distrusted where it denied something.
        reader: Finds copies, and what is archived.
        writer: The front door.
        log: Where changes go.
        runtime: Clock and randomness.
        observe_version: Told of every version that is taken.
        enabled: Whether the tree is kept.
    """

    def __init__(
        self,
        l3: Tier[ArchiveStore],
        l2: Tier[CacheStore] | None,
        filters: FilterManager,
        reader: Reader,
        writer: Writer,
        log: WritableLog,
        runtime: Runtime,
        *,
        observe_version: Callable[[int], None],
        enabled: bool,
    ) -> None:
        self._l3 = l3
        self._l2 = l2
        self._filters = filters
        self._reader = reader
        self._writer = writer
        self._log = log
        self._runtime = runtime
        self._observe_version = observe_version
        self._store: MerkleStore | None = getattr(l3.store, "merkle", None) if enabled else None

    @property
    def kept(self) -> bool:
        """Whether there is a tree."""
        return self._store is not None

    def _merkle(self) -> MerkleStore:
        if self._store is None:
            raise ConfigError("merkle: the tree is off; set merkle = true on every engine")
        return self._store

    def _ask(self, fn: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return self._l3.call_with_retry("merkle", fn, *args, **more)

    # -- asking -----------------------------------------------------------------------------------

    def state(self) -> MerkleState:
        """Return how the tree does; raises as `root`."""
        state: MerkleState = self._ask(self._merkle().state)
        return state

    def root(self) -> MerkleNode:
        """Return the root.

        Raises:
            ConfigError: The tree is off.
            StoreUnavailable: The archive cannot be asked, or the tree is not built yet.
        """
        node: MerkleNode = self._ask(self._merkle().merkle_root)
        return node

    def node(self, path: str) -> MerkleNode:
        """Return a node; raises as `root`."""
        node: MerkleNode = self._ask(self._merkle().merkle_node, path)
        return node

    def children(
        self, path: str, after: str | None, limit: int, *, grouped: bool = False
    ) -> MerklePage:
        """Return a page of children; raises as `root`."""
        page: MerklePage = self._ask(
            self._merkle().merkle_children, path, after, limit, grouped=grouped
        )
        return page

    def changes(self, ids: Sequence[str]) -> Mapping[str, Change]:
        """Return the archive's rows of ids, tombstones included."""
        return self._reader.archived(ids)

    def diff(self, other: MerkleTree, **options: Any) -> MerkleDiff:
        """Compare with another tree; options as `core.merkle.diff`. Raises as `root`."""
        return diff(_Asked(self), other, separator=self._merkle().separator, **options)

    # -- verifying and mending --------------------------------------------------------------------

    def verify(self, **options: Any) -> VerifyReport:
        """Verify; options as `Verifier.run`. Raises as `root`."""
        verifier = Verifier(
            self._l3, self._l2, self._merkle(), self._filters, self._log.pending, self._runtime
        )
        return verifier.run(**options)

    def repair(
        self,
        other: MerklePeer | None,
        *,
        dry_run: bool,
        path: str = "",
        tombstones: bool = True,
        **options: Any,
    ) -> RepairReport:
        """Verify and mend; or, with another side, compare and take what is newer there.

        Raises as `root`.
        """
        repairer = self._repairer()
        if other is not None:
            found = self.diff(other, path=path, tombstones=tombstones)
            return repairer.take(found, other, dry_run=dry_run)
        if not self.state().built and not dry_run:
            repairer.build()
        return repairer.mend(self.verify(**options), dry_run=dry_run)

    def build(self, progress: Callable[[int], object] = lambda _: None) -> int:
        """Throw the tree away and build it anew; return the number of rows. Raises as `root`."""
        self._ask(self._merkle().begin_build)
        return self._repairer().build(progress)

    def _repairer(self) -> Repairer:
        return Repairer(
            self._l3,
            self._l2,
            self._merkle(),
            self._filters,
            self._reader,
            self._writer,
            self._log,
            self._runtime,
            observe_version=self._observe_version,
        )

    # -- upkeep -----------------------------------------------------------------------------------

    def step(self) -> float:
        """Build a bit of an unbuilt tree, or fold what waits; return the seconds to wait."""
        if self._store is None or not self._l3.attached:
            return 1.0
        try:
            state: MerkleState = self._l3.call("merkle", self._store.state)
            if not state.built:
                return 0.0 if self._l3.call("merkle", self._store.build_step) else _LOOK_S
            if state.deltas:
                self._l3.call("merkle", self._store.fold)
        except StorageError as exc:
            _log.limited("merkle_upkeep_failed", error=exc)
        return _LOOK_S


class _Asked:
    """This engine's tree, by the names that a comparison uses."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees

    def merkle_root(self) -> MerkleNode:
        return self._trees.root()

    def merkle_node(self, path: str) -> MerkleNode:
        return self._trees.node(path)

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        return self._trees.children(path, after, limit, grouped=grouped)
