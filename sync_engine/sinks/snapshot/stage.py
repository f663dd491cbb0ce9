"""What is captured and not uploaded yet: files that survive everything, in order, within a quota.

Nothing is ever thrown away to make room. When the quota is reached or the disk is full, staging
raises `StageFull`: capturing stops where it is in the write-ahead log, and tries again. What is
larger than the whole quota could never leave otherwise: it is let in alone, when nothing else
waits.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sync_engine.core import failpoints
from sync_engine.ports import Runtime
from sync_engine.sinks.snapshot.keys import SegmentKey
from sync_engine.sinks.snapshot.objects import sync_directory

__all__ = ["Stage", "StageFull", "Staged"]

_SUFFIX = ".seg"


class StageFull(Exception):
    """There is no room for what was captured; it has to wait where it is."""


@dataclass(frozen=True, slots=True)
class Staged:
    """One object that waits for its upload."""

    key: SegmentKey
    path: Path
    size: int


class Stage:
    """The staging area of one replicator.

    Thread-safety: one thread adds, another takes away.

    Args:
        directory: Of the files; made if missing.
        bytes_max: Quota.
        runtime: Locks.
    """

    def __init__(self, directory: Path, bytes_max: int, runtime: Runtime) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._lock = runtime.lock()
        self._waiting: dict[str, Staged] = {}
        self._written: dict[Path, int] = {}  # not admitted yet
        self._refused_at = bytes_max
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def recover(self, db_id: str, epoch: int, txid: int) -> None:
        """Find what a former process left; what it did not get to rely on is removed.

        Args:
            db_id: Identity of the database.
            epoch: Epoch that is being written.
            txid: Last transaction that the state knows of.
        """
        for path in sorted(self._directory.iterdir()):
            key = SegmentKey.parse(f"v1/{db_id}/e{epoch:08d}/L0/{path.name}")
            if key is None or key.txid_max > txid:
                path.unlink()
            else:
                self._waiting[path.name] = Staged(key, path, path.stat().st_size)

    def clear(self) -> None:
        """Remove everything: it belongs to an epoch that is over."""
        for path in self._directory.iterdir():
            path.unlink()
        with self._lock:
            self._waiting.clear()

    @property
    def size(self) -> int:
        """What waits, in bytes."""
        with self._lock:
            return sum(staged.size for staged in self._waiting.values())

    @property
    def full(self) -> bool:
        """Whether the quota is reached: nothing left since something was refused for it."""
        return self.size >= self._refused_at

    def drain(self) -> None:
        """Count as full until nothing waits: whatever is written then is let in."""
        self._refused_at = 1

    def write(self, key: SegmentKey, data: bytes) -> Path:
        """Write one object, durably; it waits only from `admit` on.

        Raises:
            StageFull: The quota or the disk has no room.
        """
        waiting = self.size
        if waiting and waiting + sum(self._written.values()) + len(data) > self._bytes_max:
            self._refused_at = waiting
            raise StageFull(f"the quota of {self._bytes_max} bytes is reached")
        path = self._directory / str(key).rpartition("/")[2]
        aside = path.with_suffix(".new")
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            sync_directory(self._directory)
        except OSError as exc:
            for leftover in (aside, path):
                with suppress(OSError):
                    leftover.unlink()
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StageFull(f"no space on the disk of {self._directory}") from exc
            raise
        self._written[path] = len(data)
        if failpoints.armed:
            failpoints.hit("snapshot.staged")
        return path

    def admit(self, key: SegmentKey, path: Path) -> None:
        """Let an object be uploaded: the state knows of it now."""
        size = path.stat().st_size
        self._written.pop(path, None)
        self._refused_at = self._bytes_max
        with self._lock:
            self._waiting[path.name] = Staged(key, path, size)

    def discard(self, paths: list[Path]) -> None:
        """Remove objects that were written and never admitted."""
        for path in paths:
            self._written.pop(path, None)
            with suppress(OSError):
                path.unlink()

    def next(self) -> Staged | None:
        """Return the first object that waits, or None."""
        with self._lock:
            if not self._waiting:
                return None
            return min(self._waiting.values(), key=lambda s: (s.key.txid_max, s.key.part))

    def done(self, staged: Staged) -> None:
        """Remove an object that was uploaded."""
        staged.path.unlink(missing_ok=True)
        if failpoints.armed:
            failpoints.hit("snapshot.stage_deleted")
        with self._lock:
            self._waiting.pop(staged.path.name, None)

    def counts(self) -> tuple[int, int, int]:
        """Return objects and bytes that wait, and the first transaction among them (0: none)."""
        with self._lock:
            waiting = list(self._waiting.values())
        first = min((staged.key.txid_min for staged in waiting), default=0)
        return len(waiting), sum(staged.size for staged in waiting), first
