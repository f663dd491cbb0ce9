"""Cursors on the log: how far every follower is, and what it waits for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["Cursors"]

_NOBODY = 1 << 62


class Cursors:
    """Positions by follower; they only grow.

    The log's state lock guards every change; single lookups take no lock.

    Args:
        stored: Cursors as the file holds them.
        overlay: Followers that reads have to see changes until they passed them, followed or not
            yet.

    Attributes:
        wake_at: The lowest position that somebody waits for.
    """

    def __init__(self, stored: Mapping[str, int], overlay: Iterable[str]) -> None:
        self._positions = dict(stored)
        self._saved = dict(stored)
        self._overlay = set(overlay)
        self._wants: dict[str, int] = {}
        self.wake_at = _NOBODY

    def of(self, name: str) -> int:
        """Return a follower's position; 0 where it is new."""
        return self._positions.get(name, 0)

    def all(self) -> dict[str, int]:
        """Return a copy of all positions by name."""
        return dict(self._positions)

    def add(self, name: str, position: int) -> None:
        """Know a follower from now on, at a position if it is new."""
        self._positions.setdefault(name, position)

    def forget(self, name: str) -> None:
        """Know a follower no longer."""
        for known in (self._positions, self._saved, self._wants):
            known.pop(name, None)
        self._overlay.discard(name)

    def move(self, name: str, position: int) -> bool:
        """Move a cursor forward; False where it is there already."""
        if position <= self.of(name):
            return False
        self._positions[name] = position
        return True

    @property
    def lowest(self) -> int:
        """What every follower has passed."""
        return min(self._positions.values(), default=0)

    @property
    def overlay_lowest(self) -> int:
        """What every follower that reads depend on has passed."""
        return min((self.of(name) for name in self._overlay), default=0)

    # -- saving -----------------------------------------------------------------------------------

    @property
    def unsaved(self) -> bool:
        """Whether a cursor moved since the file was told."""
        return self._positions != self._saved

    def saved(self, cursors: Mapping[str, int]) -> None:
        """Note what the file holds now."""
        self._saved = dict(cursors)

    # -- waiting ----------------------------------------------------------------------------------

    def want(self, name: str, position: int) -> None:
        """Note that a follower waits for the head to reach a position."""
        self._wants[name] = position
        self.wake_at = min(self.wake_at, position)

    def due(self, head: int) -> list[str]:
        """Return who waited for no more than this head; they wait no longer."""
        due = [name for name, position in self._wants.items() if position <= head]
        for name in due:
            del self._wants[name]
        self.wake_at = min(self._wants.values(), default=_NOBODY)
        return due
