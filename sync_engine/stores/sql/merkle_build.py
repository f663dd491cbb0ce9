"""The Merkle tree made from nothing: from the rows, a bit at a time, beside those who write."""

from __future__ import annotations

from sync_engine.core.merkle import EMPTY
from sync_engine.stores.sql.dialect import Connection, Dialect
from sync_engine.stores.sql.errors import translated
from sync_engine.stores.sql.merkle_blocks import cut, delete_blocks, insert_blocks
from sync_engine.stores.sql.merkle_fold import Fold
from sync_engine.stores.sql.merkle_view import BUILDING, BUILT, UNBUILT, built_of, keys_of

__all__ = ["Build", "is_known"]


class Build:
    """Builds the tree of one archive.

    Thread-safety: every method.
    """

    def __init__(self, dialect: Dialect, fold: Fold) -> None:
        self._dialect = dialect
        self._fold = fold

    def begin(self) -> None:
        """Throw the tree away; `step` makes it anew.

        Raises:
            StoreUnavailable: Another engine is folding, or the archive cannot be asked.
        """
        with translated("build tree"), self._fold.alone() as connection:
            self._begin(connection)

    def _begin(self, connection: Connection) -> None:
        self._dialect.execute(connection, "DELETE FROM {b}")
        insert_blocks(self._dialect, connection, [(b"", EMPTY)])
        self._fold.set_built(connection, BUILDING, b"")

    def step(self, items_max: int = 20_000) -> int:
        """Build a bit of an unbuilt tree from the rows; return how many rows, 0 at the end.

        Safe to interrupt and to share: whoever comes next goes on where the last one stopped.
        Writers are not held up, except those to an SQLite file, for the length of one step.

        Raises:
            StoreUnavailable: Another engine is folding, or the archive cannot be asked.
        """
        with translated("build tree"), self._fold.alone() as connection:
            built, frontier = built_of(self._dialect, connection)
            if built == BUILT and is_known(self._dialect, connection):
                return 0
            while built == BUILT:  # until the fold has met what is not known
                self._fold.fold_some(connection)
                built, frontier = built_of(self._dialect, connection)
            if built == UNBUILT:
                self._begin(connection)
                frontier = b""
            complete = False
            while not complete:  # what this moment shows must be in the blocks, or in the rows
                _, complete = self._fold.fold_some(connection)
            built, frontier = built_of(self._dialect, connection)
            if built == UNBUILT:
                return 1  # somebody writes and keeps no tree: begin again
            rows = keys_of(self._dialect, connection, frontier, None, items_max, inclusive=False)
            blocks = cut(rows)
            if blocks and not frontier:
                delete_blocks(self._dialect, connection, [b""])
                blocks[0] = (b"", blocks[0][1])
            insert_blocks(self._dialect, connection, blocks)
            if len(rows) < items_max:
                self._fold.set_built(connection, BUILT, b"")
                return 0
            self._fold.set_built(connection, BUILDING, bytes(rows[-1][0]))
            return len(rows)


def is_known(dialect: Dialect, connection: Connection) -> bool:
    """Tell whether no waiting delta says that something is not known."""
    text = "SELECT COUNT(*) FROM {d} WHERE legs = 0"
    ((poisoned,),) = dialect.query(connection, text)
    return not poisoned
