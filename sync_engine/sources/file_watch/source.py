"""The source: files become items, their deletions tombstones."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sync_engine.core.item import Change, check_id
from sync_engine.errors import ConfigError, InvalidItem
from sync_engine.ports import AdapterContext, SourceBatch
from sync_engine.sources.file_watch.beneath import Fingerprint, fingerprint, open_beneath
from sync_engine.sources.file_watch.finder import Finder
from sync_engine.sources.file_watch.ledger import FileLedger, Row, State
from sync_engine.sources.file_watch.names import text_of
from sync_engine.sources.file_watch.patterns import IGNORED, Patterns
from sync_engine.sources.file_watch.policy import FindPolicy, Mode
from sync_engine.sources.file_watch.watcher import Root, Tree, Waker, make_watcher

__all__ = ["FileWatchSource", "from_settings"]

_IDLE_S: Final = 0.2
_BYTES_MAX: Final = 16 << 20
_ROUNDS: Final = 8


@dataclass(frozen=True, slots=True)
class _Given:
    """A batch that waits for its acknowledgement."""

    number: int
    rows: Sequence[tuple[Row, Fingerprint]]


class FileWatchSource:
    """Gives each finished file as an item, and in mode ``mirror`` each deleted one as a tombstone.

    The id is the relative path, see `text_of`, after a prefix; with several directories the last
    part of the directory comes first. What was acknowledged is in a ledger: after a restart, only
    what is new or not acknowledged is given. A file that changes while it is read is given when it
    rests. One that is larger than `max_payload_bytes`, whose id would be too long, or that may not
    be read, is put aside until it changes or until the next `attach`: `progress` counts it as
    ``parked``.

    Owned by one job. Blocking: disk alone.

    Args:
        context: Name, time, directory of the ledger.
        directories: What to watch.
        prefix: Begins every id.
        find: When a file is finished.
        patterns: Which files are meant.
        backend: Who tells of changes; see `make_watcher`.
        max_payload_bytes: Largest file that is given.
        state: Label of the items.
    """

    def __init__(
        self,
        context: AdapterContext,
        directories: Sequence[Path],
        *,
        prefix: str = "",
        find: FindPolicy | None = None,
        patterns: Patterns | None = None,
        backend: str = "auto",
        max_payload_bytes: int = _BYTES_MAX,
        state: str = "default",
    ) -> None:
        self.name = context.name
        self._context = context
        self._directories = tuple(directories)
        self._prefix = prefix
        self._find = find or FindPolicy()
        self._patterns = patterns or Patterns()
        self._backend = backend
        self._bytes_max = max_payload_bytes
        self._state = state
        self._ledger: FileLedger | None = None
        self._finder: Finder | None = None
        self._waker: Waker | None = None
        self._given: deque[_Given] = deque()
        self._number = 0
        self._busy: set[tuple[int, bytes]] = set()
        self._progress: dict[str, float] = {}
        self._parked = 0

    def attach(self) -> None:
        """Open the ledger and begin to watch.

        Raises:
            ConfigError: A directory is not there, or another process has the ledger open.
            StoreUnavailable: The ledger cannot be written.
        """
        self.close()
        paths = []
        for directory in self._directories:
            if not directory.is_dir():
                raise ConfigError(f"source {self.name!r}: {directory} is no directory")
            paths.append(os.fsencode(directory.resolve()))
        ledger = FileLedger(self._context.data_dir / f"{self.name}.files.db")
        try:
            ledger.bind("ids", f"{self._prefix}{'{root}/' if len(paths) > 1 else ''}{{path}}")
            roots = [ledger.root(path) for path in dict.fromkeys(paths)]
            with ledger.step():  # what kept us from reading may have been mended
                ledger.again(State.PARKED, State.SEEN, self._context.runtime.clock.now_ms())
            watcher = make_watcher(self._backend, self._patterns)
        except BaseException:
            ledger.close()
            raise
        self._ledger = ledger
        self._waker = Waker()
        self._finder = Finder(
            ledger, roots, Tree(self._patterns), watcher, self._find, self._context.runtime.clock,
            busy=self._busy.__contains__,
        )  # fmt: skip

    def poll(self, items_max: int) -> SourceBatch:
        """Return up to `items_max` changes; see `ports.Source`.

        Raises:
            ConfigError: It is not attached.
            StoreUnavailable: The ledger cannot be written.
        """
        ledger, finder, waker = self._ledger, self._finder, self._waker
        if ledger is None or finder is None or waker is None:
            raise ConfigError(f"source {self.name!r} is not attached")
        changes: list[Change] = []
        rows: list[tuple[Row, Fingerprint]] = []
        did = True
        finder.read(0.0, waker)
        for _ in range(_ROUNDS):
            try:
                with ledger.step():
                    did = finder.work()
                    self._take(ledger, finder, items_max, changes, rows)
            except BaseException:
                finder.failed()
                self._busy.difference_update((row.root, row.path) for row, _ in rows)
                raise
            if changes or not did:
                break
        self._number += bool(rows)
        if rows:
            self._given.append(_Given(self._number, rows))
        self._count(finder, ledger)
        wait_s = 0.0 if did or changes else min(_IDLE_S, max(0.01, finder.wait_s()))
        return SourceBatch(changes=changes, token=b"%d" % self._number, wait_s=wait_s)

    def _take(
        self,
        ledger: FileLedger,
        finder: Finder,
        items_max: int,
        changes: list[Change],
        rows: list[tuple[Row, Fingerprint]],
    ) -> None:
        now_ms = self._context.runtime.clock.now_ms()
        budget = self._bytes_max
        for state in (State.GONE, State.STABLE):
            for row in ledger.due(state, now_ms, items_max + len(self._busy)):
                if len(changes) >= items_max or budget <= 0:
                    return
                key = (row.root, row.path)
                if key in self._busy:
                    continue
                change = self._change(ledger, finder.root(row.root), row, now_ms)
                if change is not None:
                    budget -= len(change.content or b"")
                    changes.append(change)
                    rows.append((row, row.seen))
                    self._busy.add(key)

    def _change(self, ledger: FileLedger, root: Root, row: Row, now_ms: int) -> Change | None:
        """Return the change of a row; None where the row was moved on instead."""
        id = (
            self._prefix
            + (f"{text_of(root.name)}/" if len(self._directories) > 1 else "")
            + text_of(row.path)
        )
        if row.state == State.GONE:
            return Change(id, 0, None)
        again = row._replace(
            state=State.SEEN, closed=0, first_ms=now_ms,
            due_ms=now_ms + round(self._find.settle_s * 1000),
        )  # fmt: skip
        try:
            check_id(id)
            content = _read(root, row, self._bytes_max)
        except (InvalidItem, PermissionError) as exc:
            self._parked += 1
            ledger.put([row._replace(state=State.PARKED, reason=str(exc))])
            return None
        except OSError:
            content = None
        if content is None:
            ledger.put([again])
            return None
        return Change(id, 0, content, state=self._state)

    def ack(self, token: bytes) -> None:
        """Remember that everything up to a token was taken; see `ports.Source`."""
        ledger = self._ledger
        if ledger is None:
            return
        upto = int(token or b"0")
        done = [given for given in self._given if given.number <= upto]
        if not done:
            return
        with ledger.step():
            for given in done:
                for row, taken in given.rows:
                    self._acknowledged(ledger, row, taken)
        for given in done:
            self._given.remove(given)
            self._busy.difference_update((row.root, row.path) for row, _ in given.rows)

    def _acknowledged(self, ledger: FileLedger, given: Row, taken: Fingerprint) -> None:
        row = ledger.row(given.root, given.path)
        if row is None:
            return
        now_ms = self._context.runtime.clock.now_ms()
        if given.state == State.GONE:
            if row.size < 0:
                ledger.drop([(row.root, row.path)])
            else:
                ledger.put([row._replace(state=State.SEEN, etag=None, due_ms=now_ms)])
            return
        same = row.seen == taken
        ledger.put([
            row._replace(
                state=State.VERIFIED if same else State.SEEN,
                etag="given", t_dev=taken.dev, t_ino=taken.ino, t_size=taken.size,
                t_mtime_ns=taken.mtime_ns, due_ms=now_ms, first_ms=now_ms, attempts=0, reason="",
            )
        ])  # fmt: skip

    def progress(self) -> Mapping[str, float]:
        """Return counters: found, scans, rescans, overflows, parked, roots_lost."""
        return dict(self._progress)

    def _count(self, finder: Finder, ledger: FileLedger) -> None:
        self._progress = {
            "found": finder.found,
            "scans": finder.scans,
            "rescans": finder.rescans,
            "overflows": finder.watcher.overflows,
            "parked": self._parked,
            "roots_lost": len(finder.errors),
            "held_back": float(bool(finder.held_back)),
            "commits": ledger.commits,
        }

    def close(self) -> None:
        """Let go of everything; safe twice. What was not acknowledged is given again."""
        finder, self._finder = self._finder, None
        ledger, self._ledger = self._ledger, None
        waker, self._waker = self._waker, None
        self._given.clear()
        self._busy.clear()
        if finder is not None:
            finder.watcher.close()
        if ledger is not None:
            ledger.close()
        if waker is not None:
            waker.close()


def _read(root: Root, row: Row, bytes_max: int) -> bytes | None:
    """Return the bytes of a file; None where it is not the one that was seen."""
    if row.size > bytes_max:
        raise InvalidItem(f"{row.size:,} bytes are more than max_payload_bytes ({bytes_max:,})")
    handle = open_beneath(root.path, row.path)
    try:
        if fingerprint(os.fstat(handle)) != row.seen:
            return None
        parts = []
        left = row.size + 1
        while left > 0 and (data := os.read(handle, min(left, 1 << 20))):
            parts.append(data)
            left -= len(data)
        content = b"".join(parts)
        whole = len(content) == row.size and fingerprint(os.fstat(handle)) == row.seen
        return content if whole else None
    finally:
        os.close(handle)


def from_settings(
    context: AdapterContext,
    *,
    directories: Sequence[str],
    prefix: str = "",
    mode: str = Mode.ADDED_ONLY,
    include: Sequence[str] = (),
    exclude: Sequence[str] = IGNORED,
    backend: str = "auto",
    max_payload_bytes: int = _BYTES_MAX,
    state: str = "default",
    quiet_s: float = 0.05,
    max_wait_s: float = 1.0,
    settle_s: float = 2.0,
    rescan_s: float = 30.0,
    poll_s: float = 2.0,
    max_delete: float = 0.5,
) -> FileWatchSource:
    """Make a `FileWatchSource` from plain settings; touches nothing yet.

    Args:
        context: What every adapter is given.
        directories: What to watch; at least one.
        prefix: Begins every id.
        mode: ``added-only`` or ``mirror``.
        include: Only files that match one of these patterns; empty is all.
        exclude: No files that match one of these.
        backend: ``auto``, ``inotify``, ``watchdog`` or ``poll``.
        max_payload_bytes: Largest file that is given, in bytes (at least 1).
        state: Label of the items.
        quiet_s: See `FindPolicy`.
        max_wait_s: See `FindPolicy`.
        settle_s: See `FindPolicy`.
        rescan_s: See `FindPolicy`.
        poll_s: See `FindPolicy`.
        max_delete: See `FindPolicy`.

    Raises:
        ConfigError: A setting is out of range.
    """
    if isinstance(directories, str):
        directories = [directories]
    if not directories:
        raise ConfigError(f"source {context.name!r}: directories is empty")
    if max_payload_bytes < 1:
        raise ConfigError(f"source {context.name!r}: max_payload_bytes must be at least 1")
    names = [Path(directory).name for directory in directories]
    if len(set(names)) < len(names):
        raise ConfigError(f"source {context.name!r}: two directories have the same name")
    if backend not in {"auto", "inotify", "watchdog", "poll"}:
        raise ConfigError(f"source {context.name!r}: there is no backend {backend!r}")
    find = FindPolicy(
        mode=mode,
        quiet_s=quiet_s,
        max_wait_s=max_wait_s,
        settle_s=settle_s,
        rescan_s=rescan_s,
        poll_s=poll_s,
        max_delete=max_delete,
    )
    return FileWatchSource(
        context,
        [Path(directory) for directory in directories],
        prefix=prefix,
        find=find,
        patterns=Patterns(include, exclude),
        backend=backend,
        max_payload_bytes=max_payload_bytes,
        state=state,
    )
