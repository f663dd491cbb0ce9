"""Finding files that are finished, and files that vanished: by hints soon, by scans surely."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from sync_engine.ports import Clock
from sync_engine.sources.file_watch.ledger import FileLedger, Row, State
from sync_engine.sources.file_watch.policy import FindPolicy, Mode
from sync_engine.sources.file_watch.roots import Roots, RootState, is_gone, stat_file
from sync_engine.sources.file_watch.sightings import Look, Sightings
from sync_engine.sources.file_watch.watcher import Hint, Kind, Root, Tree, Waker, Watcher
from sync_engine.telemetry import get_logger

__all__ = ["Finder"]

_log = get_logger("file_watch")
_SLICE: Final = 1000
_HINTS_MAX: Final = 20_000
_AHEAD_MS_MAX: Final = 3_600_000


class Finder:
    """Keeps the ledger true to the directories, in bounded steps.

    One thread at a time, the ledger's owner.

    Args:
        ledger: Where files are remembered.
        roots: What is watched.
        tree: Which files are meant.
        watcher: Where to look first.
        policy: When a file is finished.
        clock: Time.
        busy: Tells whether somebody works on a file now, whose row is then left to them.
        waiting: Tells of a row that was taken whether its local file is still to be removed: then
            changes to it follow in every mode.
    """

    def __init__(
        self,
        ledger: FileLedger,
        roots: Sequence[Root],
        tree: Tree,
        watcher: Watcher,
        policy: FindPolicy,
        clock: Clock,
        *,
        busy: Callable[[tuple[int, bytes]], bool] = lambda key: False,
        waiting: Callable[[Row], bool] = lambda row: False,
    ) -> None:
        self.ledger = ledger
        self.watcher = watcher
        self.policy = policy
        self._tree = tree
        self._clock = clock
        self._roots = Roots(ledger, roots)
        self._sightings = Sightings(ledger, self._roots, policy, clock, busy, waiting)
        self._hints: dict[tuple[int, bytes], Kind] = {}
        self._scan: Iterator[None] | None = None
        self._scan_at = 0.0
        self.held_back = ""
        self.scans = 0
        self.rescans = 0

    # -- state ------------------------------------------------------------------------------------

    @property
    def errors(self) -> dict[str, str]:
        """Roots that cannot be looked at, and why."""
        return {os.fsdecode(s.root.path): s.error for s in self._roots if s.error}

    @property
    def found(self) -> int:
        """How many files were found new or changed."""
        return self._sightings.found

    @property
    def idle(self) -> bool:
        """Whether every root was scanned, and no hint waits."""
        return self.scans > 0 and self._scan is None and not self._hints

    def root(self, number: int) -> Root:
        """Return a root by its number."""
        return self._roots[number].root

    def alive(self, number: int) -> bool:
        """Tell whether a root is there: only then does an absence mean anything."""
        state = self._roots.get(number)
        return state is not None and not state.error and self._roots.present(state)

    def rescan(self, why: str) -> None:
        """Look at everything as soon as possible."""
        _log.limited("rescan", level=20, why=why)
        self.rescans += 1
        self._scan_at = 0.0

    def accept_deletions(self) -> None:
        """Let through what `FindPolicy.max_delete` held back."""
        self.held_back = ""
        self.policy = replace(self.policy, max_delete=1.0)
        self._scan_at = 0.0

    # -- steps ------------------------------------------------------------------------------------

    def read(self, timeout_s: float, waker: Waker) -> None:
        """Wait for something to happen, up to the timeout, and note where to look."""
        room = _HINTS_MAX - len(self._hints)
        if room <= 0:
            return  # the kernel keeps the rest, or says that it could not
        told = self.watcher.read(0.0 if self._hints else timeout_s, waker, room)
        for hint in told.hints:
            self._note(hint)
        if told.rescan:
            self.rescan(told.rescan)

    def _note(self, hint: Hint) -> None:
        key = (hint.root, hint.path)
        before = self._hints.get(key, Kind.FOUND)
        if before is Kind.GONE and hint.kind is not Kind.GONE:
            self._hints[key] = Kind.REPLACED
        else:
            self._hints[key] = max(before, hint.kind)
        if hint.kind is Kind.GONE and self.policy.mode == Mode.MIRROR:
            self._scan_at = min(self._scan_at, self._clock.monotonic() + 1.0)

    def work(self) -> bool:
        """Do a slice of what there is to do, inside a `FileLedger.step`; tell whether it was any.

        Raises:
            StoreUnavailable: The ledger cannot be written.
        """
        busy = bool(self._hints)
        if busy:
            self._look_at_hints()
        if self._scan is None and self._clock.monotonic() >= self._scan_at:
            self._scan_at = math.inf  # whoever asks from here on is not answered by this scan
            self._scan = self._scan_all()
        if self._scan is not None:
            busy = True
            try:
                next(self._scan)
            except StopIteration:
                self._scan_ended()
        return self._sightings.settle() or busy

    def failed(self) -> None:
        """Forget a step whose ledger could not be written: everything is looked at again."""
        self._hints.clear()
        self._scan = None
        self._scan_at = 0.0

    def wait_s(self) -> float:
        """Return the seconds until there is something to do, unless a hint comes before."""
        if self._hints or self._scan is not None:
            return 0.0
        wait_s = self._scan_at - self._clock.monotonic()
        due_ms = self.ledger.next_due_ms([State.SEEN])
        if due_ms is not None:
            wait_s = min(wait_s, (due_ms - self._clock.now_ms()) / 1000)
        return max(0.0, wait_s)

    # -- hints ------------------------------------------------------------------------------------

    def _look_at_hints(self) -> None:
        some = list(self._hints)[:_SLICE]
        looked = []
        for key in some:
            kind = self._hints.pop(key)
            state = self._roots.get(key[0])
            if state is None or state.error:
                continue
            found = stat_file(state.root, key[1])
            if found is not None or not os.path.isdir(state.root.path + b"/" + key[1]):  # noqa: PTH112
                looked.append((key, found, kind))
        self._sightings.observe(looked)

    # -- the scan ---------------------------------------------------------------------------------

    def _scan_all(self) -> Iterator[None]:
        for state in self._roots:
            if not self._roots.present(state):
                continue
            if not state.watched:
                self._start_watching(state)
            try:
                yield from self._scan_root(state)
            except OSError as exc:
                state.watched = False
                self._roots.set_error(state, f"cannot be read: {exc.strerror}")
                continue
            yield from self._find_missing(state)

    def _scan_ended(self) -> None:
        self._scan = None
        self.scans += 1
        part = self.watcher.name == "poll" or self.watcher.limited
        lost = any(state.error for state in self._roots)
        poll = part or lost or not all(state.watched for state in self._roots)
        after_s = min(self.policy.poll_s, self.policy.rescan_s) if poll else self.policy.rescan_s
        self._scan_at = min(self._scan_at, self._clock.monotonic() + after_s)
        self.ledger.clamp(self._clock.now_ms(), _AHEAD_MS_MAX)

    def _start_watching(self, state: RootState) -> None:
        try:
            self.watcher.start(state.root)
            state.watched = True
        except OSError as exc:
            _log.limited("not_watched", root=os.fsdecode(state.root.path), error=exc)

    def _scan_root(self, state: RootState) -> Iterator[None]:
        root = state.root
        looked: list[Look] = []
        for path, entry in self._tree.look(root, b"", lambda path: None, self._cannot_read):
            try:
                looked.append(((root.number, path), entry.stat(follow_symlinks=False), Kind.FOUND))
            except OSError:
                continue
            if len(looked) >= _SLICE:
                self._sightings.observe(looked)
                looked = []
                yield
        self._sightings.observe(looked)
        yield

    def _cannot_read(self, path: bytes, exc: OSError) -> None:
        _log.limited("directory_unreadable", path=os.fsdecode(path), error=exc)

    def _find_missing(self, state: RootState) -> Iterator[None]:
        """Look for every file that was there; act only when all of them were looked for."""
        ledger, root = self.ledger, state.root
        ledger.begin_missing()
        after: bytes | None = None
        present = missing = 0
        while rows := ledger.page(root.number, after, _SLICE):
            after = rows[-1].path
            known = [row for row in rows if row.state != State.REMOVED and row.size >= 0]
            gone = [row for row in known if is_gone(root, row.path)]
            present += len(known)
            missing += len(gone)
            ledger.add_missing([(row.root, row.path) for row in gone])
            yield
        if not self._roots.present(state):
            return
        mirror = self.policy.mode == Mode.MIRROR
        if mirror and missing > 100 and missing > present * self.policy.max_delete:
            self.held_back = (
                f"{missing:,} of {present:,} files vanished at once: nothing is deleted until "
                "max_delete allows it"
            )
            _log.error("deletions_held_back", missing=missing, known=present)
            return
        self.held_back = ""
        while some := ledger.some_missing(_SLICE):
            self._sightings.observe(
                [(key, stat_file(root, key[1]), Kind.FOUND) for key in some], certain=True
            )
            yield
