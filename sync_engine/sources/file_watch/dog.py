"""Watching with watchdog, for systems without inotify."""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import Any

from sync_engine.errors import ConfigError
from sync_engine.sources.file_watch.patterns import Patterns
from sync_engine.sources.file_watch.watcher import Hint, Hints, Kind, Root, Tree, Waker

__all__ = ["DogWatcher"]

_HINTS_MAX = 100_000


class _Overflowed(logging.Handler):
    """watchdog tells of lost events in a log line, and nowhere else."""

    def __init__(self, owner: DogWatcher) -> None:
        super().__init__(logging.WARNING)
        self._owner = owner

    def emit(self, record: logging.LogRecord) -> None:
        """Ask for a scan, if that is what the line says."""
        if "overflow" in record.getMessage().lower():
            self._owner.overflowed()


class DogWatcher:
    """Takes events from watchdog's threads into a bounded queue.

    Args:
        patterns: Directories that are left out are reported by nobody.

    Raises:
        ConfigError: The package is not installed.
    """

    name = "watchdog"

    def __init__(self, patterns: Patterns) -> None:
        try:
            from watchdog import events
            from watchdog.observers import Observer
        except ModuleNotFoundError as exc:
            raise ConfigError(
                "watching needs a package: pip install 'sync-engine[watch]', or use backend poll"
            ) from exc
        self.limited = ""
        self.overflows = 0
        self._patterns = patterns
        self._events: Any = events
        self._observer: Any = Observer()
        self._started = False
        self._watches: dict[int, Any] = {}
        self._queue: deque[Hint] = deque(maxlen=_HINTS_MAX)
        self._rescan = ""
        self._waker: Waker | None = None
        self._handler = _Overflowed(self)
        logging.getLogger("watchdog").addHandler(self._handler)

    def start(self, root: Root) -> None:
        """Begin to watch a tree, or begin anew; see `Watcher`."""
        if not os.path.isdir(root.path):  # noqa: PTH112 - a path of bytes
            raise FileNotFoundError(os.fsdecode(root.path))
        before = self._watches.pop(root.number, None)
        if before is not None:
            self._observer.unschedule(before)
        handler: Any = self._events.FileSystemEventHandler()
        handler.on_any_event = lambda event: self._take(root, event)
        kinds = [
            getattr(self._events, name)
            for name in (
                "FileClosedEvent", "FileMovedEvent", "FileCreatedEvent", "FileModifiedEvent",
                "FileDeletedEvent", "DirCreatedEvent", "DirMovedEvent", "DirDeletedEvent",
            )
        ]  # fmt: skip
        try:
            self._watches[root.number] = self._observer.schedule(
                handler, os.fsdecode(root.path), recursive=True, event_filter=kinds
            )
            if not self._started:
                self._observer.start()
                self._started = True
        except OSError as exc:
            self.limited = (
                f"watchdog cannot watch ({exc.strerror}), so files are found by scanning alone: "
                "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances"
            )

    def overflowed(self) -> None:
        """Note that events were lost."""
        self.overflows += 1
        self._ask("watchdog lost events")

    def read(self, timeout_s: float, waker: Waker, hints_max: int) -> Hints:
        """Return what happened; see `Watcher`."""
        self._waker = waker
        if not self._queue and not self._rescan:
            waker.wait(timeout_s)
        hints: list[Hint] = []
        while self._queue and len(hints) < hints_max:
            hints.append(self._queue.popleft())
        rescan, self._rescan = self._rescan, ""
        return Hints(hints, rescan)

    def close(self) -> None:
        """Stop watchdog's threads; safe twice."""
        logging.getLogger("watchdog").removeHandler(self._handler)
        if self._started:
            self._started = False
            self._observer.stop()
            self._observer.join(5.0)

    def _ask(self, why: str) -> None:
        self._rescan = why
        if self._waker is not None:
            self._waker.wake()

    def _take(self, root: Root, event: Any) -> None:
        if len(self._queue) >= _HINTS_MAX - 2:
            self.overflowed()
            return
        kind = {"closed": Kind.CLOSED, "moved": Kind.CLOSED, "deleted": Kind.GONE}.get(
            event.event_type, Kind.FOUND
        )
        source, target = os.fsencode(event.src_path), os.fsencode(event.dest_path or b"")
        if event.is_directory:
            self._directory(root, target or source, kind)
        elif kind is Kind.CLOSED and target:
            self._put(root, source, Kind.GONE)
            self._put(root, target, Kind.CLOSED)
        else:
            self._put(root, source, kind)
        if self._waker is not None:
            self._waker.wake()

    def _directory(self, root: Root, where: bytes, kind: Kind) -> None:
        start = where[len(root.path) + 1 :]
        if kind is Kind.GONE or not where.startswith(root.path + b"/"):
            self._ask("a directory was moved or deleted")
            return
        try:
            for path, _ in Tree(self._patterns).look(root, start, lambda path: None):
                self._put(root, root.path + b"/" + path, Kind.FOUND)
        except OSError:
            self._ask("a directory vanished")

    def _put(self, root: Root, where: bytes, kind: Kind) -> None:
        if where.startswith(root.path + b"/"):
            path = where[len(root.path) + 1 :]
            if self._patterns.takes_below(path):
                self._queue.append(Hint(root.number, path, kind))
