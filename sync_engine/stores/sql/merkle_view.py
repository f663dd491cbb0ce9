"""The Merkle tree of one moment, read: blocks, deltas that no fold has taken, and edges."""

# ruff: noqa: S608 - texts hold checked table names and literals only; values are bound
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xxhash import xxh3_64_intdigest

from sync_engine.core.merkle import (
    EMPTY,
    CheckedRow,
    MerkleBatch,
    MerkleEntry,
    SetDigest,
    TreeCheck,
    entry_hash,
)
from sync_engine.core.merkle.tree import total_of
from sync_engine.errors import CorruptData, StoreBusy
from sync_engine.stores.sql.dialect import Connection, Dialect
from sync_engine.stores.sql.errors import STORE
from sync_engine.stores.sql.rows import COLUMNS, change_of

__all__ = [
    "BLOCK",
    "BUILDING",
    "BUILT",
    "KEYS",
    "POISON",
    "UNBUILT",
    "SqlSource",
    "built_of",
    "check",
    "keys_of",
]

BLOCK = "low, live, dead, l0, l1, l2, l3, d0, d1, d2, d3"
UNBUILT, BUILDING, BUILT = 0, 1, 2
POISON = b""  # a delta of an engine that keeps no tree: nothing is known of what it wrote
KEYS = "id, version, tombstone, checksum"
_ALL = ", ".join(COLUMNS)
_PAGE = 2000
_FULL_PAGE = 64  # rows with their contents, which may be large
_SUMS = ", ".join(f"COALESCE(SUM({name}), 0)" for name in BLOCK.split(", ")[1:])


def built_of(dialect: Dialect, connection: Connection) -> tuple[int, bytes]:
    """Return whether the tree is built, and up to which id."""
    text = "SELECT built, frontier FROM {s} WHERE id = 1"
    ((built, frontier),) = dialect.query(connection, text)
    return int(built), bytes(frontier)


def keys_of(
    dialect: Dialect,
    connection: Connection,
    low: bytes,
    high: bytes | None,
    limit: int,
    *,
    inclusive: bool = True,
) -> list[tuple[Any, ...]]:
    """Return id, version, tombstone and checksum of rows, in id order.

    A bound that ends in NUL stands right behind an id: no id has a NUL.
    """
    where, args = [], []
    if low:
        behind = low.endswith(b"\0")
        where.append("id > ?k" if behind or not inclusive else "id >= ?k")
        args.append(low.removesuffix(b"\0"))
    if high is not None:
        where.append("id <= ?k" if high.endswith(b"\0") else "id < ?k")
        args.append(high.removesuffix(b"\0"))
    text = f"SELECT {KEYS} FROM {{t}}"
    text += f" WHERE {' AND '.join(where)}" if where else ""
    return dialect.query(connection, f"{text} ORDER BY id LIMIT ?", [*args, limit])


class SqlSource:
    """Entries of one moment; implements `core.merkle.MerkleSource`.

    Args:
        dialect: The archive.
        connection: Within `Dialect.viewing`.

    Raises:
        StoreBusy: The tree is not built.
    """

    def __init__(self, dialect: Dialect, connection: Connection) -> None:
        self._dialect = dialect
        self._connection = connection
        built, frontier = built_of(dialect, connection)
        bodies = [bytes(row[0]) for row in dialect.query(connection, "SELECT body FROM {d}")]
        if built != BUILT or POISON in bodies:
            hint = "the tree is not built: `sync-engine merkle build` builds it"
            if built == BUILDING:
                hint = f"the tree is being built, up to {frontier.decode(errors='replace')!r}"
            raise StoreBusy(STORE, "merkle", hint, 1.0)
        try:
            self._pending = [leg for body in bodies for leg in MerkleBatch.unpack(body).legs()]
        except CorruptData as exc:
            raise StoreBusy(
                STORE, "merkle", "a delta is damaged: the tree is unknown", 1.0
            ) from exc

    def total(self, low: bytes, high: bytes | None) -> SetDigest:
        """Return the digest of a range.

        Cost: two or three queries, and the keys of at most two blocks.
        """
        first, last = self._aligned(low, high)
        if first is None or (last is not None and last < first):
            return self._edge(low, high)
        total = self._blocks(first, last)
        for id, sign, digest in self._pending:
            if id >= first and (last is None or id < last):
                total = total + digest if sign > 0 else total - digest
        if low < first:
            total = total + self._edge(low, first)
        if last is not None and high is not None and last < high:
            total = total + self._edge(last, high)
        return total

    def _aligned(self, low: bytes, high: bytes | None) -> tuple[bytes | None, bytes | None]:
        """Return the bounds of the whole blocks within a range; an open end stays open."""
        low_args = (low.removesuffix(b"\0"),)
        above = ">" if low.endswith(b"\0") else ">="
        if high is None:
            text = f"SELECT low FROM {{b}} WHERE low {above} ?k ORDER BY low LIMIT 1"
            rows = self._dialect.query(self._connection, text, low_args)
            return bytes(rows[0][0]) if rows else None, None
        text = (
            f"SELECT (SELECT low FROM {{b}} WHERE low {above} ?k ORDER BY low LIMIT 1),"
            " (SELECT low FROM {b} WHERE low <= ?k ORDER BY low DESC LIMIT 1)"
        )
        args = (*low_args, high.removesuffix(b"\0"))
        ((first, last),) = self._dialect.query(self._connection, text, args)
        return None if first is None else bytes(first), bytes(last)

    def _blocks(self, first: bytes, last: bytes | None) -> SetDigest:
        text, args = f"SELECT {_SUMS} FROM {{b}} WHERE low >= ?k", [first]
        if last is not None:
            text, args = f"{text} AND low < ?k", [first, last]
        (numbers,) = self._dialect.query(self._connection, text, args)
        return SetDigest.of_limbs(tuple(int(number) for number in numbers))

    def _edge(self, low: bytes, high: bytes | None) -> SetDigest:
        total = EMPTY
        while True:
            entries = self.entries(low, high, _PAGE)
            total = total + total_of(entries)
            if len(entries) < _PAGE:
                return total
            low = entries[-1].id.encode() + b"\0"

    def entries(self, low: bytes, high: bytes | None, limit: int) -> list[MerkleEntry]:
        """Return the first entries of a range."""
        rows = keys_of(self._dialect, self._connection, low, high, limit)
        return [_entry(row) for row in rows]

    def last(self, low: bytes, high: bytes | None) -> bytes | None:
        """Return the last id of a range."""
        where, args = ["id >= ?k"], [low]
        if high is not None:
            where.append("id < ?k")
            args.append(high)
        text = f"SELECT id FROM {{t}} WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT 1"
        rows = self._dialect.query(self._connection, text, args)
        return bytes(rows[0][0]) if rows else None


def _entry(row: Sequence[Any]) -> MerkleEntry:
    id, version, tombstone, checksum = row
    raw = bytes(id)
    hash = entry_hash(raw, version, tombstone, checksum)
    return MerkleEntry(raw.decode(), version, bool(tombstone), hash)


def check(dialect: Dialect, connection: Connection, after: str | None, blocks: int) -> TreeCheck:
    """Compare the rows of some blocks, each by its own content, with what the blocks say.

    Args:
        dialect: The archive.
        connection: Within `Dialect.viewing`.
        after: `TreeCheck.next` of the check before; None begins.
        blocks: Blocks to check, at least 1.

    Raises:
        StoreBusy: The tree is not built.
    """
    source = SqlSource(dialect, connection)
    low = b"" if after is None else after.encode()
    text = "SELECT low FROM {b} WHERE low >= ?k ORDER BY low LIMIT ?"
    lows = [bytes(row[0]) for row in dialect.query(connection, text, (low, blocks + 1))]
    if not lows:  # blocks were joined meanwhile: go on with the next one there is
        return TreeCheck(low=low.decode(), next=None, matches=True, rows=(), corrupt=())
    start, end = lows[0], lows[blocks] if len(lows) > blocks else None
    rows: list[CheckedRow] = []
    corrupt: list[str] = []
    total = EMPTY
    at, inclusive = start, True
    while True:
        where, args = ["id >= ?k" if inclusive else "id > ?k"], [at]
        if end is not None:
            where.append("id < ?k")
            args.append(end)
        text = f"SELECT {_ALL} FROM {{t}} WHERE {' AND '.join(where)} ORDER BY id LIMIT ?"
        page = dialect.query(connection, text, [*args, _FULL_PAGE])
        for row in page:
            checked, digest = _checked(row)
            total = total + digest
            if checked is None:
                corrupt.append(bytes(row[0]).decode(errors="replace"))
            else:
                rows.append(checked)
        if len(page) < _FULL_PAGE:
            break
        at, inclusive = bytes(page[-1][0]), False
    return TreeCheck(
        low=start.decode(),
        next=None if end is None else end.decode(),
        matches=bool(corrupt) or total == source.total(start, end),
        rows=tuple(rows),
        corrupt=tuple(corrupt),
    )


def _checked(row: Sequence[Any]) -> tuple[CheckedRow | None, SetDigest]:
    id, version, tombstone, checksum = (bytes(row[0]), row[1], row[2], row[7])
    hash = entry_hash(id, version, tombstone, checksum)
    digest = SetDigest.of(hash, deleted=bool(tombstone))
    change = change_of(row)
    if change is None:
        return None, digest
    content = None if change.content is None else xxh3_64_intdigest(change.content)
    return CheckedRow(change.id, version, content, change.expires_at_ms, change.routes), digest
