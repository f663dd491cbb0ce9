"""Reads what is committed to a live database, and stages it: never more, never less.

Every look overlaps two read pins: the new one is taken, then everything published is read, then
the old one ends. While pins overlap the log cannot restart past what was read, so a log whose salts
changed is proof that all of the old one was read. Where that proof is missing (after a kill, after
somebody else's file appeared, after we let go on purpose) every page is compared by hash, and what
differs is one segment.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from sync_engine.errors import StoreUnavailable
from sync_engine.ports import Runtime
from sync_engine.sinks.snapshot.checkpoints import Checkpoints
from sync_engine.sinks.snapshot.checksums import FrameChecksums, combined, lock_page
from sync_engine.sinks.snapshot.database import Database
from sync_engine.sinks.snapshot.errors import PositionLost
from sync_engine.sinks.snapshot.image import (
    Found,
    Image,
    differing_pages,
    image_at,
    newest_pages,
    whole_image,
)
from sync_engine.sinks.snapshot.segments import Pending, Segments
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.stage import Stage, StageFull
from sync_engine.sinks.snapshot.state import U32, State, StateFile, WalPosition
from sync_engine.sinks.snapshot.wal_file import HEADER_SIZE
from sync_engine.telemetry import get_logger

__all__ = ["Capture", "CaptureCounts", "Origin"]

_log = get_logger("sinks.snapshot")
_DISK_FULL_S = 5.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a new chain begins.

    Attributes:
        db_id: Identity of the database.
        epoch: Epoch to write in.
        fork: Last transaction of the epoch before.
    """

    db_id: str
    epoch: int
    fork: int


@dataclass(slots=True)
class CaptureCounts:
    """What capturing did since the process began; a plain record for `status`."""

    segments: int = 0
    segment_bytes: int = 0
    wal_bytes: int = 0
    comparisons: int = 0
    compared_pages: int = 0
    full_scans: int = 0
    look_s_max: float = 0.0
    stage_s_max: float = 0.0
    reopened: int = 0


class Capture:
    """The one reader of a database.

    Thread-safety: owned by one job; `told`, `full`, `seen` may be read by any thread.

    Args:
        database: Opened and pinned.
        file: State of the replicator, for this target.
        stage: Where segments wait.
        runtime: Time and locks.
        settings: When to do what.
        staged: Called after something was staged.

    Attributes:
        seen: Wall-clock milliseconds, and the transaction that holds all that was committed before.
        full: Why nothing is staged now; empty where that works.
        frames: Published frames in the log at the last look.
        imaging: Whether an image is being read, see `open_image`.
        image_stalled: Whether reading it waits for the target; its owner says so.
    """

    def __init__(
        self,
        database: Database,
        file: StateFile,
        stage: Stage,
        runtime: Runtime,
        settings: ReplicationSettings,
        staged: Callable[[], None],
    ) -> None:
        self.database = database
        self._file = file
        self._stage = stage
        self._clock = runtime.clock
        self._settings = settings
        self._staged = staged
        self._segments = Segments(file, stage, runtime.clock, settings)
        self._checksums = FrameChecksums(database.page_size)
        # Half of the quota: with names, headers and what does not compress it still fits into it.
        bytes_max = min(2 * settings.part_bytes, settings.stage_bytes_max // 2)
        self._pages_max = max(1, bytes_max // database.page_size)
        self._pending: Pending | None = None
        self._continuous = self._hurried = False
        self._emit_at = self._again_at = 0.0
        self.frames = 0
        self.imaging = self.image_stalled = False
        self._checkpoints = Checkpoints(self, runtime.clock, settings)
        self.counts = CaptureCounts()
        self.seen = (0, 0)
        self._looked_ms = 0
        self.full = ""

    def told(self) -> dict[str, int | float]:
        """Return all counts, for `status`."""
        return asdict(self.counts) | asdict(self._checkpoints.counts)

    # -- one look ---------------------------------------------------------------------------------

    def step(self) -> float:
        """Look once, stage when it is time, checkpoint when it is worth it.

        Returns:
            Seconds until the next look.
        """
        now = self._clock.monotonic()
        if not self.database.path.exists():
            _log.limited("database_missing", path=self.database.path)
            return self._settings.poll_s  # what appears in its place is another file: see `look`
        if self.full and not self._stage_again():
            self._checkpoints.without_room(now)
            return self._settings.poll_s
        moved = self.look()
        self.counts.look_s_max = max(self.counts.look_s_max, self._clock.monotonic() - now)
        if moved:
            self._checkpoints.moved(now)
        self._hurried |= self._checkpoints.behind
        # First: what is to be staged is in memory, and the log goes on growing.
        self._checkpoints.step(now)
        if (pending := self._pending) is not None:
            # A long log is not to wait for a large segment to be made.
            large = self._hurried and len(pending.pages) >= self._settings.seal_pages // 4
            if (large or now >= self._emit_at) and self.stage_pending():
                return 0.0  # the log grew meanwhile
        if self._checkpoints.quiet and self._pending is None:
            return max(self._settings.poll_s, self._settings.interval_s / 3)
        return self._checkpoints.wait_s

    def begin(self, origin: Origin) -> None:
        """Start a chain: hash every page; a snapshot has to follow.

        Raises:
            StoreUnavailable: Writers did not leave the time for it; try again.
        """
        try:
            image, position = whole_image(self.database, self._checksums)
            try:
                table = image.table()
                pages = image.pages
            finally:
                image.close()
        except PositionLost as exc:
            raise StoreUnavailable("snapshot", "begin", str(exc)) from exc
        self.counts.full_scans += 1
        state = State(
            db_id=origin.db_id,
            epoch=origin.epoch,
            txid=origin.fork + 1,
            time_ms=self._clock.now_ms(),
            page_size=self.database.page_size,
            pages=pages,
            checksum=combined(table),
            wal=position,
            fork=origin.fork,
        )
        self._file.replace(state, table)
        self._continuous, self._pending = True, None

    def look(self) -> bool:
        """Read everything that is published; tell whether there was something.

        Raises:
            StoreUnavailable: The database is gone, or locked for good.
        """
        if self.database.look_up() != self.database.identity:
            self._reopen()
        began_ms = self._clock.now_ms()
        self.database.pin_next()
        try:
            moved = self._collect()
        except PositionLost as lost:
            self.database.hand_over()
            if self._compare(str(lost)):
                self._looked_at(began_ms)
            return True
        except StageFull as full:
            self.database.drop_next()
            self._stuck(full)
            return False
        except BaseException:
            self.database.drop_next()
            raise
        self.database.hand_over()
        self._continuous = True
        self._looked_at(began_ms)
        return moved

    def _looked_at(self, began_ms: int) -> None:
        self._looked_ms = began_ms
        self.full = ""  # what was read found its place
        if self._pending is None:
            self.seen = (began_ms, self._state.txid)

    def _collect(self) -> bool:
        """Read from our position to the published end, under both pins."""
        state = self._state
        position = self._pending.position if self._pending is not None else state.wal
        header, self.frames = self.database.published()
        if header is None or not self.frames:
            if not self._continuous:  # even with a header: a rollback leaves one, and no frames
                raise PositionLost("there is no log")
            return False
        end = HEADER_SIZE + self.frames * self._checksums.frame_size
        if header.salts != position.salts:
            if not self._continuous:
                raise PositionLost("the log was restarted while nobody watched")
            position = WalPosition(header.salts, HEADER_SIZE, header.seed)
        elif not self._continuous and not self._still_there(position, end):
            raise PositionLost("the last frame that was read is not there any more")
        if position.offset == end:
            return False
        if position.offset > end:
            raise PositionLost("more was read than was ever published")
        while position.offset < end:
            found = newest_pages(
                self.database, header, self._checksums, position, end, self._pages_max
            )
            self._take(found, position)
            position = found.end
        return True

    def _still_there(self, position: WalPosition, end: int) -> bool:
        """Tell whether the frame before our position is still the one we read."""
        if position.offset <= HEADER_SIZE:
            return position.offset == HEADER_SIZE
        if position.offset > end:
            return False
        file = self.database.open_log()
        try:
            at = position.offset - self._checksums.frame_size
            words = self._checksums.words(os.pread(file, self._checksums.frame_size, at))
        finally:
            os.close(file)
        return bool(words[0, 2:6].tolist() == [*position.salts, *position.seed])

    def _take(self, found: Found, start: WalPosition) -> None:
        """Add what was read to what is pending; what would be too much is staged at once."""
        pending = self._pending
        if pending is not None and len(pending.pages) + len(found.newest) > self._pages_max:
            self._emit_pending(pending)
            pending = None
        before = pending.size if pending is not None else self._state.pages
        for number in range(min(before, found.smallest) + 1, found.pages + 1):
            if number not in found.newest and number != lock_page(self.database.page_size):
                raise PositionLost(f"the database grew, and page {number} is not in the log")
        if pending is None:
            pending = Pending({}, before, start, self._clock.now_ms(), start.offset)
            self._emit_at = max(self._clock.monotonic(), self._emit_at + self._settings.interval_s)
        size = self.database.page_size
        after = replace(pending, pages={}, size=found.pages, position=found.end)
        file = self.database.open_log()
        try:
            if len(found.newest) > self._pages_max:  # one transaction: never in memory as a whole
                if not self._continuous:
                    raise PositionLost("too much was written while nobody watched")
                numbers = np.array(sorted(found.newest), np.uint32)
                self._emit(numbers, lambda n: os.pread(file, size, found.newest[n]), after)
                self._pending = None
            else:
                after.pages = {n: page for n, page in pending.pages.items() if n <= found.pages}
                after.pages |= {n: os.pread(file, size, at) for n, at in found.newest.items()}
                header = self.database.header()
                if header is None or header.salts != found.end.salts:
                    # Possible only before the first hand-over: afterwards, unread frames keep the
                    # log from restarting.
                    raise PositionLost("the log was restarted while it was read")
                self._pending = after
        finally:
            os.close(file)
        self.counts.wal_bytes += found.end.offset - start.offset

    # -- staging ----------------------------------------------------------------------------------

    @property
    def _state(self) -> State:
        return self._segments.state

    def _emit(self, numbers: U32, read: Callable[[int], bytes], pending: Pending) -> None:
        began = self._clock.monotonic()
        size = self._segments.emit(numbers, read, pending, hurried=self._hurried)
        self._hurried = False
        self.counts.stage_s_max = max(self.counts.stage_s_max, self._clock.monotonic() - began)
        if size:
            self.counts.segments += 1
            self.counts.segment_bytes += size
            self._emit_at = self._clock.monotonic()
            self._staged()

    def _emit_pending(self, pending: Pending) -> None:
        numbers = np.array(sorted(pending.pages), np.uint32)
        self._emit(numbers, pending.pages.__getitem__, pending)
        self._pending = None

    def stage_pending(self) -> bool:
        """Stage what is pending; False where there is no room for it."""
        pending = self._pending
        if pending is None:
            return True
        try:
            self._emit_pending(pending)
        except StageFull as full:
            self._stuck(full)
            return False
        self.full = ""
        self.seen = (self._looked_ms, self._state.txid)
        return True

    def _stuck(self, why: Exception) -> None:
        self.full = str(why)
        _log.limited("stage_full", level=40, why=self.full)

    def _stage_again(self) -> bool:
        waits = self._stage.full or self._clock.monotonic() < self._again_at
        return not waits and self.stage_pending()

    # -- comparing --------------------------------------------------------------------------------

    def _compare(self, why: str) -> bool:
        """Find what changed by hashing every page; one segment brings the replica up to date.

        Returns:
            Whether it does; False where there is no room for it now.
        """
        _log.warning("comparing_pages", why=why)
        self._pending = None
        self.counts.comparisons += 1
        image, position = whole_image(self.database, self._checksums)
        try:
            numbers = differing_pages(image, self._file.table)
            self.counts.compared_pages += len(numbers)
            now_ms = self._clock.now_ms()
            pending = Pending({}, image.pages, position, now_ms, position.offset)
            self._emit(numbers, image.page, pending)
        except StageFull as full:
            self._continuous = False
            self.database.unpin()  # there is no place in the log to keep
            self._stage.drain()  # one more comparison, and not one for every object that leaves
            if not self._stage.size:  # the disk is full: nothing that leaves makes room
                self._again_at = self._clock.monotonic() + _DISK_FULL_S
            self._stuck(full)
            return False
        except PositionLost as exc:
            self._continuous = False
            raise StoreUnavailable("snapshot", "compare", str(exc)) from exc
        finally:
            image.close()
        self._continuous = True
        return True

    def _reopen(self) -> None:
        """Another file is at our path: take hold of that one, and compare."""
        self._continuous = False
        self._pending = None
        self.counts.reopened += 1
        _log.warning("database_replaced", path=self.database.path)
        self.database.close()
        fresh = Database(self.database.path)
        if fresh.page_size != self._state.page_size:
            size = fresh.page_size
            fresh.close()
            raise StoreUnavailable(
                "snapshot",
                "capture",
                f"the page size changed from {self._state.page_size} to {size}: "
                "start the replicator anew with an empty state directory",
            )
        self.database = fresh

    def let_go(self, seconds: float) -> None:
        """Drop the pins for a moment; whoever waits for readers gets through."""
        self._continuous = False
        self.database.unpin()
        if self.image_stalled:
            self.close_image()
        self._clock.sleep(seconds)
        self.database.pin()

    def release(self) -> None:
        """Drop all pins until the next look; what passes meanwhile unseen is found by comparing."""
        self._continuous = False
        self.database.unpin()
        self.close_image()

    # -- snapshots --------------------------------------------------------------------------------

    def open_image(self) -> tuple[Image, State] | None:
        """Return the image of the newest transaction, pinned until `close_image`.

        None where it cannot be had now.
        """
        if self.full:
            return None
        self.database.pin_image()
        self.imaging = True
        try:
            self.look()
            if self.stage_pending() and not self.full:
                state = self._state
                return image_at(self.database, self._checksums, state.wal, state.pages), state
        except PositionLost as exc:
            _log.warning("snapshot_postponed", why=str(exc))
        except BaseException:
            self.close_image()
            raise
        self.close_image()
        return None

    def close_image(self) -> None:
        """Let checkpoints go on; safe twice. A reader finds pages that change by their hashes."""
        self.imaging = False
        self.database.drop_image()

    def finish(self) -> None:
        """Read and stage what is there, if there is room: the last thing before the end."""
        if not self.full or self._stage_again():
            self.look()
            self.stage_pending()
