"""Cleaning up a local file, only while it is the one that the server has.

A check and a deletion by name are two calls, and between them somebody may rename another file to
that name. So the file is taken aside first, to a name of ours in its directory, and what is there
then is looked at: it is deleted if it is the one that was uploaded, and put back if it is not.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sync_engine.core import failpoints
from sync_engine.sources.file_watch import ASIDE, Root
from sync_engine.sources.file_watch.beneath import (
    Fingerprint,
    directory_beneath,
    fingerprint,
    has_writer,
)
from sync_engine.telemetry import get_logger

__all__ = ["Removal", "put_back", "take_away"]

_log = get_logger("transfer")
_NAME_MAX: Final = 255
_NAMES_MAX: Final = 10_000
_RENAME_NOREPLACE: Final = 1
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Removal(enum.Enum):
    """What became of a local file.

    It is away; it was gone; it is another; somebody writes it; the
    system does not allow it.
    """

    DONE = "done"
    ABSENT = "absent"
    CHANGED = "changed"
    WRITTEN = "written"
    REFUSED = "refused"


def take_away(
    root: Root, path: bytes, taken: Fingerprint, mark: str, *, target: Path | None, prune: bool
) -> Removal:
    """Delete or move a file if device, inode, size and time of change are those that were taken.

    A read lease is held meanwhile where the system gives one: whoever opens the file for writing in
    that moment waits, and then writes to a file without a name, as with any deletion. A process
    that is killed meanwhile leaves the file under its own name, or aside: see `put_back`.

    Args:
        root: The watched directory.
        path: Of the file, below it.
        taken: What was uploaded.
        mark: Tells the names of one ledger from those of another.
        target: None deletes. Else the directory to move below: a name that is taken there gets
            ``~1``, ``~2`` ...; to another file system the file is copied, synced, then deleted.
        prune: Whether directories that are empty then are removed.

    Raises:
        OSError: One of the directories does not allow it; the file has its name again if possible.
    """
    try:
        directory = directory_beneath(root.path, path)
    except OSError as exc:
        return _absent_or_raise(exc)
    try:
        removal = _take_away(directory, path, taken, mark, target)
    finally:
        os.close(directory)
    if prune and removal is Removal.DONE:
        _prune(root, path)
    return removal


def put_back(root: Root, path: bytes, mark: str) -> bool:
    """Give a file its name back that a process took aside and was killed; tell if there was one.

    Where the name is used again the file gets the next free one of ``name~1``, ``name~2`` ...

    Raises:
        OSError: The directory does not allow it.
    """
    try:
        directory = directory_beneath(root.path, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        name = path.rpartition(b"/")[2]
        return _put_back(directory, _aside(name, mark), name)
    finally:
        os.close(directory)


def _take_away(
    directory: int, path: bytes, taken: Fingerprint, mark: str, target: Path | None
) -> Removal:
    name = path.rpartition(b"/")[2]
    aside = _aside(name, mark)
    _put_back(directory, aside, name)  # what an earlier life left would be overwritten
    try:
        handle = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError as exc:
        return _absent_or_raise(exc)
    try:
        if has_writer(handle, hold=True):
            return Removal.WRITTEN
        if not _is_taken(handle, directory, name, taken):
            return Removal.CHANGED
        _hit("cleanup.checked")
        try:
            os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
        except FileNotFoundError:
            return Removal.CHANGED
        _hit("cleanup.aside")
        try:
            gone = _is_taken(handle, directory, aside, taken)
            if gone and target is not None:
                _move(handle, directory, aside, os.fsencode(target) + b"/" + path)
            elif gone:
                os.unlink(aside, dir_fd=directory)
        finally:
            _put_back(directory, aside, name)
    finally:
        os.close(handle)
    return Removal.DONE if gone else Removal.CHANGED


def _hit(name: str) -> None:
    if failpoints.armed:
        failpoints.hit(name)


def _aside(name: bytes, mark: str) -> bytes:
    prefix = ASIDE + mark.encode() + b"-"
    if len(prefix) + len(name) <= _NAME_MAX:
        return prefix + name
    return prefix + hashlib.sha256(name).hexdigest().encode()


def _is_taken(handle: int, directory: int, name: bytes, taken: Fingerprint) -> bool:
    named = _stat(directory, name)
    return named is not None and fingerprint(os.fstat(handle)) == taken == fingerprint(named)


def _stat(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _absent_or_raise(exc: OSError) -> Removal:
    if exc.errno in {errno.ENOENT, errno.ENOTDIR}:
        return Removal.ABSENT
    if exc.errno == errno.ELOOP:
        return Removal.CHANGED
    raise exc


# -- renaming to a free name ----------------------------------------------------------------------


def _put_back(directory: int, aside: bytes, name: bytes) -> bool:
    """Give what is aside its name again; tell whether there was something."""
    if _stat(directory, aside) is None:
        return False
    wanted = _to_free_name(directory, aside, directory, name)
    if wanted != name:
        _log.warning("file_kept_beside", name=os.fsdecode(wanted), why="its name is used again")
    return True


def _to_free_name(source: int, aside: bytes, target: int, name: bytes) -> bytes:
    """Rename a file to a name, or to the first free one after it; never over another file.

    Args:
        source: The directory it is in.
        aside: Its name there.
        target: The directory it goes to.
        name: The name wanted there.

    Returns:
        The name that it has now.

    Raises:
        OSError: A directory does not allow it, or they are of two file systems (EXDEV).
    """
    for number in range(_NAMES_MAX):
        tail = b"~%d" % number if number else b""
        wanted = name[: _NAME_MAX - len(tail)] + tail
        try:
            _rename_unless_taken(source, aside, target, wanted)
        except FileExistsError:
            here, there = _stat(source, aside), _stat(target, wanted)
            if here is None or there is None or not os.path.samestat(here, there):
                continue
            os.unlink(aside, dir_fd=source)  # an earlier life came so far
        return wanted
    raise FileExistsError(errno.EEXIST, "no free name", name)


def _rename_unless_taken(source: int, aside: bytes, target: int, wanted: bytes) -> None:
    try:
        os.link(aside, wanted, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
    else:
        _hit("cleanup.linked")
        os.unlink(aside, dir_fd=source)
        return
    # A file of another user, a directory, a file system without links: one call of Linux does it.
    renameat2: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.EOPNOTSUPP, "neither hard links nor renameat2", wanted)
    if renameat2(source, aside, target, wanted, _RENAME_NOREPLACE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2", wanted)


def _move(handle: int, directory: int, aside: bytes, wanted: bytes) -> None:
    """Move the file that is aside to a path, or beside it; to another file system it is copied."""
    parent, _, name = wanted.rpartition(b"/")
    os.makedirs(parent, exist_ok=True)  # noqa: PTH103 - bytes
    target = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            _to_free_name(directory, aside, target, name)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            _copy(handle, target, aside)
            _to_free_name(target, aside, target, name)
            os.fsync(target)
            os.unlink(aside, dir_fd=directory)
    finally:
        os.close(target)


def _copy(handle: int, directory: int, name: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    made = os.open(name, flags, 0o600, dir_fd=directory)
    with os.fdopen(os.dup(handle), "rb") as source, os.fdopen(made, "wb") as sink:
        source.seek(0)
        shutil.copyfileobj(source, sink, 1 << 20)
        sink.flush()
        found = os.fstat(handle)
        os.fchmod(sink.fileno(), found.st_mode & 0o777)
        os.utime(sink.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
        os.fsync(sink.fileno())


def _prune(root: Root, path: bytes) -> None:
    """Remove directories that are empty now, from the inside, never the root."""
    here = path.rpartition(b"/")[0]
    while here:
        with suppress(OSError):
            parent = directory_beneath(root.path, here)
            try:
                os.rmdir(here.rpartition(b"/")[2], dir_fd=parent)
            except OSError:
                return  # not empty, or not ours
            finally:
                os.close(parent)
        here = here.rpartition(b"/")[0]
