"""The log's way in: changes get versions and positions, and are committed and synced in groups.

The newest part of the log, the *tail*, is held in memory; the file holds what was committed. A
change becomes *visible* (readable, deliverable) when it is committed, or at once where the caller
asked for no more than memory.

Locks, outermost first: the write lock (held by the one who commits, across the commit: that is the
group commit), the sync lock, the read lock (the reading connection), the state lock (never across
input or output).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.core.version import VersionClock, number_of_log, version_of_ms
from sync_engine.errors import EngineFailed, StoreUnavailable
from sync_engine.ports import Overtaken, Runtime
from sync_engine.wal.cursors import Cursors
from sync_engine.wal.dead import DeadLetters
from sync_engine.wal.file import LogFile
from sync_engine.wal.frame_reader import FrameReader
from sync_engine.wal.overlay import Overlay
from sync_engine.wal.records import LogListener
from sync_engine.wal.release import Release
from sync_engine.wal.tail import Tail, cut, size_of

__all__ = ["LogWriting"]

_FRAME_ITEMS = 256
_FRAME_BYTES = 1 << 20
_VERSION_MARGIN = version_of_ms(5_000)


class LogWriting:
    """The writing half of `WriteAheadLog`, which has the arguments.

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
        overlay: Sequence[str] = (),
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
        self._cursors = Cursors(self._file.cursors(), (archive, *overlay))
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
        number = int(self._file.meta("engine_number", number_of_log(self.uuid)))
        self.versions = VersionClock(self._clock.now_ms, number, version)
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

    def claim_number(self, claim: Callable[[str, int], int]) -> None:
        """Issue versions of the engine number that the archive gives us, over restarts too.

        Versions go on growing. The archive remembers the claim: a crash before the number is kept
        here is mended by the next claim.

        Args:
            claim: `ports.ArchiveStore.claim_number`.

        Raises:
            StoreUnavailable: Claim again later; versions keep the number they have.
        """
        number = claim(self.uuid, self.versions.number)
        if number == self.versions.number:
            return
        with self._write_lock:
            self._file.save(meta={"engine_number": number})
            with self._lock:
                self.versions.renumber(number)

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

    def _settle_versions(self) -> None:
        """Lower the ceiling to what was issued: who opens the log next hurries no clock ahead."""
        last = self.versions.last
        if last < self._ceiling:
            self._file.save(meta={"version_ceiling": last})
            self._ceiling = last

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


def _frame_part(changes: Sequence[Change | None]) -> Sequence[Change | None]:
    """Return as many of the first changes as fit a frame, at least one."""
    return cut(changes[:_FRAME_ITEMS], _FRAME_BYTES)
