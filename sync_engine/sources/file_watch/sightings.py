"""What a look at files makes of their rows: every transition that finding causes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from sync_engine.ports import Clock
from sync_engine.sources.file_watch.beneath import (
    Fingerprint,
    fingerprint,
    has_writer,
    open_beneath,
)
from sync_engine.sources.file_watch.ledger import FileLedger, Row, State
from sync_engine.sources.file_watch.policy import FindPolicy, Mode
from sync_engine.sources.file_watch.roots import Roots, is_gone, stat_file
from sync_engine.sources.file_watch.watcher import Kind, Root

__all__ = ["Look", "Sightings"]

_SETTLED_MAX: Final = 500
_AHEAD_MS_MAX: Final = 3_600_000
_NONE: Final = Fingerprint(0, 0, -1, 0)
_BEFORE_UPLOAD: Final = (State.SEEN, State.STABLE, State.PARKED)
_UNDER_WAY: Final = (State.UPLOADING, State.UPLOADED)

Look = tuple[tuple[int, bytes], os.stat_result | None, Kind]
"""A path, what is there now, and what was said of it."""


class Sightings:
    """Applies what was seen to the rows of the ledger, inside a step of it.

    Args:
        ledger: Where files are remembered.
        roots: Where they are.
        policy: When a file is finished.
        clock: Time.
        busy: Tells whether somebody works on a file now, whose row is then left to them.
        waiting: Tells of a row that was taken whether its local file is still to be removed.
    """

    def __init__(
        self,
        ledger: FileLedger,
        roots: Roots,
        policy: FindPolicy,
        clock: Clock,
        busy: Callable[[tuple[int, bytes]], bool],
        waiting: Callable[[Row], bool],
    ) -> None:
        self._ledger = ledger
        self._roots = roots
        self._policy = policy
        self._clock = clock
        self._busy = busy
        self._waiting = waiting
        self.found = 0

    def observe(
        self,
        looked: Sequence[Look],
        *,
        certain: bool = False,
    ) -> None:
        """Note what was seen.

        Args:
            looked: Each path once.
            certain: Whether an absence was looked for after a whole scan, so that it counts.
        """
        if not looked:
            return
        rows = self._ledger.rows([key for key, _, _ in looked])
        now_ms = self._clock.now_ms()
        changed: list[Row] = []
        dropped: list[tuple[int, bytes]] = []
        for key, found, kind in looked:
            row = rows.get(key)
            closed = kind in (Kind.CLOSED, Kind.REPLACED)
            if found is None:
                new = self._absent(row, certain=certain)
                if new is None and row is not None and not self._busy(key):
                    dropped.append(key)
            elif row is None:
                new = self._added(key, found, closed=closed, now_ms=now_ms)
            else:
                new = self._again(row, found, kind, now_ms)
            if new is not None and new is not row:
                changed.append(new)
        if changed:
            self._ledger.put(changed)
        if dropped:
            self._ledger.drop(dropped)

    def _absent(self, row: Row | None, *, certain: bool) -> Row | None:
        """Return the row of a file that is not there; None forgets it."""
        if row is None or row.state in (State.REMOVED, State.GONE) or row.state in _UNDER_WAY:
            return row
        if self._busy((row.root, row.path)):
            return row
        if row.upload_id is not None:  # parts of it are at the server: they have to go
            return row._replace(state=State.UPLOADING, due_ms=self._clock.now_ms())
        if row.etag is None:
            return None  # the target has nothing of it
        if self._policy.mode == Mode.MIRROR:
            if not certain:
                return row  # the scan that is asked for already finds out
            return row._replace(
                state=State.GONE, size=-1, due_ms=self._clock.now_ms(), attempts=0, reason=""
            )
        return None

    def _added(
        self, key: tuple[int, bytes], found: os.stat_result, *, closed: bool, now_ms: int
    ) -> Row:
        self.found += 1
        seen = fingerprint(found)
        state = State.SEEN
        if self._policy.mode == Mode.ADDED_ONLY and self._was_renamed(key, seen):
            state = State.IGNORED
        return Row(
            *key, state, *seen, int(closed), now_ms,
            self._due_ms(found, closed=closed, first_ms=now_ms, now_ms=now_ms),
            None, None, None, None, None, None, None, None, 0,
            "renamed after it was taken" if state is State.IGNORED else "",
        )  # fmt: skip

    def _was_renamed(self, key: tuple[int, bytes], seen: Fingerprint) -> bool:
        for row in self._ledger.taken_as(seen):
            if (row.root, row.path) != key and row.state == State.VERIFIED:
                state = self._roots.get(row.root)
                if state is not None and is_gone(state.root, row.path):
                    return True
        return False

    def _again(self, row: Row, found: os.stat_result, kind: Kind, now_ms: int) -> Row:
        seen = fingerprint(found)
        closed = kind in (Kind.CLOSED, Kind.REPLACED)
        same = seen == row.seen
        if same and row.state in _UNDER_WAY:
            return row
        if self._busy((row.root, row.path)):
            return row if same else row._replace(**seen._asdict(), closed=int(closed))
        if row.state in _BEFORE_UPLOAD:
            if same and (not closed or row.closed or row.state is not State.SEEN):
                return row
            if same and row.state == State.PARKED:
                return row
            first_ms = row.first_ms if row.state == State.SEEN else now_ms
            return self._seen(row, found, closed=closed, first_ms=first_ms, now_ms=now_ms)
        if row.state == State.VERIFIED:
            if seen == row.taken:
                return row
            # Another inode, or a deletion in between: a new file under a name that is used again.
            new = kind is Kind.REPLACED or (row.taken is not None and seen.ino != row.taken.ino)
            if not new and self._policy.mode == Mode.ADDED_ONLY and not self._waiting(row):
                return row
        elif row.state == State.IGNORED and (same or self._policy.mode == Mode.ADDED_ONLY):
            return row
        return self._seen(row, found, closed=closed, first_ms=now_ms, now_ms=now_ms)

    def _seen(
        self, row: Row, found: os.stat_result, *, closed: bool, first_ms: int, now_ms: int
    ) -> Row:
        self.found += row.state != State.SEEN
        seen = fingerprint(found)
        due_ms = self._due_ms(found, closed=closed, first_ms=first_ms, now_ms=now_ms)
        backed_off = row.state == State.SEEN and row.attempts and row.due_ms > now_ms
        return row._replace(
            state=State.SEEN,
            **seen._asdict(),
            closed=int(closed),
            first_ms=first_ms,
            due_ms=max(due_ms, row.due_ms) if backed_off else due_ms,
            attempts=row.attempts if backed_off else 0,
            reason="",
        )

    def _due_ms(self, found: os.stat_result, *, closed: bool, first_ms: int, now_ms: int) -> int:
        policy = self._policy
        if closed:
            last = first_ms + policy.max_wait_s * 1000
            return round(max(now_ms, min(now_ms + policy.quiet_s * 1000, last)))
        # The time of change of the inode cannot be set back by who copies times.
        changed_ms = max(found.st_mtime_ns, found.st_ctime_ns) // 1_000_000
        age_ms = now_ms - changed_ms
        settle_ms = policy.settle_s * 1000
        if age_ms < 0:  # a file server whose clock goes ahead: only watching helps
            return round(now_ms + settle_ms)
        return round(now_ms + max(0.0, settle_ms - age_ms))

    # -- settling ---------------------------------------------------------------------------------

    def settle(self) -> bool:
        """Find which of the files that rested long enough are finished; tell whether any were due.

        Blocking: disk. Cost: at most 500 files.
        """
        now_ms = self._clock.now_ms()
        rows = self._ledger.due(State.SEEN, now_ms, _SETTLED_MAX)
        changed, dropped = [], []
        for row in rows:
            root = self._roots.usable(row.root)
            if root is None:
                changed.append(row._replace(due_ms=now_ms + 1000))
                continue
            new = self._settled(root, row, now_ms)
            if new is None:
                dropped.append((row.root, row.path))
            else:
                changed.append(new)
        if changed:
            self._ledger.put(changed)
            self._ledger.mark("ledger.stable")
        if dropped:
            self._ledger.drop(dropped)
        return bool(rows)

    def _settled(self, root: Root, row: Row, now_ms: int) -> Row | None:
        found = stat_file(root, row.path)
        if found is None:
            absent = self._absent(row, certain=False)
            return absent if absent is None else absent._replace(due_ms=now_ms + 1000)
        late = now_ms - row.first_ms >= self._policy.max_wait_s * 1000
        if fingerprint(found) != row.seen and row.closed and late:
            row = row._replace(**fingerprint(found)._asdict())  # it never rests: as it is now
        if fingerprint(found) != row.seen:
            return self._seen(row, found, closed=False, first_ms=row.first_ms, now_ms=now_ms)
        if not row.closed and now_ms - row.first_ms < self._policy.writer_wait_s * 1000:
            writer = self._has_writer(root, row.path)
            if writer:
                wait_ms = max(100, round(self._policy.settle_s * 1000))
                return row._replace(due_ms=now_ms + wait_ms, reason="open for writing")
        return row._replace(state=State.STABLE, due_ms=now_ms, reason="")

    def _has_writer(self, root: Root, path: bytes) -> bool | None:
        try:
            handle = open_beneath(root.path, path)
        except OSError:
            return None  # the reader finds out why
        try:
            return has_writer(handle)
        finally:
            os.close(handle)
