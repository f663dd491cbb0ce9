"""The replicator: its parts, the jobs that run them, and the order in which they start and end."""

from __future__ import annotations

import fcntl
import math
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sync_engine.errors import ConfigError, StorageError, StoreUnavailable, SyncEngineError
from sync_engine.ports import Runtime
from sync_engine.sinks.snapshot.capture import Capture, Origin
from sync_engine.sinks.snapshot.database import Database
from sync_engine.sinks.snapshot.errors import Fenced, NoBackup
from sync_engine.sinks.snapshot.lease import Claim, Lease
from sync_engine.sinks.snapshot.objects import Objects
from sync_engine.sinks.snapshot.restore import restore
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.snapshotter import Snapshotter
from sync_engine.sinks.snapshot.stage import Stage
from sync_engine.sinks.snapshot.state import StateFile
from sync_engine.sinks.snapshot.status import StatusFile, resident_bytes
from sync_engine.sinks.snapshot.upkeep import Upkeep
from sync_engine.sinks.snapshot.uploader import Uploader
from sync_engine.telemetry import get_logger

__all__ = ["Replicator", "default_state_dir"]

_log = get_logger("sinks.snapshot")
_MISSING_S = 0.2
_STATUS_S = 1.0
_STOP_S = 10.0
CAPTURE, UPLOAD, SNAPSHOT, LEASE, UPKEEP, STATUS = (
    "capture",
    "upload",
    "snapshot",
    "lease",
    "upkeep",
    "status",
)


def default_state_dir(database: Path) -> Path:
    """Return where a replicator keeps its files unless told otherwise: beside the database."""
    return database.with_name(f".{database.name}.replica")


class Replicator:
    """Replicates one database to one target, in a process that does not use it otherwise.

    `start`, then `wait` until it fails or is told to stop, then `stop`.

    Args:
        database: The file.
        objects: The target.
        runtime: Threads, time.
        settings: When to do what.
        state_dir: For files of its own; on the same machine for ever. None is beside the database.

    Raises:
        ConfigError: Another replicator uses the state directory.
    """

    def __init__(
        self,
        database: Path,
        objects: Objects,
        runtime: Runtime,
        settings: ReplicationSettings,
        state_dir: Path | None = None,
    ) -> None:
        self._path = database.absolute()
        self._objects = objects
        self._runtime = runtime
        self._clock = runtime.clock
        self._settings = settings
        self.state_dir = state_dir or default_state_dir(self._path)
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owner = self._own()
        self._status = StatusFile(self.state_dir / "status.json")
        self._file = StateFile(self.state_dir)
        self._over = runtime.event()
        self._failure: Exception | None = None
        self._sums: deque[tuple[int, int]] = deque(maxlen=20_000)
        self._waiting: deque[tuple[int, float]] = deque()
        self._snapshot_at = -math.inf
        self._uploaded_before = 0
        self._newest_snapshot = 0
        self._errors: dict[str, str] = {}
        self._phase = "starting"

    def _own(self) -> int:
        file = os.open(self.state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise ConfigError(
                f"{self.state_dir} is in use by another replicator of {self._path}"
            ) from None
        return file

    # -- lifecycle --------------------------------------------------------------------------------

    def start(self, give_up: Callable[[], bool] = lambda: False) -> None:
        """Restore what is missing, take the target, begin or go on, start the jobs.

        Args:
            give_up: Asked while waiting for a database or for a dead owner; True ends that.

        Blocking: for the lease of a dead owner, and for a first pass over all pages.

        Raises:
            NoBackup: The database is missing, and so is a replica.
            Fenced: Another replicator is alive.
            ConfigError: Database or target can never be used as they are.
            StoreUnavailable: The target cannot be reached now.
        """
        if not self._path.exists():
            self._bring_back(give_up)
        self._phase = "claiming"
        self._say()
        self._database = Database(self._path)
        if self._database.sqlite_warning:
            _log.warning("sqlite_defect", what=self._database.sqlite_warning)
        state = self._file.load()
        if state is not None and state.page_size != self._database.page_size:
            state = None
        ttl_s = self._settings.lease_ttl_s if self._settings.lease else 0.0
        self._lease = Lease(self._objects, self._runtime, ttl_s)
        claim = self._lease.claim(state, give_up)
        self._build(claim)
        if claim.same and state is not None:
            self._stage.recover(state.db_id, state.epoch, state.txid)
        else:
            self._stage.clear()
            self._file.forget()
            self._capture.begin(Origin(claim.db_id, claim.epoch, claim.fork))
        self._uploaded_before = claim.inventory.chain_end() if claim.same else 0
        snapshots = claim.inventory.snapshots(claim.inventory.lineage[0])
        self._newest_snapshot = snapshots[-1][0] if snapshots else 0
        self._note_sum()
        self._phase = "running"
        _log.info("replicating", database=self._path, target=self._objects.url, epoch=claim.epoch)
        for name, step in (
            (CAPTURE, self._step_capture),
            (UPLOAD, self._uploader.step),
            (SNAPSHOT, self._snapshotter.step),
            (LEASE, self._step_lease),
            (UPKEEP, self._upkeep.step),
            (STATUS, self._step_status),
        ):
            self._runtime.add_job(name, self._guarded(name, step))

    def _bring_back(self, give_up: Callable[[], bool]) -> None:
        """The database is not there: restore it, or wait until somebody makes it."""
        if self._settings.auto_restore:
            try:
                done = restore(self._objects, self._path, self._runtime, state_dir=self.state_dir)
            except NoBackup:
                if not self._settings.allow_fresh:
                    raise
            else:
                _log.warning("database_restored", path=self._path, txid=done.txid)
                return
        elif not self._settings.allow_fresh:
            raise NoBackup(f"{self._path} is not there, and restoring it is switched off")
        self._phase = "waiting for the database"
        self._say()
        while not self._path.exists() and not give_up():
            self._clock.sleep(_MISSING_S)
        if not self._path.exists():
            raise StoreUnavailable("snapshot", "start", "stopped before there was a database")

    def _build(self, claim: Claim) -> None:
        settings, runtime = self._settings, self._runtime
        self._inventory = claim.inventory
        self._stage = Stage(self.state_dir / "stage", settings.stage_bytes_max, runtime)
        self._capture = Capture(
            self._database, self._file, self._stage, runtime, settings, self._staged
        )
        self._uploader = Uploader(
            self._objects, self._stage, self._lease, self._inventory, runtime, self._uploaded
        )
        self._snapshotter = Snapshotter(
            self._objects,
            self.state_dir / "chunks",
            self._lease,
            self._inventory,
            runtime,
            settings,
            read=lambda: runtime.wake(CAPTURE),
            done=self._snapshot_done,
        )
        self._upkeep = Upkeep(
            self._objects,
            self._lease,
            self._inventory,
            runtime,
            settings,
            self.state_dir,
            busy=lambda: self._snapshotter.busy,
            checksum_at=self._checksum_at,
        )

    def _guarded(self, name: str, step: Callable[[], float]) -> Callable[[], float]:
        """Return a step that ends everything when we are fenced off, and tells other errors."""

        def guarded() -> float:
            if self._failure is not None:
                return math.inf
            try:
                wait_s = step()
            except Fenced as exc:
                self._fail(exc)
                return math.inf
            except Exception as exc:
                self._errors[name] = str(exc)
                raise
            self._errors.pop(name, None)
            return wait_s

        return guarded

    def _fail(self, exc: Exception) -> None:
        self._failure = exc
        self._phase = "fenced"
        _log.error("fenced", error=exc)
        self._over.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Block until something ends the replicator; False at the timeout.

        Raises:
            Fenced: Another replicator took over.
        """
        over = self._over.wait(seconds)
        if self._failure is not None:
            raise self._failure
        return over

    def stop(self, timeout_s: float = _STOP_S) -> int:
        """Stage and upload what is left, as far as the time goes; let everything go.

        Returns:
            How many transactions are staged and not uploaded; they stay staged.
        """
        until = self._clock.monotonic() + timeout_s
        left = 0
        if hasattr(self, "_capture"):
            self._end_jobs(until, CAPTURE, UPLOAD)
            if self._failure is None:  # before others use the time up: a snapshot can be long
                with suppress(SyncEngineError):
                    self._capture.finish()
                left = self._upload_rest(until)
            self._end_jobs(until, SNAPSHOT, UPKEEP, LEASE, STATUS)
            self._capture.close_image()
            self._capture.database.close()
            self._phase = "stopped" if self._failure is None else "fenced"
            self._say()
        elif hasattr(self, "_database"):
            self._database.close()
        if hasattr(self, "_lease") and self._failure is None:
            self._lease.release()
        self._file.close()
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1
        return left

    def _end_jobs(self, until: float, *names: str) -> None:
        for name in names:
            self._runtime.remove_job(name, max(0.1, until - self._clock.monotonic()))

    def _upload_rest(self, until: float) -> int:
        with suppress(SyncEngineError):
            while self._stage.next() is not None and self._clock.monotonic() < until:
                wait_s = self._uploader.step()
                self._clock.sleep(min(wait_s, max(0.0, until - self._clock.monotonic())))
        return self._stage.counts()[0]

    # -- jobs -------------------------------------------------------------------------------------

    def _step_capture(self) -> float:
        if self._capture.imaging and not self._snapshotter.reading:
            self._capture.close_image()
        self._capture.image_stalled = self._snapshotter.stalled
        wait_s = self._capture.step()
        if self._snapshot_due() and not self._capture.imaging:
            opened = self._capture.open_image()
            if opened is not None:
                image, state = opened
                self._snapshotter.give(image, state, self._file.table.copy())
                self._runtime.wake(SNAPSHOT)
        return wait_s

    def _snapshot_due(self) -> bool:
        if self._snapshotter.busy:
            return False
        now = self._clock.monotonic()
        if not self._newest_snapshot:
            return True
        if self._snapshot_at == -math.inf:
            self._snapshot_at = now + self._upkeep.snapshot_due_in_s()
        state = self._file.state
        changed = state is not None and state.txid > self._newest_snapshot
        return changed and now >= self._snapshot_at

    def _snapshot_done(self) -> None:
        self._newest_snapshot = self._snapshotter.counts.txid
        self._snapshot_at = self._clock.monotonic() + self._settings.snapshot_interval_s
        self._runtime.wake(STATUS)

    def _step_lease(self) -> float:
        wait_s = self._lease.renew_in_s
        if wait_s > 0:
            return wait_s
        try:
            self._lease.renew(
                txid=self._file.state.txid if self._file.state else 0,
                durable_txid=self.durable,
            )
        except Fenced:
            raise
        except (StorageError, ConfigError) as exc:
            _log.limited("lease_not_renewed", error=exc)
            return min(1.0, self._settings.lease_ttl_s / 10)
        return self._lease.renew_in_s

    def _step_status(self) -> float:
        self._say()
        return _STATUS_S

    # -- what happened ----------------------------------------------------------------------------

    def _staged(self) -> None:
        self._note_sum()
        state = self._file.state
        if state is not None:
            self._waiting.append((state.txid, self._clock.monotonic()))
        self._runtime.wake(UPLOAD)
        self._runtime.wake(STATUS)

    def _uploaded(self, txid: int) -> None:
        while self._waiting and self._waiting[0][0] <= txid:
            self._waiting.popleft()
        self._upkeep.uploaded()
        self._runtime.wake(STATUS)

    def _note_sum(self) -> None:
        state = self._file.state
        if state is not None:
            self._sums.append((state.txid, state.checksum))

    def _checksum_at(self, txid: int) -> int | None:
        return next((checksum for at, checksum in list(self._sums) if at == txid), None)

    @property
    def durable(self) -> int:
        """Last transaction that the target can be restored to; 0 before the first snapshot."""
        if not self._newest_snapshot:
            return 0
        return max(self._uploader.durable, self._newest_snapshot, self._uploaded_before)

    # -- what is known ----------------------------------------------------------------------------

    def _say(self) -> None:
        with suppress(OSError):  # a full disk is told by the stage
            self._status.write(self.status())

    def status(self) -> dict[str, Any]:
        """Return everything there is to know, as plain values. Never blocks on the network."""
        state = self._file.state
        found: dict[str, Any] = {
            "phase": self._phase,
            "database": str(self._path),
            "target": self._objects.url,
            "pid": os.getpid(),
            "updated_ms": self._clock.now_ms(),
            "resident_bytes": resident_bytes(),
            "txid": state.txid if state else 0,
            "error": str(self._failure or "; ".join(self._errors.values())),
        }
        if not hasattr(self, "_upkeep"):
            return found | {"durable_txid": 0, "seen_ms": 0, "seen_txid": 0}
        waiting, size, _ = self._stage.counts()
        now = self._clock.monotonic()
        oldest = next(iter(tuple(self._waiting)), (0, now))[1]  # the uploading job takes away
        seen_ms, seen_txid = self._capture.seen
        return found | {
            "epoch": self._inventory.lineage[0].epoch,
            "durable_txid": self.durable,
            "seen_ms": seen_ms,
            "seen_txid": seen_txid,
            "lag_s": round(now - oldest, 3),
            "staged_objects": waiting,
            "staged_bytes": size,
            "stage_full": self._capture.full,
            "conditional_writes": self._lease.conditional,
            "lease_held": self._lease.held,
            "lease_renewals": self._lease.renewals,
            "capture": self._capture.told(),
            "upload": asdict(self._uploader.counts),
            "snapshot": asdict(self._snapshotter.counts),
            **self._upkeep.status(),
        }
