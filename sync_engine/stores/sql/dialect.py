"""What the archive needs of a database; one subclass for each kind."""

# ruff: noqa: S608 - texts hold checked table names and literals only; values are bound
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import QueuePool

from sync_engine.errors import SyncEngineError
from sync_engine.ports import Clock
from sync_engine.stores.sql.errors import Verdict, verdict_of
from sync_engine.stores.sql.rows import Row

__all__ = ["IDS_PER_QUERY", "Connection", "Dialect", "Settings"]

IDS_PER_QUERY = 500
_RECYCLE_S = 3600
_COLUMNS = (
    "SELECT column_name, data_type FROM information_schema.columns"
    " WHERE table_schema = {here} AND table_name = ?"
)

_DOOMED = (
    "SELECT id, version, tombstone, checksum FROM {t} WHERE tombstone > 0 AND tombstone < ?"
    " ORDER BY tombstone LIMIT ?"
)

Connection = Any
"""A driver's connection, from the pool; drivers share no type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to reach one archive.

    Attributes:
        url: Where it is, with the driver that serves it.
        table: Name of the item table; the others are named after it.
        connect_timeout_s: Bound of one connection attempt, in seconds.
        timeout_s: Bound of one statement, of a wait for a lock, and of a wait for a connection.
        pool_size: Connections kept; half as many again may be opened under load.
    """

    url: URL
    table: str
    connect_timeout_s: float
    timeout_s: float
    pool_size: int


class Dialect(ABC):
    """Connections, sessions and statements of one kind of database.

    Every pooled connection is in autocommit mode: a lone read is one round trip, and a transaction
    says so itself. SQL is written once with ``{t}``, ``{m}``, ``{w}`` and ``{n}`` for the item,
    meta, writer and number tables, ``{d}``, ``{b}`` and ``{s}`` for the Merkle tree's deltas,
    blocks and state, ``?`` for a number or a value, ``?k`` for an id or label given as bytes, and
    ``{lock}`` where a row that is read has to be locked.

    Thread-safety: every method; a connection belongs to the thread that took it.
    """

    kind: str
    quote = '"'
    begin = "BEGIN"
    placeholder = "%s"
    key_placeholder = "%s"
    lock_clause = " FOR UPDATE"
    purge_clause = " FOR UPDATE"  # of the tombstones to purge
    # Transactions that see one moment throughout: one that writes, and one that only reads. The
    # first locks the tree, alone, before it sees anything.
    begin_fold: tuple[str, ...] = ("BEGIN",)
    begin_view: tuple[str, ...] = ("BEGIN",)
    lock_tree = ""
    current_schema = "current_schema()"
    text_labels = False  # whether rows are written with str for ids and labels

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self._texts: dict[str, str] = {}
        self._engine: Engine | None = None
        name, quote = settings.table, self.quote
        self.tables = {
            "t": f"{quote}{name}{quote}",
            "m": f"{quote}{name}_meta{quote}",
            "w": f"{quote}{name}_writers{quote}",
            "n": f"{quote}{name}_numbers{quote}",
            "d": f"{quote}{name}_merkle_delta{quote}",
            "b": f"{quote}{name}_merkle{quote}",
            "s": f"{quote}{name}_merkle_state{quote}",
        }

    # -- connections ------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The pool that writes; made on first use, connects on first use of a connection."""
        if self._engine is None:
            self._engine = self._make_engine(
                pool_size=self.settings.pool_size, max_overflow=self.settings.pool_size // 2
            )
        return self._engine

    @property
    def reader(self) -> Engine:
        """The pool that reads."""
        return self.engine

    def _make_engine(
        self,
        *,
        pool_size: int,
        max_overflow: int,
        prepare: Callable[[Connection, dict[Any, Any]], None] | None = None,
    ) -> Engine:
        engine = create_engine(
            self.settings.url,
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=self.settings.timeout_s,
            pool_recycle=_RECYCLE_S,
            pool_use_lifo=True,
            pool_reset_on_return=None,  # every path below ends its transaction itself
            connect_args=self.connect_args(),
            hide_parameters=True,
        )
        prepare = prepare or self.prepare

        def on_connect(connection: Connection, record: Any) -> None:
            try:
                prepare(connection, record.info)
            except BaseException:
                with suppress(Exception):
                    connection.close()  # the pool forgets it without closing it
                raise

        event.listen(engine, "connect", on_connect)
        return engine

    @abstractmethod
    def connect_args(self) -> dict[str, Any]:
        """Return the driver's arguments: timeouts, autocommit."""

    @abstractmethod
    def prepare(self, connection: Connection, info: dict[Any, Any]) -> None:
        """Set a new connection up; what it finds out about the server goes into `info`."""

    @contextmanager
    def _taken(self, engine: Engine) -> Iterator[Any]:
        pool = engine.pool
        fairy = engine.raw_connection()
        try:
            yield fairy
        except SyncEngineError:
            raise
        except BaseException as exc:
            # After an interrupt, too, nobody knows what the connection is waiting for.
            lost = not isinstance(exc, Exception) or verdict_of(exc) is Verdict.LOST
            if lost:
                fairy.invalidate()
                engine.dispose()  # its idle neighbours most likely died with it
            raise
        finally:
            fairy.close()
            if engine.pool is not pool:  # disposed meanwhile: nobody else closes what comes back
                pool.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Take a connection for single reads."""
        with self._taken(self.reader) as fairy:
            yield fairy.dbapi_connection

    @contextmanager
    def viewing(self) -> Iterator[Connection]:
        """Take a connection whose reads all see the archive of one moment."""
        with self._taken(self.reader) as fairy:
            connection = fairy.dbapi_connection
            for statement in self.begin_view:
                self.execute(connection, statement)
            try:
                yield connection
            finally:
                self._roll_back(fairy)

    @contextmanager
    def writing(self, *, fold: bool = False) -> Iterator[tuple[Connection, dict[Any, Any]]]:
        """Take a connection for one transaction: committed at the end, rolled back on any error.

        Args:
            fold: Whether the transaction is to see one moment throughout.

        Yields:
            The connection, and what `prepare` noted of it.
        """
        with self._taken(self.engine) as fairy:
            connection = fairy.dbapi_connection
            for statement in self.begin_fold if fold else (self.begin,):
                self.execute(connection, statement)
            try:
                yield connection, fairy.info
                self.execute(connection, "COMMIT")
            except BaseException as exc:
                if isinstance(exc, SyncEngineError) or verdict_of(exc) is not Verdict.LOST:
                    self._roll_back(fairy)
                raise

    def _roll_back(self, fairy: Any) -> None:
        try:
            self.execute(fairy.dbapi_connection, "ROLLBACK")
        except Exception:
            fairy.invalidate()

    def close(self) -> None:
        """Close every connection; the next use opens new ones."""
        engine, self._engine = self._engine, None
        if engine is not None:
            with suppress(Exception):
                engine.dispose()

    # -- statements -------------------------------------------------------------------------------

    def text(self, template: str) -> str:
        """Return a statement in this database's words."""
        text = self._texts.get(template)
        if text is None:
            text = template.format(lock=self.lock_clause, **self.tables)
            text = text.replace("?k", "\0").replace("?", self.placeholder)
            text = self._texts[template] = text.replace("\0", self.key_placeholder)
        return text

    def execute(self, connection: Connection, template: str, args: Sequence[Any] = ()) -> int:
        """Run a statement; return the number of rows it touched."""
        cursor = connection.cursor()
        try:
            self._run(cursor, self.text(template), args)
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def query(
        self, connection: Connection, template: str, args: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a query; return its rows, text as bytes."""
        cursor = self.cursor(connection)
        try:
            self._run(cursor, self.text(template), args)
            return list(cursor.fetchall())
        finally:
            cursor.close()

    def cursor(self, connection: Connection) -> Any:
        """Open a cursor whose rows have bytes for text."""
        return connection.cursor()

    def _run(self, cursor: Any, text: str | bytes, args: Sequence[Any] = ()) -> None:
        if args:
            cursor.execute(text, tuple(args))
        else:
            cursor.execute(text)

    @abstractmethod
    def upsert(self, connection: Connection, info: dict[Any, Any], rows: Sequence[Row]) -> None:
        """Write rows, sorted by id, each only over an older version.

        Raises:
            StoreRejected: One row is larger than the server takes.
        """

    @abstractmethod
    def insert(self, connection: Connection, info: dict[Any, Any], rows: Sequence[Row]) -> bool:
        """Write rows, sorted by id, of ids that had none a moment ago.

        Returns:
            False where one of them has a row by now: roll back, and look again.

        Raises:
            StoreRejected: One row is larger than the server takes.
        """

    @abstractmethod
    def select(
        self, connection: Connection, columns: str, ids: Sequence[str], *, lock: bool = False
    ) -> list[tuple[Any, ...]]:
        """Return the rows of at most `IDS_PER_QUERY` ids, in any order.

        With `lock` they stay as they are until the transaction ends; ids are sorted then, and
        locked in that order.
        """

    def purge(
        self, connection: Connection, below_version: int, limit: int
    ) -> list[tuple[Any, ...]]:
        """Delete the oldest tombstones in a transaction.

        Returns:
            Id, version, tombstone and checksum of each.
        """
        text = _DOOMED + self.purge_clause
        doomed = self.query(connection, text, (below_version, limit))
        for start in range(0, len(doomed), IDS_PER_QUERY):
            ids = [bytes(row[0]) for row in doomed[start : start + IDS_PER_QUERY]]
            marks = ", ".join(["?k"] * len(ids))
            self.execute(connection, f"DELETE FROM {{t}} WHERE id IN ({marks})", ids)
        return doomed

    # -- what the server is -----------------------------------------------------------------------

    @abstractmethod
    def server(self, connection: Connection) -> str:
        """Return product and version."""

    @abstractmethod
    def warnings(self, connection: Connection) -> tuple[str, ...]:
        """Return the settings that weaken what a commit promises, as sentences."""

    def data_version(self, connection: Connection) -> tuple[int, int] | None:
        """Return what another connection's commit changes; None where there is no such thing.

        The first number is the connection's own: those of two connections do not compare.
        """
        del connection
        return None

    def columns(self, connection: Connection, table: str) -> dict[str, str]:
        """Return the upper-case type of each column of a table; empty where there is no table."""
        rows = self.query(connection, _COLUMNS.format(here=self.current_schema), (table,))
        return {_text(name).lower(): _text(kind).upper() for name, kind in rows}

    @contextmanager
    def schema_lock(self, connection: Connection) -> Iterator[None]:
        """Keep others from creating or migrating the tables meanwhile."""
        del connection
        yield


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
