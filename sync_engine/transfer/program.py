"""The program: watch directories, upload what is finished, clean up what is verified."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from sync_engine.errors import ConfigError, StorageError
from sync_engine.ports import Runtime
from sync_engine.s3 import S3Address, S3Client, S3Settings
from sync_engine.sinks.s3_upload.keys import KeyTemplate
from sync_engine.sources.file_watch import Finder, Row, State, Tree, Waker, make_watcher, text_of
from sync_engine.sources.file_watch.watcher import PollWatcher
from sync_engine.telemetry import get_logger
from sync_engine.transfer.chooser import Chooser
from sync_engine.transfer.cleanup import Cleaner
from sync_engine.transfer.exchange import Exchange
from sync_engine.transfer.ledger import REMEMBERED_MS, UploadLedger
from sync_engine.transfer.orphans import Orphans
from sync_engine.transfer.plan import plan
from sync_engine.transfer.progress import Planned, Progress
from sync_engine.transfer.settings import (
    After,
    Overwrite,
    TransferSettings,
    roots_of,
    template_of,
)
from sync_engine.transfer.steps import Steps
from sync_engine.transfer.tasks import Outcome, Result, Task
from sync_engine.transfer.uploader import Uploader

__all__ = ["FilesToS3"]

_log = get_logger("transfer")
_NOTED_MAX: Final = 256
_WAIT_S_MAX: Final = 0.5
_SHARE_S: Final = 0.1
_STEP_S: Final = 2.0
"""The ledger's job waits for no server: its last step is worth waiting for."""
_JOB: Final = "files"


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
        self._exchange = Exchange(self._clock, self._waker.wake)
        self._noting: list[Outcome] = []
        self._busy: set[tuple[int, bytes]] = set()
        self._jobs: list[str] = []
        self._stopping = False
        self._open_ledger = False
        self._did = True
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
            StoreUnavailable: The ledger cannot be written; or conditional writes are needed, and
                the server is away. With ``overwrite = 'replace'`` it is waited for.
        """
        self._open(UploadLedger(self._path), watch=True)
        self._open_ledger = True
        client = S3Client(self._s3_settings, self._runtime)
        self._client = client
        self._uploader = Uploader(client, self.address.bucket, self.settings, self._put_outcome)
        try:
            try:
                client.head_bucket(self.address.bucket)
            except StorageError:
                self._exchange.stalls()
            self._probe()
        except (ConfigError, StorageError):
            self.stop(0.0)
            raise
        with self._ledger.step():
            now_ms = self._clock.now_ms()
            for state in (State.UPLOADING, State.UPLOADED, State.GONE, State.PARKED):
                self._ledger.make_due(state, now_ms)
            for row in self._ledger.in_state(State.UPLOADING, 10_000):
                self._chooser.resumed.add((row.root, row.path))
            known = self._ledger.uploads_begun(now_ms - REMEMBERED_MS)
            self._orphans = Orphans(
                known, self._ledger.upload_ids(), self._ledger.intents(), self._clock
            )
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
        self._chooser = Chooser(
            ledger, self.finder, self._steps, self._template, settings, self._clock, self._busy
        )
        self._cleaner = Cleaner(
            ledger, self.finder, self._steps, settings, by_root="{root}" in self._template.template
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
        stuck = []
        for name in reversed(names):
            left_s = max(_STEP_S if name == _JOB else 0.0, until - self._clock.monotonic())
            if not self._runtime.remove_job(name, left_s):
                stuck.append(name)
        if self._open_ledger and _JOB not in stuck:
            self._open_ledger = False
            with suppress(StorageError):
                self._note_all()
            self._count()
            self.finder.watcher.close()
            self._ledger.close()
            self._waker.close()
        if self._client is not None:
            self._client.close()
        return stuck

    def _note_all(self) -> None:
        """Apply what came of the last uploads."""
        while self._exchange.unnoted or self._cleaner.unnoted or self._noting:
            with self._ledger.step():
                finished = self._apply_outcomes()
            self._after_commit(finished)
            self._cleaner.clean()

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
        open_now = open_ - self._ledger.refused_count()
        idle = finder.idle and not (
            open_now or self._busy or self._exchange.unnoted or self._cleaner.unnoted
        )
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
            stalled_s=self._exchange.stalled_s,
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
                    self._chooser.claim(tasks)
        except BaseException as exc:
            self.finder.failed()
            self._fault = str(exc)
            self._busy.difference_update((task.row.root, task.row.path) for task in tasks)
            raise
        self._fault = ""
        self._after_commit(finished)
        waiting = self._exchange.hand_out(tasks)
        for number in range(min(waiting, self.settings.concurrency)):
            self._runtime.wake(f"upload-{number}")
        self._cleaner.clean()
        self._did = self._did or bool(tasks)
        quiet = not (self._did or self._busy)
        if quiet or self._clock.monotonic() - self._counted_at > 0.5:
            self._count()
        return 0.0

    def _wait_s(self) -> float:
        if self._did or self._exchange.worth_a_commit or self._cleaner.unnoted:
            return 0.0
        wait_s = min(_WAIT_S_MAX, self.finder.wait_s())
        if not self._exchange.empty:
            wait_s = min(wait_s, _SHARE_S)
        due_s = self._chooser.due_in_s()
        if due_s is not None and len(self._busy) < self._chooser.room:
            wait_s = min(wait_s, due_s if due_s > 0 or not self._busy else 0.02)
        return max(0.0, wait_s)

    def _apply_outcomes(self) -> list[tuple[Outcome, Row | None]]:
        self._noting += self._exchange.take(_NOTED_MAX - len(self._noting))
        applied = [(outcome, self._steps.apply(outcome)) for outcome in self._noting]
        self._cleaner.note()
        return applied

    def _after_commit(self, applied: list[tuple[Outcome, Row | None]]) -> None:
        """Let go of files whose task has ended, now that it is noted."""
        self._cleaner.noted(self._busy.discard)
        self._noting.clear()
        for outcome, row in applied:
            before = outcome.task.row
            key = (before.root, before.path)
            if outcome.result is Result.PART:
                continue
            self._busy.discard(key)
            self._chooser.resumed.discard(key)
            left = None if row is None else row.upload_id
            if before.upload_id is not None and before.upload_id != left:
                self._orphans.ended(before.upload_id)
            if row is not None and self._steps.cleans(row):
                self._busy.add(key)
                self._cleaner.add(row)

    # -- the jobs that own the network ------------------------------------------------------------

    def _step_upload(self) -> float:
        if self._stopping or self._uploader is None:
            return math.inf
        task = self._exchange.next_task()
        if task is None:
            return math.inf
        self._put_outcome(self._uploader.do(task))
        return 0.0

    def _put_outcome(self, outcome: Outcome) -> None:
        if outcome.result is Result.BEGUN and outcome.upload_id is not None:
            self._orphans.begun(outcome.upload_id)
        self._exchange.put(outcome)

    def _step_orphans(self) -> float:
        if self._client is None or self._stopping:
            return math.inf
        return self._orphans.step(
            self._client,
            self.address.bucket,
            self._template.prefix,
            foreign_age_s=self.settings.orphan_age_s if self.settings.abort_foreign else math.inf,
            stopping=lambda: self._stopping,
        )

    # -- asking ----------------------------------------------------------------------------------

    def look_now(self) -> None:
        """Look at every directory as soon as possible. Any thread; does not wait."""
        self.finder.rescan("asked for")
        self._waker.wake()

    def accept_deletions(self) -> None:
        """Let through what `FindPolicy.max_delete` held back. Any thread."""
        self.finder.accept_deletions()
        self._waker.wake()

    def plan(self) -> Iterator[Planned]:
        """Yield what a run would do now; changes nothing, here or there.

        The ledger is read, not written; the server is not asked. Files that are not finished are
        named as if they were.

        Raises:
            ConfigError: The ledger is of another target, or is in use.
        """
        ledger = UploadLedger(None, copy_of=self._path)
        self._open(ledger, watch=False)
        try:
            roots = [ledger.root(path) for path in self._roots]
            yield from plan(ledger, self.finder, self._chooser, roots)
        finally:
            ledger.close()
