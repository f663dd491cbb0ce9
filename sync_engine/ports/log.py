"""The log, as followers and writers see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sync_engine.core.item import Change

__all__ = ["ChangeLog", "LogSlice", "Overtaken", "WritableLog"]


@dataclass(frozen=True, slots=True)
class LogSlice:
    """Neighbouring changes of the log.

    Attributes:
        after: Position before the first change.
        changes: One entry per position, in order; None where nothing is to be delivered.
    """

    after: int
    changes: Sequence[Change | None]

    @property
    def last(self) -> int:
        """Position of the last entry; `after` where there is none."""
        return self.after + len(self.changes)


class ChangeLog(Protocol):
    """The log as its followers see it: positions are dense, cursors only grow."""

    def head(self) -> int:
        """Return the last position that may be delivered; 0 in an empty log."""

    def read(self, after: int, items_max: int, bytes_max: int) -> LogSlice:
        """Return the changes that follow a position; empty at the head.

        Raises:
            CorruptData: A stored record fails its check.
        """

    def cursor(self, name: str) -> int:
        """Return a follower's delivered position; 0 where it is new."""

    def advance(self, name: str, position: int) -> None:
        """Move a cursor forward; a smaller position changes nothing."""

    def dead_letter(self, follower: str, position: int, change: Change, error: str) -> None:
        """Put a change aside, durably, before its follower passes it."""


class Overtaken(Exception):
    """The id was written after the position that the caller decided on; never shown to users."""


class WritableLog(ChangeLog, Protocol):
    """The log as the writer sees it; `wal.WriteAheadLog` documents each."""

    @property
    def pending_items(self) -> int:
        """Changes that the archive has not taken."""

    @property
    def pending_bytes(self) -> int:
        """Their bytes."""

    @property
    def appended(self) -> int:
        """The last position given out."""

    def append(
        self, drafts: Sequence[Change], *, soft: bool, unless_after: int | None = None
    ) -> tuple[int, Sequence[Change]]:
        """Give versions and positions to changes."""

    def commit(self, position: int, count: int = 1) -> None:
        """Return once positions are in the file."""

    def sync(self, position: int) -> None:
        """Return once everything up to a position is safe from power loss."""

    def pending(self, change_id: str) -> Change | None:
        """Return the newest undelivered change of an id."""

    def dead_error(self, follower: str, position: int) -> str | None:
        """Return the error that a position was put aside with."""
