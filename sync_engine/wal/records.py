"""The log's words: what it tells, and to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sync_engine.core.item import Change

__all__ = ["DeadLetter", "LogListener", "WalStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WalStats:
    """What the log holds.

    Attributes:
        head: Last deliverable position.
        written: Last position in the file.
        synced: Last position known to be safe from power loss.
        released: Last position that every follower has passed.
        pending_items: Changes that the archive has not taken.
        pending_bytes: Their bytes.
        memory_bytes: Bytes of changes held in memory.
        file_bytes: Bytes in use in the file.
        overlay_items: Ids in the overlay.
        dead_letters: Changes put aside.
        lost_positions: Positions that were synced once and are missing from the file.
    """

    head: int
    written: int
    synced: int
    released: int
    pending_items: int
    pending_bytes: int
    memory_bytes: int
    file_bytes: int
    overlay_items: int
    dead_letters: int
    lost_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A change that its destination refused for good.

    Attributes:
        follower: The destination.
        position: Place in the log.
        change: The change.
        error: What the destination said.
        at_ms: Wall-clock milliseconds of the refusal.
    """

    follower: str
    position: int
    change: Change
    error: str
    at_ms: int


class LogListener:
    """What the engine does when the log moves; each call is short and under the state lock."""

    def visible(self, changes: Sequence[Change]) -> None:
        """Changes are about to become readable through the overlay."""

    def released(self, changes: Sequence[Change], *, in_memory: bool) -> None:
        """Changes that were newest of their ids are about to leave the overlay."""

    def wake(self, names: Sequence[str]) -> None:
        """These followers have as much to deliver as they waited for."""
