"""The file that a restore would replace: whether it may, and how it is cleared away."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from sync_engine.errors import ConfigError, CorruptData
from sync_engine.sinks.snapshot.database import driver
from sync_engine.sinks.snapshot.errors import NewerLocal
from sync_engine.sinks.snapshot.plan import Plan
from sync_engine.sinks.snapshot.state import StateFile

__all__ = ["check_place", "clear_place", "quick_look"]

_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510
_CLOCK_SLACK_MS = 2000
_BESIDE = ("-wal", "-shm", "-journal")


def check_place(
    path: Path, plan: Plan, *, force: bool, discard_newer: bool, state_dir: Path | None
) -> None:
    """Refuse to replace what must not be replaced.

    Raises:
        NewerLocal: A file is there; or it is open; or it is newer than what would replace it.
        ConfigError: It is no plain file.
    """
    if not path.exists():
        return
    if not path.is_file() or path.is_symlink():
        raise ConfigError(f"{path} is not a plain file")
    if not force:
        raise NewerLocal(f"{path} exists: name another file, or replace it with --force")
    _refuse_open(path)
    if not discard_newer:
        _refuse_newer(path, plan, state_dir)


def _refuse_open(path: Path) -> None:
    """Refuse a file that a process has open with SQLite in WAL mode, or is writing to.

    Such a process holds a shared lock on the bytes that SQLite uses for it.
    """
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
    except OSError:
        raise NewerLocal(f"{path} is open in another process: stop that first") from None
    finally:
        os.close(file)


def _refuse_newer(path: Path, plan: Plan, state_dir: Path | None) -> None:
    if state_dir is not None and state_dir.is_dir():
        file = StateFile(state_dir)
        state = file.load()
        file.close()
        if state is not None and state.txid > plan.txid:
            raise NewerLocal(
                f"{path} is at transaction {state.txid}, newer than {plan.txid}: "
                "give its newer part up with --discard-newer"
            )
    changed = 0
    for beside in (path, path.with_name(path.name + "-wal")):
        with suppress(FileNotFoundError):
            changed = max(changed, beside.stat().st_mtime_ns // 1_000_000)
    if changed > plan.time_ms + _CLOCK_SLACK_MS:
        raise NewerLocal(
            f"{path} was written to after the point that would replace it: "
            "give that up with --discard-newer"
        )


def clear_place(path: Path) -> None:
    """Make sure that nothing beside a file would be mistaken for a part of its replacement.

    The old database takes its log in first: a crash at any place leaves it, or the new one, whole.

    Raises:
        NewerLocal: Somebody opened it meanwhile.
    """
    if path.exists():
        _refuse_open(path)
        if path.with_name(path.name + "-wal").exists():
            apsw = driver()
            with suppress(apsw.NotADBError, apsw.CorruptError):
                connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
                try:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                finally:
                    connection.close()
    for end in _BESIDE:
        path.with_name(path.name + end).unlink(missing_ok=True)


def quick_look(path: Path, check: str) -> None:
    """Let SQLite check a file that nobody else knows of; it is not changed.

    Raises:
        CorruptData: It found something.
    """
    if check == "none":
        return
    apsw = driver()
    pragma = "quick_check" if check == "quick" else "integrity_check"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    try:
        connection = apsw.Connection(f"{path.absolute().as_uri()}?immutable=1", flags=flags)
        try:
            found = connection.execute(f"PRAGMA {pragma}").fetchall()
        finally:
            connection.close()
    except apsw.Error as exc:
        raise CorruptData(str(path), f"SQLite cannot read it: {exc}") from exc
    if found != [("ok",)]:
        raise CorruptData(str(path), f"{pragma} says: {found[0][0]}")
