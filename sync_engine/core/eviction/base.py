"""What a cache and its eviction policy know of each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import msgspec

from sync_engine.core.item import Change

__all__ = ["Entry", "EvictionPolicy"]


class Entry(msgspec.Struct, gc=False, weakref=False):
    """A cached change and what a policy remembers of it.

    Attributes:
        change: What is cached.
        cost: Bytes it counts for.
        mark: Hits since the policy last looked, up to `EvictionPolicy.mark_max`.
        queue: Which queue of its policy it is in; 0 is none.
        index: Its place there, for policies that use one.
        used_ms: When it was last read, for policies that use it.
    """

    change: Change
    cost: int
    mark: int = 0
    queue: int = 0
    index: int = 0
    used_ms: int = 0


class EvictionPolicy(ABC):
    """Orders entries for eviction; every method but `touch` is called under the cache's lock.

    Attributes:
        name: What configuration calls it.
        mark_max: A hit raises `Entry.mark` up to here.
        soft_from: Fill (0 to 1) from which the cache asks for a victim on every put.
        timed: Whether `now_ms` is to be kept up to date.
        now_ms: Wall-clock milliseconds of the last write.
        touch: Called on a hit, without a lock; None where the mark is enough.
    """

    name: ClassVar[str]
    mark_max: ClassVar[int] = 1
    soft_from: ClassVar[float] = 1.0
    timed: ClassVar[bool] = False

    def __init__(self) -> None:
        self.now_ms = 0
        self.touch: Callable[[Entry], object] | None = None

    @abstractmethod
    def admit(self, entry: Entry) -> None:
        """Take a new entry."""

    @abstractmethod
    def forget(self, entry: Entry) -> None:
        """Let an entry go that left for another reason than room."""

    @abstractmethod
    def evict(self, pressure: float) -> Entry | None:
        """Choose a victim and let it go; amortised O(1). Must not be called while empty.

        Args:
            pressure: Fill that the cache would have without evicting; from 1 on, a victim is due.

        Returns:
            The victim, or None below a pressure of 1 where none is cold enough.
        """

    def resized(self, entry: Entry, delta: int) -> None:  # noqa: B027 - most need not know
        """Learn that an entry's cost changed by so many bytes."""

    @abstractmethod
    def clear(self) -> None:
        """Let everything go."""
