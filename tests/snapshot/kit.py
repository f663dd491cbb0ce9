"""What the tests of replication share: children that write and replicate, and comparisons."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sync_engine.runtime import SystemRuntime
from sync_engine.sinks.snapshot.objects import DirectoryObjects
from sync_engine.sinks.snapshot.restore import restore

HERE = Path(__file__).parent
PATIENCE_S = 60.0


def until(condition: Callable[[], Any], seconds: float = PATIENCE_S, what: str = "") -> Any:
    """Return what a condition gives once it gives something."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = condition()
            if found:
                return found
        assert time.monotonic() < end, f"not in {seconds} s: {what or condition}"
        time.sleep(0.02)


class Replica:
    """A database, its target, and the process that replicates it."""

    def __init__(self, directory: Path, target: str | None = None, database: str = "a.db") -> None:
        self.dir = directory
        self.db = directory / database
        self.target = target or str(directory / "target")
        self.state_dir = directory / f".{database}.replica"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}
        self.log = directory / "replicator.log"

    # -- the replicator ---------------------------------------------------------------------------

    def start(self, *options: str, ready: bool = True, **environment: str) -> Replica:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, str(HERE / "replicator_child.py"), "replicate", str(self.db),
                    self.target, "--state-dir", str(self.state_dir), *options,
                ],
                stdout=log, stderr=log, env=os.environ | self.environment | environment,
            )  # fmt: skip
        if ready:
            pid = self.process.pid
            until(lambda: self._running(pid), what=f"running: {self.log_tail()}")
        return self

    def _running(self, pid: int) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_tail()
        status = self.status()
        return status["pid"] == pid and status["phase"] == "running"

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state_dir / "status.json").read_text())
        return found

    def durable(self) -> int:
        """Wait until all that is committed now is in the target; return the last transaction."""
        asked_ms = time.time_ns() // 1_000_000

        def arrived() -> int:
            status = self.status()
            fresh = status["seen_ms"] > asked_ms and status["seen_txid"] > 0
            return status["durable_txid"] if fresh and self._passed(status) else 0

        return int(until(arrived, what=f"durable: {self.log_tail()}"))

    @staticmethod
    def _passed(status: Mapping[str, Any]) -> bool:
        return bool(status["durable_txid"] >= status["seen_txid"])

    def stop(self, expect: int = 143) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        assert code == expect, self.log_tail()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def once(self, *options: str) -> None:
        done = self.run("replicate", str(self.db), self.target, "--state-dir",
                        str(self.state_dir), "--once", *options)  # fmt: skip
        assert done.returncode == 0, done.stderr

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        short = words[0] in {"replicate", "restore", "snapshots"}
        program = [str(HERE / "replicator_child.py")] if short else ["-m", "sync_engine"]
        return subprocess.run(
            [sys.executable, *program, *words],
            env=os.environ | self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def restore(self, path: Path | None = None, *options: str) -> Path:
        """Restore by the command; in this process where that is as good, and so much faster."""
        path = path or self.dir / f"restored-{time.monotonic_ns()}.db"
        given = dict(zip(options[::2], options[1::2], strict=True))
        if self.target.startswith("s3://") or given.keys() - {"--txid", "--check"}:
            done = self.run("restore", self.target, str(path), *options)
            assert done.returncode == 0, done.stderr
            return path
        txid = int(given["--txid"]) if "--txid" in given else None
        runtime = SystemRuntime("restore")
        try:
            objects = DirectoryObjects(Path(self.target))
            check = given.get("--check", "quick")
            restore(objects, path, runtime, txid=txid, check=check)
        finally:
            runtime.close(5)
        return path

    # -- the application --------------------------------------------------------------------------

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.db, timeout=30, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        return connection

    def writer(self, seconds: float, seed: int, mode: str = "mix") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(HERE / "writer_child.py"), str(self.db), str(seconds), str(seed),
             mode],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def objects(self, part: str = "") -> list[str]:
        """Return the keys of a target that is a directory."""
        root = Path(self.target)
        found = (path for path in root.rglob("*") if path.is_file())
        keys = [path.relative_to(root).as_posix() for path in found if path.name[0] != "."]
        return sorted(key for key in keys if part in key)


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a writer tells at its end."""
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(output)
    return found


def assert_identical(source: Path, restored: Path) -> None:
    """Compare two databases byte for byte, both with their logs taken in."""
    for path in (source, restored):
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with source.open("rb") as one, restored.open("rb") as two:
        place = 0
        while True:
            a, b = one.read(1 << 20), two.read(1 << 20)
            assert a == b, f"different from byte {place} on"
            if not a:
                return
            place += len(a)


def rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])


@contextlib.contextmanager
def replica(directory: Path, *args: Any, **kwargs: Any) -> Iterator[Replica]:
    made = Replica(directory, *args, **kwargs)
    try:
        yield made
    finally:
        made.kill()
