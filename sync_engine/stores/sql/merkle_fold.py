"""The fold: deltas are added to blocks, many at a time, and removed."""

# ruff: noqa: S608 - texts hold checked table names and literals only; values are bound
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sync_engine.core.merkle import MerkleBatch, SetDigest, sums_by_block
from sync_engine.errors import CorruptData, StoreBusy
from sync_engine.stores.sql.dialect import IDS_PER_QUERY, Connection, Dialect
from sync_engine.stores.sql.errors import STORE, Verdict, translated, verdict_of
from sync_engine.stores.sql.merkle_blocks import delete_blocks, insert_blocks, lows, split
from sync_engine.stores.sql.merkle_view import BLOCK, BUILDING, BUILT, POISON, UNBUILT, built_of
from sync_engine.telemetry import get_logger

__all__ = ["Fold"]

_log = get_logger("stores.sql")
_DELTAS_MAX = 128  # folded in one transaction


class Fold:
    """Folds the deltas of one archive's tree; one engine at a time.

    Thread-safety: every method.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """Begin a transaction that has the tree to itself, and sees the archive of one moment."""
        with self._dialect.writing(fold=True) as (connection, _):
            try:
                self._lock(connection)
            except Exception as exc:
                if verdict_of(exc) is not Verdict.PASSING:
                    raise
                raise StoreBusy(STORE, "fold", "another engine is folding", 0.1) from exc
            yield connection

    def _lock(self, connection: Connection) -> None:
        lock = self._dialect.lock_tree
        if lock.startswith("SELECT"):
            self._dialect.query(connection, lock)
        elif lock:
            self._dialect.execute(connection, lock)

    def fold(self) -> int:
        """Add waiting deltas to the blocks, in bounded transactions; return how many.

        Raises:
            StoreUnavailable: Another engine is folding, or the archive cannot be asked.
        """
        done = 0
        while True:
            with translated("fold"), self.alone() as connection:
                count, complete = self.fold_some(connection)
            done += count
            if complete:
                return done

    def fold_some(self, connection: Connection) -> tuple[int, bool]:
        """Fold some deltas, within `alone`.

        Returns:
            How many, and whether none is left that this moment shows.
        """
        query = self._dialect.query
        listed = query(
            connection, "SELECT seq, legs FROM {d} ORDER BY seq LIMIT ?", (_DELTAS_MAX + 1,)
        )
        complete = len(listed) <= _DELTAS_MAX
        taken = [int(row[0]) for row in listed[:_DELTAS_MAX]]
        if not taken:
            return 0, True
        built, frontier = built_of(self._dialect, connection)
        if built != UNBUILT:
            marks = ", ".join("?" * len(taken))
            bodies = query(connection, f"SELECT body FROM {{d}} WHERE seq IN ({marks})", taken)
            whole = self._add(connection, [bytes(body) for (body,) in bodies], built, frontier)
            if whole and built == BUILT and complete:
                whole = split(self._dialect, connection)
            if not whole:
                self.set_built(connection, UNBUILT, b"")
        for start in range(0, len(taken), IDS_PER_QUERY):
            part = taken[start : start + IDS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            self._dialect.execute(connection, f"DELETE FROM {{d}} WHERE seq IN ({marks})", part)
        self._dialect.execute(connection, "UPDATE {s} SET folds = folds + 1 WHERE id = 1")
        return len(taken), complete

    def set_built(self, connection: Connection, built: int, frontier: bytes) -> None:
        """Note how far the tree is built, within `alone`."""
        text = "UPDATE {s} SET built = ?, frontier = ?k WHERE id = 1"
        self._dialect.execute(connection, text, (built, frontier))

    def _add(
        self, connection: Connection, bodies: Sequence[bytes], built: int, frontier: bytes
    ) -> bool:
        """Add deltas to blocks; False where one of them says that something is not known."""
        if POISON in bodies:
            return False
        try:
            batches = [MerkleBatch.unpack(body) for body in bodies]
        except CorruptData as exc:
            _log.error("merkle_delta_corrupt", error=exc)
            return False
        if built == BUILDING:  # what lies beyond is read from the rows later
            batches = [batch.below(frontier + b"\0") for batch in batches]
        ids = [id for batch in batches for id in batch.ids]
        if not ids:
            return True
        starts = lows(self._dialect, connection, min(ids), max(ids))
        sums = sums_by_block(starts, batches)
        touched = sorted(sums)
        for start in range(0, len(touched), IDS_PER_QUERY):
            part = touched[start : start + IDS_PER_QUERY]
            keys = [starts[index] for index in part]
            marks = ", ".join(["?k"] * len(keys))
            found = {
                bytes(low): numbers
                for low, *numbers in self._dialect.query(
                    connection, f"SELECT {BLOCK} FROM {{b}} WHERE low IN ({marks})", keys
                )
            }
            blocks = [
                (
                    starts[index],
                    SetDigest.of_limbs(
                        tuple(
                            int(old) + change
                            for old, change in zip(found[starts[index]], sums[index], strict=True)
                        )
                    ),
                )
                for index in part
            ]
            delete_blocks(self._dialect, connection, keys)
            insert_blocks(
                self._dialect,
                connection,
                [(low, block) for low, block in blocks if block.count or not low],
            )
        return True
