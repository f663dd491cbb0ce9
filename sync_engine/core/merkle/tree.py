"""The tree of paths, as a view over entries in id order.

An id is a path of segments, parted by a separator. What lies below a path is one contiguous range
of ids in bytewise order, and a digest of a range is all that a node is: so no node is stored, a
write costs the same at any depth and beside any number of siblings, an id that begins another one
is no special case, and any range can be asked for, not only those that paths make.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from sync_engine.core.merkle.digest import EMPTY, SetDigest
from sync_engine.errors import ConfigError, InvalidItem

__all__ = [
    "CheckedRow",
    "MemorySource",
    "MerkleEntry",
    "MerkleNode",
    "MerklePage",
    "MerkleSource",
    "MerkleState",
    "PathMerkle",
    "TreeCheck",
    "check_separator",
]

LIMIT_MAX = 10_000
_AHEAD = 64  # entries read at least, in one go
_AHEAD_OF_GROUPS = 2048  # as many are cheaper to read than to have summed up in groups


class MerkleEntry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One item as the tree sees it.

    Attributes:
        id: Its id.
        version: Its version.
        deleted: Whether it is a tombstone.
        hash: 16 bytes over id, version, tombstone and everything stored.
    """

    id: str
    version: int
    deleted: bool
    hash: bytes

    @property
    def digest(self) -> SetDigest:
        """The digest of the set of this entry alone."""
        return SetDigest.of(self.hash, deleted=self.deleted)


class MerkleNode(msgspec.Struct, frozen=True, array_like=True):
    """A node: what is stored under its path itself, and what is stored below.

    The two are kept apart: ``a`` may be an item and have ``a.b`` below it.

    Attributes:
        path: Its path; empty is the root. Of a group: what the ids in it begin with.
        entry: The item or tombstone of exactly this id, if any.
        below: Digest of everything under the path, the entry left out. Of a group: of all in it.
        group: Whether it is no path, but a group of ids that begin alike.
    """

    path: str
    entry: MerkleEntry | None
    below: SetDigest
    group: bool = False

    @property
    def total(self) -> SetDigest:
        """Digest of the entry and everything below."""
        return self.below if self.entry is None else self.below + self.entry.digest

    @property
    def hash(self) -> str:
        """32 hexadecimal digits of `total`; equal subtrees have equal ones."""
        return self.total.hex


class MerklePage(msgspec.Struct, frozen=True, array_like=True):
    """Some children of a node.

    Attributes:
        nodes: In bytewise order of the first id in each.
        next: Hand this in as `after` for those that follow; None: there are none.
        prefix: What all ids asked for begin with (of groups; else the path).
        position: The archive position that the page reflects; opaque.
    """

    nodes: tuple[MerkleNode, ...]
    next: str | None = None
    prefix: str = ""
    position: str = ""


class CheckedRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A row of the archive whose checksum holds.

    Attributes:
        id: Its id.
        version: Its version.
        content_hash: XXH3 of its content, 64 bits; None: it is a tombstone.
        expires_at_ms: Wall-clock milliseconds after which it is gone; 0 is never.
        routes: Tiers that keep it.
    """

    id: str
    version: int
    content_hash: int | None
    expires_at_ms: int
    routes: int


class TreeCheck(msgspec.Struct, frozen=True):
    """What comparing some rows with the tree has shown.

    Attributes:
        low: First id of the range.
        next: Where the next range begins; None: this was the last.
        matches: Whether tree and rows say the same.
        rows: The rows, tombstones included.
        corrupt: Ids of rows that fail their checksum.
    """

    low: str
    next: str | None
    matches: bool
    rows: tuple[CheckedRow, ...]
    corrupt: tuple[str, ...]


class MerkleState(msgspec.Struct, frozen=True):
    """How a stored tree does.

    Attributes:
        built: Whether it covers the whole archive.
        frontier: While it is being built: the last id that it covers.
        separator: What parts segments; empty until an engine has said so.
        deltas: Batches waiting to be folded.
        folds: Folds so far.
        position: The archive position that it reflects; opaque.
    """

    built: bool
    frontier: str
    separator: str
    deltas: int
    folds: int
    position: str


class MerkleSource(Protocol):
    """Entries in bytewise id order, as of one moment; ranges include `low` and not `high`."""

    def total(self, low: bytes, high: bytes | None) -> SetDigest:
        """Return the digest of a range; None is its open end."""

    def entries(self, low: bytes, high: bytes | None, limit: int) -> list[MerkleEntry]:
        """Return the first entries of a range."""

    def last(self, low: bytes, high: bytes | None) -> bytes | None:
        """Return the last id of a range; None where it is empty."""


class MemorySource:
    """Entries in a sorted list: for tests, and for whoever has them all anyway."""

    def __init__(self, entries: Iterable[MerkleEntry]) -> None:
        self._entries = sorted(entries, key=lambda entry: entry.id.encode())
        self._keys = [entry.id.encode() for entry in self._entries]

    def _range(self, low: bytes, high: bytes | None) -> tuple[int, int]:
        end = len(self._keys) if high is None else bisect_left(self._keys, high)
        return bisect_left(self._keys, low), end

    def total(self, low: bytes, high: bytes | None) -> SetDigest:
        """Return the digest of a range."""
        start, end = self._range(low, high)
        return total_of(self._entries[start:end])

    def entries(self, low: bytes, high: bytes | None, limit: int) -> list[MerkleEntry]:
        """Return the first entries of a range."""
        start, end = self._range(low, high)
        return self._entries[start : min(end, start + limit)]

    def last(self, low: bytes, high: bytes | None) -> bytes | None:
        """Return the last id of a range."""
        start, end = self._range(low, high)
        return self._keys[end - 1] if end > start else None


def total_of(entries: Iterable[MerkleEntry]) -> SetDigest:
    """Return the digest of entries."""
    live = dead = live_sum = dead_sum = 0
    for entry in entries:
        if entry.deleted:
            dead += 1
            dead_sum += int.from_bytes(entry.hash, "little")
        else:
            live += 1
            live_sum += int.from_bytes(entry.hash, "little")
    return SetDigest.of_numbers(live, dead, live_sum, dead_sum)


def check_separator(separator: object) -> str:
    """Return the separator if paths can be made with it.

    Raises:
        ConfigError: It is not one printable ASCII character.
    """
    if not isinstance(separator, str) or len(separator) != 1 or not "!" <= separator <= "~":
        raise ConfigError(f"merkle_separator: one printable ASCII character, got {separator!r}")
    return separator


class PathMerkle:
    """The tree of one moment.

    A separator that an id begins with belongs to its first segment, so that only the root has the
    empty path; all others part segments, empty ones included.

    Thread-safety: as its source. Cost: a node is one digest of a range; a page of children one
    each for those that have something below them.

    Args:
        source: The entries.
        separator: What parts segments.
        position: Put into every page.
    """

    def __init__(self, source: MerkleSource, separator: str = ".", position: str = "") -> None:
        self._source = source
        self._separator = check_separator(separator)
        self._position = position

    @property
    def position(self) -> str:
        """The position that it reflects; opaque."""
        return self._position

    def root(self) -> MerkleNode:
        """Return the root."""
        return self.node("")

    def node(self, path: str) -> MerkleNode:
        """Return the node of a path; an empty one where nothing is stored."""
        if not path:
            return MerkleNode("", None, self._source.total(b"", None))
        return MerkleNode(path, self._exact(path), self._source.total(*self._below(path)))

    def children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """Return up to `limit` children of a node.

        Args:
            path: The node's path; with `grouped`, what ids begin with, literally.
            after: `MerklePage.next` of the page before.
            limit: 1 to 10,000.
            grouped: Return, in place of children by segment, either the entries of all ids that
                begin with `path`, if they are no more than `limit`; or groups of them, by the first
                character in which they differ. So a node of a million children is walked in steps
                that each tell apart most of what is left.

        Raises:
            InvalidItem: The limit is out of range.
        """
        if not 0 < limit <= LIMIT_MAX:
            raise InvalidItem(f"limit must be 1 to {LIMIT_MAX}, got {limit}")
        if grouped:
            return self._groups(path, after, limit)
        return self._segments(path, after, limit)

    # -- children by segment ----------------------------------------------------------------------

    def _below(self, path: str) -> tuple[bytes, bytes]:
        start = path + self._separator
        return start.encode(), _after_prefix(start).encode()

    def _exact(self, path: str) -> MerkleEntry | None:
        key = path.encode()
        found = self._source.entries(key, key + b"\0", 1)
        return found[0] if found else None

    def _child(self, id: str, start: int) -> str:
        """Return the path of the child that an id lies under."""
        end = id.find(self._separator, start or 1)  # only the root has the empty path
        return id if end < 0 else id[:end]

    def _segments(self, path: str, after: str | None, limit: int) -> MerklePage:
        low, high = self._below(path) if path else (b"", None)
        start = len(low.decode())
        at = low if after is None else max(low, after.encode())
        nodes: list[MerkleNode] = []
        while True:
            want = max(_AHEAD, limit - len(nodes)) + 1
            page = self._source.entries(at, high, want)
            window = _Window(self._source, page, complete=len(page) < want)
            index = 0
            while index < len(page):
                entry = page[index]
                at = window.keys[index]
                if len(nodes) == limit:
                    return MerklePage(tuple(nodes), at.decode(), path, self._position)
                child = self._child(entry.id, start)
                below = self._below(child)
                if child == entry.id:
                    nodes.append(MerkleNode(child, entry, window.total(*below)))
                    at += b"\0"
                else:
                    if not window.has(child.encode()) and self._exact(child) is None:
                        nodes.append(MerkleNode(child, None, window.total(*below)))
                    at = below[1]
                index = window.index(at)
            if window.complete:
                return MerklePage(tuple(nodes), None, path, self._position)

    # -- groups -----------------------------------------------------------------------------------

    def _groups(self, prefix: str, after: str | None, limit: int) -> MerklePage:
        low, high = _range_of_prefix(prefix)
        ahead = max(limit, _AHEAD_OF_GROUPS) + 1
        entries = self._source.entries(low, high, ahead)
        if after is None and len(entries) <= limit:
            nodes = tuple(MerkleNode(entry.id, entry, EMPTY) for entry in entries)
            return MerklePage(nodes, None, prefix, self._position)
        if len(entries) < ahead:  # all of them: nothing more need be asked for
            self_contained = PathMerkle(MemorySource(entries), self._separator, self._position)
            return self_contained._cut(prefix, after, limit, entries[0] if entries else None)
        return self._cut(prefix, after, limit, entries[0])

    def _cut(
        self, prefix: str, after: str | None, limit: int, first: MerkleEntry | None
    ) -> MerklePage:
        """Return groups of what begins with a prefix."""
        low, high = _range_of_prefix(prefix)
        last = self._source.last(low, high)
        if first is None or last is None:
            return MerklePage((), None, prefix, self._position)
        common = common_prefix(first.id, last.decode())
        at = low if after is None else max(low, after.encode())
        made: list[MerkleNode] = []
        while True:
            found = self._source.entries(at, high, 1)
            if not found:
                return MerklePage(tuple(made), None, common, self._position)
            if len(made) == limit:
                return MerklePage(tuple(made), at.decode(), common, self._position)
            entry = found[0]
            if entry.id == common:
                made.append(MerkleNode(common, entry, EMPTY))
                at = entry.id.encode() + b"\0"
                continue
            group = entry.id[: len(common) + 1]
            start, end = _range_of_prefix(group)
            made.append(MerkleNode(group, None, self._source.total(start, end), group=True))
            if end is None:
                return MerklePage(tuple(made), None, common, self._position)
            at = end


class _Window:
    """Entries read ahead: what they show need not be asked for."""

    def __init__(
        self, source: MerkleSource, entries: Sequence[MerkleEntry], *, complete: bool
    ) -> None:
        self._source = source
        self._entries = entries
        self.keys = [entry.id.encode() for entry in entries]
        self.complete = complete

    def index(self, at: bytes) -> int:
        return bisect_left(self.keys, at)

    def has(self, key: bytes) -> bool:
        index = self.index(key)
        return index < len(self.keys) and self.keys[index] == key

    def total(self, low: bytes, high: bytes) -> SetDigest:
        if self.complete or (self.keys and self.keys[-1] >= high):
            return total_of(self._entries[self.index(low) : self.index(high)])
        return self._source.total(low, high)


def common_prefix(one: str, other: str) -> str:
    """Return what two texts begin with, character by character."""
    size = next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    return one[:size]


def _after_prefix(prefix: str) -> str:
    """Return the smallest text above everything that begins with a prefix of plain characters."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _range_of_prefix(prefix: str) -> tuple[bytes, bytes | None]:
    """Return the range of everything that begins with a prefix; always valid UTF-8."""
    low = prefix.encode()
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return low, None
    following = ord(stem[-1]) + 1
    if following == 0xD800:  # surrogates are no characters
        following = 0xE000
    return low, (stem[:-1] + chr(following)).encode()
