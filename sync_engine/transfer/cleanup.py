"""Cleaning up local files once their verification is committed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from sync_engine.core import failpoints
from sync_engine.sources.file_watch import Finder, Root, Row, State, text_of
from sync_engine.telemetry import get_logger
from sync_engine.transfer.ledger import UploadLedger
from sync_engine.transfer.removal import Removal, move_file, remove_file
from sync_engine.transfer.settings import TransferSettings
from sync_engine.transfer.steps import Steps

__all__ = ["Cleaner"]

_log = get_logger("transfer")


class Cleaner:
    """Removes local files between two steps of the ledger, and notes it in the second.

    Owned by the ledger's job.

    Args:
        ledger: The ledger.
        finder: Knows whether a directory is there.
        steps: Make rows of what happened.
        settings: Whether to delete or to move.
        by_root: Whether files are moved to a directory for each root.
    """

    def __init__(
        self,
        ledger: UploadLedger,
        finder: Finder,
        steps: Steps,
        settings: TransferSettings,
        *,
        by_root: bool,
    ) -> None:
        self._ledger = ledger
        self._finder = finder
        self._steps = steps
        self._settings = settings
        self._by_root = by_root
        self._waiting: deque[Row] = deque()
        self._done: list[tuple[Row, Removal]] = []

    @property
    def unnoted(self) -> bool:
        """Whether something happened that the ledger does not know."""
        return bool(self._done)

    def add(self, row: Row) -> None:
        """Take a file whose verification is committed."""
        self._waiting.append(row)

    def clean(self) -> None:
        """Remove what was taken; outside a step of the ledger. Blocking: disk."""
        while self._waiting:
            row = self._waiting.popleft()
            if failpoints.armed:
                failpoints.hit("cleanup.before")
            try:
                removal = self._clean(row)
            except OSError as exc:
                self._steps.tally.problem(row.path, f"not removed: {exc}")
                _log.limited("not_removed", path=text_of(row.path), error=exc)
                removal = Removal.REFUSED
            if failpoints.armed:
                failpoints.hit("cleanup.after")
            self._done.append((row, removal))

    def _clean(self, row: Row) -> Removal:
        taken, settings = row.taken, self._settings
        if taken is None or not self._finder.alive(row.root):
            return Removal.CHANGED
        root: Root = self._finder.root(row.root)
        if settings.move_to is None:
            return remove_file(root, row.path, taken, prune=settings.prune)
        target = settings.move_to
        if self._by_root:
            target = target / os.fsdecode(root.name)
        return move_file(root, row.path, taken, target, prune=settings.prune)

    def note(self) -> None:
        """Write down what happened, inside a step of the ledger."""
        find = self._settings.find
        for row, removal in self._done:
            now = self._ledger.row(row.root, row.path)
            if now is None or now.state != State.VERIFIED:
                continue
            if removal in (Removal.DONE, Removal.ABSENT):
                now = self._steps.removed(now)
            elif removal is Removal.CHANGED:
                now = self._steps.not_removed(now)
            elif removal is Removal.WRITTEN:
                now = self._steps.remove_later(now, max(0.5, find.settle_s))
            else:
                now = self._steps.remove_later(now, self._settings.parked_s)
            self._ledger.put([now])

    def noted(self, let_go: Callable[[tuple[int, bytes]], None]) -> None:
        """Forget what happened, now that it is committed; tells of each file."""
        for row, _ in self._done:
            let_go((row.root, row.path))
        self._done.clear()
