"""The engine's side: starts the replicator's process, watches it, starts it again.

The replicator uses another SQLite library than the engine does, and one process must hold one
library only; so it is a child. It ends when its parent does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sync_engine.core.item import Change
from sync_engine.core.policies import RetryConfig
from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.ports import AdapterContext
from sync_engine.sinks.snapshot.errors import Fenced, NoAccess
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.status import metrics_of, read_status, wait_for
from sync_engine.telemetry import get_logger, redact

__all__ = ["SnapshotSupervisor", "from_settings"]

_log = get_logger("sinks.snapshot.supervisor")
_EXIT_NOTHING = 1
_LOGS = "*.log.db"  # of engines: what they have delivered is dropped from them
_LOOK_S = 0.5
_STOP_S = 15.0
_FIRST_S = 5.0
_WAIT_S = 0.05
_STEADY_S = 60.0
_SECRETS = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}


def from_settings(context: AdapterContext, **settings: Any) -> SnapshotSupervisor:
    """Make a supervisor; connects to nothing and starts nothing yet.

    Args:
        context: Of this instance.
        settings: ``target`` (required): ``s3://bucket/prefix`` or a directory. ``database``: the
            file (default: ``archive.db`` in the data_dir). ``state_dir``: default ``NAME.replica``
            in the data_dir. ``endpoint_url``, ``access_key_id``, ``secret_access_key``,
            ``session_token`` for S3; the child gets them by its environment. All others are those
            of `ReplicationSettings`.

    Raises:
        ConfigError: A setting is missing, unknown or out of range.
    """
    given = dict(settings)
    target = given.pop("target", None)
    if not isinstance(target, str) or not target:
        raise ConfigError(f"{context.name}.target: must be s3://bucket/prefix or a directory")
    database = Path(given.pop("database", context.data_dir / "archive.db"))
    state_dir = Path(given.pop("state_dir", context.data_dir / f"{context.name}.replica"))
    endpoint_url = given.pop("endpoint_url", None)
    secrets = {env: str(given.pop(name)) for name, env in _SECRETS.items() if name in given}
    given.setdefault("allow_fresh", True)  # the engine makes its archive when it starts
    return SnapshotSupervisor(
        context,
        target,
        database=database,
        state_dir=state_dir,
        settings=ReplicationSettings.from_mapping(given),
        endpoint_url=endpoint_url,
        environment=secrets,
    )


class SnapshotSupervisor:
    """Runs a replicator for a database, as long as the engine runs.

    Implements `ports.Sink` so that an engine can hold it like any other: replication follows the
    file and not the log, so `apply` takes every batch without doing anything.

    Thread-safety: `status`, `progress`, `wait` and `apply` from any thread; the others from one.

    Args:
        context: Of this instance.
        target: Where to.
        database: The file.
        state_dir: Of the replicator.
        settings: When to do what.
        endpoint_url: Of another S3 than Amazon's.
        environment: Variables for the child alone.
    """

    def __init__(
        self,
        context: AdapterContext,
        target: str,
        *,
        database: Path,
        state_dir: Path,
        settings: ReplicationSettings,
        endpoint_url: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = context.name
        self._runtime = context.runtime
        self._clock = context.runtime.clock
        self._target = target
        self._database = database
        self._state_dir = state_dir
        self._settings = settings
        self._endpoint_url = endpoint_url
        self._environment = dict(environment or {})
        self._job = f"replicator-{context.name}"
        self._child: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._next_at = 0.0
        self._failures = 0
        self._attached = False
        self._retry = RetryConfig.daemon()
        self.restarts = 0
        self.fenced = False

    # -- lifecycle --------------------------------------------------------------------------------

    def prepare(self) -> bool:
        """Restore the database where it is missing and there is a replica of it.

        Call it before anything opens the database.

        Returns:
            Whether it was restored.

        Raises:
            ConfigError: The target or its credentials cannot be used; or the engine's log is still
                there, which may believe more to be archived than the replica holds.
            StoreUnavailable: There may be a replica that cannot be reached now: starting without it
                would begin another history.

        Blocking: for the length of the restore.
        """
        if self._database.exists() or not self._settings.auto_restore:
            return False
        self._database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        words = ["restore", self._target, str(self._database), "-q"]
        logs = sorted(self._database.parent.glob(_LOGS))
        done = subprocess.run(  # noqa: S603 - our own program
            self._command([*words, "--dry-run"] if logs else words),
            env=self._child_environment(),
            capture_output=True,
            check=False,
        )
        if done.returncode == 0 and logs:
            raise ConfigError(
                f"{self.name}: {self._database} is missing and its replica may be older than "
                f"{logs[0]}, which no longer holds what was archived since: move "
                f"{self._database.parent} away to go on from the replica, or run "
                f"`sync-engine restore {redact(self._target)} {self._database}` to keep what that "
                "log has not delivered yet"
            )
        if done.returncode == 0:
            _log.warning("archive_restored", database=self._database)
            return True
        if done.returncode == _EXIT_NOTHING and b"holds no" in done.stderr:
            return False
        why = redact(done.stderr.decode(errors="replace").strip())
        if done.returncode in (2, NoAccess.exit_code):
            raise ConfigError(f"{self.name}.target: {why}")
        raise StoreUnavailable(self.name, "restore", why)

    def attach(self) -> None:
        """Start the child, and the job that watches it; safe twice."""
        if self._attached:
            return
        self.prepare()
        self._attached = True
        self._runtime.add_job(self._job, self.step)

    def step(self) -> float:
        """Look after the child; return the seconds to wait."""
        now = self._clock.monotonic()
        child = self._child
        if child is None:
            if self.fenced:
                return float("inf")
            if now < self._next_at:
                return self._next_at - now
            self._start()
            return _LOOK_S
        code = child.poll()
        if code is None:
            if now - self._began > _STEADY_S:
                self._failures = 0
            return _LOOK_S
        self._child = None
        self.restarts += 1
        self._failures += 1
        if code == Fenced.exit_code:
            self.fenced = True
            _log.error("replicator_fenced", name=self.name, target=self._target)
            return float("inf")
        delay_s = self._retry.delay_s(self._failures, self._runtime.random())
        self._next_at = now + delay_s
        _log.limited("replicator_ended", level=40, code=code, again_in_s=round(delay_s, 1))
        return delay_s

    def _start(self) -> None:
        words = [
            "replicate",
            str(self._database),
            self._target,
            "--state-dir",
            str(self._state_dir),
            "--with-parent",
            str(os.getpid()),
            "-q",
        ]
        defaults = ReplicationSettings()
        for field in fields(ReplicationSettings):
            value = getattr(self._settings, field.name)
            if value != getattr(defaults, field.name):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words += ["--option", f"{field.name}={text}"]
        self._began = self._clock.monotonic()
        self._child = subprocess.Popen(  # noqa: S603 - our own program
            self._command(words),
            env=self._child_environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the engine; it tells the child
        )

    def _command(self, words: Sequence[str]) -> list[str]:
        extra = ["--endpoint-url", self._endpoint_url] if self._endpoint_url else []
        return [sys.executable, "-m", "sync_engine", *words, *extra]

    def _child_environment(self) -> dict[str, str]:
        return dict(os.environ) | self._environment

    def close(self) -> None:
        """Let the child finish what it has, and end it; safe twice.

        What it did not get to is in the database, and replicated after the next start; it is told
        as ``replica_behind``.

        Blocking: up to 5 s for the first snapshot of a child that was only just started, and up to
        15 s for what was committed since.
        """
        if not self._attached:
            return
        self._attached = False
        self._runtime.remove_job(self._job, _LOOK_S)
        child, self._child = self._child, None
        if child is not None:
            self._wait_for_first(child)
            self._end(child)
        behind = self._behind(child)
        if behind:
            _log.warning("replica_behind", name=self.name, target=redact(self._target), why=behind)

    def _wait_for_first(self, child: subprocess.Popen[bytes]) -> None:
        """Wait until there is something that can be restored: before it, all that is sent is lost.

        A child that has come that far needs no waiting for: it delivers the rest before it ends.
        """
        until = self._clock.monotonic() + _FIRST_S
        while self._clock.monotonic() < until:
            found = self._said_by(child)
            if found.get("phase") == "running" and found.get("durable_txid"):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_WAIT_S)  # the runtime may be closed: its sleeps are over
                return

    def _said_by(self, child: subprocess.Popen[bytes]) -> dict[str, Any]:
        with contextlib.suppress(StoreUnavailable):
            found = self.status()
            if found["pid"] == child.pid:
                return found
        return {}

    def _behind(self, child: subprocess.Popen[bytes] | None) -> str:
        """Return why the target does not hold everything; empty where it does."""
        found = {} if child is None else self._said_by(child)
        if found.get("phase") != "stopped":
            return str(found.get("error") or "the replicator did not get to copy anything")
        if not found["durable_txid"]:
            return "the first snapshot was not complete"
        if found["durable_txid"] < found["txid"] or found["stage_full"]:
            return f"transactions {found['durable_txid'] + 1} to {found['txid']} are staged"
        return ""

    @staticmethod
    def _end(child: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    # -- as a sink --------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        """Take a batch: nothing is to be done, the database file is what is followed."""

    def ping(self) -> float:
        """Return how long ago the child told its state, in seconds.

        Raises:
            StoreUnavailable: It does not run.
        """
        status = self.status()
        if not status["alive"]:
            raise StoreUnavailable(self.name, "ping", status.get("error") or "it does not run")
        return float(status["age_s"])

    # -- what is known ----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what the replicator said last.

        Raises:
            StoreUnavailable: It has not said anything yet.
        """
        return read_status(self._state_dir, self._clock) | {
            "restarts": self.restarts,
            "fenced": self.fenced,
        }

    def progress(self) -> dict[str, float]:
        """Return the numbers of `status` under flat names; empty before there are any."""
        try:
            return metrics_of(self.status())
        except StoreUnavailable:
            return {}

    def position(self) -> int:
        """Return the last transaction that is in the target; 0 before the first snapshot."""
        return int(self.progress().get("snapshot_durable_txid", 0))

    def wait(self, txid: int | None = None, timeout_s: float = 30.0) -> int:
        """Block until a transaction is in the target; None is all that is committed by now.

        Returns:
            The last transaction that is.

        Raises:
            StoreUnavailable: Not in time.
        """
        until = self._clock.monotonic() + timeout_s
        while True:  # right after `attach` there is nothing to read yet
            with contextlib.suppress(StoreUnavailable):
                self.status()
                break
            if self._clock.monotonic() >= until:
                break
            self._clock.sleep(0.05)
        left_s = max(0.0, until - self._clock.monotonic())
        return wait_for(self._state_dir, self._clock, txid=txid, timeout_s=left_s)
