"""The write-ahead log: one order of all changes, and cursors on it.

What comes in is told in `writing.py`. Here is what goes out: followers read the log in order, each
from its cursor, and what all of them have passed is released.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.errors import EngineFailed
from sync_engine.ports import LogSlice
from sync_engine.wal.records import DeadLetter, WalStats
from sync_engine.wal.tail import cut, size_of
from sync_engine.wal.writing import LogWriting

__all__ = ["WriteAheadLog"]

_CHECKPOINT_BYTES = 32 << 20


class WriteAheadLog(LogWriting):
    """Appends, commits, serves followers, and answers what is still undelivered.

    Args:
        path: The SQLite file.
        runtime: Locks and clock.
        listener: Told about every move.
        memory_bytes_max: Bytes of changes to hold in memory before the file alone holds them.
        archive: Name of the cursor that "pending" is measured at.
        overlay: Further followers that reads depend on: changes stay in the overlay until these
            have passed them, too, in whichever order they are followed.

    Thread-safety: every method may be called from any thread.
    """

    # -- reading ----------------------------------------------------------------------------------

    def pending(self, change_id: str) -> Change | None:
        """Return the newest undelivered change of an id, or None. Reads the file if it must."""
        entry = self.overlay.get(change_id)
        while type(entry) is int:
            change = self._reader.one(entry)
            if change is not None:
                return change
            again = self.overlay.get(change_id)
            if again == entry:
                raise self._reader.missing(entry, entry)
            entry = again
        return entry  # type: ignore[return-value]

    def head(self) -> int:
        """Return the last deliverable position."""
        return self._head

    def read(self, after: int, items_max: int, bytes_max: int) -> LogSlice:
        """Return changes after a position, at least one if there is one.

        Raises:
            CorruptData: A stored record fails its check.
        """
        with self._lock:
            if after >= self._tail.base:
                upto = min(after + items_max, self._head)
                return LogSlice(after, cut(self._tail.between(after, upto), bytes_max))
        part = self._reader.slice(after, items_max, bytes_max)
        if part.changes or after >= self._written:
            return part
        if self._tail.base > after:
            raise self._reader.missing(after + 1, self._tail.base)
        return self.read(after, items_max, bytes_max)  # the tail took over meanwhile

    def position_of(self, change: Change) -> int | None:
        """Return the position of a change held in memory or indexed in the file, else None."""
        entry = self.overlay.get(change.id)
        if type(entry) is int:
            return entry
        with self._lock:
            return self._tail.find(change)

    def cursor(self, name: str) -> int:
        """Return a follower's delivered position."""
        return self._cursors.of(name)

    def want(self, name: str, position: int) -> None:
        """Ask to be woken once the head reaches a position."""
        with self._lock:
            self._cursors.want(name, position)
            if self._head >= position:
                self._listener.wake(self._cursors.due(self._head))

    def lag(self, name: str) -> int:
        """Return how many positions a follower has before it."""
        return self._head - self._cursors.of(name)

    # -- cursors and release ----------------------------------------------------------------------

    def follow(self, name: str, *, at_head: bool = False) -> None:
        """Register a follower; what it has not passed is kept in the log.

        Args:
            name: Its cursor.
            at_head: Where a new one starts: at the head, or at the oldest change kept.
        """
        with self._lock:
            start = self._head if at_head else self._release.position
            self._cursors.add(name, start)
        self._release.settle()

    def unfollow(self, name: str) -> None:
        """Forget a follower; the log no longer waits for it."""
        with self._write_lock:
            self._file.forget_cursor(name)
            with self._lock:
                self._cursors.forget(name)
        self._release.settle()

    @property
    def followers(self) -> dict[str, int]:
        """Cursors by name."""
        with self._lock:
            return self._cursors.all()

    def advance(self, name: str, position: int) -> None:
        """Move a cursor forward, and let go of what all have passed."""
        if failpoints.armed:
            failpoints.hit("log.advance")
        if name == self._archive:
            self._count_archived(self._cursors.of(name), position)
        with self._lock:
            moved = self._cursors.move(name, position)
        if moved:
            self._release.settle()

    def _count_archived(self, after: int, upto: int) -> None:
        while after < upto:
            part = self.read(after, min(4096, upto - after), 1 << 62)
            if not part.changes:
                return
            size = size_of(part.changes)
            with self._lock:
                self._pending_bytes -= size
            after = part.last

    # -- housekeeping: the log's own job ----------------------------------------------------------

    def write(self) -> None:
        """Write what is visible and not yet in the file; what all have taken is skipped.

        Raises:
            StoreUnavailable: The file could not be written; what is visible stays in memory.
        """
        with self._write_lock:
            target = self.appended
            if self._written < target:
                self._write_tail()
            if self._written < target and self._write_error is not None:
                raise self._write_error

    def spill(self) -> None:
        """Leave the bytes of the oldest changes to the file while memory is over its budget."""
        self._release.spill(self._written, self._memory_bytes_max)

    def tidy(self) -> bool:
        """Save cursors, drop released frames, checkpoint; return whether more is left to drop."""
        with self._write_lock:
            with self._lock:
                changed = self._cursors.unsaved
                released = self._release.position
            more = False
            if changed:
                more = self._save(release_to=released) >= 1000
            if self._file.journal_bytes > _CHECKPOINT_BYTES:
                self._file.checkpoint()
        return more

    # -- other logs' changes, dead letters, snapshots ----------------------------------------------

    def adopt(self, changes: Sequence[Change]) -> None:
        """Take changes of another log with the versions they have, and commit them."""
        with self._lock:
            for change in changes:
                self.versions.observe(change.version)
        for change in changes:
            known = self.pending(change.id)
            if known is None or known.version < change.version:
                self.append([change], soft=True)
        self.write()

    def dead_letter(self, follower: str, position: int, change: Change, error: str) -> None:
        """Put a change aside, durably, before its follower passes it."""
        self.dead.bury(follower, position, change, error, self._clock.now_ms())

    def dead_error(self, follower: str, position: int) -> str | None:
        """Return the error that a position was put aside with, if it was."""
        return self.dead.error(follower, position)

    def requeue(self, letter: DeadLetter) -> None:
        """Append a dead letter again, with the version it has, and forget it as one."""
        change = letter.change
        known = self.pending(change.id)
        if known is None or known.version <= change.version:
            last, _ = self.append([change], soft=False)
            self.commit(last)
        self.dead.drop(letter)

    def put_snapshot(self, name: str, data: bytes) -> None:
        """Store a named blob beside the log."""
        with self._write_lock:
            self._file.put_snapshot(name, data)

    def get_snapshot(self, name: str) -> bytes | None:
        """Return a named blob."""
        with self._write_lock:
            return self._file.get_snapshot(name)

    # -- state ------------------------------------------------------------------------------------

    def idle(self) -> bool:
        """Tell whether all is written, synced and saved."""
        return (
            self._written >= self.appended
            and self._synced >= self._written
            and not self._cursors.unsaved
        )

    @property
    def written(self) -> int:
        """Last position in the file."""
        return self._written

    @property
    def synced(self) -> int:
        """Last position known to be safe from power loss."""
        return self._synced

    @property
    def released(self) -> int:
        """Last position that every follower has passed: what is not after it may be gone."""
        return self._release.position

    def used_bytes(self) -> int:
        """Return the bytes in use in the file."""
        return self._reader.used_bytes()

    @property
    def failed(self) -> EngineFailed | None:
        """Why nothing more is accepted, if so."""
        return self._fatal

    @property
    def pending_items(self) -> int:
        """Changes that the archive has not taken."""
        return self._tail.last - self._cursors.of(self._archive)

    @property
    def pending_bytes(self) -> int:
        """Bytes of the changes that the archive has not taken."""
        return self._pending_bytes

    @property
    def path(self) -> Path:
        """The log's file."""
        return self._file.path

    def stats(self) -> WalStats:
        """Return what the log holds."""
        file_bytes = self._reader.used_bytes()
        with self._lock:
            return WalStats(
                head=self._head,
                written=self._written,
                synced=self._synced,
                released=self._release.position,
                pending_items=self.pending_items,
                pending_bytes=self._pending_bytes,
                memory_bytes=self._tail.size_bytes,
                file_bytes=file_bytes,
                overlay_items=len(self.overlay),
                dead_letters=len(self.dead),
                lost_positions=self._lost,
            )

    def close(self, *, remove: bool = False) -> None:
        """Write, sync and close; with `remove`, delete the file instead: all was taken over."""
        if remove:
            self._file.remove()
            return
        try:
            if self._fatal is None:
                self.write()
                self.sync(self._written)
                while self.tidy():
                    pass
                self._settle_versions()
        finally:
            self._file.close()
