"""Rows read back: by id, by range, by count; each is checked where its content is read."""

# ruff: noqa: S608 - texts hold checked table names and literals only; values are bound
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sync_engine.core.item import Change
from sync_engine.errors import CorruptData
from sync_engine.ports import Clock
from sync_engine.stores.sql.dialect import IDS_PER_QUERY, Dialect
from sync_engine.stores.sql.rows import (
    COLUMNS,
    KEY_COLUMNS,
    change_of,
    key_change_of,
    prefix_end,
)

__all__ = ["Reading"]

_ALL = ", ".join(COLUMNS)
_KEYS = ", ".join(KEY_COLUMNS)


class Reading:
    """Reads of one archive; `SqlArchive` says what each returns and raises.

    Thread-safety: every method.

    Args:
        dialect: The archive.
        clock: Tells which rows have expired.
        corrupt: Is told how many rows failed their checksum.
    """

    def __init__(self, dialect: Dialect, clock: Clock, corrupt: Callable[[int], None]) -> None:
        self._dialect = dialect
        self._clock = clock
        self._corrupt = corrupt

    def get_many(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return the rows of these ids."""
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return {}
        rows: list[Any] = []
        with self._dialect.reading() as connection:
            for start in range(0, len(wanted), IDS_PER_QUERY):
                part = wanted[start : start + IDS_PER_QUERY]
                rows += self._dialect.select(connection, _ALL, part)
        found = {change.id: change for row in rows if (change := change_of(row)) is not None}
        if len(found) < len(rows):
            self._corrupt(len(rows) - len(found))
            if len(wanted) == 1:
                raise CorruptData(
                    f"{self._dialect.settings.table}, id {wanted[0]!r}",
                    "the row fails its checksum: write the item again, or restore the row",
                )
        return found

    def scan(
        self,
        *,
        after: str | None,
        prefix: str,
        state: str | None,
        limit: int,
        keys_only: bool,
        tombstones: bool,
    ) -> list[Change]:
        """Return a page in bytewise id order."""
        columns, decode = (_KEYS, key_change_of) if keys_only else (_ALL, change_of)
        start = None if after is None else after.encode()
        found: list[Change] = []
        with self._dialect.reading() as connection:
            while (room := limit - len(found)) > 0:
                where, args = _conditions(start, prefix.encode(), state)
                if not tombstones:
                    where.append("tombstone = 0")
                text = f"SELECT {columns} FROM {{t}}{_where(where)} ORDER BY id LIMIT ?"
                rows = self._dialect.query(connection, text, [*args, room])
                page = [change for row in rows if (change := decode(row)) is not None]
                found += page
                if len(page) < len(rows):
                    self._corrupt(len(rows) - len(page))
                if len(rows) < room or len(page) == len(rows):
                    break
                start = bytes(rows[-1][0])
        return found

    def count(self, *, prefix: str, state: str | None) -> int:
        """Count live rows, expired ones left out."""
        where, args = _conditions(None, prefix.encode(), state)
        where += ["tombstone = 0", "(expires_at_ms = 0 OR expires_at_ms > ?)"]
        text = f"SELECT COUNT(*) FROM {{t}}{_where(where)}"
        with self._dialect.reading() as connection:
            ((total,),) = self._dialect.query(connection, text, [*args, self._clock.now_ms()])
        return int(total)


def _conditions(
    after: bytes | None, prefix: bytes, state: str | None
) -> tuple[list[str], list[Any]]:
    """Return conditions on a range of ids: never LIKE, so that no character is special."""
    where: list[str] = []
    args: list[Any] = []
    if state is not None:
        where.append("state = ?k")
        args.append(state.encode())
    if prefix and (after is None or after < prefix):
        where.append("id >= ?k")
        args.append(prefix)
    elif after is not None:
        where.append("id > ?k")
        args.append(after)
    end = prefix_end(prefix) if prefix else None
    if end is not None:
        where.append("id < ?k")
        args.append(end)
    return where, args


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""
