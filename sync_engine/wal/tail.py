"""The tail: the newest part of the log, in memory."""

from __future__ import annotations

from collections.abc import Sequence

from sync_engine.core.item import Change

__all__ = ["Tail", "cut", "size_of"]


class Tail:
    """Changes at the positions after `base`, in order; None is a void.

    The log's lock guards everything.

    Attributes:
        base: Position before the first change held.
        size_bytes: Bytes of all changes held.
    """

    def __init__(self, base: int) -> None:
        self.base = base
        self.size_bytes = 0
        self._changes: list[Change | None] = []

    @property
    def last(self) -> int:
        """Position of the last change; `base` where there is none."""
        return self.base + len(self._changes)

    def extend(self, changes: Sequence[Change], size_bytes: int) -> None:
        """Take changes at the next positions."""
        self._changes += changes
        self.size_bytes += size_bytes

    def between(self, after: int, upto: int) -> list[Change | None]:
        """Return the changes after a position, up to another."""
        return self._changes[after - self.base : upto - self.base]

    def void(self, position: int) -> Change | None:
        """Take one change back; return it."""
        index = position - self.base - 1
        change = self._changes[index]
        if change is not None:
            self._changes[index] = None
            self.size_bytes -= change.size_bytes
        return change

    def drop(self, count: int) -> list[Change | None]:
        """Let go of the oldest changes; return them."""
        gone = self._changes[:count]
        del self._changes[:count]
        self.base += count
        self.size_bytes -= size_of(gone)
        return gone

    def find(self, change: Change) -> int | None:
        """Return the position of a change object, or None."""
        for index in range(len(self._changes) - 1, -1, -1):
            if self._changes[index] is change:
                return self.base + index + 1
        return None


def size_of(changes: Sequence[Change | None]) -> int:
    """Return the bytes of changes, as `Change.size_bytes`; inlined, for it is on every path."""
    return sum([len(c.content or b"") + 128 for c in changes if c is not None])


def cut(changes: Sequence[Change | None], bytes_max: int) -> Sequence[Change | None]:
    """Return the first changes of at most so many bytes together, at least one."""
    if size_of(changes) <= bytes_max:
        return changes
    size = 0
    for count, change in enumerate(changes):
        if change is not None:
            size += change.size_bytes
            if size > bytes_max and count:
                return changes[:count]
    return changes
