"""How this engine stands towards the others: whether they see what it has archived."""

from __future__ import annotations

from collections.abc import Callable

from sync_engine.ports import Standing

__all__ = ["OwnStanding"]


class OwnStanding:
    """Compares the cursors of archive, feed and L2, now and then.

    What was archived by one look, and is not told or not in L2 by the next one, is missing. Words
    stay missing until the feed takes words again and L2 has the values, too: others, who do not
    know of them, would read the older ones there.

    Owned by one job.

    Args:
        archived: The archive's cursor.
        told: The feed's cursor; None where there is no feed to tell, so that everything archived
            from now on is untold.
        healthy: Whether the feed takes words.
        cached: The cursor of L2.
    """

    def __init__(
        self,
        archived: Callable[[], int],
        told: Callable[[], int] | None = None,
        healthy: Callable[[], bool] = lambda: False,
        cached: Callable[[], int] | None = None,
    ) -> None:
        self._archived = archived
        begun = archived()
        self._told = told or (lambda: begun)
        self._healthy = healthy
        self._cached = cached or self._told
        self._before = begun
        self._standing = Standing.SEEN

    def look(self) -> Standing:
        """Return whether others have missed something since the last look, or longer."""
        archived = self._archived()
        told, cached = self._told() >= self._before, self._cached() >= self._before
        if self._standing is Standing.UNTOLD:
            told = told and cached and self._healthy()
        self._before = archived
        if not told:
            self._standing = Standing.UNTOLD
        else:
            self._standing = Standing.SEEN if cached else Standing.UNCACHED
        return self._standing

    def at_the_end(self) -> Standing:
        """Return how it stands at this moment, after which nobody tells anything."""
        if self._told() < self._archived():
            return Standing.UNTOLD
        return self._standing
