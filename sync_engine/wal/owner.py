"""One owner for each log file, by a lock that dies with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sync_engine.errors import ConfigError

__all__ = ["OwnerLock", "orphans"]

LOG_SUFFIX = ".log.db"


class OwnerLock:
    """An exclusive lock beside a log file, held until `release` or the death of the process.

    Raises:
        ConfigError: Another process holds it, or the directory cannot be written.
    """

    def __init__(self, log_path: Path) -> None:
        self._path = log_path.with_suffix(".lock")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
        except OSError as exc:
            raise ConfigError(f"data_dir: cannot open {self._path}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise ConfigError(
                f"data_dir: {log_path} is in use by process {owner}: give each process a data_dir "
                "or an engine_name of its own"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Give the lock up; safe twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def orphans(log_path: Path) -> list[tuple[Path, OwnerLock]]:
    """Lock and return the other logs of the directory whose owners are dead."""
    found = []
    for path in sorted(log_path.parent.glob(f"*{LOG_SUFFIX}")):
        if path != log_path:
            try:
                found.append((path, OwnerLock(path)))
            except ConfigError:
                continue  # its owner is alive
    return found
