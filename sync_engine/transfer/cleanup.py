"""Cleaning up local files once their verification is committed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from sync_engine.core import failpoints
from sync_engine.sources.file_watch import Finder, Row, State, text_of
from sync_engine.telemetry import get_logger
from sync_engine.transfer.ledger import NOT_REMOVED, REMEMBERED_MS, UploadLedger
from sync_engine.transfer.removal import Removal, put_back, take_away
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
        self._mark = ledger.own_mark()
        self._in_doubt = ledger.leaving()
        self._settled: list[tuple[int, bytes]] = []

    @property
    def unnoted(self) -> bool:
        """Whether something happened that the ledger does not know."""
        return bool(self._done or self._settled)

    def put_back(self) -> None:
        """Give files their names back that an earlier life was killed over. Blocking: disk.

        One whose directory is away, or does not allow it, waits for the next call.
        """
        waiting, self._in_doubt = self._in_doubt, []
        for root, path in waiting:
            try:
                if self._finder.alive(root):
                    put_back(self._finder.root(root), path, self._mark)
                    self._settled.append((root, path))
                    continue
            except OSError as exc:
                self._problem(path, f"not put back: {exc}")
            self._in_doubt.append((root, path))

    def add(self, row: Row) -> None:
        """Take a file whose verification is committed."""
        self._waiting.append(row)

    def clean(self) -> None:
        """Remove what was taken; outside a step of the ledger. Blocking: disk."""
        self.put_back()
        while self._waiting:
            row = self._waiting.popleft()
            if failpoints.armed:
                failpoints.hit("cleanup.before")
            try:
                removal = self._clean(row)
            except OSError as exc:
                self._problem(row.path, f"not removed: {exc}")
                removal = Removal.REFUSED
            if failpoints.armed:
                failpoints.hit("cleanup.after")
            self._done.append((row, removal))

    def _clean(self, row: Row) -> Removal:
        taken, target = row.taken, self._settings.move_to
        if taken is None:
            return Removal.CHANGED
        if not self._finder.alive(row.root):
            return Removal.REFUSED
        root = self._finder.root(row.root)
        if target is not None and self._by_root:
            target = target / os.fsdecode(root.name)
        return take_away(
            root, row.path, taken, self._mark, target=target, prune=self._settings.prune
        )

    def _problem(self, path: bytes, reason: str) -> None:
        self._steps.tally.problem(path, reason)
        _log.limited("not_removed", path=text_of(path), error=reason)

    def note(self) -> None:
        """Write down what happened, inside a step of the ledger."""
        find = self._settings.find
        for root, path in self._settled:
            self._ledger.left(root, path)
        for row, removal in self._done:
            if removal is not Removal.REFUSED:  # else it may be aside
                self._ledger.left(row.root, row.path)
            now = self._ledger.row(row.root, row.path)
            if now is None or now.state != State.VERIFIED:
                continue
            if removal in (Removal.DONE, Removal.ABSENT):
                now = self._steps.removed(now)
                self._ledger.forget_removed(now.due_ms - REMEMBERED_MS, 2)  # soon none is older
            elif removal is Removal.CHANGED:
                now = self._steps.not_removed(now)
            elif removal is Removal.WRITTEN:
                now = self._steps.remove_later(now, max(0.5, find.settle_s), "open for writing")
            else:
                now = self._steps.remove_later(now, self._settings.parked_s, NOT_REMOVED)
            self._ledger.put([now])

    def noted(self, let_go: Callable[[tuple[int, bytes]], None]) -> None:
        """Forget what happened, now that it is committed; tells of each file."""
        for row, _ in self._done:
            let_go((row.root, row.path))
        self._done.clear()
        self._settled.clear()
