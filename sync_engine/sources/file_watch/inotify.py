"""Watching on Linux: an inotify reader that loses nothing without saying so."""

from __future__ import annotations

import errno
import os
import select
import struct
from collections import deque
from typing import Any, Final

from sync_engine.errors import ConfigError
from sync_engine.sources.file_watch.patterns import Patterns
from sync_engine.sources.file_watch.watcher import (
    Hint,
    Hints,
    Kind,
    PollWatcher,
    Root,
    Tree,
    Waker,
    Watcher,
)
from sync_engine.telemetry import get_logger

__all__ = ["InotifyWatcher", "make_inotify_watcher"]

_log = get_logger("file_watch")
_HEAD: Final = struct.Struct("iIII")
_READ_BYTES: Final = 1 << 20
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE = 0x8, 0x40, 0x80, 0x100
_DELETE, _DELETE_SELF, _MOVE_SELF = 0x200, 0x400, 0x800
_UNMOUNT, _OVERFLOW, _IGNORED = 0x2000, 0x4000, 0x8000
_ONLYDIR, _DONT_FOLLOW, _EXCL_UNLINK, _ISDIR = 0x01000000, 0x02000000, 0x04000000, 0x40000000
_MASK: Final = (
    _CLOSE_WRITE | _MOVED_TO | _MOVED_FROM | _CREATE | _DELETE
    | _ONLYDIR | _DONT_FOLLOW | _EXCL_UNLINK
)  # fmt: skip
_ROOT_MASK: Final = _MASK | _DELETE_SELF | _MOVE_SELF
_WATCHES = "fs.inotify.max_user_watches"
_INSTANCES = "fs.inotify.max_user_instances"


def make_inotify_watcher(patterns: Patterns) -> Watcher:
    """Return an inotify watcher, or one that polls where the kernel gives no more instances.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        return InotifyWatcher(patterns)
    except OSError as exc:
        if exc.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOSPC}:
            raise
        poll = PollWatcher()
        poll.limited = (
            f"the kernel gives no more inotify instances ({exc.strerror}), so files are found by "
            f"scanning alone: raise {_INSTANCES} (sysctl -w {_INSTANCES}=1024)"
        )
        _log.warning("watch_limit", hint=poll.limited)
        return poll


class InotifyWatcher:
    """Reads the kernel's queue in large bites; a new directory is watched first, then looked into.

    One thread at a time.

    Args:
        patterns: Directories that are left out are not watched.

    Raises:
        ConfigError: The package is not installed.
        OSError: The kernel gives no instance (EMFILE).
    """

    name = "inotify"

    def __init__(self, patterns: Patterns) -> None:
        try:
            from inotify_simple import INotify
        except ModuleNotFoundError as exc:
            raise ConfigError(
                "watching needs a package: pip install 'sync-engine[watch]', or use backend poll"
            ) from exc
        self.limited = ""
        self.overflows = 0
        self.events = 0
        self._patterns = patterns
        self._tree = Tree(patterns)
        self._notify: Any = INotify(nonblocking=True)
        self._roots: dict[int, Root] = {}
        self._watches: dict[int, tuple[Root, bytes]] = {}
        self._new: deque[tuple[Root, bytes]] = deque()
        self._looking: Any = None
        self._rescan = ""

    def start(self, root: Root) -> None:
        """Begin to watch a tree, or begin anew; see `Watcher`."""
        self._forget(root, b"")
        self._roots[root.number] = root
        self._watch(root, b"")
        for _ in self._tree.look(root, b"", lambda path: self._watch_below(root, b"", path)):
            pass

    def read(self, timeout_s: float, waker: Waker, hints_max: int) -> Hints:
        """Return what happened; see `Watcher`."""
        hints: list[Hint] = []
        if not self._new and self._looking is None:
            ready = select.select([self._notify, waker], [], [], max(0.0, timeout_s))[0]
            if waker in ready:
                waker.drain()
        while len(hints) < hints_max:
            try:
                data = os.read(self._notify.fileno(), _READ_BYTES)
            except BlockingIOError:
                break
            self._take(data, hints)
        while (self._new or self._looking is not None) and len(hints) < hints_max:
            self._look(hints, hints_max)
        rescan, self._rescan = self._rescan, ""
        return Hints(hints, rescan)

    def close(self) -> None:
        """Give the instance back; safe twice."""
        if not self._notify.closed:
            self._notify.close()
        self._watches.clear()

    # -- events -----------------------------------------------------------------------------------

    def _take(self, data: bytes, hints: list[Hint]) -> None:
        place = 0
        watches = self._watches
        while place < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, place)
            place += 16
            name = data[place : place + length].rstrip(b"\0")
            place += length
            self.events += 1
            if mask & _OVERFLOW:
                self.overflows += 1
                self._rescan = "the kernel's queue of events overflowed"
                continue
            known = watches.get(watch)
            if known is None:
                continue
            root, directory = known
            if mask & (_IGNORED | _UNMOUNT | _DELETE_SELF | _MOVE_SELF):
                self._lost(watch, root, directory, mask)
                continue
            path = directory + b"/" + name if directory else name
            if mask & _ISDIR:
                self._directory(root, path, mask, hints)
            elif mask & (_CLOSE_WRITE | _MOVED_TO):
                if self._patterns.takes(path):
                    hints.append(Hint(root.number, path, Kind.CLOSED))
            elif mask & (_DELETE | _MOVED_FROM) and self._patterns.takes(path):
                hints.append(Hint(root.number, path, Kind.GONE))

    def _directory(self, root: Root, path: bytes, mask: int, hints: list[Hint]) -> None:
        if not self._patterns.enters(path):
            return
        if mask & (_CREATE | _MOVED_TO):
            # Watched at once, before the next event is looked at: what is put into it meanwhile is
            # found by the look that follows.
            self._watch(root, path)
            self._new.append((root, path))
        elif mask & _MOVED_FROM:
            self._forget(root, path)
            hints.append(Hint(root.number, path, Kind.GONE))

    def _lost(self, watch: int, root: Root, directory: bytes, mask: int) -> None:
        if mask & _IGNORED:
            del self._watches[watch]
        if not directory:
            self._rescan = "the watched directory was moved, deleted or unmounted"

    def _look(self, hints: list[Hint], hints_max: int) -> None:
        if self._looking is None:
            root, start = self._new.popleft()
            self._looking = (
                root,
                self._tree.look(root, start, lambda path: self._watch_below(root, start, path)),
            )
        root, files = self._looking
        try:
            for path, _ in files:
                hints.append(Hint(root.number, path, Kind.FOUND))
                if len(hints) >= hints_max:
                    return
        except OSError:  # the root itself is gone
            self._rescan = "the watched directory is gone"
        self._looking = None

    # -- watches ----------------------------------------------------------------------------------

    def _watch(self, root: Root, path: bytes) -> None:
        where = root.path + b"/" + path if path else root.path
        try:
            watch = self._notify.add_watch(where, _MASK if path else _ROOT_MASK)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                self._at_limit()
            elif not path:
                raise
            return
        self._watches[watch] = (root, path)

    def _watch_below(self, root: Root, start: bytes, path: bytes) -> None:
        if path != start:
            self._watch(root, path)

    def _at_limit(self) -> None:
        if not self.limited:
            self.limited = (
                f"the kernel allows no more inotify watches after {len(self._watches):,}, so the "
                "other directories are found by scanning alone: raise "
                f"{_WATCHES} (sysctl -w {_WATCHES}=1048576)"
            )
            _log.warning("watch_limit", hint=self.limited)
            self._rescan = "the limit of watches was reached"

    def _forget(self, root: Root, path: bytes) -> None:
        below = path + b"/"
        for watch, (its_root, its_path) in list(self._watches.items()):
            inside = not path or its_path == path or its_path.startswith(below)
            if its_root.number == root.number and inside:
                del self._watches[watch]
                try:
                    self._notify.rm_watch(watch)
                except OSError:
                    continue  # the kernel was faster
