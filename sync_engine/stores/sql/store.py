"""The archive (L3): the durable home of items in a SQL database."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, TypeVar

from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, StorageError, StoreRejected, StoreUnavailable
from sync_engine.ports import ArchiveInfo, Clock, Standing
from sync_engine.stores.sql import schema
from sync_engine.stores.sql.conditional import Raced, write_if
from sync_engine.stores.sql.dialect import IDS_PER_QUERY, Connection
from sync_engine.stores.sql.errors import STORE, Verdict, classify, translated
from sync_engine.stores.sql.kinds import make_dialect
from sync_engine.stores.sql.lease import NotAdmitted, Writers
from sync_engine.stores.sql.merkle import SqlMerkle
from sync_engine.stores.sql.reading import Reading
from sync_engine.stores.sql.rows import rows_of, sorted_unique
from sync_engine.telemetry.redaction import redact_url

__all__ = ["SqlArchive"]

_COUNTERS = (
    "batches", "rows", "corrupt", "rejected", "unavailable", "fenced", "purged", "races",
)  # fmt: skip
_TRIES_MAX = 10

T = TypeVar("T")


class SqlArchive:
    """Items in one table of SQLite, MySQL, MariaDB or PostgreSQL; implements `ports.ArchiveStore`.

    A batch is one transaction of guarded upserts in id order: only a strictly larger version
    replaces a row, so repeating or reordering batches is harmless. Deletes are rows without
    content. Each row carries a checksum over all of its columns, verified whenever its content is
    read.

    Thread-safety: every method. Blocking: every method but `stats`, each statement for `timeout_s`
    at most; connecting for `connect_timeout_s`.

    Args:
        url: SQLAlchemy URL: ``sqlite:///path``, ``mysql://…`` (pymysql; ``mysql+mysqldb://`` and
            ``mariadb+mariadbconnector://`` where installed), ``postgresql://…`` (psycopg 3).
        clock: Counts lease waits and tells which rows have expired.
        create_schema: Whether `attach` may create missing tables.
        connect_timeout_s: Bound of one connection attempt, in seconds.
        timeout_s: Bound of one statement, one wait for a lock, and one wait for a connection.
        pool_size: Connections kept open (SQLite: for reading, beside the one that writes).
        table: Name of the item table; ``<table>_meta`` and ``<table>_writers`` stand beside it.
        owner: A name that at most one live process bears, such as an identity kept under a file
            lock: what a dead process left registered under it is taken over without waiting. None:
            a random name, which takes nothing over.
        writer_ttl_s: After how many seconds without a sign of life this engine's registration may
            be removed by another that wants to be the sole writer; `lease` replaces it.
        merkle: Whether batches of this engine keep the Merkle tree.
        merkle_separator: What parts segments of ids; the same for all engines of an archive.

    Raises:
        ConfigError: A setting cannot be used, or the driver is not installed.
    """

    name = STORE

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        create_schema: bool = True,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 10.0,
        pool_size: int = 4,
        table: str = "sync_items",
        owner: str | None = None,
        writer_ttl_s: float = 30.0,
        merkle: bool = True,
        merkle_separator: str = ".",
    ) -> None:
        self._dialect = make_dialect(
            url,
            clock=clock,
            table=table,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            pool_size=pool_size,
        )
        self.merkle = SqlMerkle(self._dialect, separator=merkle_separator, enabled=merkle)
        self._shown_url = redact_url(url)
        self._clock = clock
        self._create_schema = create_schema
        self._writers = Writers(self._dialect, clock, ttl_s=writer_ttl_s, owner=owner)
        self._counters = dict.fromkeys(_COUNTERS, 0)
        self._reading = Reading(self._dialect, clock, self._note_corrupt)
        self._well = False  # whether the last call went through: a hint for `close` only

    def __repr__(self) -> str:
        return f"SqlArchive({self._shown_url!r}, table={self._dialect.settings.table!r})"

    # -- life -------------------------------------------------------------------------------------

    def attach(self) -> ArchiveInfo:
        """Connect, check the tables (create them where absent and allowed), read the identity.

        Raises:
            StoreUnavailable: The server is not there now.
            ConfigError: Wrong credentials or database, or tables of another version or owner.
        """
        try:
            schema.ensure(self._dialect, create=self._create_schema)
            self.merkle.agree()
            with self._dialect.reading() as connection:
                info = self._info(connection)
        except (ConfigError, StoreUnavailable):
            self._dialect.close()
            raise
        except Exception as exc:
            self._dialect.close()
            verdict, hint = classify(exc)
            if verdict in {Verdict.MISCONFIGURED, Verdict.REJECTED} or isinstance(exc, TypeError):
                hint = hint or "the driver does not take an option of the URL"
                raise ConfigError(f"sql_url: {self._shown_url}: {hint}") from exc
            raise StoreUnavailable(STORE, "attach", hint or type(exc).__name__) from exc
        self._well = True
        return info

    def close(self) -> None:
        """Leave the writers' table if the server answers, and close connections; safe twice.

        A lease is not given up here: call `release_lease` first, or let it run out.
        """
        if self._well:
            self._well = False
            with suppress(StorageError), translated("close"):
                self._writers.leave()
        self._dialect.close()

    def info(self) -> ArchiveInfo:
        """Read identity and generation anew.

        Raises:
            StoreUnavailable: Try again later.
        """
        with self._call("info"), self._dialect.reading() as connection:
            return self._info(connection)

    def _info(self, connection: Connection) -> ArchiveInfo:
        return ArchiveInfo(
            **asdict(self._writers.look(connection)),
            server=self._dialect.server(connection),
            warnings=self._dialect.warnings(connection),
        )

    def ping(self) -> float:
        """Return the seconds of one round trip.

        Raises:
            StoreUnavailable: No answer within the budget.
        """
        started = self._clock.monotonic()
        with self._call("ping"), self._dialect.reading() as connection:
            self._dialect.query(connection, "SELECT 1")
        return self._clock.monotonic() - started

    def stats(self) -> Mapping[str, float]:
        """Return counters since construction, and what is known of the lease. Never blocks.

        ``batches`` and ``rows`` written, ``corrupt`` rows met, ``rejected`` and ``unavailable``
        calls, ``fenced`` batches (this engine's registration was gone), ``races`` with other
        engines for a new id (such a batch is written again), ``purged`` tombstones,
        ``foreign_writes`` (commits to an SQLite file by something that is no engine), ``admitted``
        (0 or 1), ``lease_epoch`` (0: not held).
        """
        return {
            **self._counters,
            "foreign_writes": self._writers.foreign_writes,
            "admitted": int(self._writers.admitted),
            "lease_epoch": self._writers.epoch,
        }

    # -- writing ----------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        """Write a batch in one transaction, each change only over an older version.

        A change that the archive does not keep (no `Route.L3`) makes a tombstone of an older row
        and inserts nothing. What the batch does to the Merkle tree is written with it. Cost: a
        query for every 500 ids, four short statements, and one or two large ones a batch.

        Raises:
            StoreRejected: A row can never be written, so the batch cannot as a whole.
            StoreUnavailable: Try again later; `NotAdmitted` says in how many seconds.
        """
        if not changes:
            return

        def write(connection: Connection, info: dict[Any, Any]) -> int:
            try:
                ordered = sorted_unique(changes)
                count = (
                    self.merkle.write(connection, info, ordered)
                    if self.merkle.enabled
                    else self._upsert(connection, info, ordered)
                )
            except (struct.error, UnicodeError) as exc:
                raise StoreRejected(STORE, "apply", "a value does not fit its column") from exc
            if count is None:
                raise Raced
            return count

        rows = self._write("apply", write)
        self._counters["rows"] += rows

    def put_if(self, change: Change, expected: int) -> Change | None:
        """Write a change if the row of its id has the expected version; see `ArchiveStore.put_if`.

        Raises:
            StoreRejected: The row can never be written.
            StoreUnavailable: Try again later; whether it was written is not known.
        """

        def write(connection: Connection, info: dict[Any, Any]) -> Change | None:
            return write_if(self._dialect, self.merkle, connection, info, change, expected)

        return self._write("put_if", write)

    def _write(self, operation: str, attempt: Callable[[Connection, dict[Any, Any]], T]) -> T:
        """Do one batch in one transaction, as a writer; again where others came in between."""
        with self._call(operation):
            for _ in range(_TRIES_MAX):
                self._writers.check(operation)
                try:
                    with self._dialect.writing() as (connection, info):
                        result = attempt(connection, info)
                        self._fence(connection)
                except _Fenced:  # registers anew, and may have to wait for a lease
                    self._counters["fenced"] += 1
                except Raced:  # its rows are there now
                    self._counters["races"] += 1
                else:
                    self._counters["batches"] += 1
                    if self.merkle.enabled:
                        self.merkle.written()
                    return result
            raise StoreUnavailable(STORE, operation, "other engines came first again and again")

    def _fence(self, connection: Connection) -> None:
        """Roll the transaction back where this engine may not write."""
        if not self._writers.fence(connection):
            raise _Fenced

    def _upsert(
        self, connection: Connection, info: dict[Any, Any], changes: Sequence[Change]
    ) -> int:
        """Write rows and keep no tree."""
        rows = rows_of(
            changes,
            lambda some: self._superseded(connection, some),
            text=self._dialect.text_labels,
        )
        if rows:
            self._dialect.upsert(connection, info, rows)
            self.merkle.poison(connection)
        return len(rows)

    def _superseded(self, connection: Connection, changes: Sequence[Change]) -> set[str]:
        versions = {change.id: change.version for change in changes}
        ids = list(versions)
        found: set[str] = set()
        for start in range(0, len(ids), IDS_PER_QUERY):
            part = ids[start : start + IDS_PER_QUERY]
            for id_bytes, version in self._dialect.select(connection, "id, version", part):
                change_id = bytes(id_bytes).decode()
                if version < versions[change_id]:
                    found.add(change_id)
        return found

    def purge_tombstones(self, *, below_version: int, limit: int) -> int:
        """Drop up to `limit` tombstones of versions below the bound; return how many went.

        Raises:
            StoreUnavailable: Try again later.
        """
        with self._call("purge_tombstones"):
            self._writers.check("purge_tombstones")
            with self._dialect.writing() as (connection, _):
                gone = self._dialect.purge(connection, below_version, limit)
                if gone:
                    self.merkle.forget(connection, gone)
                # What the tree says changes only with the generation.
                if not (self._writers.fence if gone else self._writers.touch)(connection):
                    raise NotAdmitted("purge_tombstones", 0.0)
            self._counters["purged"] += len(gone)
            return len(gone)

    # -- reading ----------------------------------------------------------------------------------

    def get_many(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return the rows of these ids, tombstones included; absent ids are left out.

        Cost: one query per 500 ids; one hash over each content.

        Raises:
            StoreUnavailable: Try again later.
            CorruptData: The only row asked for fails its checksum.
        """
        with self._call("get_many"):
            return self._reading.get_many(ids)

    def scan(
        self,
        *,
        after: str | None = None,
        prefix: str = "",
        state: str | None = None,
        limit: int = 1000,
        keys_only: bool = False,
        tombstones: bool = False,
    ) -> list[Change]:
        """Return up to `limit` rows in bytewise id order, ids strictly greater than `after`.

        The prefix is literal. With `keys_only`, contents are empty bytes and nothing is verified. A
        page shorter than `limit` is the last one: rows that fail their checksum are counted, left
        out and made up for. Cost: one range query on an index.

        Raises:
            StoreUnavailable: Try again later.
        """
        with self._call("scan"):
            return self._reading.scan(
                after=after,
                prefix=prefix,
                state=state,
                limit=limit,
                keys_only=keys_only,
                tombstones=tombstones,
            )

    def count(self, *, prefix: str = "", state: str | None = None) -> int:
        """Count live rows, expired ones left out, by prefix and state, on the server.

        Raises:
            StoreUnavailable: Try again later.
        """
        with self._call("count"):
            return self._reading.count(prefix=prefix, state=state)

    def _note_corrupt(self, rows: int) -> None:
        self._counters["corrupt"] += rows

    # -- the sole writer --------------------------------------------------------------------------

    def lease(self, owner: str, ttl_s: float, *, steal: bool = False) -> int:
        """Acquire or renew the sole-writer lease; return its epoch, or 0 where it is not held.

        The holder may rely on being the only writer for `ttl_s` of its own monotonic clock, counted
        from **before** this call; `lease.py` tells why that is safe. **Another epoch than last
        time means that others may have written in between.** After 0, stop relying on it first and
        then call `release_lease`, so that whoever waits need not wait the lease out. Call it
        several times within `ttl_s` even where it is not held: it is also this writer's sign of
        life.

        Args:
            owner: Name of this engine.
            ttl_s: Duration of lease and registration, in seconds; the same for all engines, best.
            steal: The caller vouches that every other process of this owner name is dead: what it
                left is taken over without waiting.

        Raises:
            StoreUnavailable: Try again later; a lease held before counts until it runs out.
        """
        with self._call("lease"):
            return self._writers.lease(owner, ttl_s, steal=steal)

    def release_lease(self, owner: str) -> None:
        """Give the lease up, if held. The caller has stopped relying on it before.

        Raises:
            StoreUnavailable: It runs out by itself.
        """
        del owner
        with self._call("release_lease"):
            self._writers.release()

    def claim_number(self, log_uuid: str, wanted: int) -> int:
        """Return the engine number that is a log's alone; see `ArchiveStore.claim_number`.

        Raises:
            StoreUnavailable: Try again later; whether it was claimed is not known.
        """
        with self._call("claim_number"):
            return self._writers.claim_number(log_uuid, wanted)

    def announce(self, standing: Standing) -> None:
        """Say to the others whether they see what was archived; see `ArchiveStore.announce`.

        Raises:
            StoreUnavailable: Try again later.
        """
        with self._call("announce"):
            self._writers.announce(standing)

    # -- every call -------------------------------------------------------------------------------

    @contextmanager
    def _call(self, operation: str) -> Iterator[None]:
        try:
            with translated(operation):
                yield
        except StoreRejected:
            self._counters["rejected"] += 1
            raise
        except StoreUnavailable as exc:
            self._counters["unavailable"] += 1
            self._well = isinstance(exc, NotAdmitted)
            raise
        self._well = True


class _Fenced(StorageError):
    """Rolls a batch back; never leaves this module."""

    def __init__(self) -> None:
        super().__init__(STORE, "write", "not registered")
