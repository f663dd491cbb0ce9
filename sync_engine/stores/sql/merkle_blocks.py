"""Blocks: digests of runs of some hundred neighbouring ids, as the archive keeps them."""

# ruff: noqa: S608 - texts hold checked table names and literals only; values are bound
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sync_engine.core.merkle import EMPTY, MerkleBatch, SetDigest, sums_by_block
from sync_engine.stores.sql.dialect import Connection, Dialect
from sync_engine.stores.sql.merkle_view import BLOCK, keys_of

__all__ = [
    "BLOCK_ENTRIES",
    "BLOCK_ENTRIES_MAX",
    "cut",
    "delete_blocks",
    "insert_blocks",
    "lows",
    "split",
]

BLOCK_ENTRIES = 512
BLOCK_ENTRIES_MAX = 1024
_PAGE = 2000


def lows(dialect: Dialect, connection: Connection, first: bytes, last: bytes) -> list[bytes]:
    """Return where the blocks begin that ids between two lie in."""
    rows = dialect.query(
        connection,
        "SELECT low FROM {b} WHERE low >= (SELECT o.low FROM {b} o WHERE o.low <= ?k"
        " ORDER BY o.low DESC LIMIT 1) AND low <= ?k ORDER BY low",
        (first, last),
    )
    return [bytes(row[0]) for row in rows]


def delete_blocks(dialect: Dialect, connection: Connection, keys: Sequence[bytes]) -> None:
    """Delete the blocks that begin at these ids, within `Fold.alone`."""
    marks = ", ".join(["?k"] * len(keys))
    dialect.execute(connection, f"DELETE FROM {{b}} WHERE low IN ({marks})", keys)


def insert_blocks(
    dialect: Dialect, connection: Connection, blocks: Sequence[tuple[bytes, SetDigest]]
) -> None:
    """Add blocks, each with the id that it begins at, within `Fold.alone`."""
    for start in range(0, len(blocks), 200):
        part = blocks[start : start + 200]
        marks = ", ".join(["(?k" + ", ?" * 10 + ")"] * len(part))
        args = [value for low, block in part for value in (low, *block.limbs())]
        text = f"INSERT INTO {{b}} ({BLOCK}) VALUES {marks}"
        dialect.execute(connection, text, args)


def split(dialect: Dialect, connection: Connection) -> bool:
    """Cut large blocks up; False where the rows do not add up to what a block says.

    Only where every delta that this moment shows is in the blocks: rows and blocks agree then.
    """
    large = dialect.query(
        connection,
        f"SELECT {BLOCK}, (SELECT n.low FROM {{b}} n WHERE n.low > o.low"
        " ORDER BY n.low LIMIT 1) FROM {b} o WHERE live + dead > ?",
        (BLOCK_ENTRIES_MAX,),
    )
    for low, *numbers, following in large:
        start, end = bytes(low), None if following is None else bytes(following)
        before = SetDigest.of_limbs(tuple(numbers))
        made: list[tuple[bytes, SetDigest]] = []
        after, inclusive = start, True
        while True:
            rows = keys_of(dialect, connection, after, end, _PAGE, inclusive=inclusive)
            made += cut(rows)
            if len(rows) < _PAGE:
                break
            after, inclusive = bytes(rows[-1][0]), False
        total = EMPTY
        for _, block in made:
            total = total + block
        if total != before:
            return False
        made = _merged(made)
        delete_blocks(dialect, connection, [start])
        insert_blocks(dialect, connection, [(start, made[0][1]), *made[1:]])
    return True


def cut(rows: Sequence[tuple[Any, ...]]) -> list[tuple[bytes, SetDigest]]:
    """Return the blocks of rows in id order, each with its first id."""
    if not rows:
        return []
    batch = MerkleBatch()
    for id, version, tombstone, checksum in rows:
        batch.add(bytes(id), version, tombstone, checksum)
    lows = batch.ids[::BLOCK_ENTRIES]
    sums = sums_by_block(lows, [batch])
    return [(low, SetDigest.of_limbs(sums[index])) for index, low in enumerate(lows)]


def _merged(blocks: list[tuple[bytes, SetDigest]]) -> list[tuple[bytes, SetDigest]]:
    """Join small neighbours, which the ends of pages leave."""
    made: list[tuple[bytes, SetDigest]] = []
    for low, block in blocks:
        if made and made[-1][1].count + block.count <= BLOCK_ENTRIES:
            made[-1] = (made[-1][0], made[-1][1] + block)
        else:
            made.append((low, block))
    return made
