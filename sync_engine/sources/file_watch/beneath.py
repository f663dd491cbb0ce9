"""Files below a directory, opened so that no symbolic link leads out of it."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

__all__ = ["Fingerprint", "directory_beneath", "fingerprint", "has_writer", "open_beneath"]

_F_SETSIG, _F_SETLEASE, _F_UNLCK, _F_RDLCK = 10, 1024, 2, 0
_SIGURG = 23  # ignored where nobody asks for it: the kernel tells of a writer that waits for us


class Fingerprint(NamedTuple):
    """What tells one content of a file from another without reading it.

    Attributes:
        dev: Number of the file system.
        ino: Number of the file in it.
        size: Bytes.
        mtime_ns: Time of the last change of the content, in nanoseconds since 1970.
    """

    dev: int
    ino: int
    size: int
    mtime_ns: int


def fingerprint(found: os.stat_result) -> Fingerprint:
    """Return the fingerprint that a stat holds."""
    return Fingerprint(
        _signed(found.st_dev), _signed(found.st_ino), found.st_size, found.st_mtime_ns
    )


def _signed(number: int) -> int:
    """Return a number of 64 bits as SQLite keeps it."""
    return number - (1 << 64) if number >= 1 << 63 else number


def directory_beneath(root: bytes, path: bytes) -> int:
    """Open the directory that holds a file; return its descriptor.

    Args:
        root: An absolute directory.
        path: Of the file, relative to it.

    Raises:
        OSError: A directory is not there, or is a symbolic link (ELOOP, ENOTDIR).
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    handle = os.open(root, flags)
    try:
        for name in path.split(b"/")[:-1]:
            if name in {b"", b".", b".."}:
                raise OSError(errno.EINVAL, "a path that leads elsewhere", path)  # noqa: TRY301
            below = os.open(name, flags | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = below
    except BaseException:
        os.close(handle)
        raise
    return handle


def open_beneath(root: bytes, path: bytes) -> int:
    """Open a regular file for reading, following no symbolic link; return its descriptor.

    Raises:
        OSError: It is not there, is no regular file, or a link stands in the way.
    """
    directory = directory_beneath(root, path)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(path.rpartition(b"/")[2], flags, dir_fd=directory)
    finally:
        os.close(directory)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "no regular file", path)
    return handle


def has_writer(handle: int, *, hold: bool = False) -> bool | None:
    """Tell whether some process has a file open for writing; None where nobody can say.

    Asked with a read lease, which Linux gives only where there is no writer: for files of our own
    user (or with CAP_LEASE), on local file systems.

    Args:
        handle: A descriptor open for reading.
        hold: Keep the lease until the descriptor is closed: an open for writing then waits for us,
            up to ``/proc/sys/fs/lease-break-time``.
    """
    try:
        import fcntl

        fcntl.fcntl(handle, _F_SETSIG, _SIGURG)
        fcntl.fcntl(handle, _F_SETLEASE, _F_RDLCK)
        if not hold:
            fcntl.fcntl(handle, _F_SETLEASE, _F_UNLCK)
    except ImportError:
        return None
    except OSError as exc:
        return True if exc.errno == errno.EAGAIN else None
    return False
