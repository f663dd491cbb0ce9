"""Files on their way in: which ones, under which ids, and none larger than an item may be."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from sync_engine.cli.command import UsageError

__all__ = ["FileEntry", "Walk", "read_whole", "standard_input"]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One regular file.

    Attributes:
        id: Its id.
        path: Where it is.
        size: Bytes when it was found.
    """

    id: str
    path: Path
    size: int


@dataclass(slots=True)
class Walk:
    """Finds the files below paths; symbolic links and special files are left out.

    Attributes:
        exclude: Patterns (as in a shell) of names or relative paths that are left out.
        own: Directory that is never looked into: the engine's own.
        skipped: Entries left out so far.
        unreadable: Paths that could not be looked at so far, and why.
    """

    exclude: Collection[str] = ()
    own: Path | None = None
    skipped: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def files(self, paths: Iterable[str]) -> Iterator[FileEntry]:
        """Yield files in order: of a directory by path relative to it, and lone ones by name.

        A lone file's id is its path as seen from the current directory, or its name where it lies
        outside of that.
        """
        for text in paths:
            path = Path(text)
            if path.is_dir():
                yield from self._below(path)
            else:
                yield from self._one(path, _lone_id(path))

    def _below(self, root: Path) -> Iterator[FileEntry]:
        walk = os.walk(root, onerror=lambda exc: self._note(str(exc.filename), exc))
        for folder, folders, names in walk:
            here = Path(folder)
            below = here.relative_to(root)
            kept = [name for name in folders if self._enters(here / name, below / name)]
            self.skipped += len(folders) - len(kept)
            folders[:] = sorted(kept)
            for name in sorted(names):
                if self._excluded(below / name):
                    self.skipped += 1
                else:
                    yield from self._one(here / name, (below / name).as_posix())

    def _enters(self, folder: Path, relative: Path) -> bool:
        if self._excluded(relative) or folder.is_symlink():
            return False
        try:
            return self.own is None or not self.own.exists() or not folder.samefile(self.own)
        except OSError:  # gone, or not to be looked at: the walk itself tells
            return True

    def _excluded(self, relative: Path) -> bool:
        names = (relative.name, relative.as_posix())
        return any(fnmatch.fnmatchcase(name, one) for one in self.exclude for name in names)

    def _one(self, path: Path, id: str) -> Iterator[FileEntry]:
        try:
            found = path.lstat()
        except OSError as exc:
            self._note(str(path), exc)
            return
        if S_ISREG(found.st_mode):
            yield FileEntry(id, path, found.st_size)
        else:
            self.skipped += 1

    def _note(self, path: str, exc: OSError) -> None:
        self.unreadable.append((path, exc.strerror or str(exc)))


def read_whole(path: Path, bytes_max: int) -> bytes:
    """Return a file's bytes.

    Raises:
        OSError: It cannot be read.
        UsageError: It has more bytes than an item may have; no more than that is read.
    """
    with path.open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise UsageError(f"{path} has more than max_payload_bytes ({bytes_max:,})")
    return data


def _lone_id(path: Path) -> str:
    try:
        return Path(os.path.normpath(path.absolute())).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.name


def standard_input() -> BinaryIO:
    """Return standard input, for bytes.

    Raises:
        UsageError: It is closed.
    """
    if sys.stdin is None:  # Python has none then
        raise UsageError("standard input is closed")
    return sys.stdin.buffer
