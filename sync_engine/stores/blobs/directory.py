"""Blobs as files of a directory: written beside, synced, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from sync_engine.core import failpoints
from sync_engine.errors import ConfigError, Conflict, StoreRejected, StoreUnavailable
from sync_engine.ports import BlobInfo

__all__ = ["DirectoryBlobs"]

_STORE: Final = "directory"
_BESIDE: Final = ".beside"
_FOLDER: Final = "+"  # ends the name of a folder, and stands in no other name: it is escaped there
_SAFE: Final = " !#$&'()*,-.;=@[]^_`{}~"
_EMPTY: Final = "%"  # no escape is this short
_TRIES: Final = 20
_PERMANENT: Final = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EROFS, errno.EISDIR}


class DirectoryBlobs:
    """Objects as files; implements the port `BlobStore`.

    After `put` returns the object is whole and safe from power loss; before, nobody sees any of it.
    Every key is possible: ``/`` makes folders, what a file system does not take is escaped, and
    nothing is ever written outside the directory. A part of a key between slashes may have about
    250 bytes.

    Thread-safety: every method, also from several processes. Blocking: disk.

    Args:
        root: The directory; made where it is not there.

    Raises:
        ConfigError: It cannot be made.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._beside = self.root / _BESIDE
        self._mark = f"{socket.gethostname()[:40].replace('.', '-')}.{os.getpid()}."
        try:
            self._beside.mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as exc:
            raise ConfigError(f"directory {self.root} cannot be used: {exc.strerror}") from exc

    def __repr__(self) -> str:
        return f"DirectoryBlobs({str(self.root)!r})"

    @property
    def atomic_if_absent(self) -> bool:
        """Whether of several writers with `if_absent` exactly one wins: always."""
        return True

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> BlobInfo:
        """Store an object whole.

        Raises:
            Conflict: With `if_absent`: there is one. Of several writers exactly one wins.
            StoreUnavailable: The disk is full or fails; the object is as it was before.
            StoreRejected: The key is empty or too long, or the directory may not be written.
        """
        target = self._path(key)
        try:
            beside = self._write_beside(data)
            try:
                made = _info(key, beside.stat())  # of ours: another writer may replace it at once
                if failpoints.armed:
                    failpoints.hit("blobs.before_rename")
                self._into_place(beside, target, key, if_absent=if_absent)
                return made
            finally:
                with contextlib.suppress(FileNotFoundError):
                    beside.unlink()
        except OSError as exc:
            raise _translated(exc, "put") from exc

    def get(self, key: str) -> bytes | None:
        """Return an object's bytes, or None where there is none.

        Raises:
            StoreUnavailable: The disk fails.
        """
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise _translated(exc, "get") from exc

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield objects in bytewise key order. Memory: the names of one folder a level."""
        try:
            yield from self._walk(self.root, "", prefix)
        except OSError as exc:
            raise _translated(exc, "list") from exc

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; absent ones are fine. Folders that are empty then go, too."""
        try:
            touched = set()
            for key in keys:
                path = self._path(key)
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()
                    touched.add(path.parent)
            for folder in touched:
                with contextlib.suppress(FileNotFoundError):
                    _sync(folder)
                self._prune(folder)
        except OSError as exc:
            raise _translated(exc, "delete") from exc

    # -- inside -----------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        if not key:
            raise StoreRejected(_STORE, "put", "the key is empty")
        try:
            *folders, name = (_escaped(part) for part in key.split("/"))
        except UnicodeEncodeError:
            raise StoreRejected(_STORE, "put", "the key is no valid Unicode text") from None
        return self.root.joinpath(*(f"{folder}{_FOLDER}" for folder in folders), name)

    def _write_beside(self, data: bytes) -> Path:
        handle, name = tempfile.mkstemp(prefix=self._mark, dir=self._beside)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            Path(name).unlink()
            raise
        return Path(name)

    def _into_place(self, beside: Path, target: Path, key: str, *, if_absent: bool) -> None:
        for _ in range(_TRIES):
            self._make_folders(target.parent)
            try:
                if if_absent:
                    os.link(beside, target)
                else:
                    beside.replace(target)
            except FileExistsError:
                raise Conflict(key, 0, 1) from None
            except FileNotFoundError:
                continue  # the folder was empty for a moment, and somebody pruned it
            with contextlib.suppress(FileNotFoundError):  # deleted since, and its folder with it
                _sync(target.parent)
            return
        raise StoreUnavailable(_STORE, "put", "its folder goes away again and again")

    def _make_folders(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folders(folder.parent)
        with contextlib.suppress(FileNotFoundError):
            folder.mkdir(exist_ok=True)
            _sync(folder.parent)

    def _prune(self, folder: Path) -> None:
        while folder != self.root and self.root in folder.parents:
            try:
                folder.rmdir()
            except OSError:  # not empty
                return
            folder = folder.parent

    def _sweep(self) -> None:
        """Remove what writers of this machine left when they were killed."""
        host = self._mark.partition(".")[0]
        for path in self._beside.iterdir():
            owner, _, rest = path.name.partition(".")
            pid = rest.partition(".")[0]
            if owner == host and pid.isdigit() and not _alive(int(pid)):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

    def _walk(self, folder: Path, before: str, prefix: str) -> Iterator[BlobInfo]:
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if entry.name != _BESIDE]
        except FileNotFoundError:  # pruned meanwhile
            return
        keys = [
            (before + _plain(name.removesuffix(_FOLDER)), name, name.endswith(_FOLDER))
            for name in names
        ]
        for key, name, is_folder in sorted(keys, key=lambda k: (k[0] + "/" * k[2]).encode()):
            if is_folder:
                inside = f"{key}/"
                if inside.startswith(prefix) or prefix.startswith(inside):
                    yield from self._walk(folder / name, inside, prefix)
            elif key.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):
                    yield _info(key, (folder / name).stat())


def _escaped(part: str) -> str:
    made = quote(part, safe=_SAFE)
    if made in {"", ".", ".."} or made.startswith(_BESIDE):
        return f"%2E{made[1:]}" if made else _EMPTY
    return made


def _plain(name: str) -> str:
    return "" if name == _EMPTY else unquote(name)


def _info(key: str, found: os.stat_result) -> BlobInfo:
    etag = f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"
    ms = found.st_mtime_ns // 1_000_000
    return BlobInfo(key=key, size=found.st_size, etag=etag, modified_ms=ms)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _translated(exc: OSError, operation: str) -> StoreRejected | StoreUnavailable:
    hint = exc.strerror or str(exc)
    if exc.errno in _PERMANENT:
        return StoreRejected(_STORE, operation, hint)
    return StoreUnavailable(_STORE, operation, hint)
