"""Statements that take one row or many."""

from __future__ import annotations

import re

__all__ = ["Bulk"]

_VALUES = re.compile(r"VALUES (\((?:[^()]|\([^()]*\))*\))")
_PARAMETERS_MAX = 999  # of old builds of SQLite
_ROWS_MAX = 200


class Bulk:
    """An INSERT … VALUES, or a statement with WHERE, written for one row.

    Args:
        text: The statement.
        width: Parameters of a row.
    """

    def __init__(self, text: str, width: int) -> None:
        found = _VALUES.search(text)
        self.inserts = found is not None
        if found is not None:
            self._head, self._tail = text[: found.start(1)], text[found.end(1) :]
            self._row, self._glue = found[1], ", "
        else:
            head, _, where = text.partition(" WHERE ")
            self._head, self._tail = f"{head} WHERE ", ""
            self._row, self._glue = f"({where})", " OR "
        most = max(1, min(_ROWS_MAX, _PARAMETERS_MAX // width))
        # Few texts, so that each stays in the driver's cache.
        self.shapes = tuple(sorted({most, min(10, most), 1}, reverse=True))
        self._texts: dict[int, str] = {}

    def text(self, rows: int) -> str:
        """Return the statement for some rows."""
        if rows not in self._texts:
            self._texts[rows] = self._head + self._glue.join([self._row] * rows) + self._tail
        return self._texts[rows]
