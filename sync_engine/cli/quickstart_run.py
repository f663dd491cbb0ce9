"""What ``quickstart`` does, step by step, and what it measured."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from sync_engine.cli.files import FileEntry
from sync_engine.config import SETTINGS, SyncEngineConfig
from sync_engine.core.item import SyncItem
from sync_engine.engine import SyncEngine
from sync_engine.errors import StorageError, SyncEngineError
from sync_engine.ports import Clock
from sync_engine.runtime import SystemRuntime
from sync_engine.wal.log import WriteAheadLog
from sync_engine.wal.owner import LOG_SUFFIX, OwnerLock
from sync_engine.wal.records import LogListener

__all__ = [
    "Acked",
    "Reading",
    "Recovered",
    "Written",
    "absent_reads",
    "look_into_log",
    "read_back",
    "write_and_kill",
]

_FILTER_PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class Acked:
    """One acknowledged file.

    Attributes:
        version: Given by the engine.
        bytes: Of its content.
        sha256: Of its content, in hex.
    """

    version: int
    bytes: int
    sha256: str


@dataclass(slots=True)
class Written:
    """What the killed process acknowledged.

    Attributes:
        acked: By id.
        errors: Reason by id, of files that were not taken.
        seconds: From its first line to its last acknowledgement.
        pid: Of the killed process.
        status: How it ended; minus the signal's number.
    """

    acked: dict[str, Acked] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    pid: int = 0
    status: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of all acknowledged files."""
        return sum(acked.bytes for acked in self.acked.values())


def write_and_kill(
    config: SyncEngineConfig,
    files: Sequence[FileEntry],
    prefix: str,
    clock: Clock,
    advance: Callable[[int, int], None],
) -> Written:
    """Let a process of its own write the files; kill it at its last acknowledgement.

    Raises:
        SyncEngineError: It could not start.
    """
    names = [setting.name for setting in SETTINGS]
    settings = {name: _jsonable(getattr(config, name)) for name in names}
    lines = [json.dumps(settings)]  # through a pipe: a password in the arguments could be seen
    lines += [json.dumps({"id": prefix + f.id, "path": str(f.path.absolute())}) for f in files]
    paths = [str(Path(entry).absolute()) for entry in sys.path]
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "sync_engine.cli.quickstart_writer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for us: we end it ourselves
    )
    written = Written(pid=child.pid)
    try:
        with _pipe(child.stdin) as orders, _pipe(child.stdout) as answers:
            with suppress(BrokenPipeError):  # it ended: its silence tells
                orders.write("\n".join([*lines, "", ""]))
                orders.flush()
            _listen(answers, len(files), written, clock, advance)
            child.send_signal(signal.SIGKILL)
            written.status = child.wait()
    finally:
        child.kill()
        child.wait()
    return written


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:  # never: both are asked for
        raise SyncEngineError("no pipe to the writing process")
    return stream


def _jsonable(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _listen(
    answers: IO[str],
    expected: int,
    written: Written,
    clock: Clock,
    advance: Callable[[int, int], None],
) -> None:
    first = json.loads(answers.readline() or "{}")
    if "ready" not in first:
        raise SyncEngineError(
            f"the writing process did not start: {first.get('failed', 'it ended')}"
        )
    started = clock.monotonic()
    for _ in range(expected):
        line = answers.readline()
        if not line:
            raise SyncEngineError("the writing process ended by itself")
        answer = json.loads(line)
        if "error" in answer:
            written.errors[answer["id"]] = answer["error"]
        else:
            acked = Acked(answer["version"], answer["bytes"], answer["sha256"])
            written.acked[answer["id"]] = acked
            advance(1, acked.bytes)
    written.seconds = clock.monotonic() - started


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the log of the killed process holds.

    Attributes:
        positions: The last position in it.
        unarchived: Changes that the archive had not taken.
        bytes: Their bytes.
        file_bytes: Of the file.
        seconds: Time to open it.
    """

    positions: int
    unarchived: int
    bytes: int
    file_bytes: int
    seconds: float


def look_into_log(config: SyncEngineConfig, clock: Clock) -> Recovered:
    """Open the log as it was left, without an engine, and close it again."""
    path = Path(config.data_dir) / f"{config.engine_name}{LOG_SUFFIX}"
    lock = OwnerLock(path)
    runtime = SystemRuntime("quickstart")
    try:
        started = clock.monotonic()
        log = WriteAheadLog(path, runtime, LogListener(), archive="l3")
        seconds = clock.monotonic() - started
        stats = log.stats()
        log.close()
    finally:
        runtime.close(1.0)
        lock.release()
    return Recovered(
        stats.head, stats.pending_items, stats.pending_bytes, stats.file_bytes, seconds
    )


@dataclass(slots=True)
class Reading:
    """What reading everything back gave.

    Attributes:
        verified: Ids whose content has the acknowledged SHA-256.
        bytes: Their bytes.
        missing: Ids that are not there.
        damaged: Ids with other bytes.
        seconds: Time of the reads alone.
        by_tier: Which tier answered how many.
    """

    verified: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    seconds: float = 0.0
    by_tier: dict[str, int] = field(default_factory=dict)


def read_back(engine: SyncEngine, written: Written, clock: Clock) -> Reading:
    """Get every acknowledged id and compare the SHA-256 of what comes back."""
    reading = Reading()
    before = _reads(engine)
    for id, acked in written.acked.items():
        started = clock.monotonic()
        item = _got(engine, id)
        reading.seconds += clock.monotonic() - started
        if item is None:
            reading.missing.append(id)
        elif hashlib.sha256(item.content).hexdigest() != acked.sha256:
            reading.damaged.append(id)
        else:
            reading.verified += 1
            reading.bytes += acked.bytes
    reading.by_tier = _since(before, _reads(engine), len(written.acked))
    return reading


def _got(engine: SyncEngine, id: str) -> SyncItem | None:
    try:
        return engine.get(id)
    except StorageError:
        return None
    except SyncEngineError as exc:
        return SyncItem(id, str(exc).encode())  # damaged: it has another hash


def _reads(engine: SyncEngine) -> dict[str, int]:
    """Return how many reads each tier answered, as the engine itself counted."""
    found = {}
    for family in engine.metrics.collect():
        if family.name.endswith("_reads_total"):
            for series in family.series:
                if isinstance(series.value, int | float):
                    found[dict(series.labels)["tier"]] = int(series.value)
    return found


def _since(before: dict[str, int], after: dict[str, int], asked: int) -> dict[str, int]:
    """Return the difference; what no cold tier was asked for came from memory."""
    counted = {
        tier: count - before.get(tier, 0)
        for tier, count in after.items()
        if count > before.get(tier, 0)
    }
    warm = asked - sum(counted.values())
    if warm > 0:
        counted["memory"] = counted.get("memory", 0) + warm
    return counted


def absent_reads(engine: SyncEngine, ids: Sequence[str], clock: Clock) -> tuple[int, float]:
    """Ask for ids that were never written, once the filter is trusted or patience ends.

    Returns:
        How many the filter denied without asking a server, and the seconds that took.
    """
    until = clock.monotonic() + _FILTER_PATIENCE_S
    while not engine.stats()["filter"]["trusted"] and clock.monotonic() < until:
        clock.sleep(0.02)
    absent = [f"{id}\x7fabsent" for id in ids if len(id) < 400]
    started = clock.monotonic()
    denied = sum(engine.definitely_missing(id) for id in absent)
    return denied, clock.monotonic() - started
