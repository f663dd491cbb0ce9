"""The write-ahead log: one order of all changes, and cursors on it.

The newest part of the log, the *tail*, is held in memory; the file holds what was committed. A
change becomes *visible* (readable, deliverable) when it is committed, or at once where the caller
asked for no more than memory. What every follower has passed is released.

Locks, outermost first: the write lock (held by the one who commits, across the commit: that is the
group commit), the sync lock, the read lock (the reading connection), the state lock (never across
input or output).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.core.version import ENGINE_NUMBER_MAX, VersionClock, version_of_ms
from sync_engine.errors import EngineFailed, StoreUnavailable
from sync_engine.ports import LogSlice, Overtaken, Runtime
from sync_engine.wal.cursors import Cursors
from sync_engine.wal.dead import DeadLetters
from sync_engine.wal.file import LogFile
from sync_engine.wal.frame_reader import FrameReader
from sync_engine.wal.overlay import Overlay
from sync_engine.wal.records import DeadLetter, LogListener, WalStats
from sync_engine.wal.release import Release
from sync_engine.wal.tail import Tail, cut, size_of

__all__ = ["WriteAheadLog"]

_FRAME_ITEMS = 256
_FRAME_BYTES = 1 << 20
_VERSION_MARGIN = version_of_ms(5_000)
_CHECKPOINT_BYTES = 32 << 20


class WriteAheadLog:
    """Appends, commits, serves followers, and answers what is still undelivered.

    Args:
        path: The SQLite file.
        runtime: Locks and clock.
        listener: Told about every move.
        memory_bytes_max: Bytes of changes to hold in memory before the file alone holds them.
        archive: Name of the cursor that "pending" is measured at.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(
        self,
        path: Path,
        runtime: Runtime,
        listener: LogListener,
        *,
        memory_bytes_max: int = 256 << 20,
        archive: str = "l3",
    ) -> None:
        self._file = LogFile(path)
        self._clock = runtime.clock
        self._listener = listener
        self._memory_bytes_max = memory_bytes_max
        self._archive = archive
        self._lock = runtime.lock()
        self._write_lock = runtime.lock()
        self._sync_lock = runtime.lock()
        self._reader = FrameReader(self._file, runtime.lock())
        self.uuid = str(self._file.meta("uuid"))
        self._cursors = Cursors(self._file.cursors(), archive)
        self.overlay = Overlay()
        self.dead = DeadLetters(self._file, self._write_lock, self._lock, self.overlay, archive)
        self._soft: set[int] = set()
        self._failed: dict[int, Exception] = {}
        self._fatal: EngineFailed | None = None
        self._write_error: StoreUnavailable | None = None
        self._pending_bytes = 0
        last = max(self._file.last(), *self._cursors.all().values(), 0)
        noted = self._file.noted_head()
        self._lost = max(0, noted - last)
        if self._lost:  # keep positions dense: what the disk lost is void from now on
            self._file.append(last + 1, [None] * self._lost)
        self._head = self._written = self._synced = last + self._lost
        self._tail = Tail(self._head)
        self._release = Release(
            self._tail, self.overlay, self._reader, self._cursors, listener, self._lock
        )
        version = int(self._file.meta("version_ceiling"))
        self.versions = VersionClock(
            self._clock.now_ms, int(self.uuid[:8], 16) & ENGINE_NUMBER_MAX, version
        )
        self._ceiling = version
        self._load()

    # -- opening ----------------------------------------------------------------------------------

    def _load(self) -> None:
        """Rebuild the overlay from what lies above the cursors; bytes stay in the file."""
        self.dead.load()
        archived = self._cursors.of(self._archive)
        after = self._release.overlay_floor
        while after < self._written:
            part = self._reader.slice(after, _FRAME_ITEMS, _FRAME_BYTES)
            if not part.changes:
                break
            for position, change in enumerate(part.changes, part.after + 1):
                if change is not None:
                    self.overlay.put_position(change.id, position)
                    self.versions.observe(change.version)
                    if position > archived:
                        self._pending_bytes += change.size_bytes
            after = part.last

    def follow(self, name: str, *, overlay: bool = False, at_head: bool = False) -> None:
        """Register a follower; what it has not passed is kept in the log.

        Args:
            name: Its cursor.
            overlay: Whether reads have to see changes until this follower passed them.
            at_head: Where a new one starts: at the head, or at the oldest change kept.
        """
        with self._lock:
            start = self._head if at_head else self._release.position
            self._cursors.add(name, start, overlay=overlay)
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

    # -- appending --------------------------------------------------------------------------------

    def append(
        self, drafts: Sequence[Change], *, soft: bool, unless_after: int | None = None
    ) -> tuple[int, Sequence[Change]]:
        """Give versions and positions to changes, in order; commit nothing yet.

        Args:
            drafts: Changes of version 0, or of a version given elsewhere.
            soft: They become visible now; else with the `commit` that the caller does next.
            unless_after: Refuse if an id of the drafts was appended after this position.

        Returns:
            The position of the last one, and the changes as they stand in the log.

        Raises:
            Overtaken: See `unless_after`; nothing was appended.
            EngineFailed: The log accepts nothing more.
        """
        if self._fatal is not None:
            raise self._fatal
        with self._lock:
            if unless_after is not None:
                self._check_untouched({draft.id for draft in drafts}, unless_after)
            changes = [
                Change(
                    d.id,
                    d.version or version,
                    d.content,
                    d.content_type,
                    d.state,
                    d.expires_at_ms,
                    d.routes,
                    d.trace_parent,
                )
                for d, version in zip(drafts, self.versions.next_many(len(drafts)), strict=True)
            ]
            size = size_of(changes)
            self._tail.extend(changes, size)
            self._pending_bytes += size
            last = self._tail.last
            if not soft:
                return last, changes
            first = last - len(changes) + 1
            if self._head == first - 1:
                self._head = last
            else:
                self._soft.update(range(first, last + 1))
            self._show(changes)
        return last, changes

    def give_version(self, above: int) -> int:
        """Return a version larger than another one and than all before; nothing is appended."""
        with self._lock:
            self.versions.observe(above)
            return self.versions.next()

    def observe(self, version: int) -> None:
        """Let every later version be larger than one that was read."""
        if version > self.versions.last:
            with self._lock:
                self.versions.observe(version)

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

    def _check_untouched(self, ids: set[str], after: int) -> None:
        if after < self._tail.base:
            raise Overtaken
        for change in self._tail.between(after, self._tail.last):
            if change is not None and change.id in ids:
                raise Overtaken

    def _show(self, changes: Sequence[Change]) -> None:
        """Make changes readable and wake who waits for them. State lock held."""
        self.overlay.put_many(changes)
        self._listener.visible(changes)
        if self._head >= self._cursors.wake_at:
            self._listener.wake(self._cursors.due(self._head))

    @property
    def appended(self) -> int:
        """The last position given out."""
        return self._tail.last

    def commit(self, position: int, count: int = 1) -> None:
        """Return once the `count` positions up to this one are in the file.

        Group commit: who finds the write lock free commits everything that waits; who waited for
        it mostly finds its own change committed.

        Raises:
            StoreUnavailable: The file could not be written; the changes were taken back.
            EngineFailed: The log accepts nothing more.
        """
        if self._written < position:
            with self._write_lock:
                if self._written < position:
                    self._write_tail()
        if self._failed:
            self._raise_failed(position, count)

    def _raise_failed(self, position: int, count: int) -> None:
        error: Exception | None = None
        with self._lock:
            for failed in range(position - count + 1, position + 1):
                error = self._failed.pop(failed, error)
        if error is not None:
            raise error

    def _write_tail(self) -> None:
        """Write all of the tail that is not in the file. Write lock held."""
        if self._fatal is not None:
            raise self._fatal
        with self._lock:
            released = self._release.position
            skipped = released if released > self._written else 0
            after = max(self._written, skipped)
            changes: Sequence[Change | None] = self._tail.between(after, self._tail.last)
            ceiling = self.versions.last
        try:
            if skipped or ceiling + _VERSION_MARGIN // 2 > self._ceiling:
                self._save(ceiling=ceiling + _VERSION_MARGIN)
            position = after
            while changes:
                part = _frame_part(changes)
                if failpoints.armed:
                    failpoints.hit("log.append")
                self._file.append(position + 1, part)
                if failpoints.armed:
                    failpoints.hit("log.committed")
                changes = changes[len(part) :]
                position += len(part)
                self._wrote(position)
        except StoreUnavailable as exc:
            self._take_back(exc)
        if skipped:
            with self._lock:
                self._written = max(self._written, skipped)

    def _wrote(self, position: int) -> None:
        with self._lock:
            self._written = position
            self._write_error = None
            if position > self._head:
                shown = self._tail.between(self._head, position)
                self._head = position
                if self._soft:
                    self._pass_soft()
                self._show([change for change in shown if change is not None])

    def _pass_soft(self) -> None:
        while self._head + 1 in self._soft:
            self._head += 1
        self._soft = {position for position in self._soft if position > self._head}

    def _take_back(self, exc: StoreUnavailable) -> None:
        """Void what was appended for callers who wait; what was acknowledged stays."""
        with self._lock:
            self._write_error = exc
            last = self._tail.last
            for position in range(self._head + 1, last + 1):
                change = None if position in self._soft else self._tail.void(position)
                if change is not None:
                    self._failed[position] = exc
                    self._pending_bytes -= change.size_bytes
            self._head = last
            self._soft.clear()

    def sync(self, position: int) -> None:
        """Return once everything up to a position is safe from power loss.

        Raises:
            EngineFailed: It could not be synced; final.
        """
        if self._synced >= position:
            return
        with self._sync_lock:
            if self._synced >= position:
                return
            if self._fatal is not None:
                raise self._fatal
            target = self._written
            try:
                self._file.sync()
                self._file.note_head(target)
            except EngineFailed as exc:
                self._fatal = exc
                raise
            self._synced = target

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

    def _save(self, *, ceiling: int = 0, release_to: int = 0) -> int:
        with self._lock:
            cursors = self._cursors.all()
        meta: dict[str, int | str] | None = {"version_ceiling": ceiling} if ceiling else None
        if failpoints.armed:
            failpoints.hit("log.save")
        dropped = self._file.save(cursors=cursors, meta=meta, release_to=release_to)
        if dropped < 1000:
            self._cursors.saved(cursors)
        self._ceiling = max(self._ceiling, ceiling)
        return dropped

    # -- dead letters and snapshots ---------------------------------------------------------------

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
        finally:
            self._file.close()


def _frame_part(changes: Sequence[Change | None]) -> Sequence[Change | None]:
    """Return as many of the first changes as fit a frame, at least one."""
    return cut(changes[:_FRAME_ITEMS], _FRAME_BYTES)
