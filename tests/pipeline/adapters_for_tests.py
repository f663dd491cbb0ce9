"""A source and a sink that a pipeline file can name, for tests that run in other processes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from sync_engine.core.item import Change
from sync_engine.errors import ConfigError
from sync_engine.ports import AdapterContext, SourceBatch


class FileSink:
    """A table of ids and contents in a SQLite file."""

    def __init__(self, context: AdapterContext, path: Path) -> None:
        self.name = context.name
        self._path = path
        self._db: sqlite3.Connection | None = None

    def attach(self) -> None:
        self._db = sqlite3.connect(self._path, check_same_thread=False)
        self._db.execute("CREATE TABLE IF NOT EXISTS item (id PRIMARY KEY, version, content)")

    def apply(self, changes: Sequence[Change]) -> None:
        assert self._db is not None
        with self._db:
            self._db.executemany(
                "INSERT INTO item VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " version = excluded.version, content = excluded.content"
                " WHERE excluded.version > version",
                [(c.id, c.version, c.content) for c in changes],
            )

    def ping(self) -> float:
        return 0.0

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None


def rows(path: Path) -> dict[str, bytes]:
    """Return what a `FileSink` keeps."""
    if not path.exists():
        return {}
    db = sqlite3.connect(path)
    try:
        return dict(db.execute("SELECT id, content FROM item WHERE content IS NOT NULL"))
    except sqlite3.OperationalError:
        return {}
    finally:
        db.close()


def file_sink(context: AdapterContext, *, path: str) -> FileSink:
    return FileSink(context, Path(path))


class Counting:
    """A source of so many changes, whose place is a file in the data_dir."""

    def __init__(self, context: AdapterContext, count: int, prefix: str) -> None:
        self.name = context.name
        self._count = count
        self._prefix = prefix
        self._place = context.data_dir / f"{context.name}.place"
        self._next = 0

    def _acknowledged(self) -> int:
        return json.loads(self._place.read_text()) if self._place.exists() else 0

    def attach(self) -> None:
        self._next = self._acknowledged()

    def poll(self, items_max: int) -> SourceBatch:
        last = min(self._next + items_max, self._count)
        changes = [Change(f"{self._prefix}{n}", 0, b"%d" % n) for n in range(self._next, last)]
        self._next = last
        return SourceBatch(
            changes=changes, token=b"%d" % last, wait_s=0.0 if changes else float("inf")
        )

    def ack(self, token: bytes) -> None:
        if int(token) > self._acknowledged():
            fresh = self._place.with_suffix(".new")  # a kill leaves the old one or the new one
            fresh.write_text(token.decode())
            fresh.replace(self._place)

    def progress(self) -> dict[str, float]:
        return {"next": self._next}

    def close(self) -> None:
        pass


def counting(context: AdapterContext, *, count: int, prefix: str = "n.") -> Counting:
    if count < 0:
        raise ConfigError(f"count must be 0 or more, got {count}")
    return Counting(context, count, prefix)


def terminating(context: AdapterContext) -> Counting:
    os.kill(os.getpid(), signal.SIGTERM)
    raise ConfigError("cannot be used")


def unreachable(context: AdapterContext) -> Counting:
    raise OSError("no such device")


def needs_extra(context: AdapterContext) -> Counting:
    raise ConfigError("the driver is not installed: pip install 'sync-engine[s3]'")


no_factory = 7
