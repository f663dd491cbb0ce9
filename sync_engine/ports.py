"""The seams of the house: what each room needs from another, as narrow as its callers allow.

Every Protocol's docstring is a contract that ``sync_engine.testing`` proves on every adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sync_engine.core.item import Change
from sync_engine.core.merkle import MerkleState, MerkleTree, TreeCheck

__all__ = [
    "AdapterContext",
    "ArchiveInfo",
    "ArchiveStore",
    "BlobInfo",
    "BlobStore",
    "CacheStore",
    "ChangeFeed",
    "ChangeLog",
    "Clock",
    "Event",
    "FeedSink",
    "LogSlice",
    "MerkleStore",
    "NearCache",
    "Overtaken",
    "PositionedSink",
    "Runtime",
    "Sink",
    "Source",
    "SourceBatch",
    "WritableLog",
]


class Clock(Protocol):
    """The only way to learn or let pass time."""

    def now_ms(self) -> int:
        """Return wall-clock milliseconds since 1970."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""

    def sleep(self, seconds: float) -> None:
        """Block the calling thread; ends early when the runtime closes."""


class Event(Protocol):
    """A flag to wait on, as ``threading.Event``."""

    def set(self) -> None:
        """Raise the flag."""

    def clear(self) -> None:
        """Lower the flag."""

    def is_set(self) -> bool:
        """Tell whether it is raised."""

    def wait(self, timeout: float | None = None) -> bool:
        """Block until raised; return False at the timeout."""


class Runtime(Protocol):
    """Time, randomness, locks and jobs; a test runs the engine on a runtime of its own."""

    @property
    def clock(self) -> Clock:
        """The clock."""

    def lock(self) -> AbstractContextManager[Any]:
        """Make a lock, used as a context manager only."""

    def event(self) -> Event:
        """Make an event."""

    def random(self) -> float:
        """Return a number in [0, 1)."""

    def add_job(self, name: str, step: Callable[[], float]) -> None:
        """Run a bounded step again and again, in a thread of its own.

        The step returns the seconds to wait before the next one; infinity waits for `wake`. A step
        that raises is reported and repeated after a jittered, growing delay.
        """

    def wake(self, name: str) -> None:
        """End the waiting of a job now. Cheap, never blocks, unknown names are ignored."""

    def remove_job(self, name: str, timeout_s: float) -> bool:
        """Stop a job and join it; return False if its step did not end in time."""

    def executor(self) -> Executor:
        """Return a small pool of threads for calls that block; made on first use."""

    def at_exit(self, callback: Callable[[], object] | None) -> None:
        """Call back when the interpreter exits, before its threads die; None takes that back."""

    def close(self, timeout_s: float) -> list[str]:
        """Stop and join every job; return the names of those that did not stop in time."""


class Sink(Protocol):
    """A place changes are delivered to; a store is a sink that reads back.

    `apply` keeps, for every id, the change with the largest version. Delivering a batch twice, or
    after a newer one, therefore leaves the sink as it was.
    """

    name: str

    def attach(self) -> object:
        """Connect, and create or check what is needed. Called again after `close` or a failure.

        Raises:
            StoreUnavailable: It is not there now.
            ConfigError: It can never serve us as configured; says what to do.
        """

    def apply(self, changes: Sequence[Change]) -> None:
        """Take the whole batch or none of it; ids in a batch are unique.

        Raises:
            StoreUnavailable: Try again later; nothing is known to be applied.
            StoreRejected: This batch can never be applied as a whole.
        """

    def ping(self) -> float:
        """Return the seconds of one round trip.

        Raises:
            StoreUnavailable: No answer within the budget.
        """

    def close(self) -> None:
        """Let go of connections; safe twice, safe before `attach`."""


class PositionedSink(Sink, Protocol):
    """A sink that keeps, with the effect of a batch, the position that the batch ends at.

    What it answers after a crash is then the truth about what it holds, whatever the log's own
    cursor says: effects that version guards cannot make harmless happen once.
    """

    def position(self, log_uuid: str) -> int | None:
        """Return the position stored for a log; None where this target has never followed it.

        Raises:
            StoreUnavailable: Try again later.
        """

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        """Take the whole batch and its last position, or nothing.

        A position at or below the stored one changes nothing. Changes come in the order of the log;
        `changes` may be empty. Raises as `apply`.
        """


class FeedSink(PositionedSink, Protocol):
    """A sink that tells others what the archive took: it holds changes, not items.

    It is given what the archive has taken only, in order, and no copy of what was there before.
    Changes that it once lost are not given again: it tells its readers of the gap instead. A class
    says that it is one by ``is_feed = True``.
    """

    is_feed: bool

    def begin(self, log_uuid: str, position: int, *, after_gap: bool) -> None:
        """Let a log begin, or begin again, after a position.

        With `after_gap`, entries may have been lost before it, and every reader learns of that.

        Raises:
            StoreUnavailable: Try again later.
        """


class ChangeFeed(Protocol):
    """Ids and versions of what engines on one archive brought into it, for each other.

    Nothing is missed in silence: what was lost on the way is told as `FeedGap`. One job tells, and
    another one listens.

    Attributes:
        idle_s: Seconds until it is worth to read again where nothing came: 0.0 where `read` itself
            has waited.
    """

    name: str
    idle_s: float

    def attach(self) -> None:
        """Connect; safe to repeat.

        Raises:
            StoreUnavailable: It is not there now.
            ConfigError: It can never serve us as configured.
        """

    def position(self, log_uuid: str) -> int | None:
        """Return the position that a log has reached; None where it never began."""

    def begin(self, log_uuid: str, position: int, *, after_gap: bool) -> None:
        """Let a log begin, or begin again, after a position; see `FeedSink.begin`."""

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        """Tell a batch, and the position that it ends at; all of it or nothing."""

    def seek_end(self) -> None:
        """Listen to what comes from now on.

        Raises:
            StoreUnavailable: Try again later.
        """

    def read(self, wait_s: float) -> Sequence[tuple[str, Sequence[Change]]]:
        """Return batches that were told, each with the log it is from; waits for one a moment.

        Contents are left out: a put has empty bytes.

        Raises:
            FeedGap: Something was missed: `seek_end` begins anew.
            StoreUnavailable: Something may be missed: `seek_end` begins anew.
        """

    def close(self) -> None:
        """Close connections; safe twice."""


class NearCache(Protocol):
    """L1: a bounded cache in memory that may drop anything at any time.

    `put` never replaces a newer version by an older one. `get` takes no lock.
    """

    def get(self, change_id: str) -> Change | None:
        """Return a change that has not expired, or None."""

    def put(self, change: Change) -> None:
        """Take a change if it is newer than the one known."""

    def put_many(self, changes: Sequence[Change]) -> None:
        """Take several under one lock."""

    def discard(self, change_id: str) -> None:
        """Forget an id."""

    def discard_many(self, ids: Iterable[str]) -> None:
        """Forget ids under one lock."""


class CacheStore(Sink, Protocol):
    """L2: a shared cache that may forget anything at any time, and never goes back in version.

    Changes without `Route.L2` and tombstones leave a short-lived version mark, so that a late fill
    of an older value is refused. Expired changes are never returned.
    """

    name: str

    def attach(self) -> None:
        """Connect, check the server, and agree on the key epoch.

        Blocking: bounded by the connect timeout.

        Raises:
            StoreUnavailable: The server is not there now.
            ConfigError: The server can never serve us (credentials, wrong kind).
        """

    def get_many(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return what is cached, tombstone marks included; ids without an entry are left out.

        Foreign, truncated or altered values count as absent and are counted. Cost: one round trip
        per slot group.

        Raises:
            StoreUnavailable: Try again later.
        """

    def fill(self, changes: Sequence[Change]) -> None:
        """Copy answers of a colder tier up, each only if nothing newer (or equal) is there.

        Raises:
            StoreUnavailable: Try again later.
        """

    def new_epoch(self) -> None:
        """Abandon every key written so far: none of them is read again by any engine.

        Raises:
            StoreUnavailable: Try again later; the old epoch may still be in use.
        """

    def identity_changed(self) -> bool:
        """Tell, once, whether the server turned out to be another one since the last call.

        Never blocks. After True the store has already moved to an epoch of its own.
        """

    def ping(self) -> float:
        """Return the seconds of one round trip.

        Raises:
            StoreUnavailable: No answer within the budget.
        """

    def stats(self) -> Mapping[str, float]:
        """Return counters (``corrupt``, ``foreign``, ``epochs`` …). Never blocks."""

    def close(self) -> None:
        """Close connections; safe twice, safe before `attach`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveInfo:
    """What an archive says of itself.

    Attributes:
        uuid: Identity of the archive, made when its schema was created.
        generation: Grows with every batch of every writer; a filter snapshot is bound to it.
        schema_version: Version of the tables.
        server: Product and version, for `doctor`.
        warnings: Settings that weaken the loss contract, as sentences.
    """

    uuid: str
    generation: int
    schema_version: int
    server: str
    warnings: tuple[str, ...] = field(default=())


class ArchiveStore(Sink, Protocol):
    """L3: the durable home of items, on any SQL database.

    A batch is one transaction. Tombstones are rows, kept for a retention period. A change without
    `Route.L3` turns an older existing row into a tombstone of its version and inserts nothing.
    Ids are compared bytewise; reads verify each row's checksum, and a row that fails is left out of
    the answer and counted, unless it was asked for alone, where `CorruptData` is raised.
    """

    name: str

    def attach(self) -> ArchiveInfo:
        """Connect and check the schema (created where absent and allowed).

        Raises:
            StoreUnavailable: The server is not there now.
            ConfigError: Wrong credentials, or a schema of another version (says how to migrate).
        """

    def put_if(self, change: Change, expected: int) -> Change | None:
        """Write a change if the row of its id has exactly the expected version; 0 is "no row".

        Tombstones and expired rows count as rows. One transaction: no write of anybody lies between
        the comparison and the row. To repeat it, with the same change, is harmless: what is there
        already counts as written.

        Returns:
            None where it was written; else what is there: a tombstone of version 0 where there is
            no row.

        Raises:
            StoreUnavailable: Try again later; whether it was written is not known.
            StoreRejected: It can never be written.
        """

    def get_many(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return the rows of these ids, tombstones included; absent ids are left out.

        Cost: one IN query per 500 ids.

        Raises:
            StoreUnavailable: Try again later.
            CorruptData: The only row asked for fails its checksum.
        """

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

        The prefix is literal. With `keys_only`, contents are empty bytes and nothing is verified.
        A page shorter than `limit` is the last one.

        Raises:
            StoreUnavailable: Try again later.
        """

    def count(self, *, prefix: str = "", state: str | None = None) -> int:
        """Count live rows by prefix and state, on the server.

        Raises:
            StoreUnavailable: Try again later.
        """

    def purge_tombstones(self, *, below_version: int, limit: int) -> int:
        """Drop up to `limit` tombstones of versions below the bound; return how many went.

        Raises:
            StoreUnavailable: Try again later.
        """

    def lease(self, owner: str, ttl_s: float, *, steal: bool = False) -> int:
        """Acquire or renew the sole-writer lease; return its epoch, or 0 where it is not held.

        The holder may count on it for `ttl_s` seconds of its own monotonic clock, from before the
        call. The same epoch as before means that nobody else wrote in between. After 0, stop
        counting on it and then call `release_lease`. With `steal` the caller vouches that every
        other process of this owner name is dead. See `stores/sql/lease.py` for the protocol: a
        second writer can only start once the first has lost its right to say *absent*.

        Raises:
            StoreUnavailable: Try again later; a lease held before counts until it runs out.
        """

    def release_lease(self, owner: str) -> None:
        """Give the lease up, if held.

        Raises:
            StoreUnavailable: It runs out by itself.
        """

    def info(self) -> ArchiveInfo:
        """Read the archive's identity and generation anew.

        Raises:
            StoreUnavailable: Try again later.
        """

    def ping(self) -> float:
        """Return the seconds of one round trip.

        Raises:
            StoreUnavailable: No answer within the budget.
        """

    def stats(self) -> Mapping[str, float]:
        """Return counters (``corrupt``, ``rows`` …). Never blocks."""

    def close(self) -> None:
        """Close connections; safe twice, safe before `attach`."""


class MerkleStore(MerkleTree, Protocol):
    """The Merkle tree that an archive keeps with its rows; the archive's attribute ``merkle``.

    It says of any range, at any moment, what a tree made from the rows at that moment would say.
    """

    separator: str

    def state(self) -> MerkleState:
        """Return how the tree does.

        Raises:
            StoreUnavailable: Try again later.
        """

    def fold(self) -> int:
        """Tidy up what batches have left; return how many were folded.

        Raises:
            StoreUnavailable: Try again later; `StoreBusy`: another engine does it now.
        """

    def begin_build(self) -> None:
        """Throw the tree away; `build_step` makes it anew. Raises as `fold`."""

    def build_step(self, items_max: int = 20_000) -> int:
        """Build a bit of an unbuilt tree; return how many rows, 0 at the end. Raises as `fold`."""

    def check(self, after: str | None = None, blocks: int = 1) -> TreeCheck:
        """Compare some rows, by their contents, with the tree.

        Raises:
            StoreUnavailable: Try again later, or the tree is not built.
        """


@dataclass(frozen=True, slots=True)
class LogSlice:
    """Neighbouring changes of the log.

    Attributes:
        after: Position before the first change.
        changes: One entry per position, in order; None where nothing is to be delivered.
    """

    after: int
    changes: Sequence[Change | None]

    @property
    def last(self) -> int:
        """Position of the last entry; `after` where there is none."""
        return self.after + len(self.changes)


class ChangeLog(Protocol):
    """The log as its followers see it: positions are dense, cursors only grow."""

    def head(self) -> int:
        """Return the last position that may be delivered; 0 in an empty log."""

    def read(self, after: int, items_max: int, bytes_max: int) -> LogSlice:
        """Return the changes that follow a position; empty at the head.

        Raises:
            CorruptData: A stored record fails its check.
        """

    def cursor(self, name: str) -> int:
        """Return a follower's delivered position; 0 where it is new."""

    def advance(self, name: str, position: int) -> None:
        """Move a cursor forward; a smaller position changes nothing."""

    def dead_letter(self, follower: str, position: int, change: Change, error: str) -> None:
        """Put a change aside, durably, before its follower passes it."""


class Overtaken(Exception):
    """The id was written after the position that the caller decided on; never shown to users."""


class WritableLog(ChangeLog, Protocol):
    """The log as the writer sees it; `wal.WriteAheadLog` documents each."""

    @property
    def pending_items(self) -> int:
        """Changes that the archive has not taken."""

    @property
    def pending_bytes(self) -> int:
        """Their bytes."""

    @property
    def appended(self) -> int:
        """The last position given out."""

    def append(
        self, drafts: Sequence[Change], *, soft: bool, unless_after: int | None = None
    ) -> tuple[int, Sequence[Change]]:
        """Give versions and positions to changes."""

    def commit(self, position: int, count: int = 1) -> None:
        """Return once positions are in the file."""

    def sync(self, position: int) -> None:
        """Return once everything up to a position is safe from power loss."""

    def pending(self, change_id: str) -> Change | None:
        """Return the newest undelivered change of an id."""

    def dead_error(self, follower: str, position: int) -> str | None:
        """Return the error that a position was put aside with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobInfo:
    """One object of a blob store.

    Attributes:
        key: Its name.
        size: Bytes.
        etag: The store's tag of this content; opaque.
        modified_ms: Wall-clock milliseconds of the last change.
    """

    key: str
    size: int
    etag: str
    modified_ms: int


class BlobStore(Protocol):
    """Objects by key: S3 or a directory."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> BlobInfo:
        """Store an object whole; with `if_absent`, raise `Conflict` if there is one."""

    def get(self, key: str) -> bytes | None:
        """Return an object's bytes, or None where there is none."""

    def list(self, prefix: str) -> Iterable[BlobInfo]:
        """Yield objects in bytewise key order."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; absent ones are fine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceBatch:
    """What a source gives at one time.

    Attributes:
        changes: In the order they happened; an id may come again. A version of 0 asks the engine
            for one; any other is kept, and an older one than the engine's own changes nothing.
        token: Acknowledges these changes and all before them; opaque.
        wait_s: Seconds until asking again is worth it: 0.0 is now, infinity waits for a wake.
    """

    changes: Sequence[Change]
    token: bytes
    wait_s: float = 0.0


class Source(Protocol):
    """Gives changes. What was acknowledged is not given again; all else is, after any crash.

    Owned by one job: no two methods run at a time.
    """

    name: str

    def attach(self) -> object:
        """Connect, and open what is remembered. Called again after `close` or a failure.

        Raises:
            StoreUnavailable: It is not there now.
            ConfigError: It can never serve us as configured; says what to do.
        """

    def poll(self, items_max: int) -> SourceBatch:
        """Return up to `items_max` changes that follow those of the last poll.

        Bounded: returns an empty batch rather than wait for something to happen.

        Raises:
            StoreUnavailable: Try again later; nothing was skipped.
        """

    def ack(self, token: bytes) -> None:
        """Remember, durably, that everything up to the token was taken; older tokens are fine."""

    def progress(self) -> Mapping[str, float]:
        """Return counters and gauges for people to see. Never blocks; any thread."""

    def close(self) -> None:
        """Let go of everything; what was polled and not acknowledged is given again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterContext:
    """What the factory of a source or sink is given beside its own settings.

    A factory is ``factory(context, **settings)``; it checks its settings, raises `ConfigError` that
    names the wrong one, and connects to nothing yet.

    Attributes:
        name: Name of this instance, unique in its engine.
        runtime: Time, locks, randomness.
        data_dir: Directory for files of its own; name them after the instance.
        wake: Ends the waiting of its job now; any thread.
    """

    name: str
    runtime: Runtime
    data_dir: Path
    wake: Callable[[], None]
