"""Copies past their deadline, kept for callers who prefer an old answer to an error."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sync_engine.core.item import Change

__all__ = ["StaleCopies"]


class StaleCopies:
    """The values that L1 let go because they expired, as many as fit; the oldest leave first.

    A copy is forgotten as soon as its id is written or deleted, so what is served is never older
    than what this engine acknowledged.

    Thread-safety: all methods. Blocking: never. Cost: O(1).

    Args:
        bytes_max: Bound in bytes; 0 keeps nothing.
        lock: Makes the one lock.
    """

    def __init__(self, bytes_max: int, lock: Callable[[], AbstractContextManager[Any]]) -> None:
        self._bytes_max = bytes_max
        self._lock = lock()
        self._copies: OrderedDict[str, Change] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._copies)

    def keep(self, change: Change) -> None:
        """Take a copy whose deadline has passed, unless a newer one is known."""
        if change.content is None or change.size_bytes > self._bytes_max:
            return
        with self._lock:
            known = self._copies.pop(change.id, None)
            if known is not None:
                self._bytes -= known.size_bytes
                if known.version > change.version:
                    change = known
            self._copies[change.id] = change
            self._bytes += change.size_bytes
            while self._bytes > self._bytes_max:
                _, gone = self._copies.popitem(last=False)
                self._bytes -= gone.size_bytes

    def get(self, change_id: str) -> Change | None:
        """Return the copy of an id, however old, or None."""
        return self._copies.get(change_id)

    def discard(self, change_id: str) -> None:
        """Let go of the copy of an id."""
        with self._lock:
            gone = self._copies.pop(change_id, None)
            if gone is not None:
                self._bytes -= gone.size_bytes

    def forget(self, changes: Sequence[Change]) -> None:
        """Let go of copies that these changes supersede."""
        if self._copies:
            with self._lock:
                for change in changes:
                    known = self._copies.get(change.id)
                    if known is not None and known.version < change.version:
                        del self._copies[change.id]
                        self._bytes -= known.size_bytes
