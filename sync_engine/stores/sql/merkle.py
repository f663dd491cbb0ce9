"""The Merkle tree of the archive: kept with every batch, folded now and then, read at one moment.

Three tables stand beside the items. A batch adds, in its own transaction, one *delta*: which
entries went and which came. *Blocks* are digests of runs of some hundred neighbouring ids. A *fold*
adds deltas to blocks, many at a time, and removes them. So a batch never waits for another one's
batch on account of the tree, none can be lost or counted twice, and what the tree says of any range
is exact at any moment: blocks, plus the deltas not folded yet, plus the rows at both edges.
"""

# ruff: noqa: S608 - texts hold checked table names and literals only; values are bound
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sync_engine.core.item import Change, Route
from sync_engine.core.merkle import (
    EMPTY,
    MerkleBatch,
    MerkleNode,
    MerklePage,
    MerkleState,
    PathMerkle,
    SetDigest,
    TreeCheck,
    check_separator,
    sums_by_block,
)
from sync_engine.errors import ConfigError, CorruptData, StorageError, StoreBusy
from sync_engine.stores.sql.dialect import IDS_PER_QUERY, Connection, Dialect
from sync_engine.stores.sql.errors import STORE, Verdict, translated, verdict_of
from sync_engine.stores.sql.lease import GENERATION
from sync_engine.stores.sql.merkle_view import (
    BLOCK,
    BUILDING,
    BUILT,
    POISON,
    UNBUILT,
    SqlSource,
    built_of,
    check,
    keys_of,
)
from sync_engine.stores.sql.rows import Row, rows_of
from sync_engine.telemetry import get_logger

__all__ = ["SqlMerkle"]

_log = get_logger("stores.sql")
BLOCK_ENTRIES = 512
BLOCK_ENTRIES_MAX = 1024
_LEGS_MAX = 2048  # of one delta: a row of at most a megabyte
_WAITING_MAX = 4  # deltas that a reader adds up itself
_DELTAS_MAX = 128  # folded in one transaction
_FOLD_EVERY = 64  # batches of this engine
_PAGE = 2000
_L3 = int(Route.L3)
_KEYS = "id, version, tombstone, checksum"


class SqlMerkle:
    """The tree of one archive; implements `core.merkle.MerkleTree`.

    Thread-safety: every method. Blocking: every method but `separator`, as the archive's own.

    Args:
        dialect: The archive.
        separator: What parts segments; one for all engines of an archive, and for ever.
        enabled: Whether this engine's batches keep the tree. Where they do not, they mark it as
            unknown, and it has to be built anew.

    Raises:
        ConfigError: The separator cannot be used.
    """

    def __init__(self, dialect: Dialect, *, separator: str, enabled: bool) -> None:
        self.separator = check_separator(separator)
        self.enabled = enabled
        self._dialect = dialect
        self._unfolded = 0
        self._guess = _Guess()

    def agree(self) -> None:
        """Compare the separator with that of the archive; the first engine names it.

        Raises:
            ConfigError: They differ.
        """
        read = "SELECT parted_by FROM {s} WHERE id = 1"
        with self._dialect.reading() as connection:
            ((found,),) = self._dialect.query(connection, read)
        if not bytes(found):
            with self._dialect.writing() as (connection, _):
                name = "UPDATE {s} SET parted_by = ?k WHERE id = 1 AND parted_by = ?k"
                self._dialect.execute(connection, name, (self.separator.encode(), b""))
                ((found,),) = self._dialect.query(connection, read)
        there = bytes(found).decode(errors="replace")
        if there != self.separator:
            raise ConfigError(
                f"merkle_separator: the archive's paths are parted by {there!r}, not by"
                f" {self.separator!r}: it is chosen once, by the first engine; set"
                f" merkle_separator to {there!r}"
            )

    # -- with every batch -------------------------------------------------------------------------

    def write(
        self,
        connection: Connection,
        info: dict[Any, Any],
        changes: Sequence[Change],
        known: dict[bytes, tuple[Any, ...]] | None = None,
    ) -> int | None:
        """Write a batch and its delta; return the number of rows.

        Rows that are there are locked first, so that what goes is known for sure; a row that
        appears meanwhile makes this None: roll back, and try again.

        Args:
            connection: In a transaction.
            info: What `Dialect.prepare` noted of it.
            changes: In id order, each id once.
            known: Id, version, tombstone and checksum of the rows that are there, locked; None
                looks for itself.
        """
        if known is None:
            if self._guess.all_new and all(change.routes & _L3 for change in changes):
                return self._write_new(connection, info, changes)
            known = self._locked([change.id for change in changes], connection)
            self._guess.saw(known=bool(known))
        if known:
            changes, superseded = _newer(changes, known)
        else:
            superseded = set()
        rows = rows_of(changes, lambda _: superseded, text=self._dialect.text_labels)
        batch, fresh, renewed = _delta(rows, known)
        if fresh and not self._dialect.insert(connection, info, fresh):
            return None
        if renewed:
            self._dialect.upsert(connection, info, renewed)
        self._append(connection, batch)
        return len(rows)

    def _write_new(
        self, connection: Connection, info: dict[Any, Any], changes: Sequence[Change]
    ) -> int | None:
        """Write a batch that seems to have new ids alone; None where it turns out not to."""
        rows = rows_of(changes, lambda _: set(), text=self._dialect.text_labels)
        batch, fresh, _ = _delta(rows, {})
        if not self._dialect.insert(connection, info, fresh):
            self._guess.failed()
            return None
        self._append(connection, batch)
        return len(rows)

    def _locked(self, ids: Sequence[str], connection: Connection) -> dict[bytes, tuple[Any, ...]]:
        known: dict[bytes, tuple[Any, ...]] = {}
        for start in range(0, len(ids), IDS_PER_QUERY):
            part = ids[start : start + IDS_PER_QUERY]
            for row in self._dialect.select(connection, _KEYS, part, lock=True):
                known[bytes(row[0])] = row
        return known

    def forget(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Note rows that a transaction has deleted: id, version, tombstone, checksum of each."""
        if not self.enabled:
            self.poison(connection)
            return
        batch = MerkleBatch()
        for id, version, tombstone, checksum in rows:
            batch.remove(bytes(id), version, tombstone, checksum)
        self._append(connection, batch)

    def poison(self, connection: Connection) -> None:
        """Note that a transaction has written something that the tree will not know of."""
        text = "INSERT INTO {d} (legs, body) VALUES (?, ?)"
        self._dialect.execute(connection, text, (0, POISON))

    def _append(self, connection: Connection, batch: MerkleBatch) -> None:
        text = "INSERT INTO {d} (legs, body) VALUES (?, ?)"
        for part in batch.split(_LEGS_MAX):
            self._dialect.execute(connection, text, (len(part), part.pack()))

    def written(self) -> None:
        """Fold after every so many batches of this engine; what fails is left for later."""
        self._unfolded += 1
        if self._unfolded >= _FOLD_EVERY:
            self._unfolded = 0
            try:
                self.fold()
            except StoreBusy:  # somebody does it
                return
            except StorageError as exc:
                _log.limited("merkle_fold_failed", error=exc)

    # -- now and then -----------------------------------------------------------------------------

    @contextmanager
    def _folding(self) -> Iterator[Connection]:
        """Begin a transaction that has the tree to itself, and sees the archive of one moment."""
        with self._dialect.writing(fold=True) as (connection, _):
            try:
                self._lock(connection)
            except Exception as exc:
                if verdict_of(exc) is not Verdict.PASSING:
                    raise
                raise StoreBusy(STORE, "fold", "another engine is folding", 0.1) from exc
            yield connection

    def _lock(self, connection: Connection) -> None:
        lock = self._dialect.lock_tree
        if lock.startswith("SELECT"):
            self._dialect.query(connection, lock)
        elif lock:
            self._dialect.execute(connection, lock)

    def fold(self) -> int:
        """Add waiting deltas to the blocks, in bounded transactions; return how many.

        Raises:
            StoreUnavailable: Another engine is folding, or the archive cannot be asked.
        """
        done = 0
        while True:
            with translated("fold"), self._folding() as connection:
                count, complete = self._fold(connection)
            done += count
            if complete:
                return done

    def _fold(self, connection: Connection) -> tuple[int, bool]:
        """Fold some deltas; tell how many, and whether none is left that this moment shows."""
        query = self._dialect.query
        listed = query(
            connection, "SELECT seq, legs FROM {d} ORDER BY seq LIMIT ?", (_DELTAS_MAX + 1,)
        )
        complete = len(listed) <= _DELTAS_MAX
        taken = [int(row[0]) for row in listed[:_DELTAS_MAX]]
        if not taken:
            return 0, True
        built, frontier = built_of(self._dialect, connection)
        if built != UNBUILT:
            marks = ", ".join("?" * len(taken))
            bodies = query(connection, f"SELECT body FROM {{d}} WHERE seq IN ({marks})", taken)
            whole = self._add(connection, [bytes(body) for (body,) in bodies], built, frontier)
            if whole and built == BUILT and complete:
                whole = self._split(connection)
            if not whole:
                self._set(connection, UNBUILT, b"")
        for start in range(0, len(taken), IDS_PER_QUERY):
            part = taken[start : start + IDS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            self._dialect.execute(connection, f"DELETE FROM {{d}} WHERE seq IN ({marks})", part)
        self._dialect.execute(connection, "UPDATE {s} SET folds = folds + 1 WHERE id = 1")
        return len(taken), complete

    def _set(self, connection: Connection, built: int, frontier: bytes) -> None:
        text = "UPDATE {s} SET built = ?, frontier = ?k WHERE id = 1"
        self._dialect.execute(connection, text, (built, frontier))

    def _add(
        self, connection: Connection, bodies: Sequence[bytes], built: int, frontier: bytes
    ) -> bool:
        """Add deltas to blocks; False where one of them says that something is not known."""
        if POISON in bodies:
            return False
        try:
            batches = [MerkleBatch.unpack(body) for body in bodies]
        except CorruptData as exc:
            _log.error("merkle_delta_corrupt", error=exc)
            return False
        if built == BUILDING:  # what lies beyond is read from the rows later
            batches = [batch.below(frontier + b"\0") for batch in batches]
        ids = [id for batch in batches for id in batch.ids]
        if not ids:
            return True
        lows = self._lows(connection, min(ids), max(ids))
        sums = sums_by_block(lows, batches)
        touched = sorted(sums)
        for start in range(0, len(touched), IDS_PER_QUERY):
            part = touched[start : start + IDS_PER_QUERY]
            keys = [lows[index] for index in part]
            marks = ", ".join(["?k"] * len(keys))
            found = {
                bytes(low): numbers
                for low, *numbers in self._dialect.query(
                    connection, f"SELECT {BLOCK} FROM {{b}} WHERE low IN ({marks})", keys
                )
            }
            blocks = [
                (
                    lows[index],
                    SetDigest.of_limbs(
                        tuple(
                            int(old) + change
                            for old, change in zip(found[lows[index]], sums[index], strict=True)
                        )
                    ),
                )
                for index in part
            ]
            self._delete_blocks(connection, keys)
            self._insert_blocks(
                connection, [(low, block) for low, block in blocks if block.count or not low]
            )
        return True

    def _lows(self, connection: Connection, first: bytes, last: bytes) -> list[bytes]:
        """Return where the blocks begin that ids between two lie in."""
        rows = self._dialect.query(
            connection,
            "SELECT low FROM {b} WHERE low >= (SELECT o.low FROM {b} o WHERE o.low <= ?k"
            " ORDER BY o.low DESC LIMIT 1) AND low <= ?k ORDER BY low",
            (first, last),
        )
        return [bytes(row[0]) for row in rows]

    def _delete_blocks(self, connection: Connection, keys: Sequence[bytes]) -> None:
        marks = ", ".join(["?k"] * len(keys))
        self._dialect.execute(connection, f"DELETE FROM {{b}} WHERE low IN ({marks})", keys)

    def _insert_blocks(
        self, connection: Connection, blocks: Sequence[tuple[bytes, SetDigest]]
    ) -> None:
        for start in range(0, len(blocks), 200):
            part = blocks[start : start + 200]
            marks = ", ".join(["(?k" + ", ?" * 10 + ")"] * len(part))
            args = [value for low, block in part for value in (low, *block.limbs())]
            text = f"INSERT INTO {{b}} ({BLOCK}) VALUES {marks}"
            self._dialect.execute(connection, text, args)

    def _split(self, connection: Connection) -> bool:
        """Cut large blocks up; False where the rows do not add up to what a block says.

        Only where every delta that this moment shows is in the blocks: rows and blocks agree then.
        """
        large = self._dialect.query(
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
                rows = keys_of(self._dialect, connection, after, end, _PAGE, inclusive=inclusive)
                made += _cut(rows)
                if len(rows) < _PAGE:
                    break
                after, inclusive = bytes(rows[-1][0]), False
            total = EMPTY
            for _, block in made:
                total = total + block
            if total != before:
                return False
            made = _merged(made)
            self._delete_blocks(connection, [start])
            self._insert_blocks(connection, [(start, made[0][1]), *made[1:]])
        return True

    # -- from nothing -----------------------------------------------------------------------------

    def begin_build(self) -> None:
        """Throw the tree away; `build_step` makes it anew.

        Raises:
            StoreUnavailable: Another engine is folding, or the archive cannot be asked.
        """
        with translated("build tree"), self._folding() as connection:
            self._begin(connection)

    def _begin(self, connection: Connection) -> None:
        self._dialect.execute(connection, "DELETE FROM {b}")
        self._insert_blocks(connection, [(b"", EMPTY)])
        self._set(connection, BUILDING, b"")

    def build_step(self, items_max: int = 20_000) -> int:
        """Build a bit of an unbuilt tree from the rows; return how many rows, 0 at the end.

        Safe to interrupt and to share: whoever comes next goes on where the last one stopped.
        Writers are not held up, except those to an SQLite file, for the length of one step.

        Raises:
            StoreUnavailable: Another engine is folding, or the archive cannot be asked.
        """
        with translated("build tree"), self._folding() as connection:
            built, frontier = built_of(self._dialect, connection)
            if built == BUILT and self._known(connection):
                return 0
            while built == BUILT:  # until the fold has met what is not known
                self._fold(connection)
                built, frontier = built_of(self._dialect, connection)
            if built == UNBUILT:
                self._begin(connection)
                frontier = b""
            complete = False
            while not complete:  # what this moment shows must be in the blocks, or in the rows
                _, complete = self._fold(connection)
            built, frontier = built_of(self._dialect, connection)
            if built == UNBUILT:
                return 1  # somebody writes and keeps no tree: begin again
            rows = keys_of(self._dialect, connection, frontier, None, items_max, inclusive=False)
            blocks = _cut(rows)
            if blocks and not frontier:
                self._delete_blocks(connection, [b""])
                blocks[0] = (b"", blocks[0][1])
            self._insert_blocks(connection, blocks)
            if len(rows) < items_max:
                self._set(connection, BUILT, b"")
                return 0
            self._set(connection, BUILDING, bytes(rows[-1][0]))
            return len(rows)

    def _known(self, connection: Connection) -> bool:
        """Tell whether no waiting delta says that something is not known."""
        text = "SELECT COUNT(*) FROM {d} WHERE legs = 0"
        ((poisoned,),) = self._dialect.query(connection, text)
        return not poisoned

    # -- reading ----------------------------------------------------------------------------------

    def state(self) -> MerkleState:
        """Return how the tree does; never folds.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        with translated("read tree"), self._dialect.viewing() as connection:
            query = self._dialect.query
            ((deltas,),) = query(connection, "SELECT COUNT(*) FROM {d}")
            ((parted_by, built, folds, frontier),) = query(
                connection, "SELECT parted_by, built, folds, frontier FROM {s} WHERE id = 1"
            )
            return MerkleState(
                built=int(built) == BUILT and self._known(connection),
                frontier=bytes(frontier).decode(errors="replace"),
                separator=bytes(parted_by).decode(errors="replace"),
                deltas=int(deltas),
                folds=int(folds),
                position=self._position(connection),
            )

    def _position(self, connection: Connection) -> str:
        ((archive, generation, _),) = self._dialect.query(connection, GENERATION)
        return f"{bytes(archive).decode()}:{int(generation)}"

    def position(self) -> str:
        """Return the archive position now; opaque, and another one after every batch.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        with translated("read tree"), self._dialect.reading() as connection:
            return self._position(connection)

    def _waiting(self) -> int:
        with translated("read tree"), self._dialect.reading() as connection:
            ((waiting,),) = self._dialect.query(connection, "SELECT COUNT(*) FROM {d}")
            return int(waiting)

    @contextmanager
    def view(self) -> Iterator[PathMerkle]:
        """Give the tree of one moment. Hold it briefly: the database keeps that moment meanwhile.

        Raises:
            StoreUnavailable: The tree is not built yet, or the archive cannot be asked.
        """
        with suppress(StorageError):  # what waits to be folded is counted as it stands
            if self._waiting() > _WAITING_MAX:
                self.fold()
        with translated("read tree"), self._dialect.viewing() as connection:
            source = SqlSource(self._dialect, connection)
            yield PathMerkle(source, self.separator, self._position(connection))

    def check(self, after: str | None = None, blocks: int = 1) -> TreeCheck:
        """Compare the rows of some blocks with what the tree says of them.

        Args:
            after: `TreeCheck.next` of the check before; None begins at the first id.
            blocks: Blocks of some 500 rows to check, at least 1.

        Raises:
            StoreUnavailable: The tree is not built yet, or the archive cannot be asked.
        """
        with translated("check tree"), self._dialect.viewing() as connection:
            return check(self._dialect, connection, after, blocks)

    def merkle_root(self) -> MerkleNode:
        """Return the root.

        Raises:
            StoreUnavailable: The tree is not built yet, or the archive cannot be asked.
        """
        with self.view() as tree:
            return tree.root()

    def merkle_node(self, path: str) -> MerkleNode:
        """Return the node of a path; raises as `merkle_root`."""
        with self.view() as tree:
            return tree.node(path)

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """Return a page of children, as `PathMerkle.children`; raises as `merkle_root`."""
        with self.view() as tree:
            return tree.children(path, after, limit, grouped=grouped)


class _Guess:
    """Whether the next batch has new ids alone; wrong ever less often where it is mixed.

    Threads may disturb each other's count: a guess costs time and nothing else.
    """

    def __init__(self) -> None:
        self._streak = 0
        self._needed = 2

    @property
    def all_new(self) -> bool:
        return self._streak >= self._needed

    def saw(self, *, known: bool) -> None:
        self._streak = 0 if known else self._streak + 1

    def failed(self) -> None:
        self._streak = 0
        self._needed = min(256, 2 * self._needed)


def _newer(
    changes: Sequence[Change], known: dict[bytes, tuple[Any, ...]]
) -> tuple[list[Change], set[str]]:
    """Return the changes that win over the rows there are, and which of them have one."""
    winning: list[Change] = []
    superseded: set[str] = set()
    for change in changes:
        row = known.get(change.id.encode())
        if row is None:
            winning.append(change)
        elif row[1] < change.version:
            winning.append(change)
            superseded.add(change.id)
    return winning, superseded


def _delta(
    rows: Sequence[Row], known: dict[bytes, tuple[Any, ...]]
) -> tuple[MerkleBatch, list[Row], list[Row]]:
    """Return what rows do to the tree, and the rows parted: new ids, and others."""
    batch = MerkleBatch()
    fresh: list[Row] = []
    renewed: list[Row] = []
    for row in rows:
        id = row[0].encode() if type(row[0]) is str else row[0]
        old = known.get(id)
        if old is None:
            fresh.append(row)
        else:
            batch.remove(id, old[1], old[2], old[3])
            renewed.append(row)
        batch.add(id, row[1], row[2], row[7])
    return batch, fresh, renewed


def _cut(rows: Sequence[tuple[Any, ...]]) -> list[tuple[bytes, SetDigest]]:
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
