"""What the archive's contracts write: ids that databases confuse, puts, deletes."""

from __future__ import annotations

from collections.abc import Callable

from sync_engine.core.item import Change
from sync_engine.ports import ArchiveStore

__all__ = ["HOSTILE_IDS", "MakeArchive", "put", "tombstone"]

MakeArchive = Callable[[], ArchiveStore]
"""Returns another engine's view of one and the same archive, not yet attached."""

HOSTILE_IDS = (
    "Key", "key", "KEY", "a", "a ", "a  ", " a", "\u00e9", "e\u0301", "\u00df", "ss",
    "\U0001f600", "\U0001f601", "\uffff", "\ufffd", "\U0010ffff", "\U0010ffff\U0010ffff",
    "user_1", "userX1", "user%1", "user\\1", "user[1]*", "u?1", "' OR 1=1 --", '"; DROP TABLE t',
    "{$gt}", "{t}", "%s", "?", "?k", "../x", "/abs", "a//b", ".", "..", "a/", "\x01", "\t", "\r\n",
    "\x7f", "\u200b", "\u202e", "sync_items_meta", "x" * 512, "\u00e9" * 256, "1", "01", "1.0",
    "null", "true", "\u0130", "\u0131", "I", "i",
)  # fmt: skip


def put(id: str, version: int, content: bytes = b"", **more: object) -> Change:
    """Return a put; its content names id and version unless given."""
    return Change(id, version, content or f"{id}@{version}".encode(), **more)  # type: ignore[arg-type]


def tombstone(id: str, version: int) -> Change:
    """Return a delete."""
    return Change(id, version, None)
