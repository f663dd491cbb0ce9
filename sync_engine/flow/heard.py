"""What others were heard to have written: the versions below which an answer is old."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sync_engine.core.item import Change
from sync_engine.ports import NearCache

__all__ = ["Gate", "Heard"]

_IDS_MAX = 100_000


class _ClearableCache(NearCache, Protocol):
    def clear(self) -> None: ...


class Heard:
    """The newest version of each id that another engine was heard to have archived.

    L2 may hold an older value for a moment, because every engine delivers to L2 and L3 at its own
    pace; and this engine's own older change may only now leave the log. Both are held against what
    was heard. The oldest are forgotten once there are `ids_max`; `horizon` then says which versions
    nothing is known of any more.

    Thread-safety: one writer, any number of readers.
    """

    def __init__(self, ids_max: int = _IDS_MAX) -> None:
        self._ids_max = ids_max
        self._versions: dict[str, int] = {}
        self.horizon = 0

    def __len__(self) -> int:
        return len(self._versions)

    def __bool__(self) -> bool:
        """Tell whether anything was ever heard."""
        return bool(self._versions) or self.horizon > 0

    def note(self, changes: Sequence[Change]) -> None:
        """Take what another engine has archived."""
        versions = self._versions
        for change in changes:
            known = versions.pop(change.id, 0)
            versions[change.id] = max(known, change.version)
        while len(versions) > self._ids_max:
            self.horizon = max(self.horizon, versions.pop(next(iter(versions))))

    def version(self, change_id: str) -> int:
        """Return the version heard of an id; 0 where none is remembered."""
        return self._versions.get(change_id, 0)

    def outdates(self, change: Change) -> bool:
        """Tell whether a change is, or may be, older than what was heard."""
        heard = self._versions.get(change.id)
        return change.version < (self.horizon if heard is None else heard)


class Gate:
    """The way into L1: shut while nobody can say whether what it holds is old.

    Implements `ports.NearCache`. A value that was on its way in while the gate was shut, even if it
    is open again by then, does not stay.

    Args:
        l1: The cache behind it; reads go there.
        heard: What others have written.
        lock: Guards opening and shutting.
    """

    def __init__(
        self, l1: _ClearableCache, heard: Heard, lock: AbstractContextManager[Any]
    ) -> None:
        self._l1 = l1
        self._heard = heard
        self._lock = lock
        self._turn = 0  # even is open
        self.get = l1.get
        self.discard = l1.discard
        self.discard_many = l1.discard_many

    @property
    def is_open(self) -> bool:
        """Whether L1 takes anything."""
        return self._turn % 2 == 0

    def shut(self) -> None:
        """Empty L1, and let nothing in."""
        with self._lock:
            if self.is_open:
                self._turn += 1
        self._l1.clear()

    def open(self) -> None:
        """Let values in again, beginning with nothing."""
        with self._lock:
            if not self.is_open:
                self._turn += 1
        self._l1.clear()

    def put(self, change: Change) -> None:
        """Take a change if it is newer than the one known."""
        self.put_many((change,))

    def put_many(self, changes: Sequence[Change]) -> None:
        """Take several, without those that others were heard to have replaced."""
        turn = self._turn
        if turn % 2:
            return
        heard = self._heard
        if heard:
            old = [change.id for change in changes if heard.outdates(change)]
            if old:
                changes = [change for change in changes if not heard.outdates(change)]
                self._l1.discard_many(old)
        if len(changes) == 1:
            self._l1.put(changes[0])
        else:
            self._l1.put_many(changes)
        if self._turn != turn:
            self._l1.discard_many([change.id for change in changes])
        elif heard:  # something may have been heard between the look and the put
            late = [change.id for change in changes if heard.outdates(change)]
            if late:
                self._l1.discard_many(late)
