"""Watchers tell where to look; what is there, only a look tells."""

from __future__ import annotations

import enum
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sync_engine.errors import ConfigError
from sync_engine.sources.file_watch.patterns import Patterns

__all__ = ["Hint", "Hints", "Kind", "PollWatcher", "Root", "Waker", "Watcher", "make_watcher"]


class Kind(enum.IntEnum):
    """What a hint says of a path."""

    FOUND = 0
    CLOSED = 1
    REPLACED = 2
    GONE = 3


class Hint(NamedTuple):
    """Something happened to a path; its kind is a guess, and may be late.

    Attributes:
        root: Number of the root.
        path: Relative to it.
        kind: CLOSED: a writer closed it, or it was moved into place. REPLACED: so, after the
            one before it was deleted. FOUND: it is there. GONE: it was deleted, or moved away.
    """

    root: int
    path: bytes
    kind: Kind


@dataclass(frozen=True, slots=True)
class Hints:
    """What a watcher has to say at one time.

    Attributes:
        hints: In the order of events.
        rescan: Why everything has to be looked at; empty where it has not.
    """

    hints: Sequence[Hint] = ()
    rescan: str = ""


@dataclass(frozen=True, slots=True)
class Root:
    """A directory that is watched.

    Attributes:
        number: As the ledger knows it.
        path: Absolute, without symbolic links.
    """

    number: int
    path: bytes

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self.path.rpartition(b"/")[2]


class Waker:
    """Ends a wait of another thread: any thread may call `wake`, one waits."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return self._read

    def wake(self) -> None:
        """End the wait. Never blocks."""
        try:
            os.write(self._write, b"w")
        except (BlockingIOError, OSError):
            return  # awake already, or closed

    def drain(self) -> None:
        """Make the next wait a wait again."""
        try:
            while len(os.read(self._read, 4096)) == 4096:
                pass
        except BlockingIOError:
            return

    def wait(self, timeout_s: float) -> None:
        """Block until woken, or until the timeout."""
        if select.select([self._read], [], [], max(0.0, timeout_s))[0]:
            self.drain()

    def close(self) -> None:
        """Close both ends; safe twice."""
        read, self._read = self._read, -1
        write, self._write = self._write, -1
        for handle in (read, write):
            if handle >= 0:
                os.close(handle)


class Watcher(Protocol):
    """Shortens the wait for the next scan. May lose anything, if it says so with ``rescan``."""

    name: str

    @property
    def limited(self) -> str:
        """Why part of the tree is not watched, and what to do about it; empty where all is."""

    @property
    def overflows(self) -> int:
        """How often events were lost, and noticed."""

    def start(self, root: Root) -> None:
        """Begin to watch a tree, or begin anew after it was replaced. Its files are not told.

        Raises:
            OSError: The directory is not there.
        """

    def read(self, timeout_s: float, waker: Waker, hints_max: int) -> Hints:
        """Wait for something to happen, for `waker`, or for the timeout; return what did."""

    def close(self) -> None:
        """Let go of everything; safe twice."""


class PollWatcher:
    """Watches nothing: the scan finds everything. For file systems that tell nobody (NFS, SMB)."""

    name = "poll"
    limited = ""
    overflows = 0

    def start(self, root: Root) -> None:
        """Do nothing."""

    def read(self, timeout_s: float, waker: Waker, hints_max: int) -> Hints:
        """Wait."""
        del hints_max
        waker.wait(timeout_s)
        return Hints()

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Tree:
    """Directories below a root that patterns let us into."""

    patterns: Patterns
    unreadable: int = field(default=0)

    def look(
        self,
        root: Root,
        start: bytes,
        entered: Callable[[bytes], object],
        failed: Callable[[bytes, OSError], object] = lambda path, exc: None,
    ) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
        """Yield the files below a directory, in no order, after telling of each directory.

        Symbolic links are never followed. A directory that vanishes meanwhile is passed by; one
        that cannot be read is told to `failed`. Memory: one open directory a level.
        """
        stack = [start]
        while stack:
            here = stack.pop()
            entered(here)
            try:
                with os.scandir(root.path + b"/" + here if here else root.path) as entries:
                    for entry in entries:
                        path = here + b"/" + entry.name if here else entry.name
                        if entry.is_dir(follow_symlinks=False):
                            if self.patterns.enters(path):
                                stack.append(path)
                        elif entry.is_file(follow_symlinks=False) and self.patterns.takes(path):
                            yield path, entry
            except (FileNotFoundError, NotADirectoryError):
                if not here:
                    raise
            except OSError as exc:
                if not here:
                    raise
                self.unreadable += 1
                failed(here, exc)


def make_watcher(backend: str, patterns: Patterns) -> Watcher:
    """Return a watcher.

    Args:
        backend: ``inotify`` (Linux), ``watchdog``, ``poll``, or ``auto``: inotify on Linux,
            watchdog elsewhere.
        patterns: Say which directories are watched.

    Raises:
        ConfigError: There is no such watcher, or its package is not installed.
    """
    if backend == "auto":
        backend = "inotify" if sys.platform == "linux" else "watchdog"
    if backend == "poll":
        return PollWatcher()
    if backend == "inotify":
        from sync_engine.sources.file_watch.inotify import make_inotify_watcher

        return make_inotify_watcher(patterns)
    if backend == "watchdog":
        from sync_engine.sources.file_watch.dog import DogWatcher

        return DogWatcher(patterns)
    raise ConfigError(f"there is no watcher {backend!r}: auto, inotify, watchdog or poll")
