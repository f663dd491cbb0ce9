"""A cursor in a small file of its own: replaced whole, and safe from power loss."""

from __future__ import annotations

import os
from pathlib import Path

from sync_engine.core.feed import FeedCursor
from sync_engine.errors import CorruptData, InvalidItem, StoreUnavailable

__all__ = ["CursorFile", "replace_file"]


class CursorFile:
    """Holds one cursor.

    Owned by one caller at a time.

    Args:
        path: The file; its directory is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> FeedCursor | None:
        """Return the cursor; None where none was saved.

        Raises:
            CorruptData: The file is damaged or foreign.
        """
        try:
            return FeedCursor.decoded(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except InvalidItem as exc:
            raise CorruptData(str(self._path), "remove it, and start the source anew") from exc

    def save(self, data: bytes) -> None:
        """Replace the cursor by one in the form of `FeedCursor.encoded`, durably.

        Raises:
            StoreUnavailable: The disk does not take it; the old one stays.
        """
        replace_file(self._path, data)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a small file whole; returns once that is safe from power loss.

    Raises:
        StoreUnavailable: The disk does not take it; the old one stays.
    """
    part = path.with_name(f"{path.name}.part")  # of no other file's name
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as exc:
        raise StoreUnavailable("file", "save", f"{path}: {exc.strerror}") from exc
