"""What this engine has archived and the others may not know."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Untold"]


class Untold:
    """Tells whether positions that the archive has remain untold on the feed.

    Looked at now and then: what was archived by one look and is not told by the next one is
    *untold*. It stays so until the feed takes words again, and L2 has the values too, which others
    would read instead.

    Owned by one job.

    Args:
        archived: The archive's cursor.
        told: The feed's cursor; None where there is no feed to tell, so that everything archived
            from now on is untold.
        well: Whether feed and L2 take what they are given.
        cached: The cursor of L2; None where there is no L2.
    """

    def __init__(
        self,
        archived: Callable[[], int],
        told: Callable[[], int] | None,
        *,
        well: Callable[[], bool] = lambda: True,
        cached: Callable[[], int] | None = None,
    ) -> None:
        self._archived = archived
        begun = archived()
        self._told = told or (lambda: begun)
        self._well = well
        self._cached = cached or self._told
        self._before = begun
        self._untold = False

    def look(self) -> bool:
        """Return whether others have been left in the dark since the last look, or longer."""
        archived = self._archived()
        told = self._told()
        if not self._untold:
            self._untold = told < self._before
        elif self._well() and min(told, self._cached()) >= self._before:
            self._untold = False
        self._before = archived
        return self._untold

    def at_the_end(self) -> bool:
        """Return whether anything archived is untold at this moment, after which nobody tells."""
        return self._untold or self._told() < self._archived()
