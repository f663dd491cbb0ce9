"""The live database as a replicator holds it: read pins, the published end of its log, checkpoints.

Rules of the house, all of them because POSIX locks belong to a process and end with the first
descriptor of a file that it closes:

- one SQLite library in the process: apsw's. The standard library's is never imported here, and a
  process that has the file open already is refused;
- the descriptor for reading pages is opened once a file and never closed; ``-shm`` is never opened,
  except where the library is too old to be asked, and then never closed either.

The database is never written to. What a checkpoint moves into it was committed by others.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.sinks.snapshot.wal_file import HEADER_SIZE, WalHeader, header_of

if TYPE_CHECKING:
    import apsw

__all__ = ["Database", "driver"]

_BUSY_MS = 1000
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "fuse.sshfs", "ceph", "glusterfs"}
_RESET_FIXED = (3, 51, 3)
_kept: dict[tuple[int, int], int] = {}  # descriptors by device and inode: never closed, see above
Identity = tuple[int, ...]


def driver() -> Any:
    """Return apsw.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import apsw
    except ImportError as exc:
        raise ConfigError(
            "replication of a database needs apsw: pip install 'sync-engine[snapshot]'"
        ) from exc
    return apsw


class Database:
    """One live database in WAL mode.

    Thread-safety: one thread uses it; `read` may be called by any.

    Args:
        path: The database file.

    Raises:
        ConfigError: It cannot be replicated: no WAL mode, a network file system, or open in this
            process already.
        StoreUnavailable: It is locked now, or not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._apsw = driver()
        _refuse_shared(path)
        _refuse_network(path)
        try:
            self._file = _descriptor(path)
        except FileNotFoundError as exc:
            raise StoreUnavailable("snapshot", "open", f"{path} is not there") from exc
        self._wal_path = path.with_name(path.name + "-wal")
        self._shm_path = path.with_name(path.name + "-shm")
        self._shm = -1
        self._connections: list[apsw.Connection] = []
        try:
            self._open()
        except self._apsw.Error as exc:
            self.close()
            raise StoreUnavailable("snapshot", "open", f"{path}: {exc}") from exc
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        first = self._connect()
        (mode,) = first.execute("PRAGMA journal_mode").fetchone() or ("",)
        if mode != "wal":
            raise ConfigError(
                f"{self.path} is in journal mode {mode}: run PRAGMA journal_mode=WAL on it once"
            )
        self.page_size: int = (first.execute("PRAGMA page_size").fetchone() or (0,))[0]
        self._pins = [first, self._connect()]
        self._current = 0
        self._asker, self._writer, self._reader = (self._connect() for _ in range(3))
        self._pin(self._pins[0])
        if not hasattr(self._apsw, "SQLITE_CHECKPOINT_NOOP"):
            self._shm = os.open(self._shm_path, os.O_RDONLY | os.O_CLOEXEC)
        self.identity = self.look_up()

    def _connect(self) -> apsw.Connection:
        flags = self._apsw.SQLITE_OPEN_READWRITE  # never CREATE
        connection: apsw.Connection = self._apsw.Connection(str(self.path), flags=flags)
        self._connections.append(connection)
        connection.set_busy_timeout(_BUSY_MS)
        connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        return connection

    @property
    def sqlite_warning(self) -> str:
        """A sentence about a defect of the SQLite library in use, or nothing."""
        version = tuple(map(int, self._apsw.sqlite_lib_version().split(".")[:3]))
        if version < _RESET_FIXED:
            return (
                f"SQLite {self._apsw.sqlite_lib_version()} has a known race of checkpoint and log "
                "restart (fixed in 3.51.3): install a newer apsw"
            )
        return ""

    def look_up(self) -> Identity:
        """Return what tells this database from another at the same path; empty if it is gone."""
        try:
            states = [p.stat() for p in (self.path, self._wal_path, self._shm_path)]
        except FileNotFoundError:
            return ()
        return tuple(number for state in states for number in (state.st_dev, state.st_ino))

    def close(self) -> None:
        """Close the connections; the descriptors stay, see above. Safe twice."""
        while self._connections:
            with suppress(self._apsw.Error):
                self._connections.pop().close()

    # -- pins -------------------------------------------------------------------------------------

    @staticmethod
    def _pin(connection: apsw.Connection) -> None:
        connection.execute("BEGIN").fetchall()  # takes no lock by itself
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()

    def pin_next(self) -> None:
        """Begin to read with the idle connection, while the other still reads."""
        self._pin(self._pins[1 - self._current])

    @staticmethod
    def _unpin(connection: apsw.Connection) -> None:
        if connection.in_transaction:
            connection.execute("ROLLBACK").fetchall()

    def drop_next(self) -> None:
        """Take the last `pin_next` back."""
        self._unpin(self._pins[1 - self._current])

    def hand_over(self) -> None:
        """End the older of the two reads, if it goes on: all that it kept is read."""
        self._unpin(self._pins[self._current])
        self._current = 1 - self._current

    def repin(self) -> None:
        """Move the pin to now."""
        self.pin_next()
        self.hand_over()

    def unpin(self) -> None:
        """Let go: from here on, the log may restart unseen. Safe twice."""
        self._unpin(self._pins[self._current])

    def pin(self) -> None:
        """Take hold again after `unpin`."""
        self._pin(self._pins[self._current])

    def pin_image(self) -> None:
        """Keep the database file as it is from now on, for a snapshot."""
        self._pin(self._reader)

    def drop_image(self) -> None:
        """Take `pin_image` back; safe twice."""
        self._unpin(self._reader)

    # -- the log ----------------------------------------------------------------------------------

    def open_log(self) -> int:
        """Return a descriptor of the log; the caller closes it, which is harmless."""
        return os.open(self._wal_path, os.O_RDONLY | os.O_CLOEXEC)

    def header(self) -> WalHeader | None:
        """Return the log's header; None where there is none yet."""
        try:
            file = self.open_log()
        except FileNotFoundError:
            return None
        try:
            return header_of(os.pread(file, HEADER_SIZE, 0))
        finally:
            os.close(file)

    def published(self) -> tuple[WalHeader | None, int]:
        """Return header and number of committed and published frames, of one moment.

        A frame behind that number may be complete and right, and still never have been committed.

        Raises:
            StoreUnavailable: The log restarts faster than it can be looked at.
        """
        for _ in range(50):
            before = self.header()
            frames = self._frames()
            if before == self.header():
                return before, max(0, frames)
        raise StoreUnavailable("snapshot", "read", "the header of the log does not hold still")

    def _frames(self) -> int:
        if self._shm < 0:
            mode = self._apsw.SQLITE_CHECKPOINT_NOOP
            return int(self._asker.wal_checkpoint(mode=mode)[0])
        for _ in range(100):  # two copies that must agree; in this machine's byte order
            data = os.pread(self._shm, 96, 0)
            if data[:48] == data[48:]:
                return int(struct.unpack_from("=I", data, 16)[0])
        raise StoreUnavailable("snapshot", "read", "the index of the log does not hold still")

    def pages(self) -> int:
        """Return the size of the database in pages, as the asking connection sees it."""
        (count,) = self._asker.execute("PRAGMA page_count").fetchone() or (0,)
        return int(count)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the database file; fewer at its end."""
        return os.pread(self._file, size, offset)

    # -- checkpoints ------------------------------------------------------------------------------

    def checkpoint(self) -> bool | None:
        """Copy what can be copied without waiting for anybody (PASSIVE).

        Returns:
            Whether everything was; None where somebody else is at it.
        """
        try:
            mode = self._apsw.SQLITE_CHECKPOINT_PASSIVE
            frames, done = self._asker.wal_checkpoint(mode=mode)
        except self._apsw.BusyError:
            return None
        return bool(frames == done)

    @contextmanager
    def writers_held(self, timeout_s: float) -> Iterator[bool]:
        """Hold the write lock without writing; tell whether it could be had in time."""
        self._writer.set_busy_timeout(int(timeout_s * 1000))
        try:
            self._writer.execute("BEGIN IMMEDIATE").fetchall()
        except self._apsw.BusyError:
            yield False
            return
        try:
            yield True
        finally:
            self._writer.execute("ROLLBACK").fetchall()

    def waited_for(self) -> bool:
        """Tell whether somebody holds both the checkpoint and the write lock.

        That is what a FULL, RESTART or TRUNCATE checkpoint does while it waits for readers: for us.
        """
        if self.checkpoint() is not None:
            return False
        with self.writers_held(0.0) as held:
            return not held


def _descriptor(path: Path) -> int:
    """Return the one descriptor of a file that this process reads pages with."""
    state = path.stat()
    found = _kept.get((state.st_dev, state.st_ino))
    if found is None:
        found = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        state = os.fstat(found)
        _kept[state.st_dev, state.st_ino] = found
    return found


def _refuse_shared(path: Path) -> None:
    """Refuse a file that this very process has open: its locks would end with any of ours."""
    try:
        wanted = path.stat()
        descriptors = list(Path("/proc/self/fd").iterdir())
    except OSError:
        return
    ours = {str(descriptor) for descriptor in _kept.values()}  # of a `Database` that was closed
    for descriptor in descriptors:
        if descriptor.name in ours:
            continue
        with suppress(OSError):
            found = descriptor.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                raise ConfigError(
                    f"{path} is open in this process: replicate it from a process of its own "
                    "(`sync-engine replicate`, or the supervisor of the engine)"
                )


def _refuse_network(path: Path) -> None:
    """Refuse file systems whose locks and shared memory do not reach other hosts."""
    best, kind = "", ""
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, found, *_ = line.split(" ")
            inside = str(path.resolve()).startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, kind = mount, found
    if kind in _NETWORK:
        raise ConfigError(
            f"{path} is on a network file system ({kind}): WAL mode needs a local one"
        )
