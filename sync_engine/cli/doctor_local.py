"""`doctor` on this machine: directory, disk, log, clock."""

from __future__ import annotations

import os
import shutil
import stat
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sync_engine.cli.command import ExitCode
from sync_engine.cli.findings import Finding, Severity
from sync_engine.cli.output import count, duration, size
from sync_engine.config import SyncEngineConfig
from sync_engine.errors import ConfigError, CorruptData, SyncEngineError
from sync_engine.ports import Clock
from sync_engine.runtime import SystemRuntime
from sync_engine.wal.log import WriteAheadLog
from sync_engine.wal.owner import LOG_SUFFIX, OwnerLock, orphans
from sync_engine.wal.records import LogListener

__all__ = ["check_clock", "check_directory", "check_log"]

_NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "gpfs", "beegfs", "afs",
    "glusterfs", "ocfs2", "gfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs",
    "fuse.rclone", "fuse.gcsfuse", "fuse.juicefs", "virtiofs",
}  # fmt: skip
_VOLATILE = {"tmpfs", "ramfs"}
_FSYNCS, _FSYNC_SLOW_S = 5, 0.05
_SPACE_LOW_BYTES = 1 << 30
_YEAR_2025_MS = 1_735_689_600_000


def check_directory(config: SyncEngineConfig, clock: Clock) -> Iterator[Finding]:
    """Look at data_dir, its permissions, its file system and its disk; creates nothing that stays.

    Blocking: a few fsyncs.
    """
    path = Path(config.data_dir).absolute()
    if path.exists() and not path.is_dir():
        yield _error(f"{path} is no directory", "choose another data_dir", ExitCode.USAGE)
        return
    there = next(one for one in (path, *path.parents) if one.exists())
    if there != path:
        yield Finding(
            part="data_dir", severity=Severity.NOTE, what=f"{path} is made at the first start"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        yield _error(f"{there} is not writable", "give its user write permission", ExitCode.USAGE)
        return
    if there == path:
        yield from _check_mode(path)
    yield from _check_mount(there)
    yield from _check_space(there, config)
    yield from _check_fsync(there, clock)


def _check_mode(path: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o002:
        yield _error(
            f"{path} is writable for everybody ({mode:o})", f"chmod o-w {path}", ExitCode.USAGE
        )
    elif mode & 0o020:
        yield _warning(f"{path} is writable for its group ({mode:o})", f"chmod g-w {path}")
    elif mode & 0o005:
        yield Finding(
            part="data_dir",
            severity=Severity.NOTE,
            what=f"{path} can be listed by others ({mode:o}); the log itself cannot be read",
            remedy=f"chmod 700 {path}, if names and sizes are nobody's business",
        )
    else:
        yield _ok(f"{path} belongs to its user alone ({mode:o})")


def _check_mount(path: Path) -> Iterator[Finding]:
    kind = file_system_of(path)
    if kind in _NETWORK:
        yield _error(
            f"{path} is on a network file system ({kind}): locks and fsync cannot be relied on",
            "put data_dir on a local disk",
            ExitCode.USAGE,
        )
    elif kind in _VOLATILE:
        yield _warning(
            f"{path} is in memory ({kind}): a reboot loses what is not yet archived",
            "put data_dir on a disk",
        )
    else:
        yield _ok(f"local file system ({kind or 'unknown'})")


def file_system_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the kind of file system a path is on; empty where the kernel does not tell."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    resolved = path.resolve()
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if resolved.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _check_space(path: Path, config: SyncEngineConfig) -> Iterator[Finding]:
    free = shutil.disk_usage(path).free
    told = f"{size(free)} free, the log may take {size(config.log_bytes_max)}"
    if free < _SPACE_LOW_BYTES:
        yield _warning(told, "make room: a full disk refuses writes")
    elif free < config.log_bytes_max:
        yield Finding(
            part="disk",
            severity=Severity.NOTE,
            what=told,
            remedy="a long outage of the archive would fill the disk; lower log_bytes_max",
        )
    else:
        yield Finding(part="disk", severity=Severity.OK, what=told)


def _check_fsync(path: Path, clock: Clock) -> Iterator[Finding]:
    times = []
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            for _ in range(_FSYNCS):
                file.write(b"x" * 4096)
                file.flush()
                started = clock.monotonic()
                os.fsync(file.fileno())
                times.append(clock.monotonic() - started)
    except OSError as exc:
        yield _error(f"cannot write to {path}: {exc.strerror}", "check disk and permissions")
        return
    median = statistics.median(times)
    severity = Severity.WARNING if median > _FSYNC_SLOW_S else Severity.OK
    remedy = "durability fsync and archive will be slow" if severity is Severity.WARNING else ""
    what = f"fsync takes {duration(median)} (median of {_FSYNCS})"
    yield Finding(part="disk", severity=severity, what=what, remedy=remedy)


def check_log(config: SyncEngineConfig) -> Iterator[Finding]:
    """Open the log, if no other process has it, and tell what it holds.

    Blocking: as the start of an engine.
    """
    path = Path(config.data_dir) / f"{config.engine_name}{LOG_SUFFIX}"
    if not path.exists():
        yield Finding(part="log", severity=Severity.NOTE, what=f"{path} is not there yet")
        return
    try:
        lock = OwnerLock(path)
    except ConfigError as exc:
        yield _in_use(exc)
        return
    try:
        yield from _check_orphans(path)
        yield from _check_content(path)
    except CorruptData as exc:
        yield Finding(
            part="log", severity=Severity.ERROR, what=str(exc), remedy=exc.hint,
            code=ExitCode.CORRUPT,
        )  # fmt: skip
    except SyncEngineError as exc:
        yield Finding(part="log", severity=Severity.ERROR, what=str(exc), code=ExitCode.USAGE)
    finally:
        lock.release()


def _in_use(exc: ConfigError) -> Finding:
    if " is in use by process " in str(exc):
        what = str(exc).removeprefix("data_dir: ").partition(":")[0]
        return Finding(part="log", severity=Severity.OK, what=f"{what}; not opened")
    return Finding(part="log", severity=Severity.ERROR, what=str(exc), code=ExitCode.USAGE)


def _check_orphans(path: Path) -> Iterator[Finding]:
    for orphan, lock in orphans(path):
        lock.release()
        yield Finding(
            part="log",
            severity=Severity.NOTE,
            what=f"{orphan} belongs to no running process",
            remedy="the next engine on this data_dir takes it over",
        )


def _check_content(path: Path) -> Iterator[Finding]:
    runtime = SystemRuntime("doctor")
    log = WriteAheadLog(path, runtime, LogListener(), archive="l3")
    try:
        stats = log.stats()
    finally:
        log.close()
        runtime.close(1.0)
    yield Finding(
        part="log",
        severity=Severity.OK,
        what=f"sound; {count(stats.pending_items, 'change')} wait for the archive,"
        f" {size(stats.file_bytes)} in use",
    )
    if stats.dead_letters:
        yield Finding(
            part="log",
            severity=Severity.WARNING,
            what=f"{count(stats.dead_letters, 'dead letter')} wait for a decision",
            remedy="sync-engine dlq list",
        )
    if stats.lost_positions:
        yield Finding(
            part="log",
            severity=Severity.ERROR,
            what=f"{stats.lost_positions:,} positions were synced once and are gone",
            remedy="the disk lied about fsync, or an old copy was put back: check it",
            code=ExitCode.CORRUPT,
        )


def check_clock(clock: Clock) -> Iterator[Finding]:
    """Look at this machine's wall clock on its own."""
    if clock.now_ms() < _YEAR_2025_MS:
        yield Finding(
            part="clock",
            severity=Severity.ERROR,
            what="the wall clock is years behind: versions made now would lose to older ones",
            remedy="set the clock, and keep it by NTP",
        )


def _ok(what: str) -> Finding:
    return Finding(part="data_dir", severity=Severity.OK, what=what)


def _warning(what: str, remedy: str) -> Finding:
    return Finding(part="data_dir", severity=Severity.WARNING, what=what, remedy=remedy)


def _error(what: str, remedy: str, code: ExitCode = ExitCode.FAILED) -> Finding:
    return Finding(part="data_dir", severity=Severity.ERROR, what=what, remedy=remedy, code=code)
