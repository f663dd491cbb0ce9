"""What an outcome makes of a row: every transition of the ledger that an upload causes."""

from __future__ import annotations

from dataclasses import dataclass, field

from sync_engine.errors import StoreRejected
from sync_engine.ports import Runtime
from sync_engine.sources.file_watch import Row, State
from sync_engine.transfer.ledger import UploadLedger
from sync_engine.transfer.settings import After, Overwrite, TransferSettings
from sync_engine.transfer.tasks import Outcome, Result, Work

__all__ = ["Steps", "Tally"]

_MISCONFIGURED_MS = 5_000


@dataclass(slots=True)
class Tally:
    """What happened so far, in numbers."""

    uploaded: int = 0
    uploaded_bytes: int = 0
    verified: int = 0
    removed: int = 0
    deleted: int = 0
    changed: int = 0
    retries: int = 0
    parked: int = 0
    ignored: int = 0
    problems: list[tuple[bytes, str]] = field(default_factory=list)

    def problem(self, path: bytes, reason: str) -> None:
        """Keep a reason for people to see, each once; the last hundred."""
        if (path, reason) not in self.problems:
            self.problems.append((path, reason))
            del self.problems[:-100]


class Steps:
    """Applies outcomes, inside a step of the ledger.

    Args:
        ledger: The ledger.
        settings: How often to try again, and what comes after an upload.
        runtime: Time and randomness.
    """

    def __init__(self, ledger: UploadLedger, settings: TransferSettings, runtime: Runtime) -> None:
        self._ledger = ledger
        self._settings = settings
        self._clock = runtime.clock
        self._random = runtime.random
        self.tally = Tally()
        self.error = ""

    def apply(self, outcome: Outcome) -> Row | None:
        """Change the row of a file; return the new one, None where it was forgotten."""
        row = self._ledger.row(outcome.task.row.root, outcome.task.row.path)
        if row is None:
            return None
        works = {
            Result.BEGUN: self._begun,
            Result.PART: self._part,
            Result.UPLOADED: self._uploaded,
            Result.VERIFIED: self._verified,
            Result.DELETED: self._deleted,
            Result.CHANGED: self._changed,
            Result.VANISHED: self._vanished,
            Result.TAKEN: self._taken,
            Result.DIFFERENT: self._failed,
            Result.FAILED: self._failed,
            Result.REJECTED: self._rejected,
            Result.MISCONFIGURED: self._misconfigured,
        }
        new = works[outcome.result](row, outcome)
        if new is None:
            self._ledger.drop([(row.root, row.path)])
        elif new is not row:
            self._ledger.put([new])
        return new

    # -- the way of a file ------------------------------------------------------------------------

    def _begun(self, row: Row, outcome: Outcome) -> Row:
        self.tally.changed += row.upload_id is not None  # one of an older content was given up
        self._ledger.drop_parts(row.root, row.path)
        if outcome.upload_id is not None:
            now_ms = self._clock.now_ms()
            self._ledger.begun(outcome.upload_id, row.key or outcome.key, outcome.key, now_ms)
        self._ledger.mark("ledger.begun")
        return self._with_taken(row, outcome)._replace(
            upload_id=outcome.upload_id, due_ms=self._clock.now_ms()
        )

    def _part(self, row: Row, outcome: Outcome) -> Row:
        if outcome.part is not None and row.upload_id == outcome.upload_id:
            self._ledger.add_parts(row.root, row.path, [outcome.part])
            self._ledger.mark("ledger.part")
        return row

    def _uploaded(self, row: Row, outcome: Outcome) -> Row:
        self.error = ""
        self.tally.uploaded += 1
        self.tally.uploaded_bytes += outcome.digests.size if outcome.digests else 0
        self._ledger.drop_parts(row.root, row.path)
        self._ledger.mark("ledger.uploaded")
        return self._with_taken(row, outcome)._replace(
            state=State.UPLOADED, upload_id=None, due_ms=self._clock.now_ms()
        )

    def _with_taken(self, row: Row, outcome: Outcome) -> Row:
        digests, taken = outcome.digests, outcome.taken
        if digests is None or taken is None:
            raise StoreRejected("transfer", "apply", "an upload without digests")
        return row._replace(
            key=outcome.key,
            etag=outcome.etag or row.etag,
            digest=digests.text(),
            t_dev=taken.dev,
            t_ino=taken.ino,
            t_size=taken.size,
            t_mtime_ns=taken.mtime_ns,
        )

    def _verified(self, row: Row, outcome: Outcome) -> Row:
        self.tally.verified += 1
        self._ledger.mark("ledger.verified")
        row = row._replace(etag=outcome.etag or row.etag, attempts=0, reason="")
        if row.seen != row.taken:
            self.tally.changed += 1
            return self._seen_again(row)
        row = row._replace(state=State.VERIFIED, due_ms=self._clock.now_ms())
        if self.cleans(row):
            self._ledger.leave(row.root, row.path)
        return row

    def removed(self, row: Row) -> Row:
        """Return the row of a file that was cleaned up."""
        self.tally.removed += 1
        self._ledger.mark("ledger.removed")
        return row._replace(state=State.REMOVED, size=-1, due_ms=self._clock.now_ms())

    def not_removed(self, row: Row) -> Row:
        """Return the row of a file that is not the one that was uploaded any more."""
        self.tally.changed += 1
        return self._seen_again(row)

    def remove_later(self, row: Row, pause_s: float, reason: str) -> Row:
        """Return the row of a file that cannot be cleaned up now; it is verified again then."""
        due_ms = self._clock.now_ms() + round(pause_s * 1000)
        return row._replace(state=State.UPLOADED, due_ms=due_ms, reason=reason)

    def _deleted(self, row: Row, outcome: Outcome) -> Row | None:
        del outcome
        self.tally.deleted += 1
        self._ledger.mark("ledger.deleted")
        if row.size >= 0:  # it came back meanwhile
            return self._seen_again(row._replace(etag=None))
        return None

    # -- detours ----------------------------------------------------------------------------------

    def _seen_again(self, row: Row) -> Row:
        now_ms = self._clock.now_ms()
        settle_ms = round(self._settings.find.settle_s * 1000)
        return row._replace(
            state=State.SEEN, closed=0, first_ms=now_ms, due_ms=now_ms + settle_ms, reason=""
        )

    def _changed(self, row: Row, outcome: Outcome) -> Row:
        del outcome
        self.tally.changed += 1
        self._ledger.drop_parts(row.root, row.path)
        return self._seen_again(row._replace(upload_id=None))

    def _vanished(self, row: Row, outcome: Outcome) -> Row | None:
        del outcome
        if row.etag is None:
            return None
        # The target has an older content: what becomes of it is for the next scan to say.
        return self._seen_again(row._replace(upload_id=None))

    def _taken(self, row: Row, outcome: Outcome) -> Row:
        row = row._replace(upload_id=None, reason=outcome.reason)
        if self._settings.overwrite == Overwrite.IF_ABSENT:
            self.tally.ignored += 1
            return row._replace(state=State.IGNORED)
        return self._parked(row)

    def _parked(self, row: Row) -> Row:
        self.tally.parked += 1
        self.tally.problem(row.path, row.reason)
        self._ledger.mark("ledger.parked")
        due_ms = self._clock.now_ms() + round(min(self._settings.parked_s, 1e9) * 1000)
        return row._replace(state=State.PARKED, due_ms=due_ms)

    def park(self, row: Row, reason: str) -> Row:
        """Return the row of a file that cannot be taken."""
        return self._parked(row._replace(reason=reason))

    def _rejected(self, row: Row, outcome: Outcome) -> Row:
        if outcome.task.work is Work.DELETE:
            return self._later(row, outcome)
        return self._parked(
            row._replace(
                reason=outcome.reason, upload_id=outcome.upload_id, attempts=row.attempts + 1
            )
        )

    def _failed(self, row: Row, outcome: Outcome) -> Row:
        if outcome.result is Result.DIFFERENT:
            row = row._replace(state=State.STABLE)
        attempts = row.attempts + 1
        if outcome.task.work is Work.DELETE or self._settings.retry.allows(attempts):
            return self._later(row, outcome)
        return self._parked(row._replace(attempts=attempts, reason=outcome.reason))

    def _later(self, row: Row, outcome: Outcome) -> Row:
        self.tally.retries += 1
        attempts = row.attempts + 1
        pause_s = self._settings.retry.delay_s(attempts, self._random())
        pause_s = max(pause_s, outcome.retry_after_s)
        return row._replace(
            attempts=attempts,
            due_ms=self._clock.now_ms() + round(pause_s * 1000),
            reason=outcome.reason,
        )

    def _misconfigured(self, row: Row, outcome: Outcome) -> Row:
        self.error = outcome.reason
        return row._replace(due_ms=self._clock.now_ms() + _MISCONFIGURED_MS, reason=outcome.reason)

    def cleans(self, row: Row) -> bool:
        """Tell whether the local file of a verified row is still to be cleaned up."""
        return self._settings.after != After.KEEP and row.state == State.VERIFIED
