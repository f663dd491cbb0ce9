"""A look at the log's file while another process owns it: nothing is written, nothing is locked."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sync_engine.errors import ConfigError, CorruptData
from sync_engine.ports import LogSlice, Runtime
from sync_engine.wal.frame_reader import FrameReader

__all__ = ["LogView"]


class LogView:
    """Reads frames, cursors and dead letters of a log's file.

    What the owner holds in memory is not seen yet: cursors arrive within a fraction of a second.

    Owned by one caller at a time.

    Args:
        path: The file.
        runtime: Locks.

    Raises:
        ConfigError: There is no such file, or it cannot be read.
        CorruptData: It is no log.
    """

    def __init__(self, path: Path, runtime: Runtime) -> None:
        self.path = path
        if not path.is_file():
            raise ConfigError(f"data_dir: there is no log {path}")
        try:
            self._db = sqlite3.connect(
                f"file:{quote(str(path.absolute()))}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=5,
            )
            row = self._db.execute("SELECT value FROM meta WHERE name = 'uuid'").fetchone()
            self.uuid = str(row[0])
        except sqlite3.OperationalError as exc:
            raise ConfigError(f"data_dir: {path} cannot be read: {exc}") from exc
        except (sqlite3.DatabaseError, TypeError) as exc:
            raise CorruptData(str(path), f"not a usable log file ({exc})") from exc
        reader: Any = self
        self._frames = FrameReader(reader, runtime.lock())

    def frames(self, after: int, limit: int) -> list[tuple[int, int, bytes]]:
        """Return up to `limit` frames, from the one that holds `after` + 1."""
        return self._db.execute(
            "SELECT first, count, body FROM frame WHERE first >= coalesce("
            "(SELECT first FROM frame WHERE first <= ?1 ORDER BY first DESC LIMIT 1), ?1)"
            " ORDER BY first LIMIT ?2",
            (after + 1, limit),
        ).fetchall()

    @property
    def released(self) -> int:
        """What every follower has passed: positions up to here may be gone."""
        (first,) = self._db.execute("SELECT min(first) FROM frame").fetchone()
        (lowest,) = self._db.execute("SELECT min(position) FROM cursor").fetchone()
        return int(first) - 1 if first is not None else int(lowest or 0)

    def head(self) -> int:
        """Return the last position that the file knows of."""
        (last,) = self._db.execute("SELECT max(first + count - 1) FROM frame").fetchone()
        (far,) = self._db.execute("SELECT max(position) FROM cursor").fetchone()
        return max(int(last or 0), int(far or 0))

    def cursor(self, name: str) -> int:
        """Return a follower's position as it was saved last."""
        row = self._db.execute("SELECT position FROM cursor WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def read(self, after: int, items_max: int, bytes_max: int) -> LogSlice:
        """Return changes after a position.

        Raises:
            CorruptData: A record fails its check, or positions are missing.
        """
        return self._frames.slice(after, items_max, bytes_max)

    def dead_error(self, follower: str, position: int) -> str | None:
        """Return the error that a position was put aside with."""
        row = self._db.execute(
            "SELECT error FROM dead WHERE follower = ? AND position = ?", (follower, position)
        ).fetchone()
        return None if row is None else str(row[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()
