"""Roots: whether they are there, and are the ones they were. Only then is an absence one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sync_engine.sources.file_watch.beneath import fingerprint
from sync_engine.sources.file_watch.ledger import FileLedger
from sync_engine.sources.file_watch.watcher import Root
from sync_engine.telemetry import get_logger

__all__ = ["RootState", "Roots", "is_gone", "stat_file"]

_log = get_logger("file_watch")


@dataclass(slots=True)
class RootState:
    """How a root is.

    Attributes:
        root: Which.
        error: Why it cannot be looked at; empty where it can.
        watched: Whether a watcher tells of it.
    """

    root: Root
    error: str = ""
    watched: bool = False


class Roots:
    """The roots of a finder, by number; owned by its thread."""

    def __init__(self, ledger: FileLedger, roots: Sequence[Root]) -> None:
        self._ledger = ledger
        self._states = {root.number: RootState(root) for root in roots}

    def __iter__(self) -> Iterator[RootState]:
        return iter(self._states.values())

    def __getitem__(self, number: int) -> RootState:
        return self._states[number]

    def usable(self, number: int) -> Root | None:
        """Return a root that was there when it was looked at last; None else. No disk."""
        state = self._states.get(number)
        return None if state is None or state.error else state.root

    def get(self, number: int) -> RootState | None:
        """Return the state of a root, None where there is no such root."""
        return self._states.get(number)

    def present(self, state: RootState) -> bool:
        """Tell whether a root is there and is the one it was; else nothing in it counts as gone."""
        try:
            found = os.stat(state.root.path)  # noqa: PTH116 - a path of bytes
        except OSError as exc:
            state.watched = False
            self.set_error(state, f"is not there ({exc.strerror}); nothing counts as deleted")
            return False
        if not stat.S_ISDIR(found.st_mode):
            state.watched = False
            self.set_error(state, "is no directory")
            return False
        now = fingerprint(found)
        known = self._ledger.root_identity(state.root.number)
        if known != (now.dev, now.ino):
            state.watched = False
            if known is not None and self._is_empty(state.root) and self._has_rows(state.root):
                self.set_error(
                    state, "is another, empty directory than before; nothing counts as deleted"
                )
                return False
            self._ledger.set_root_identity(state.root.number, now.dev, now.ino)
        if state.error:
            _log.info("root_back", root=os.fsdecode(state.root.path))
            state.error = ""
        return True

    def set_error(self, state: RootState, error: str) -> None:
        """Note why a root cannot be looked at, and tell of it once."""
        if state.error != error:
            _log.error("root_lost", root=os.fsdecode(state.root.path), error=error)
        state.error = error

    def _is_empty(self, root: Root) -> bool:
        with os.scandir(root.path) as entries:
            return next(entries, None) is None

    def _has_rows(self, root: Root) -> bool:
        return bool(self._ledger.page(root.number, None, 1))


def stat_file(root: Root, path: bytes) -> os.stat_result | None:
    """Return the status of a regular file; None where it is none, or cannot be looked at."""
    try:
        found = os.lstat(root.path + b"/" + path)
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def is_gone(root: Root, path: bytes) -> bool:
    """Tell whether a file is surely not there: that nobody may look is no absence."""
    try:
        found = os.lstat(root.path + b"/" + path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return not stat.S_ISREG(found.st_mode)
