"""Rows of the archive: their columns, their checksum, and the way to a change and back."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from xxhash import xxh3_64_intdigest

from sync_engine.core.batcher import newest_per_id
from sync_engine.core.item import Change, Route

__all__ = [
    "COLUMNS",
    "KEY_COLUMNS",
    "Row",
    "change_of",
    "key_change_of",
    "prefix_end",
    "row_checksum",
    "rows_of",
    "sorted_unique",
]

Row = tuple[Any, int, int, int, int, Any, int, int, Any, bytes]
"""One row, in the order of `COLUMNS`; id, state and trace parent are bytes, or str for SQLite."""

COLUMNS = (
    "id",
    "version",
    "tombstone",  # 0 while the item lives, the version that deleted it afterwards
    "content_type",
    "routes",
    "state",
    "expires_at_ms",
    "checksum",
    "trace_parent",
    "content",
)
KEY_COLUMNS = ("id", "version", "tombstone", "content_type", "routes", "state", "expires_at_ms")

_L3 = int(Route.L3)
_pack_head = struct.Struct("<qqqhh").pack
_digest = xxh3_64_intdigest
_by_id = attrgetter("id")


def row_checksum(
    id: bytes,
    version: int,
    tombstone: int,
    content_type: int,
    routes: int,
    state: bytes,
    expires_at_ms: int,
    trace_parent: bytes | None,
    content: bytes,
) -> int:
    """Return a signed 64-bit XXH3 over every column of a row.

    The hash of the small columns seeds the hash of the content, so the content is never copied.
    """
    head = _pack_head(version, tombstone, expires_at_ms, content_type, routes)
    seed = _digest(b"%b%b\0%b\0%b" % (head, id, state, trace_parent or b""))
    digest = _digest(content, seed)
    return digest - 0x10000000000000000 if digest >> 63 else digest


def sorted_unique(changes: Sequence[Change]) -> list[Change]:
    """Return the changes in bytewise id order, the newest of each id only.

    One order for all writers keeps their transactions from locking each other out.
    """
    if len({change.id for change in changes}) != len(changes):
        changes = newest_per_id(changes)
    return sorted(changes, key=_by_id)  # code points sort as their UTF-8 bytes do


def rows_of(
    changes: Sequence[Change],
    known: Callable[[Sequence[Change]], set[str]],
    *,
    text: bool = False,
) -> list[Row]:
    """Return the rows that a batch writes, in the order given.

    Changes that the archive does not keep become tombstones of the rows they supersede.

    Args:
        changes: Changes of distinct ids.
        known: Tells which of some changes have a row of an older version.
        text: Whether labels are wanted as str.
    """
    passing = [change for change in changes if not change.routes & _L3]
    if passing:
        superseding = known(passing)
        changes = [change for change in changes if change.routes & _L3 or change.id in superseding]
    rows: list[Row] = []
    append = rows.append
    states: dict[str, bytes] = {}
    for change in changes:
        content = change.content
        version = change.version
        tombstone = 0
        expires_at_ms = change.expires_at_ms
        if content is None or not change.routes & _L3:
            content, tombstone, expires_at_ms = b"", version, 0
        state = states.get(change.state)
        if state is None:
            state = states[change.state] = change.state.encode()
        trace = change.trace_parent
        id = change.id.encode()
        kind, routes = change.content_type, change.routes
        trace_parent = trace.encode() if trace else None
        checksum = row_checksum(
            id, version, tombstone, kind, routes, state, expires_at_ms, trace_parent, content
        )
        numbers = (version, tombstone, kind, routes)
        if text:
            row: Row = (
                change.id,
                *numbers,
                change.state,
                expires_at_ms,
                checksum,
                trace or None,
                content,
            )
        else:
            row = (id, *numbers, state, expires_at_ms, checksum, trace_parent, content)
        append(row)
    return rows


def change_of(row: Sequence[Any]) -> Change | None:
    """Return the change of a row, or None where its checksum does not hold."""
    id, version, tombstone, content_type, routes, state, expires_at_ms, checksum, trace, body = row
    try:
        if checksum != row_checksum(
            id, version, tombstone, content_type, routes, state, expires_at_ms, trace, body
        ):
            return None
        return Change(
            id.decode(),
            version,
            None if tombstone else body,
            content_type,
            state.decode(),
            expires_at_ms,
            routes,
            trace.decode() if trace else "",
        )
    except (struct.error, TypeError, ValueError, AttributeError):  # NULLs, other types, not UTF-8
        return None


def key_change_of(row: Sequence[Any]) -> Change | None:
    """Return the unverified change of a row's small columns; None where they make no sense."""
    id, version, tombstone, content_type, routes, state, expires_at_ms = row
    try:
        return Change(
            id.decode(),
            version,
            None if tombstone else b"",
            content_type,
            state.decode(),
            expires_at_ms,
            routes,
        )
    except (ValueError, AttributeError):
        return None


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the smallest bytes above everything that starts with a prefix; None is "no end"."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
