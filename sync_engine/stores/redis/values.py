"""What lies under a key: a version in twenty digits, then the record of a change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sync_engine.core import codec
from sync_engine.core.item import VERSION_MAX, Change, Route
from sync_engine.errors import CorruptData, StoreRejected
from sync_engine.redis_link.errors import STORE
from sync_engine.stores.redis.keys import bucket_of

__all__ = ["Damaged", "Entry", "Lifetimes", "read_value"]

_L2 = int(Route.L2)
_DIGITS = 20
_TTL_MS_MAX = 10 * 365 * 86_400_000


class Damaged(Exception):
    """A value that is not what was written under its key.

    Attributes:
        foreign: Whether it never was one of ours.
    """

    def __init__(self, *, foreign: bool) -> None:
        super().__init__()
        self.foreign = foreign


class Entry(NamedTuple):
    """One value to write.

    Attributes:
        bucket: Of its id.
        id: In UTF-8.
        value: Version and record.
        ttl_ms: Milliseconds it stays, in digits; 0 is until it is evicted.
    """

    bucket: int
    id: bytes
    value: bytes
    ttl_ms: bytes


class Lifetimes:
    """Makes entries, and decides how long they stay.

    A value with a deadline stays a little longer than that (it is not returned any more): an older
    copy that was read from the archive meanwhile must not take its place.

    Args:
        mark_ms: Of a version mark, in milliseconds (at least 1).
        fill_ms: Of a copy of an archived item, at most.
        grace_ms: Of a value after its deadline.
    """

    def __init__(self, *, mark_ms: int, fill_ms: int, grace_ms: int) -> None:
        self._mark_ms = b"%d" % mark_ms
        self._fill_ms = fill_ms
        self._grace_ms = grace_ms

    def to_apply(self, changes: Iterable[Change], now_ms: int, bytes_max: int) -> list[Entry]:
        """Return an entry for each change: its value, or a version mark.

        Raises:
            StoreRejected: A value is larger than the server takes, or a version is none.
        """
        entries = []
        for change in changes:
            deadline_ms = change.expires_at_ms
            if change.content is None or not change.routes & _L2 or 0 < deadline_ms <= now_ms:
                mark = Change(change.id, change.version, None, routes=change.routes)
                entries.append(_entry(mark, self._mark_ms, bytes_max))
            elif deadline_ms:
                ttl_ms = min(deadline_ms - now_ms + self._grace_ms, _TTL_MS_MAX)
                entries.append(_entry(change, b"%d" % ttl_ms, bytes_max))
            else:
                entries.append(_entry(change, b"0", bytes_max))
        return entries

    def to_fill(self, changes: Iterable[Change], now_ms: int, bytes_max: int) -> list[Entry]:
        """Return an entry for each change that is worth a copy.

        Raises:
            StoreRejected: A value is larger than the server takes, or a version is none.
        """
        entries = []
        for change in changes:
            deadline_ms = change.expires_at_ms
            if change.content is None:
                mark = Change(change.id, change.version, None, routes=change.routes)
                entries.append(_entry(mark, self._mark_ms, bytes_max))
            elif change.routes & _L2 and not 0 < deadline_ms <= now_ms:
                ttl_ms = self._fill_ms
                if deadline_ms:
                    ttl_ms = min(deadline_ms - now_ms + self._grace_ms, ttl_ms)
                entries.append(_entry(change, b"%d" % ttl_ms, bytes_max))
        return entries


def _entry(change: Change, ttl_ms: bytes, bytes_max: int) -> Entry:
    if not 0 <= change.version <= VERSION_MAX:
        raise StoreRejected(STORE, "apply", f"version {change.version} is outside 63 bits")
    raw_id = change.id.encode()
    value = b"%020d" % change.version + codec.encode(change)
    if len(value) > bytes_max:
        hint = f"a value of {len(value)} bytes is larger than the server takes ({bytes_max})"
        raise StoreRejected(STORE, "apply", hint)
    return Entry(bucket_of(raw_id), raw_id, value, ttl_ms)


def read_value(change_id: str, value: bytes) -> Change:
    """Return the change that was written under an id.

    Raises:
        Damaged: The value is foreign, truncated, altered, or belongs to another id or version.
    """
    try:
        change = codec.decode(value[_DIGITS:])
    except CorruptData:
        digits = value[:_DIGITS]
        raise Damaged(foreign=len(digits) < _DIGITS or not digits.isdigit()) from None
    if change.id != change_id or value[:_DIGITS] != b"%020d" % change.version:
        raise Damaged(foreign=False)
    return change
