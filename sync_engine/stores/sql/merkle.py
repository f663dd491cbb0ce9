"""The Merkle tree of the archive: kept with every batch, folded now and then, read at one moment.

Three tables stand beside the items. A batch adds, in its own transaction, one *delta*: which
entries went and which came. *Blocks* are digests of runs of some hundred neighbouring ids. A *fold*
adds deltas to blocks, many at a time, and removes them. So a batch never waits for another one's
batch on account of the tree, none can be lost or counted twice, and what the tree says of any range
is exact at any moment: blocks, plus the deltas not folded yet, plus the rows at both edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sync_engine.core.item import Change
from sync_engine.core.merkle import (
    MerkleNode,
    MerklePage,
    MerkleState,
    PathMerkle,
    TreeCheck,
    check_separator,
    position_of,
)
from sync_engine.errors import ConfigError, StorageError, StoreBusy
from sync_engine.stores.sql.dialect import Connection, Dialect
from sync_engine.stores.sql.errors import translated
from sync_engine.stores.sql.lease import GENERATION
from sync_engine.stores.sql.merkle_batch import BatchWriter
from sync_engine.stores.sql.merkle_blocks import BLOCK_ENTRIES, BLOCK_ENTRIES_MAX
from sync_engine.stores.sql.merkle_build import Build, is_known
from sync_engine.stores.sql.merkle_fold import Fold
from sync_engine.stores.sql.merkle_view import BUILT, SqlSource, check
from sync_engine.telemetry import get_logger

__all__ = ["BLOCK_ENTRIES", "BLOCK_ENTRIES_MAX", "SqlMerkle"]

_log = get_logger("stores.sql")
_WAITING_MAX = 4  # deltas that a reader adds up itself
_FOLD_EVERY = 64  # batches of this engine


class SqlMerkle:
    """The tree of one archive; implements `core.merkle.MerkleTree`.

    Thread-safety: every method. Blocking: every method but `separator`, as the archive's own.

    Args:
        dialect: The archive.
        separator: What parts segments; one for all engines of an archive, and for ever.
        enabled: Whether this engine's batches keep the tree. Where they do not, they mark it as
            unknown, and it has to be built anew.

    Raises:
        ConfigError: The separator cannot be used.
    """

    def __init__(self, dialect: Dialect, *, separator: str, enabled: bool) -> None:
        self.separator = check_separator(separator)
        self.enabled = enabled
        self._dialect = dialect
        self._batches = BatchWriter(dialect)
        self._fold = Fold(dialect)
        self._build = Build(dialect, self._fold)
        self._unfolded = 0

    def agree(self) -> None:
        """Compare the separator with that of the archive; the first engine names it.

        Raises:
            ConfigError: They differ.
        """
        read = "SELECT parted_by FROM {s} WHERE id = 1"
        with self._dialect.reading() as connection:
            ((found,),) = self._dialect.query(connection, read)
        if not bytes(found):
            with self._dialect.writing() as (connection, _):
                name = "UPDATE {s} SET parted_by = ?k WHERE id = 1 AND parted_by = ?k"
                self._dialect.execute(connection, name, (self.separator.encode(), b""))
                ((found,),) = self._dialect.query(connection, read)
        there = bytes(found).decode(errors="replace")
        if there != self.separator:
            raise ConfigError(
                f"merkle_separator: the archive's paths are parted by {there!r}, not by"
                f" {self.separator!r}: it is chosen once, by the first engine; set"
                f" merkle_separator to {there!r}"
            )

    # -- with every batch -------------------------------------------------------------------------

    def write(
        self,
        connection: Connection,
        info: dict[Any, Any],
        changes: Sequence[Change],
        known: dict[bytes, tuple[Any, ...]] | None = None,
    ) -> int | None:
        """Write a batch and its delta in a transaction; see `BatchWriter.write`."""
        return self._batches.write(connection, info, changes, known)

    def forget(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Note rows that a transaction has deleted: id, version, tombstone, checksum of each."""
        if self.enabled:
            self._batches.forget(connection, rows)
        else:
            self._batches.poison(connection)

    def poison(self, connection: Connection) -> None:
        """Note that a transaction has written something that the tree will not know of."""
        self._batches.poison(connection)

    def written(self) -> None:
        """Fold after every so many batches of this engine; what fails is left for later."""
        self._unfolded += 1
        if self._unfolded >= _FOLD_EVERY:
            self._unfolded = 0
            try:
                self.fold()
            except StoreBusy:  # somebody does it
                return
            except StorageError as exc:
                _log.limited("merkle_fold_failed", error=exc)

    # -- now and then -----------------------------------------------------------------------------

    def fold(self) -> int:
        """Add waiting deltas to the blocks, in bounded transactions; return how many.

        Raises:
            StoreUnavailable: Another engine is folding, or the archive cannot be asked.
        """
        return self._fold.fold()

    def begin_build(self) -> None:
        """Throw the tree away; `build_step` makes it anew. Raises as `fold`."""
        self._build.begin()

    def build_step(self, items_max: int = 20_000) -> int:
        """Build a bit of an unbuilt tree from the rows; return how many rows, 0 at the end.

        Raises as `fold`.
        """
        return self._build.step(items_max)

    # -- reading ----------------------------------------------------------------------------------

    def state(self) -> MerkleState:
        """Return how the tree does; never folds.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        with translated("read tree"), self._dialect.viewing() as connection:
            query = self._dialect.query
            ((deltas,),) = query(connection, "SELECT COUNT(*) FROM {d}")
            ((parted_by, built, folds, frontier),) = query(
                connection, "SELECT parted_by, built, folds, frontier FROM {s} WHERE id = 1"
            )
            return MerkleState(
                built=int(built) == BUILT and is_known(self._dialect, connection),
                frontier=bytes(frontier).decode(errors="replace"),
                separator=bytes(parted_by).decode(errors="replace"),
                deltas=int(deltas),
                folds=int(folds),
                position=self._position(connection),
            )

    def _position(self, connection: Connection) -> str:
        ((archive, generation, _),) = self._dialect.query(connection, GENERATION)
        return position_of(bytes(archive).decode(), int(generation))

    def position(self) -> str:
        """Return the archive position now; opaque, and another one after every batch.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        with translated("read tree"), self._dialect.reading() as connection:
            return self._position(connection)

    def _waiting(self) -> int:
        with translated("read tree"), self._dialect.reading() as connection:
            ((waiting,),) = self._dialect.query(connection, "SELECT COUNT(*) FROM {d}")
            return int(waiting)

    @contextmanager
    def view(self) -> Iterator[PathMerkle]:
        """Give the tree of one moment. Hold it briefly: the database keeps that moment meanwhile.

        Raises:
            StoreUnavailable: The tree is not built yet, or the archive cannot be asked.
        """
        with suppress(StorageError):  # what waits to be folded is counted as it stands
            if self._waiting() > _WAITING_MAX:
                self.fold()
        with translated("read tree"), self._dialect.viewing() as connection:
            source = SqlSource(self._dialect, connection)
            yield PathMerkle(source, self.separator, self._position(connection))

    def check(self, after: str | None = None, blocks: int = 1) -> TreeCheck:
        """Compare the rows of some blocks with what the tree says of them.

        Args:
            after: `TreeCheck.next` of the check before; None begins at the first id.
            blocks: Blocks of some 500 rows to check, at least 1.

        Raises:
            StoreUnavailable: The tree is not built yet, or the archive cannot be asked.
        """
        with translated("check tree"), self._dialect.viewing() as connection:
            return check(self._dialect, connection, after, blocks)

    def merkle_root(self) -> MerkleNode:
        """Return the root.

        Raises:
            StoreUnavailable: The tree is not built yet, or the archive cannot be asked.
        """
        with self.view() as tree:
            return tree.root()

    def merkle_node(self, path: str) -> MerkleNode:
        """Return the node of a path; raises as `merkle_root`."""
        with self.view() as tree:
            return tree.node(path)

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """Return a page of children, as `PathMerkle.children`; raises as `merkle_root`."""
        with self.view() as tree:
            return tree.children(path, after, limit, grouped=grouped)
