"""Writing a row only over the very row that its writer has seen."""

from __future__ import annotations

from typing import Any

from sync_engine.core.item import Change, Route
from sync_engine.errors import StorageError
from sync_engine.stores.sql.dialect import Connection, Dialect
from sync_engine.stores.sql.errors import STORE
from sync_engine.stores.sql.merkle import SqlMerkle
from sync_engine.stores.sql.rows import COLUMNS, KEY_COLUMNS, change_of, key_change_of, rows_of

__all__ = ["Raced", "write_if"]

_ALL = ", ".join(COLUMNS)
_KEYS = len(KEY_COLUMNS)


class Raced(StorageError):
    """A row appeared while the transaction ran: roll back, and look again."""

    def __init__(self) -> None:
        super().__init__(STORE, "write", "an id that seemed new has a row")


def write_if(
    dialect: Dialect,
    merkle: SqlMerkle,
    connection: Connection,
    info: dict[Any, Any],
    change: Change,
    expected: int,
) -> Change | None:
    """Write a change if the row of its id has the expected version; see `ArchiveStore.put_if`.

    A row that is there is locked before it is compared, and one that is not is inserted and not
    upserted: between the look and the commit, nobody else's write is passed over.

    Returns:
        None where it was written, or had been before; else what is there.

    Raises:
        Raced: Try again in a new transaction.
    """
    rows = dialect.select(connection, _ALL, [change.id], lock=True)
    found = None
    if rows:
        (row,) = rows[:1]
        # A row that fails its checksum has a version all the same: it can be written over.
        found = change_of(row) or key_change_of(row[:_KEYS])
    actual = 0 if found is None else found.version
    if actual == change.version:
        return None
    if actual != expected or (found is not None and actual > change.version):
        return found or Change(change.id, actual, None)
    if not rows and not change.routes & Route.L3:
        return None  # nothing to make a tombstone of
    if merkle.enabled:
        known = {bytes(row[0]): (row[0], row[1], row[2], row[7]) for row in rows}
        if merkle.write(connection, info, [change], known=known) is None:
            raise Raced
        return None
    written = rows_of([change], lambda _: {change.id}, text=dialect.text_labels)
    if rows:
        dialect.upsert(connection, info, written)
    elif not dialect.insert(connection, info, written):
        raise Raced
    merkle.poison(connection)
    return None
