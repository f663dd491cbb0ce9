"""What a batch does to the Merkle tree: one delta, in the transaction of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sync_engine.core.item import Change, Route
from sync_engine.core.merkle import MerkleBatch
from sync_engine.stores.sql.dialect import IDS_PER_QUERY, Connection, Dialect
from sync_engine.stores.sql.merkle_view import KEYS, POISON
from sync_engine.stores.sql.rows import Row, rows_of

__all__ = ["BatchWriter"]

_LEGS_MAX = 2048  # of one delta: a row of at most a megabyte
_L3 = int(Route.L3)
_APPEND = "INSERT INTO {d} (legs, body) VALUES (?, ?)"


class BatchWriter:
    """Writes rows, and with them what they do to the tree.

    Thread-safety: every method, each in a transaction of its caller.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._guess = _Guess()

    def write(
        self,
        connection: Connection,
        info: dict[Any, Any],
        changes: Sequence[Change],
        known: dict[bytes, tuple[Any, ...]] | None = None,
    ) -> int | None:
        """Write a batch and its delta; return the number of rows.

        Rows that are there are locked first, so that what goes is known for sure; a row that
        appears meanwhile makes this None: roll back, and try again.

        Args:
            connection: In a transaction.
            info: What `Dialect.prepare` noted of it.
            changes: In id order, each id once.
            known: Id, version, tombstone and checksum of the rows that are there, locked; None
                looks for itself.
        """
        if known is None:
            if self._guess.all_new and all(change.routes & _L3 for change in changes):
                return self._write_new(connection, info, changes)
            known = self._locked([change.id for change in changes], connection)
            self._guess.saw(known=bool(known))
        if known:
            changes, superseded = _newer(changes, known)
        else:
            superseded = set()
        rows = rows_of(changes, lambda _: superseded, text=self._dialect.text_labels)
        batch, fresh, renewed = _delta(rows, known)
        if fresh and not self._dialect.insert(connection, info, fresh):
            return None
        if renewed:
            self._dialect.upsert(connection, info, renewed)
        self._append(connection, batch)
        return len(rows)

    def _write_new(
        self, connection: Connection, info: dict[Any, Any], changes: Sequence[Change]
    ) -> int | None:
        """Write a batch that seems to have new ids alone; None where it turns out not to."""
        rows = rows_of(changes, lambda _: set(), text=self._dialect.text_labels)
        batch, fresh, _ = _delta(rows, {})
        if not self._dialect.insert(connection, info, fresh):
            self._guess.failed()
            return None
        self._append(connection, batch)
        return len(rows)

    def _locked(self, ids: Sequence[str], connection: Connection) -> dict[bytes, tuple[Any, ...]]:
        known: dict[bytes, tuple[Any, ...]] = {}
        for start in range(0, len(ids), IDS_PER_QUERY):
            part = ids[start : start + IDS_PER_QUERY]
            for row in self._dialect.select(connection, KEYS, part, lock=True):
                known[bytes(row[0])] = row
        return known

    def forget(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Note rows that a transaction has deleted: id, version, tombstone, checksum of each."""
        batch = MerkleBatch()
        for id, version, tombstone, checksum in rows:
            batch.remove(bytes(id), version, tombstone, checksum)
        self._append(connection, batch)

    def poison(self, connection: Connection) -> None:
        """Note that a transaction has written something that the tree will not know of."""
        self._dialect.execute(connection, _APPEND, (0, POISON))

    def _append(self, connection: Connection, batch: MerkleBatch) -> None:
        for part in batch.split(_LEGS_MAX):
            self._dialect.execute(connection, _APPEND, (len(part), part.pack()))


class _Guess:
    """Whether the next batch has new ids alone; wrong ever less often where it is mixed.

    Threads may disturb each other's count: a guess costs time and nothing else.
    """

    def __init__(self) -> None:
        self._streak = 0
        self._needed = 2

    @property
    def all_new(self) -> bool:
        return self._streak >= self._needed

    def saw(self, *, known: bool) -> None:
        self._streak = 0 if known else self._streak + 1

    def failed(self) -> None:
        self._streak = 0
        self._needed = min(256, 2 * self._needed)


def _newer(
    changes: Sequence[Change], known: dict[bytes, tuple[Any, ...]]
) -> tuple[list[Change], set[str]]:
    """Return the changes that win over the rows there are, and which of them have one."""
    winning: list[Change] = []
    superseded: set[str] = set()
    for change in changes:
        row = known.get(change.id.encode())
        if row is None:
            winning.append(change)
        elif row[1] < change.version:
            winning.append(change)
            superseded.add(change.id)
    return winning, superseded


def _delta(
    rows: Sequence[Row], known: dict[bytes, tuple[Any, ...]]
) -> tuple[MerkleBatch, list[Row], list[Row]]:
    """Return what rows do to the tree, and the rows parted: new ids, and others."""
    batch = MerkleBatch()
    fresh: list[Row] = []
    renewed: list[Row] = []
    for row in rows:
        id = row[0].encode() if type(row[0]) is str else row[0]
        old = known.get(id)
        if old is None:
            fresh.append(row)
        else:
            batch.remove(id, old[1], old[2], old[3])
            renewed.append(row)
        batch.add(id, row[1], row[2], row[7])
    return batch, fresh, renewed
