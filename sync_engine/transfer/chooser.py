"""Choosing what is done next, and under which key."""

from __future__ import annotations

from typing import Final

from sync_engine.errors import StoreRejected
from sync_engine.ports import Clock
from sync_engine.sinks.s3_upload.keys import KeyTemplate
from sync_engine.sources.file_watch import Finder, Root, Row, State, text_of
from sync_engine.transfer.ledger import UploadLedger
from sync_engine.transfer.settings import TransferSettings
from sync_engine.transfer.steps import Steps
from sync_engine.transfer.tasks import Task, Work

__all__ = ["Chooser"]

_CLAIM_MAX: Final = 64
_ORDER: Final = (State.UPLOADED, State.GONE, State.UPLOADING, State.STABLE, State.PARKED)


class Chooser:
    """Makes tasks of rows that are due, inside a step of the ledger, whose owner owns it.

    Args:
        ledger: The ledger.
        finder: Knows the roots.
        steps: Park what has no key.
        template: Makes keys.
        settings: How many files, and which of them in parts.
        clock: Time.
        busy: Files under way; those of new tasks are added.
    """

    def __init__(
        self,
        ledger: UploadLedger,
        finder: Finder,
        steps: Steps,
        template: KeyTemplate,
        settings: TransferSettings,
        clock: Clock,
        busy: set[tuple[int, bytes]],
    ) -> None:
        self._ledger = ledger
        self._finder = finder
        self._steps = steps
        self._template = template
        self._settings = settings
        self._clock = clock
        self._busy = busy
        self.resumed: set[tuple[int, bytes]] = set()

    @property
    def room(self) -> int:
        """How many files may be under way."""
        return max(8, 4 * self._settings.concurrency)

    def due_in_s(self) -> float | None:
        """Return the seconds until a row is due, 0 or less where one is; None: none waits."""
        due_ms = self._ledger.next_due_ms(_ORDER)
        return None if due_ms is None else (due_ms - self._clock.now_ms()) / 1000

    def claim(self, tasks: list[Task]) -> None:
        """Add what is done next; the rows say so when this step is committed."""
        room = min(_CLAIM_MAX, self.room - len(self._busy))
        now_ms = self._clock.now_ms()
        for state in _ORDER:
            if room - len(tasks) <= 0:
                break
            for row in self._ledger.due(state, now_ms, room - len(tasks) + len(self._busy)):
                if len(tasks) >= room:
                    break
                if (row.root, row.path) in self._busy:
                    continue
                task = self._task(row)
                if task is not None:
                    tasks.append(task)
                    self._busy.add((row.root, row.path))

    def _task(self, row: Row) -> Task | None:
        key = (row.root, row.path)
        try:
            root = self._finder.root(row.root)
        except KeyError:  # a directory that is not watched any more
            self._ledger.put([row._replace(due_ms=self._clock.now_ms() + 3_600_000)])
            return None
        if row.state == State.UPLOADED:
            return Task(Work.VERIFY, root, row)
        if row.state == State.GONE:
            return Task(Work.DELETE, root, row)
        if row.state != State.UPLOADING:
            named = self.named(root, row)
            if named is None:
                return None
            row = named._replace(state=State.UPLOADING)
            self._ledger.put([row])
            self._ledger.mark("ledger.uploading")
        parts = self._ledger.parts(*key) if row.upload_id is not None else {}
        since_ms: int | None = None
        if row.key is not None and row.upload_id is None and self._in_parts(row):
            since_ms = self._ledger.intend(row.key, self._clock.now_ms())
        resumed = key in self.resumed or row.attempts > 0
        return Task(Work.UPLOAD, root, row, resumed, parts, since_ms)

    def _in_parts(self, row: Row) -> bool:
        return row.size >= self._settings.part_bytes

    def named(self, root: Root, row: Row) -> Row | None:
        """Return the row with the key of its object, or park it."""
        if row.key is not None and (row.etag is not None or row.upload_id is not None):
            return row
        try:
            key = self._template.key(
                text_of(row.path), root=text_of(root.name), time_ms=row.mtime_ns // 1_000_000
            )
        except StoreRejected as exc:
            self._ledger.put([self._steps.park(row, exc.hint)])
            return None
        owner = self._ledger.key_owner(key, row)
        if owner is not None:
            reason = f"{text_of(owner)!r} has the same key {key!r}"
            self._ledger.put([self._steps.park(row, reason)])
            return None
        return row._replace(key=key)
