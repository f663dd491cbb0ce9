"""The program: watch directories, upload what is finished, clean up what is verified."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sync_engine.core import failpoints
from sync_engine.errors import ConfigError, StorageError, StoreRejected
from sync_engine.ports import Runtime
from sync_engine.s3 import S3Address, S3Client, S3Settings
from sync_engine.sinks.s3_upload.keys import KeyTemplate
from sync_engine.sources.file_watch import (
    Finder,
    Root,
    Row,
    State,
    Tree,
    Waker,
    make_watcher,
    text_of,
)
from sync_engine.sources.file_watch.watcher import PollWatcher
from sync_engine.telemetry import get_logger
from sync_engine.transfer.ledger import UploadLedger
from sync_engine.transfer.removal import Removal, move_file, remove_file
from sync_engine.transfer.settings import (
    After,
    Overwrite,
    TransferSettings,
    roots_of,
    template_of,
)
from sync_engine.transfer.steps import Steps
from sync_engine.transfer.tasks import Outcome, Result, Task, Work
from sync_engine.transfer.uploader import Uploader

__all__ = ["FilesToS3", "Planned", "Progress"]

_log = get_logger("transfer")
_CLAIM_MAX: Final = 64
_WAIT_S_MAX: Final = 0.5
_JOB: Final = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far it is.

    Attributes:
        files: Rows of the ledger by state, names in lower case.
        open: Files found and not yet verified (or, where asked, cleaned up).
        uploaded: Objects stored by this process.
        uploaded_bytes: Their bytes.
        verified: Objects that were found whole at the server.
        removed: Local files deleted or moved.
        deleted: Objects deleted because their files were.
        changed: Files that changed while they were uploaded, or before they were removed.
        retries: Attempts beyond the first.
        parked: Files put aside.
        ignored: Files left alone since their key was taken.
        overflows: How often the watcher lost events and noticed.
        rescans: Scans out of turn.
        scans: Scans in all.
        commits: Commits of the ledger.
        watcher: Its name.
        idle: Whether all that is there was looked at and nothing waits.
        errors: What keeps files from being found or sent.
        problems: Paths and reasons of the last files that were put aside.
    """

    files: dict[str, int]
    open: int
    uploaded: int
    uploaded_bytes: int
    verified: int
    removed: int
    deleted: int
    changed: int
    retries: int
    parked: int
    ignored: int
    overflows: int
    rescans: int
    scans: int
    commits: int
    watcher: str
    idle: bool
    errors: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Planned:
    """What would be done with a file.

    Attributes:
        action: ``upload``, ``delete`` or ``park``.
        path: Of the file.
        key: Of the object.
        size: Bytes.
        reason: With ``park``.
    """

    action: str
    path: str
    key: str
    size: int
    reason: str = ""


class FilesToS3:
    """Uploads the files of directories as they are finished; see `TransferSettings`.

    One job owns the ledger and the directories; `TransferSettings.concurrency` jobs own the
    network. Every step of a file is committed before the next begins, many files at a time, so that
    the process may be killed at any moment: the next one goes on from there. A local file is
    removed only after the server was asked and has it whole, and only while device, inode, size and
    time of change are those that were read.

    Thread-safety: `progress` and `stop` from any thread.

    Args:
        directories: What to watch; those inside another are left out.
        address: Bucket and prefix.
        s3: How to reach it.
        ledger: The SQLite file; of one set of directories and one target.
        settings: How.
        runtime: Threads and time.

    Raises:
        ConfigError: A directory is not there, or settings do not go together.
    """

    def __init__(
        self,
        directories: list[Path],
        address: S3Address,
        s3: S3Settings,
        ledger: Path,
        settings: TransferSettings,
        runtime: Runtime,
    ) -> None:
        self.settings = settings
        self.address = address
        self._roots = roots_of(directories, settings.move_to)
        if not self._roots:
            raise ConfigError("name a directory to watch")
        self._template = KeyTemplate(address, template_of(settings, len(self._roots)))
        if "{root}" in self._template.template:
            names = [os.path.basename(path) for path in self._roots]  # noqa: PTH119 - bytes
            if len(set(names)) < len(names):
                raise ConfigError("two watched directories have the same name: set key_template")
        elif len(self._roots) > 1:
            raise ConfigError("with several directories the key template needs {root}")
        self._s3_settings = s3
        self._path = ledger
        self._runtime = runtime
        self._clock = runtime.clock
        self._client: S3Client | None = None
        self._waker = Waker()
        self._tasks: deque[Task] = deque()
        self._outcomes: deque[Outcome] = deque()
        self._noting: list[Outcome] = []
        self._busy: set[tuple[int, bytes]] = set()
        self._cleanup: deque[Row] = deque()
        self._cleaned: list[tuple[Row, Removal]] = []
        self._jobs: list[str] = []
        self._stopping = False
        self._open_ledger = False
        self._did = True
        self._resumed: set[tuple[int, bytes]] = set()
        self._upload_ids: set[str] = set()
        self._counted_at = -math.inf
        self._fault = ""
        self._progress: Progress | None = None
        self._uploader: Uploader | None = None

    # -- lifecycle --------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the ledger, look at the bucket, start the jobs.

        Raises:
            ConfigError: Bucket, credentials or ledger cannot be used, or the endpoint does not
                honour the conditional writes that ``overwrite = 'error'`` needs.
            StoreUnavailable: The ledger cannot be written. A server that is away is waited for.
        """
        self._open(UploadLedger(self._path), watch=True)
        self._open_ledger = True
        client = S3Client(self._s3_settings, self._runtime)
        self._client = client
        self._uploader = Uploader(client, self.address.bucket, self.settings, self._put_outcome)
        try:
            with suppress(StorageError):
                client.head_bucket(self.address.bucket)
            self._probe()
        except ConfigError:
            self.stop(0.0)
            raise
        with self._ledger.step():
            now_ms = self._clock.now_ms()
            for state in (State.UPLOADING, State.UPLOADED, State.GONE, State.PARKED):
                self._ledger.make_due(state, now_ms)
            for row in self._ledger.in_state(State.UPLOADING, 10_000):
                self._resumed.add((row.root, row.path))
            self._upload_ids |= self._ledger.upload_ids()
            if self.settings.after != After.KEEP:
                self._ledger.again(State.VERIFIED, State.UPLOADED, now_ms)
        self._runtime.add_job(_JOB, self.step)
        self._jobs.append(_JOB)
        self._runtime.add_job("orphans", self._step_orphans)
        self._jobs.append("orphans")
        for number in range(self.settings.concurrency):
            name = f"upload-{number}"
            self._runtime.add_job(name, self._step_upload)
            self._jobs.append(name)

    def _open(self, ledger: UploadLedger, *, watch: bool) -> None:
        self._ledger = ledger
        settings = self.settings
        try:
            ledger.bind("target", f"{self._s3_settings.endpoint} {self.address}")
            roots = [ledger.root(path) for path in self._roots]
            patterns = settings.patterns()
            watcher = make_watcher(settings.backend, patterns) if watch else PollWatcher()
        except BaseException:
            ledger.close()
            raise
        self._steps = Steps(ledger, settings, self._runtime)
        self.finder = Finder(
            ledger,
            roots,
            Tree(patterns),
            watcher,
            settings.find,
            self._clock,
            busy=self._busy.__contains__,
            waiting=self._steps.cleans,
        )

    def _probe(self) -> None:
        """Learn whether conditional writes work, where the policy needs them."""
        overwrite = self.settings.overwrite
        if overwrite == Overwrite.REPLACE or self._client is None or self._uploader is None:
            return
        honoured = self._client.supports_conditional_writes(
            self.address.bucket, self._template.prefix
        )
        self._uploader.conditional = honoured
        if honoured:
            return
        if overwrite == Overwrite.ERROR:
            raise ConfigError(
                "overwrite = 'error': this endpoint ignores conditional writes, so that another "
                "writer's object could be replaced unseen; use 'if_absent' or 'version_suffix'"
            )
        _log.warning(
            "conditional_writes_ignored",
            overwrite=overwrite,
            hint="looked at before each write instead: two writers at one moment can collide",
        )

    def stop(self, timeout_s: float) -> list[str]:
        """Let uploads under way end, note what came of them, close everything; safe twice.

        Args:
            timeout_s: Seconds to wait; an upload that takes longer is done again by the next run.

        Returns:
            Names of jobs that did not end in time.
        """
        self._stopping = True
        until = self._clock.monotonic() + timeout_s
        self._waker.wake()
        names, self._jobs = self._jobs, []
        stuck = [
            name for name in reversed(names)
            if not self._runtime.remove_job(name, max(0.0, until - self._clock.monotonic()))
        ]  # fmt: skip
        if self._open_ledger and _JOB not in stuck:
            self._open_ledger = False
            with suppress(StorageError):
                self._note_all()
            self._count()
            self.finder.watcher.close()
            self._ledger.close()
        if self._client is not None:
            self._client.close()
        return stuck

    def _note_all(self) -> None:
        """Apply what came of the last uploads."""
        while self._outcomes or self._cleaned or self._noting:
            with self._ledger.step():
                finished = self._apply_outcomes()
            self._after_commit(finished)
            self._clean_up()

    # -- what people see --------------------------------------------------------------------------

    def progress(self) -> Progress:
        """Return how far it is; at most a second old. Never blocks.

        Raises:
            ConfigError: It was not started.
        """
        if self._progress is None:
            raise ConfigError("not started, or nothing was looked at yet")
        return self._progress

    @property
    def started(self) -> bool:
        """Whether there is a `progress` to look at."""
        return self._progress is not None

    def parked(self, limit: int = 1000) -> list[tuple[str, str]]:
        """Return paths and reasons of parked files; only before `start` or after `stop`."""
        ledger = UploadLedger(None, copy_of=self._path)
        try:
            return [(text_of(r.path), r.reason) for r in ledger.in_state(State.PARKED, limit)]
        finally:
            ledger.close()

    def _count(self) -> None:
        counts = self._ledger.counts()
        tally, finder = self._steps.tally, self.finder
        waiting = counts.get(State.VERIFIED, 0) if self.settings.after != After.KEEP else 0
        open_ = self._ledger.open_count() + waiting
        errors = [f"{root}: {why}" for root, why in finder.errors.items()]
        errors += [e for e in (finder.held_back, self._steps.error, self._fault) if e]
        idle = finder.idle and not (open_ or self._busy or self._outcomes or self._cleaned)
        self._progress = Progress(
            files={state.name.lower(): count for state, count in counts.items()},
            open=open_,
            uploaded=tally.uploaded,
            uploaded_bytes=tally.uploaded_bytes,
            verified=tally.verified,
            removed=tally.removed,
            deleted=tally.deleted,
            changed=tally.changed,
            retries=tally.retries + (self._client.retries if self._client is not None else 0),
            parked=counts.get(State.PARKED, 0),
            ignored=tally.ignored,
            overflows=finder.watcher.overflows,
            rescans=finder.rescans,
            scans=finder.scans,
            commits=self._ledger.commits,
            watcher=finder.watcher.name,
            idle=idle,
            errors=errors,
            problems=[(text_of(path), reason) for path, reason in tally.problems],
        )
        self._counted_at = self._clock.monotonic()

    # -- the job that owns files and ledger -------------------------------------------------------

    def step(self) -> float:
        """Look, note, hand out, clean up: one bounded round; blocks up to half a second.

        Raises:
            StoreUnavailable: The ledger cannot be written; everything is looked at again.
        """
        if not self._stopping:
            self.finder.read(self._wait_s(), self._waker)
        tasks: list[Task] = []
        try:
            with self._ledger.step():
                finished = self._apply_outcomes()
                self._did = False if self._stopping else self.finder.work()
                if not self._stopping:
                    self._claim(tasks)
        except BaseException as exc:
            self.finder.failed()
            self._fault = str(exc)
            self._busy.difference_update((task.row.root, task.row.path) for task in tasks)
            raise
        self._fault = ""
        self._after_commit(finished)
        self._hand_out(tasks)
        self._clean_up()
        self._did = self._did or bool(tasks)
        quiet = not (self._did or self._busy)
        if quiet or self._clock.monotonic() - self._counted_at > 0.5:
            self._count()
        return 0.0

    def _wait_s(self) -> float:
        if self._did or self._outcomes or self._cleaned:
            return 0.0
        wait_s = min(_WAIT_S_MAX, self.finder.wait_s())
        due_ms = self._ledger.next_due_ms(
            [State.STABLE, State.UPLOADING, State.UPLOADED, State.GONE, State.PARKED]
        )
        if due_ms is not None and len(self._busy) < self._room:
            due_s = (due_ms - self._clock.now_ms()) / 1000
            wait_s = min(wait_s, due_s if due_s > 0 or not self._busy else 0.02)
        return max(0.0, wait_s)

    @property
    def _room(self) -> int:
        return max(8, 4 * self.settings.concurrency)

    def _apply_outcomes(self) -> list[tuple[Outcome, Row | None]]:
        while self._outcomes and len(self._noting) < 4 * _CLAIM_MAX:
            self._noting.append(self._outcomes.popleft())
        applied = [(outcome, self._steps.apply(outcome)) for outcome in self._noting]
        settings = self.settings
        for row, removal in self._cleaned:
            now = self._ledger.row(row.root, row.path)
            if now is None or now.state != State.VERIFIED:
                continue
            if removal in (Removal.DONE, Removal.ABSENT):
                now = self._steps.removed(now)
            elif removal is Removal.CHANGED:
                now = self._steps.not_removed(now)
            elif removal is Removal.WRITTEN:
                now = self._steps.remove_later(now, max(0.5, settings.find.settle_s))
            else:
                now = self._steps.remove_later(now, settings.parked_s)
            self._ledger.put([now])
        return applied

    def _after_commit(self, applied: list[tuple[Outcome, Row | None]]) -> None:
        """Let go of files whose task has ended, now that it is noted."""
        for cleaned, _ in self._cleaned:
            self._busy.discard((cleaned.root, cleaned.path))
        self._cleaned.clear()
        self._noting.clear()
        for outcome, row in applied:
            key = (outcome.task.row.root, outcome.task.row.path)
            if outcome.result is Result.PART:
                continue
            self._busy.discard(key)
            self._resumed.discard(key)
            if row is not None and self._steps.cleans(row):
                self._busy.add(key)
                self._cleanup.append(row)

    # -- handing out ------------------------------------------------------------------------------

    def _claim(self, tasks: list[Task]) -> None:
        """Choose what is done next; the rows say so when this step is committed."""
        room = min(_CLAIM_MAX, self._room - len(self._busy))
        now_ms = self._clock.now_ms()
        for state in (State.UPLOADED, State.GONE, State.UPLOADING, State.STABLE, State.PARKED):
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
            root = self.finder.root(row.root)
        except KeyError:  # a directory that is not watched any more
            self._ledger.put([row._replace(due_ms=self._clock.now_ms() + 3_600_000)])
            return None
        if row.state == State.UPLOADED:
            return Task(Work.VERIFY, root, row)
        if row.state == State.GONE:
            return Task(Work.DELETE, root, row)
        if row.state != State.UPLOADING:
            named = self._named(root, row)
            if named is None:
                return None
            row = named._replace(state=State.UPLOADING)
            self._ledger.put([row])
            self._ledger.mark("ledger.uploading")
        parts = self._ledger.parts(*key) if row.upload_id is not None else {}
        return Task(Work.UPLOAD, root, row, key in self._resumed or row.attempts > 0, parts)

    def _named(self, root: Root, row: Row) -> Row | None:
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

    def _hand_out(self, tasks: list[Task]) -> None:
        self._tasks.extend(tasks)
        for number in range(min(len(self._tasks), self.settings.concurrency)):
            self._runtime.wake(f"upload-{number}")

    # -- the jobs that own the network ------------------------------------------------------------

    def _step_upload(self) -> float:
        if self._stopping or self._uploader is None:
            return math.inf
        try:
            task = self._tasks.popleft()
        except IndexError:
            return math.inf
        self._put_outcome(self._uploader.do(task))
        return 0.0

    def _put_outcome(self, outcome: Outcome) -> None:
        if outcome.result is Result.BEGUN and outcome.upload_id is not None:
            self._upload_ids.add(outcome.upload_id)
        self._outcomes.append(outcome)
        self._waker.wake()

    def _step_orphans(self) -> float:
        """Abort uploads in parts below our prefix that nobody goes on with."""
        if self._client is None or math.isinf(self.settings.orphan_age_s):
            return math.inf
        before_ms = self._clock.now_ms() - self.settings.orphan_age_s * 1000
        client, bucket = self._client, self.address.bucket
        with suppress(StorageError, ConfigError):
            for upload in list(client.list_uploads(bucket, self._template.prefix)):
                ours = upload.upload_id in self._upload_ids
                if upload.started_ms < before_ms and not ours and not self._stopping:
                    client.abort_multipart(bucket, upload.key, upload.upload_id)
                    _log.info("orphan_aborted", key=upload.key)
        return 3600.0

    # -- cleaning up ------------------------------------------------------------------------------

    def _clean_up(self) -> None:
        """Remove local files whose verification is committed."""
        while self._cleanup:
            row = self._cleanup.popleft()
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
            self._cleaned.append((row, removal))

    def _clean(self, row: Row) -> Removal:
        taken, settings = row.taken, self.settings
        if taken is None or not self.finder.alive(row.root):
            return Removal.CHANGED
        root = self.finder.root(row.root)
        if settings.move_to is None:
            return remove_file(root, row.path, taken, prune=settings.prune)
        target = settings.move_to
        if "{root}" in self._template.template:
            target = target / os.fsdecode(root.name)
        return move_file(root, row.path, taken, target, prune=settings.prune)

    # -- trying ----------------------------------------------------------------------------------

    def plan(self) -> Iterator[Planned]:
        """Yield what a run would do now; changes nothing, here or there.

        The ledger is read, not written; the server is not asked. Files that are not finished are
        named as if they were.

        Raises:
            ConfigError: The ledger is of another target, or is in use.
        """
        self._open(UploadLedger(None, copy_of=self._path), watch=False)
        ledger, finder = self._ledger, self.finder
        try:
            while True:
                with ledger.step():
                    finder.work()
                if finder.idle:
                    break
            for number, path in [(ledger.root(path).number, path) for path in self._roots]:
                after: bytes | None = None
                while rows := ledger.page(number, after, 500):
                    after = rows[-1].path
                    for row in rows:
                        yield from self._planned(Root(number, path), row)
        finally:
            ledger.close()

    def _planned(self, root: Root, row: Row) -> Iterator[Planned]:
        path = os.fsdecode(root.path) + "/" + text_of(row.path)
        if row.state == State.GONE:
            yield Planned("delete", path, row.key or "", 0)
        elif row.state in (State.SEEN, State.STABLE, State.UPLOADING, State.PARKED):
            with self._ledger.step():
                named = self._named(root, row)
            if named is None:
                parked = self._ledger.row(row.root, row.path)
                reason = "" if parked is None else parked.reason
                yield Planned("park", path, "", row.size, reason)
            else:
                if named.key is not None and row.key is None:
                    with self._ledger.step():
                        self._ledger.put([named])
                yield Planned("upload", path, named.key or "", row.size)
