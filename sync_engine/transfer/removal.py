"""Cleaning up a local file, only while it is the one that the server has."""

from __future__ import annotations

import enum
import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from sync_engine.sources.file_watch import Root
from sync_engine.sources.file_watch.beneath import (
    Fingerprint,
    directory_beneath,
    fingerprint,
    has_writer,
)

__all__ = ["Removal", "move_file", "remove_file"]


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


def remove_file(root: Root, path: bytes, taken: Fingerprint, *, prune: bool) -> Removal:
    """Delete a file if device, inode, size and time of change are those that were taken.

    A read lease is held meanwhile where the system gives one: whoever opens the file for writing in
    that moment waits, and then writes to a file without a name, as with any deletion.

    Raises:
        OSError: The directory does not allow it.
    """
    try:
        directory = directory_beneath(root.path, path)
    except OSError as exc:
        return _absent_or_raise(exc)
    name = path.rpartition(b"/")[2]
    try:
        handle = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
        try:
            state = _state(handle, directory, name, taken)
            if state is not Removal.DONE:
                return state
            os.unlink(name, dir_fd=directory)
        finally:
            os.close(handle)
    except OSError as exc:
        return _absent_or_raise(exc)
    finally:
        os.close(directory)
    if prune:
        _prune(root, path)
    return Removal.DONE


def move_file(root: Root, path: bytes, taken: Fingerprint, target: Path, *, prune: bool) -> Removal:
    """Move a file below another directory, under the conditions of `remove_file`.

    A name that is taken there gets ``~1``, ``~2`` ...; to another file system the file is copied,
    synced, and then deleted.

    Raises:
        OSError: One of the directories does not allow it.
    """
    try:
        directory = directory_beneath(root.path, path)
    except OSError as exc:
        return _absent_or_raise(exc)
    name = path.rpartition(b"/")[2]
    try:
        handle = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
        try:
            state = _state(handle, directory, name, taken)
            if state is not Removal.DONE:
                return state
            wanted = os.fsencode(target) + b"/" + path
            os.makedirs(wanted.rpartition(b"/")[0], exist_ok=True)  # noqa: PTH103 - bytes
            _place(handle, directory, name, wanted)
            os.unlink(name, dir_fd=directory)
        finally:
            os.close(handle)
    except OSError as exc:
        return _absent_or_raise(exc)
    finally:
        os.close(directory)
    if prune:
        _prune(root, path)
    return Removal.DONE


def _state(handle: int, directory: int, name: bytes, taken: Fingerprint) -> Removal:
    if has_writer(handle, hold=True):
        return Removal.WRITTEN
    named = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if fingerprint(os.fstat(handle)) != taken or fingerprint(named) != taken:
        return Removal.CHANGED
    return Removal.DONE


def _place(handle: int, directory: int, name: bytes, wanted: bytes) -> None:
    """Put the file at a free name there, beside the one it has here."""
    for number in range(10_000):
        target = wanted if number == 0 else wanted + b"~%d" % number
        try:
            os.link(name, target, src_dir_fd=directory, follow_symlinks=False)
        except FileExistsError:
            continue
        except OSError as exc:
            if exc.errno not in {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}:
                raise
            try:
                _copy(handle, target)
            except FileExistsError:
                continue
        return
    raise OSError(errno.EEXIST, "no free name", wanted)


def _copy(handle: int, target: bytes) -> None:
    made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(os.dup(handle), "rb") as source, os.fdopen(made, "wb") as sink:
            source.seek(0)
            shutil.copyfileobj(source, sink, 1 << 20)
            sink.flush()
            found = os.fstat(handle)
            os.fchmod(sink.fileno(), found.st_mode & 0o777)
            os.utime(sink.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
            os.fsync(sink.fileno())
    except BaseException:
        os.unlink(target)  # noqa: PTH108 - bytes
        raise


def _absent_or_raise(exc: OSError) -> Removal:
    if exc.errno in {errno.ENOENT, errno.ENOTDIR}:
        return Removal.ABSENT
    if exc.errno == errno.ELOOP:
        return Removal.CHANGED
    raise exc


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
