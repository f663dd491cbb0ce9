"""Between the job that owns the ledger and those that own the network: tasks out, outcomes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from sync_engine.ports import Clock
from sync_engine.transfer.tasks import Outcome, Result, Task

__all__ = ["Exchange"]

_SHARED: Final = 32
_TROUBLE: Final = (Result.FAILED, Result.MISCONFIGURED)


class Exchange:
    """Two queues, and when it is time to commit: outcomes share commits while uploaders have tasks.

    A commit for each outcome would cost as many syncs as there are steps of files. Outcomes wait
    for each other as long as nobody waits for their commit: while there are tasks to go on with,
    and at most until 32 are there. The owner of the ledger bounds the wait in time.

    Thread-safety: `put` and `next_task` from any thread, `hand_out` and `take` from the owner of
    the ledger. Never blocks.

    Args:
        clock: Time.
        wake: Wakes the owner of the ledger; called when outcomes are worth a commit.
    """

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        self._clock = clock
        self._wake = wake
        self._tasks: deque[Task] = deque()
        self._outcomes: deque[Outcome] = deque()
        self._stalled_at: float | None = None

    def hand_out(self, tasks: list[Task]) -> int:
        """Queue tasks whose rows are committed; return how many wait for an uploader now."""
        self._tasks.extend(tasks)
        return len(self._tasks)

    def next_task(self) -> Task | None:
        """Take a task; None where none waits."""
        try:
            return self._tasks.popleft()
        except IndexError:
            return None

    def put(self, outcome: Outcome) -> None:
        """Queue what came of a task, and wake the owner of the ledger where that is worth it."""
        if outcome.result not in _TROUBLE:
            self._stalled_at = None
        else:
            self.stalls()
        self._outcomes.append(outcome)
        if self.worth_a_commit:
            self._wake()

    def take(self, limit: int) -> list[Outcome]:
        """Take outcomes, oldest first, at most `limit`."""
        return [self._outcomes.popleft() for _ in range(min(limit, len(self._outcomes)))]

    @property
    def worth_a_commit(self) -> bool:
        """Whether outcomes are to be noted now."""
        count = len(self._outcomes)
        return count >= _SHARED or (count > 0 and not self._tasks)

    @property
    def unnoted(self) -> bool:
        """Whether an outcome waits to be taken."""
        return bool(self._outcomes)

    @property
    def empty(self) -> bool:
        """Whether neither a task nor an outcome waits."""
        return not (self._tasks or self._outcomes)

    def stalls(self) -> None:
        """The server is in trouble, if it was not already."""
        if self._stalled_at is None:
            self._stalled_at = self._clock.monotonic()

    @property
    def stalled_s(self) -> float:
        """Seconds since the server's trouble began; 0 without trouble."""
        stalled_at = self._stalled_at
        return 0.0 if stalled_at is None else self._clock.monotonic() - stalled_at
