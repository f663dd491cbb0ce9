"""The way in: limits, room, version, log, acknowledgement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sync_engine.core import failpoints
from sync_engine.core.filters import FilterManager
from sync_engine.core.item import DEFAULT_STATE, Change, Route, check_id, check_state
from sync_engine.core.options import Durability
from sync_engine.core.pressure import BackpressureLevel, PressurePolicy
from sync_engine.errors import Backpressure, DeadLettered, InvalidItem, StoreUnavailable
from sync_engine.flow.arrivals import Arrivals
from sync_engine.ports import Runtime, WritableLog

__all__ = ["Receipt", "Writer"]

_ARCHIVE = "l3"
_TRACE_BYTES_MAX = 128
_L3 = int(Route.L3)  # a plain number: flags are slow on hot paths


class Receipt:
    """Proof of one acknowledged write.

    Attributes:
        id: The item's id.
        version: The version it was given.
        position: Its place in the log.
    """

    __slots__ = ("_writer", "id", "position", "version")

    def __init__(self, change: Change, position: int, writer: Writer) -> None:
        self.id = change.id
        self.version = change.version
        self.position = position
        self._writer = writer

    def __repr__(self) -> str:
        return f"Receipt(id={self.id!r}, version={self.version}, position={self.position})"

    def wait(
        self, level: Durability | str = Durability.ARCHIVE, timeout: float | None = None
    ) -> None:
        """Block until the write has reached a durability level.

        Args:
            level: ``memory``, ``log``, ``fsync`` or ``archive``.
            timeout: Seconds to wait for the archive; None is the engine's submit timeout.

        Raises:
            StoreUnavailable: Not archived within the timeout; the change stays in the log.
            DeadLettered: The archive refused it for good; see the dead letters.
        """
        self._writer.wait_for(self.position, Durability(level), timeout)


class Writer:
    """Takes changes into the log.

    Thread-safety: all methods. Blocking: as the durability asks; `memory` never touches the disk.
    """

    def __init__(
        self,
        log: WritableLog,
        filters: FilterManager,
        arrivals: Arrivals,
        runtime: Runtime,
        *,
        payload_bytes_max: int,
        pressure: PressurePolicy,
        timeout_s: float,
        hurry_archive: Callable[[], None],
    ) -> None:
        self._log = log
        self._filters = filters
        self._arrivals = arrivals
        self._clock = runtime.clock
        self._payload_bytes_max = payload_bytes_max
        self._pressure = pressure
        self._timeout_s = timeout_s
        self._hurry_archive = hurry_archive
        self.disk_fullness = 0.0
        self.oldest_age_s = 0.0
        self.strained = False
        # Below these, without strain on the disk or the age, a writer never waits.
        self._items_free = int(pressure.items_max * pressure.throttle_at)
        self._bytes_free = int(pressure.bytes_max * pressure.throttle_at)

    # -- limits -----------------------------------------------------------------------------------

    def check(self, change: Change) -> None:
        """Check a draft against every limit.

        Raises:
            InvalidItem: The id, state or content cannot be stored exactly.
        """
        check_id(change.id)
        if change.state is not DEFAULT_STATE:
            check_state(change.state)
        if change.trace_parent and not (
            change.trace_parent.isascii() and len(change.trace_parent) <= _TRACE_BYTES_MAX
        ):
            raise InvalidItem(f"trace_parent must be ASCII of at most {_TRACE_BYTES_MAX} bytes")
        content = change.content
        if content is not None:
            if type(content) is not bytes:
                raise InvalidItem(f"content must be bytes, not {type(content).__name__}")
            if len(content) > self._payload_bytes_max:
                raise InvalidItem(
                    f"content has {len(content)} bytes, max_payload_bytes is"
                    f" {self._payload_bytes_max}"
                )

    def level(self) -> BackpressureLevel:
        """Return how much room is left on the way to the archive."""
        return self._level(0, 0)

    def _level(self, items: int, size_bytes: int) -> BackpressureLevel:
        level = self._pressure.level(
            items=self._log.pending_items + items,
            size_bytes=self._log.pending_bytes + size_bytes,
            age_s=self.oldest_age_s,
        )
        if self.disk_fullness >= 1:
            return BackpressureLevel.CRITICAL
        if self.disk_fullness >= self._pressure.throttle_at:
            return max(level, BackpressureLevel.THROTTLE)
        return level

    def _admit(self, drafts: Sequence[Change], timeout_s: float) -> None:
        """Wait for room.

        Raises:
            Backpressure: There is none.
        """
        # One less of each: what fills the last place exactly is still taken.
        items = len(drafts) - 1
        size = sum([len(draft.content or b"") + 128 for draft in drafts]) - 1
        log = self._log
        if (
            log.pending_items + items < self._items_free
            and log.pending_bytes + size < self._bytes_free
            and not self.strained
        ):
            return
        level = self._level(items, size)
        if level < BackpressureLevel.THROTTLE:
            return
        self._hurry_archive()
        deadline = self._clock.monotonic() + timeout_s
        while level is BackpressureLevel.THROTTLE:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            self._arrivals.wait(_ARCHIVE, self._log.cursor(_ARCHIVE) + 1, left)
            level = self._level(items, size)
        if level is BackpressureLevel.CRITICAL:
            raise Backpressure(
                f"{self._log.pending_items} changes ({self._log.pending_bytes} bytes) wait for the"
                " archive; nothing was accepted",
                retry_after_s=1.0,
            )

    def measured(self, *, disk_fullness: float, oldest_age_s: float) -> None:
        """Learn how full the disk is, 1.0 being its bound, and how old the oldest change is."""
        self.disk_fullness = disk_fullness
        self.oldest_age_s = oldest_age_s
        aged = self._pressure.fullness(items=0, size_bytes=0, age_s=oldest_age_s)
        self.strained = max(disk_fullness, aged) >= self._pressure.throttle_at

    # -- writing ----------------------------------------------------------------------------------

    def write(
        self,
        drafts: Sequence[Change],
        durability: Durability,
        timeout_s: float | None = None,
        *,
        unless_after: int | None = None,
    ) -> tuple[int, Sequence[Change]]:
        """Take checked drafts into the log, in order, and return when they are acknowledged.

        Returns:
            The position of the last one, and the changes with their versions.

        Raises:
            Backpressure: No room; nothing was accepted.
            StoreUnavailable: The log could not be written (nothing was accepted), or the archive
                did not take it in time (it stays in the log).
            EngineFailed: The log accepts nothing more.
        """
        if drafts[0].content is not None:  # deletes come by themselves, and are always taken
            self._admit(drafts, self._timeout_s if timeout_s is None else timeout_s)
            if len(drafts) > 1:
                self._filters.add_many([draft.id for draft in drafts if draft.routes & _L3])
            elif drafts[0].routes & _L3:
                self._filters.add(drafts[0].id)
        if failpoints.armed:
            failpoints.hit("writer.filtered")
        soft = durability is Durability.MEMORY
        last, changes = self._log.append(drafts, soft=soft, unless_after=unless_after)
        if not soft:
            self._log.commit(last, len(changes))
            if failpoints.armed:
                failpoints.hit("writer.committed")
            if durability is not Durability.LOG:
                self.wait_for(last, durability, timeout_s)
        return last, changes

    def receipts(self, last: int, changes: Sequence[Change]) -> list[Receipt]:
        """Return the receipts of what `write` returned."""
        first = last - len(changes) + 1
        return [Receipt(change, position, self) for position, change in enumerate(changes, first)]

    def wait_for(self, position: int, level: Durability, timeout_s: float | None) -> None:
        """Block until a position has reached a durability level; see `Receipt.wait`."""
        if level is Durability.MEMORY:
            return
        self._log.commit(position)
        if level is Durability.LOG:
            return
        if level is Durability.FSYNC:
            self._log.sync(position)
            return
        self._hurry_archive()
        # Else a log that lost its end with the power would show what came before as the newest.
        self._log.sync(position)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if not self._arrivals.wait(_ARCHIVE, position, timeout_s):
            raise StoreUnavailable(
                "sql", "archive", f"not archived within {timeout_s} s; the change stays in the log"
            )
        self.raise_if_dead(position)

    def raise_if_dead(self, position: int) -> None:
        """Raise `DeadLettered` if the archive refused the change at a position."""
        error = self._log.dead_error(_ARCHIVE, position)
        if error is not None:
            raise DeadLettered("sql", "archive", error)
