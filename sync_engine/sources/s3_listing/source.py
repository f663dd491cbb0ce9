"""Changes of a bucket, found by comparing its listing with what was seen before."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from sync_engine.core import failpoints
from sync_engine.errors import ConfigError
from sync_engine.ports import Runtime
from sync_engine.s3.address import S3Address, S3Settings
from sync_engine.s3.client import S3Client
from sync_engine.s3.queue import S3EventQueue
from sync_engine.sources.s3_listing.changes import Identity, KeyFilter, S3Change, same_by
from sync_engine.sources.s3_listing.records import Counts, Rules
from sync_engine.sources.s3_listing.scan import Limits, Scan
from sync_engine.sources.s3_listing.state import ListingState

if TYPE_CHECKING:
    from sync_engine.sources.s3_listing.builder import S3ListingBuilder

__all__ = ["S3ListingSource", "ScanStatistics"]

_READ: Final = 1000
_WORKERS_MAX: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanStatistics:
    """What the scan under way, or the last one, has found.

    Attributes:
        added: Keys that were not known.
        modified: Keys whose object is another.
        deleted: Keys that are gone and were told so.
        renamed: Keys that went under another name.
        unchanged: Keys as they were.
        pages: Pages of the listing.
        seconds: Time since the scan began or was resumed by this object.
        objects: Objects known now.
        retries: Requests that had to be repeated.
        waiting: Changes that were not acknowledged.
    """

    added: int
    modified: int
    deleted: int
    renamed: int
    unchanged: int
    pages: int
    seconds: float
    objects: int
    retries: int
    waiting: int

    @property
    def listed(self) -> int:
        """Keys that the listing had."""
        return self.added + self.modified + self.renamed + self.unchanged


class S3ListingSource:
    """Streams what was added, modified, deleted and (on demand) renamed since the last scan.

    What was seen is kept in a SQLite file, together with the changes that were not acknowledged
    and with the place that the scan has come to, in one transaction a page. Therefore a crash, at
    any moment, repeats and never loses: a change is given again until `ack` was called for it, and
    a scan goes on from its last page. A deletion is told only after a listing that ended without
    an error, and only if no suspicious part of the bucket is gone.

    Needs the permission ``s3:ListBucket`` alone.

    One thread at a time; `progress` from any thread. Memory: bounded, whatever the bucket holds.

    Args:
        bucket: The bucket.
        runtime: Clock and threads.
        state: The file; made where it is not there, locked while this is open.
        prefix: What keys begin with; empty is the whole bucket.
        settings: How to reach the S3; None is AWS with the usual chain of credentials.
        include: Patterns of keys to look at; none is all.
        exclude: Patterns of keys to leave out, even if included.
        identity: When an object is the same: by ``etag`` (and size), ``etag+mtime`` or
            ``size+mtime``.
        renames: Tell a key that went and one that came with the same ETag and size as one change.
            Additions are then told at the end of a scan.
        baseline: The first scan only remembers, and tells nothing.
        versions: List versions: the same bytes written again are modified, delete markers deleted.
        workers: Ranges listed at a time, 1 to 8.
        max_delete: Deletions that a scan may tell. None refuses more than half of what is known,
            beyond 100 keys.
        force_delete: Tell any number of deletions.
        rebase: Take a state file over that remembers another prefix, filter or bucket. What is no
            longer looked at is forgotten, not deleted; of another bucket, everything is.
        client: Used in place of one made of `settings`, and left open.

    Raises:
        ConfigError: A setting is out of range.
    """

    def __init__(
        self,
        bucket: str,
        runtime: Runtime,
        *,
        state: str | os.PathLike[str],
        prefix: str = "",
        settings: S3Settings | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        identity: Identity | str = Identity.ETAG,
        renames: bool = False,
        baseline: bool = False,
        versions: bool = False,
        workers: int = 1,
        max_delete: int | None = None,
        force_delete: bool = False,
        rebase: bool = False,
        client: S3Client | None = None,
    ) -> None:
        if not 1 <= workers <= _WORKERS_MAX:
            raise ConfigError(f"workers must be 1 to {_WORKERS_MAX}, got {workers!r}")
        if max_delete is not None and max_delete < 0:
            raise ConfigError(f"max_delete must be 0 or more, got {max_delete!r}")
        try:
            self.identity = Identity(identity)
        except ValueError:
            known = ", ".join(Identity)
            raise ConfigError(f"identity must be one of {known}, got {identity!r}") from None
        self.address = S3Address(bucket, prefix)
        self.settings = settings or (client.settings if client is not None else S3Settings())
        self.path = Path(state)
        self._runtime = runtime
        self._keep = KeyFilter(include, exclude)
        self._limits = Limits(workers, max_delete, force_delete, versions)
        self._renames = renames
        self._baseline = baseline
        self._rebase = rebase
        self._own_client = client is None
        self._client = client
        self._state: ListingState | None = None
        self._scan: Scan | None = None
        self._began = 0.0
        self._seconds = 0.0
        self._running = False
        self._progress: dict[str, float] = {}

    @classmethod
    def builder(cls) -> S3ListingBuilder:
        """Return a builder: the same settings, one call each."""
        from sync_engine.sources.s3_listing.builder import S3ListingBuilder

        return S3ListingBuilder()

    def __repr__(self) -> str:
        return f"S3ListingSource({str(self.address)!r}, state={str(self.path)!r})"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- life -------------------------------------------------------------------------------------

    @property
    def client(self) -> S3Client:
        """The client of the S3."""
        if self._client is None:
            self._client = S3Client(self.settings, self._runtime)
        return self._client

    @property
    def state(self) -> ListingState:
        """The open state file."""
        return self._opened()[0]

    def open(self) -> None:
        """Open and lock the state file; safe twice. Nothing is asked of the S3 yet.

        Raises:
            ConfigError: It is in use, foreign, of another version, or about something else.
            CorruptData: It is damaged.
        """
        self._opened()

    def _opened(self) -> tuple[ListingState, Scan]:
        if self._state is not None and self._scan is not None:
            return self._state, self._scan
        state = ListingState(self.path, self._about(), self.looks_at, rebase=self._rebase)
        tells = not (self._baseline and state.scan.scans == 0)
        rules = Rules(same_by(self.identity), tells, self._renames and tells)
        scan = Scan(
            self.client, self.address, state, self._runtime, rules, self._keep, self._limits
        )
        self._state, self._scan = state, scan
        self._note()
        return state, scan

    def close(self) -> None:
        """Close the file and the connections; safe twice. It may be opened again."""
        state, self._state = self._state, None
        scan, self._scan = self._scan, None
        if scan is not None:
            scan.drop_requests()
        if state is not None:
            state.close()
        client = self._client
        if self._own_client and client is not None:
            self._client = None
            client.close()
        self._running = False

    def _about(self) -> Mapping[str, object]:
        return {
            "endpoint": self.settings.endpoint,
            "bucket": self.address.bucket,
            "versions": self.versions,
            "prefix": self.address.prefix,
            "include": self._keep.include,
            "exclude": self._keep.exclude,
        }

    @property
    def versions(self) -> bool:
        """Whether versions are listed in place of objects."""
        return self._limits.versions

    def looks_at(self, key: str) -> bool:
        """Tell whether a key belongs to this source."""
        return key.startswith(self.address.prefix) and self._keep(key)

    # -- changes ----------------------------------------------------------------------------------

    def changes(self) -> Iterator[S3Change]:
        """Yield what was not acknowledged, then what one scan finds, in order of `seq`.

        A scan that was cut short before is finished, not begun anew. Call `ack` as soon as a change
        is safe with you; until then it is given again by the next call, in this process or another.

        Raises:
            StoreUnavailable: The S3 cannot be asked now: call again later, the scan goes on there.
            TooManyDeletions: After all other changes: more is gone than allowed.
            ConfigError: Bucket, region, credentials or clock are wrong.
            StoreRejected: The credentials may not list the bucket.
        """
        given, ended = self.state.acked, False
        while True:
            found = self.waiting(given)
            for change in found:
                given = change.seq
                yield change
            if not found:
                if ended:
                    return
                ended = self.step()

    def waiting(self, after: int, limit: int = _READ) -> list[S3Change]:
        """Return changes that were found and not acknowledged, those after a seq."""
        return self.state.outbox(after, limit)

    def step(self) -> bool:
        """Do one bounded piece of a scan, beginning one where none is under way.

        Returns:
            Whether the scan has ended.

        Raises as `changes`.
        """
        _, scan = self._opened()
        if not self._running:
            self._running, self._began = True, self._runtime.clock.monotonic()
        try:
            ended = scan.step()
        except BaseException:
            self._note()
            self._running = False
            raise
        self._note()
        if ended:
            self._running = False
            tells = Rules(same_by(self.identity), True, self._renames)
            scan.use(tells)
        return ended

    def take_events(self, queue: S3EventQueue, wait_s: int = 0) -> int:
        """Look where notifications of the bucket point to; scans stay the truth.

        Every key named is asked for in a listing of one, so events may come twice, late, in any
        order, or not at all. A message is deleted after what it led to is in the outbox.

        Args:
            queue: Receives the notifications.
            wait_s: Seconds to wait for a message, 0 to 20.

        Returns:
            Messages taken; up to ten. What is new is given by `waiting` and `changes`.

        Raises:
            ConfigError: This source lists versions, which events do not tell.
            StoreUnavailable: Try again later; the messages come again.
        """
        if self.versions:
            raise ConfigError("events do not go with versions")
        _, scan = self._opened()
        messages = queue.receive(wait_s)
        keys = {
            key: None
            for message in messages
            for bucket, key in message.keys
            if bucket == self.address.bucket and self.looks_at(key)
        }
        scan.look(keys)
        if failpoints.armed:
            failpoints.hit("s3_listing.before_delete_message")
        queue.delete(messages)
        return len(messages)

    def ack(self, seq: int) -> None:
        """Say that all changes up to a seq are safe: they are not given again, by anyone.

        Cost: one commit, about 30 µs; acknowledge every hundredth where that matters.
        """
        self.state.ack(seq)

    # -- figures ----------------------------------------------------------------------------------

    def statistics(self) -> ScanStatistics:
        """Return what the scan under way, or the last one, has found."""
        state = self.state
        counts: Counts = state.counts
        return ScanStatistics(
            added=counts.added,
            modified=counts.modified,
            deleted=counts.deleted,
            renamed=counts.renamed,
            unchanged=counts.unchanged,
            pages=counts.pages,
            seconds=self._seconds,
            objects=state.scan.objects,
            retries=self.client.retries,
            waiting=state.waiting,
        )

    def progress(self) -> Mapping[str, float]:
        """Return counters of the scan. Never blocks; any thread."""
        return self._progress

    def _note(self) -> None:
        state = self._state
        if state is None:
            return
        if self._running:
            self._seconds = self._runtime.clock.monotonic() - self._began
        counts = state.counts
        self._progress = {
            "scans": state.scan.scans,
            "listed": counts.listed,
            "added": counts.added,
            "modified": counts.modified,
            "deleted": counts.deleted,
            "renamed": counts.renamed,
            "unchanged": counts.unchanged,
            "pages": counts.pages,
            "objects": state.scan.objects,
            "known": state.scan.known,
            "seconds": self._seconds,
        }
