"""The archive in an SQLite file.

One connection writes and checkpoints (two that do both at once may damage a file under SQLite
before 3.51.3); a small pool of others reads. `synchronous` is FULL: at NORMAL a commit survives the
death of the process and not the loss of power, and `Durability.ARCHIVE` promises both.
"""

# ruff: noqa: S608 - texts hold checked table names and literals only; values are bound
from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Engine

from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.stores.sql.dialect import Connection, Dialect, Settings
from sync_engine.stores.sql.errors import STORE
from sync_engine.stores.sql.rows import COLUMNS, Row

__all__ = ["SqliteDialect"]

_ROW = f"({', '.join('?' * len(COLUMNS))})"
_ROWS_AT_ONCE = (90, 10, 1)  # at most 999 values a statement
_UPSERT = (
    f"INSERT INTO {{t}} ({', '.join(COLUMNS)})"
    f" VALUES {_ROW}"
    " ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in COLUMNS[1:])
    + " WHERE excluded.version > version"
)
_SHAPES = (1, 8, 64, 500)  # few texts, so that each stays in the statement cache
_JOURNAL_BYTES_MAX = 64 << 20
_PAGE_BYTES = 8192  # rows of a kilobyte: a fifth less work than pages of 4 KiB
_CHECKPOINT_PAGES = 4000


class SqliteDialect(Dialect):
    """SQLite through the standard library's driver."""

    kind = "sqlite"
    begin = "BEGIN IMMEDIATE"  # a read that turns into a write fails at once, whatever the timeout
    placeholder = "?"
    key_placeholder = "CAST(? AS TEXT)"
    text_labels = True  # a cast of bytes costs a third of the statement
    lock_clause = ""  # BEGIN IMMEDIATE holds the whole file
    purge_clause = ""
    begin_fold = ("BEGIN IMMEDIATE",)
    begin_view = ("BEGIN",)

    def __init__(self, settings: Settings, clock: Clock) -> None:
        super().__init__(settings, clock)
        self.path = Path(settings.url.database or "").absolute()
        self._reader: Engine | None = None
        self._opened = 0
        self._upsert_texts: list[tuple[int, str]] = []

    @property
    def engine(self) -> Engine:
        """The one connection that writes."""
        if self._engine is None:
            self._create_file()
            self._engine = self._make_engine(pool_size=1, max_overflow=0)
        return self._engine

    @property
    def reader(self) -> Engine:
        """The connections that read; they cannot write."""
        if self._reader is None:
            self._reader = self._make_engine(
                pool_size=self.settings.pool_size, max_overflow=0, prepare=self._prepare_reader
            )
        return self._reader

    def _create_file(self) -> None:
        # Made here, so that it is nobody else's from its first moment: SQLite follows the umask,
        # and gives the mode of the file to its companions.
        parent = self.path.parent
        if not parent.is_dir():
            raise ConfigError(f"sql_url: directory {parent} does not exist")
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise ConfigError(f"sql_url: {self.path} is not a plain file")
        try:
            with suppress(FileExistsError):
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(self.path, flags, 0o600))
        except PermissionError as exc:
            raise ConfigError(f"sql_url: {self.path} cannot be created: {exc.strerror}") from exc
        except OSError as exc:
            raise StoreUnavailable(STORE, "attach", f"{self.path}: {exc.strerror}") from exc

    def connect_args(self) -> dict[str, Any]:
        """Return the driver's arguments."""
        return {
            "timeout": self.settings.timeout_s,
            "isolation_level": None,
            "check_same_thread": False,
            "cached_statements": 64,
        }

    def prepare(self, connection: Connection, info: dict[Any, Any]) -> None:
        """Set the writing connection up."""
        del info
        self._opened += 1
        self._prepare_common(connection)
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")  # of a new file only
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit={_JOURNAL_BYTES_MAX}")

    def _prepare_reader(self, connection: Connection, info: dict[Any, Any]) -> None:
        del info
        self._prepare_common(connection)
        connection.execute("PRAGMA query_only=ON")

    def _prepare_common(self, connection: Connection) -> None:
        connection.text_factory = bytes  # damaged text must not fail its neighbours' rows
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        connection.execute("PRAGMA secure_delete=OFF")  # some builds overwrite what is deleted
        (encoding,) = connection.execute("PRAGMA encoding").fetchone()
        if encoding != b"UTF-8":
            raise ConfigError(
                f"sql_url: {self.path} is encoded in {encoding.decode()}; ids need UTF-8"
            )

    def close(self) -> None:
        """Close the readers first: the connection that writes is the one to checkpoint."""
        reader, self._reader = self._reader, None
        if reader is not None:
            with suppress(Exception):
                reader.dispose()
        super().close()

    def upsert(self, connection: Connection, info: dict[Any, Any], rows: Sequence[Row]) -> None:
        """Write rows, many with one statement.

        The driver lets other threads run at every statement and has to wait for them after it: row
        by row, a thread that computes would slow the batch down tenfold and more.
        """
        del info
        start = 0
        for shape, text in self._upserts():
            while len(rows) - start >= shape:
                part = rows[start : start + shape]
                connection.execute(text, list(chain.from_iterable(part)))
                start += shape

    def _upserts(self) -> list[tuple[int, str]]:
        if not self._upsert_texts:
            text = self.text(_UPSERT)
            self._upsert_texts = [
                (shape, text.replace(_ROW, ", ".join([_ROW] * shape))) for shape in _ROWS_AT_ONCE
            ]
        return self._upsert_texts

    def insert(self, connection: Connection, info: dict[Any, Any], rows: Sequence[Row]) -> bool:
        """Write rows; one that is there after all is not counted."""
        del info
        written = start = 0
        for shape, text in self._upserts():
            plain = text.partition(" ON CONFLICT")[0] + " ON CONFLICT (id) DO NOTHING"
            while len(rows) - start >= shape:
                part = rows[start : start + shape]
                written += connection.execute(plain, list(chain.from_iterable(part))).rowcount
                start += shape
        return written == len(rows)

    def select(
        self, connection: Connection, columns: str, ids: Sequence[str], *, lock: bool = False
    ) -> list[tuple[Any, ...]]:
        """Return rows by an IN query of one of a few shapes; the last id fills it up."""
        del lock
        shape = next(shape for shape in _SHAPES if shape >= len(ids))
        marks = ",".join("?" * shape)
        args = [*ids, *([ids[-1]] * (shape - len(ids)))]
        text = f"SELECT {columns} FROM {self.tables['t']} WHERE id IN ({marks})"
        rows: list[tuple[Any, ...]] = connection.execute(text, args).fetchall()
        return rows

    def server(self, connection: Connection) -> str:
        """Return the library's version."""
        del connection
        return f"SQLite {sqlite3.sqlite_version}"

    def warnings(self, connection: Connection) -> tuple[str, ...]:
        """Tell where the file cannot use a write-ahead log (some network file systems)."""
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode != b"wal":
            return (f"journal_mode is {mode.decode()}, not wal: readers and the writer wait",)
        return ()

    def data_version(self, connection: Connection) -> tuple[int, int] | None:
        """Return SQLite's own count of foreign commits, as this connection sees it."""
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        return self._opened, int(version)

    def columns(self, connection: Connection, table: str) -> dict[str, str]:
        """Return the upper-case type of each column; empty where there is no table."""
        rows = connection.execute(f"PRAGMA table_info('{table}')").fetchall()
        return {row[1].decode(): row[2].decode().upper() for row in rows}
