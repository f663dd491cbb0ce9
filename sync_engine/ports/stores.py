"""What stands behind the tiers."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sync_engine.core.item import Change
from sync_engine.core.merkle import MerkleState, MerkleTree, TreeCheck
from sync_engine.ports.sinks import Sink

__all__ = ["ArchiveInfo", "ArchiveStore", "CacheStore", "MerkleStore", "NearCache", "Standing"]


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


class Standing(enum.IntEnum):
    """Whether others see what an engine has archived, where they look before the archive.

    SEEN: the feed and L2 have it. UNCACHED: L2 lacks some of it. UNTOLD: the feed lacks some of it.
    """

    SEEN = 0
    UNCACHED = 1
    UNTOLD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveInfo:
    """What an archive says of itself.

    Attributes:
        uuid: Identity of the archive, made when its schema was created.
        generation: Grows with every batch of every writer; a filter snapshot is bound to it.
        others: The part of it that this engine did not write, or wrote under an earlier
            registration.
        untold: How many other writers, at present, stand at `Standing.UNTOLD`.
        uncached: How many of them stand there or at `Standing.UNCACHED`.
        lost: How many writers, ever, died or left with something that they may have told nobody.
        schema_version: Version of the tables.
        server: Product and version, for `doctor`.
        warnings: Settings that weaken the loss contract, as sentences.
    """

    uuid: str
    generation: int
    others: int
    untold: int
    uncached: int
    lost: int
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

    def claim_number(self, log_uuid: str, wanted: int) -> int:
        """Return the engine number that is a log's alone; to claim again keeps it.

        The log that has a number keeps it while its engine is away, too: versions that it issues
        meanwhile are like nobody else's. Only where all numbers are held does a new log get one of
        another log: that of the one whose claim was renewed the longest ago. An engine claims
        again now and then, and takes whatever number it is told.

        Args:
            log_uuid: Identity of the log.
            wanted: What it would like, 0 to 1023.

        Raises:
            StoreUnavailable: Try again later; whether it was claimed is not known.
        """

    def announce(self, standing: Standing) -> None:
        """Say to the others whether they see what this engine has archived.

        It holds until something else is said. Who leaves at `Standing.UNTOLD` counts as lost.

        Raises:
            StoreUnavailable: Try again later.
        """

    def info(self) -> ArchiveInfo:
        """Read anew what the archive says of itself, all of it at one moment.

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
