"""Who waits for which follower to reach which position."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from sync_engine.ports import ChangeLog, Runtime

__all__ = ["Arrivals"]


class Arrivals:
    """Calls back, once, when a cursor reaches a position.

    Thread-safety: all methods. Callbacks run in the follower's thread and must be short.
    """

    def __init__(self, log: ChangeLog, runtime: Runtime) -> None:
        self._log = log
        self._runtime = runtime
        self._lock = runtime.lock()
        self._order = itertools.count()
        self._waiting: dict[str, list[tuple[int, int, Callable[[], None]]]] = {}

    def when(self, follower: str, position: int, callback: Callable[[], None]) -> None:
        """Call back as soon as a follower has passed a position; at once if it has."""
        with self._lock:
            if self._log.cursor(follower) < position:
                heap = self._waiting.setdefault(follower, [])
                heapq.heappush(heap, (position, next(self._order), callback))
                return
        callback()

    def wait(self, follower: str, position: int, timeout_s: float | None) -> bool:
        """Block until a follower has passed a position; return False at the timeout."""
        if self._log.cursor(follower) >= position:
            return True
        event = self._runtime.event()
        self.when(follower, position, event.set)
        return event.wait(timeout_s) or self._log.cursor(follower) >= position

    def reached(self, follower: str) -> None:
        """Call back everybody that a follower's cursor has passed."""
        if not self._waiting.get(follower):
            return
        due = []
        with self._lock:
            heap = self._waiting[follower]
            position = self._log.cursor(follower)
            while heap and heap[0][0] <= position:
                due.append(heapq.heappop(heap)[2])
        for callback in due:
            callback()
