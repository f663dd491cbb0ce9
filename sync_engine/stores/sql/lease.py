"""Who may write to an archive, and who may call itself its only writer.

A filter may answer *absent* only while its engine is provably the archive's sole writer. Three
kinds of facts, all in the archive itself, make that provable without comparing clocks:

- Every engine that writes has a row in the writers' table. Each batch adds one to its `generation`
  **in the batch's own transaction**, and is rolled back where the row is gone or not admitted. So
  nobody writes unregistered: not a forgotten engine, and not one that was frozen for an hour.
- The lease names its holder, a beat that each renewal changes, and a duration. The holder counts
  that duration on its own monotonic clock, from *before* it asked. It is granted only to the one
  writer there is.
- A new writer that finds a lease is not admitted. The holder sees it at its next renewal, is told,
  and says *absent* no more; only its next call, `release` or renewal, frees the lease, so the
  archive never hears of it before the filter does. If the holder is silent, the newcomer waits
  until it has itself seen the lease unchanged for its whole duration, from *after* it read it: the
  holder's count began earlier and is over.

A writer's row that stays unchanged for its duration is dead: who asks for the lease then removes
the row, which fences that writer for ever, and may become the sole writer. The epoch changes
whenever the lease changes hands or was given up, so a holder that gets the same epoch again knows
that nobody wrote in between.

Writers tell each other on a feed what they wrote. For what the feed cannot carry there are two
facts here: a row's `standing`, while its writer cannot reach the feed or the cache; and `lost`,
which counts the writers that died, or left, and may have written what they told nobody.

What is assumed: monotonic clocks of two hosts run at the same rate, and go on while a process is
frozen. A clock that stops with its (virtual) machine breaks the holder's count.

Source: leases after Gray and Cheriton (SOSP 1989), fenced in the store as in Chubby (OSDI 2006).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sync_engine.errors import StoreBusy
from sync_engine.ports import Clock, Standing
from sync_engine.stores.sql.dialect import Connection, Dialect
from sync_engine.stores.sql.errors import STORE
from sync_engine.stores.sql.numbers import claim

__all__ = ["GENERATION", "Look", "NotAdmitted", "Writers"]

GENERATION = (
    "SELECT uuid, retired + (SELECT COALESCE(SUM(generation), 0) FROM {w}), schema_version"
    " FROM {m} WHERE id = 1"
)
_ALL_AND_OTHERS = (
    "SELECT uuid, retired + (SELECT COALESCE(SUM(generation), 0) FROM {w}), schema_version,"
    " retired + (SELECT COALESCE(SUM(generation), 0) FROM {w} WHERE writer <> ?k),"
    " (SELECT COUNT(*) FROM {w} WHERE writer <> ?k AND standing = 2),"
    " (SELECT COUNT(*) FROM {w} WHERE writer <> ?k AND standing > 0), lost"
    " FROM {m} WHERE id = 1"
)
_FENCE = "UPDATE {w} SET generation = generation + 1 WHERE writer = ?k AND admitted = 1"
_TOUCH = "UPDATE {w} SET beat = beat + 1 WHERE writer = ?k AND admitted = 1"
_SIGN = "UPDATE {w} SET beat = beat + 1 WHERE writer = ?k"
_BEAT = "UPDATE {w} SET beat = beat + 1, ttl_ms = ?, owner = ?k, admitted = ? WHERE writer = ?k"
_ANNOUNCE = "UPDATE {w} SET beat = beat + 1, standing = ? WHERE writer = ?k"
_REGISTER = (
    "INSERT INTO {w} (writer, owner, admitted, generation, beat, ttl_ms, standing)"
    " VALUES (?k, ?k, ?, 0, 0, ?, ?)"
)
# An update where a lock would do: databases of several primaries notice its conflicts at commit.
_VISIT = "UPDATE {m} SET visits = visits + 1 WHERE id = 1"
_READ_LEASE = "SELECT holder, epoch, beat, ttl_ms FROM {m} WHERE id = 1"
_SET_LEASE = "UPDATE {m} SET holder = ?k, epoch = ?, beat = ?, ttl_ms = ? WHERE id = 1"
_READ_WRITERS = "SELECT writer, owner, admitted, generation, beat, ttl_ms FROM {w} ORDER BY writer"
_LOCK_WRITER = "SELECT generation, beat FROM {w} WHERE writer = ?k{lock}"
_REMOVE = "DELETE FROM {w} WHERE writer = ?k"
_RETIRE = "UPDATE {m} SET retired = retired + ? WHERE id = 1"
_LOSE = "UPDATE {m} SET lost = lost + ? WHERE id = 1"
_NOBODY = b""


class NotAdmitted(StoreBusy):
    """Another engine may still rely on being the only writer: wait for its lease to end.

    `retry_after_s` is when the lease has certainly ended.
    """

    def __init__(self, operation: str, retry_after_s: float) -> None:
        super().__init__(
            STORE,
            operation,
            "another engine holds the sole-writer lease; it gives way at its next renewal,"
            f" or is passed over in {retry_after_s:.1f} s",
            retry_after_s,
        )


@dataclass(frozen=True, slots=True)
class Look:
    """What an archive and its writers say at one moment; see `ports.ArchiveInfo`."""

    uuid: str
    generation: int
    schema_version: int
    others: int
    untold: int
    uncached: int
    lost: int


@dataclass(frozen=True, slots=True)
class _Lease:
    holder: bytes
    epoch: int
    beat: int
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class _Writer:
    owner: bytes
    admitted: int
    generation: int
    beat: int
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class _Outcome:
    admitted: bool
    epoch: int  # of the lease held; 0 is "not held"
    wait_s: float


class _Watch:
    """Since when something has been seen unchanged, by this process's monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[object, float]] = {}

    def unchanged_s(self, name: bytes, value: object, now: float) -> float:
        """Note a value; return for how long it has been seen the same."""
        known = self._seen.get(name)
        if known is None or known[0] != value:
            known = self._seen[name] = (value, now)
        return now - known[1]

    def keep(self, names: Sequence[bytes]) -> None:
        """Forget everything else."""
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}


class Writers:
    """This engine's part in the protocol.

    Thread-safety: every method. Blocking: `check` not at all while admitted; the rest one short
    transaction, serialised by one lock here and one row's lock in the archive.

    Args:
        dialect: The archive.
        clock: Counts the waits; only `monotonic` is used.
        ttl_s: Duration written into the registration until `lease` names another, in seconds.
        owner: A name that at most one live process bears, so that what an earlier process left
            behind under it can be taken over without waiting; None: a random one.
    """

    def __init__(self, dialect: Dialect, clock: Clock, *, ttl_s: float, owner: str | None) -> None:
        self._dialect = dialect
        self._clock = clock
        self._ttl_ms = int(ttl_s * 1000)
        self._exclusive_owner = owner is not None
        self._owner = (owner or uuid.uuid4().hex).encode()
        # One visit at a time: it belongs to one archive row anyway, and hot paths never take this.
        self._visiting = threading.Lock()
        self._watch = _Watch()
        self._admitted = False
        self._me = uuid.uuid4().hex.encode()
        self._peers: object = None
        self._data_version: tuple[int, int] | None = None
        self._foreign = False
        self._told = False  # that the lease is lost, while the archive still has it as ours
        self._standing = Standing.SEEN
        self.foreign_writes = 0
        self.epoch = 0

    @property
    def admitted(self) -> bool:
        """Whether the archive took this engine for a writer when it was last asked."""
        return self._admitted

    def check(self, operation: str) -> None:
        """Return if this engine may try to write; ask the archive if it was not admitted yet.

        Raises:
            NotAdmitted: Another engine's lease has to end first.
        """
        if self._admitted:
            return
        outcome = self._visit(acquire=False, steal=self._exclusive_owner)
        if not outcome.admitted:
            raise NotAdmitted(operation, outcome.wait_s)

    def fence(self, connection: Connection) -> bool:
        """Count a batch in its own transaction; False: this engine may not write, roll back."""
        args = (self._me,)
        if self._dialect.execute(connection, _FENCE, args) == 1:
            self._notice_foreign(connection)
            return True
        self._admitted = False
        self.epoch = 0
        return False

    def touch(self, connection: Connection) -> bool:
        """Mark a transaction that adds nothing as an engine's; False: roll back, as in `fence`."""
        if self._dialect.execute(connection, _TOUCH, (self._me,)) == 1:
            self._notice_foreign(connection)
            return True
        self._admitted = False
        return False

    def look(self, connection: Connection) -> Look:
        """Return what the archive and its writers say, all at one moment.

        What is read apart may miss a batch that another engine wrote in between.
        """
        args = (self._me,) * 3
        ((archive, *numbers),) = self._dialect.query(connection, _ALL_AND_OTHERS, args)
        return Look(bytes(archive).decode(), *map(int, numbers))

    def lease(self, owner: str, ttl_s: float, *, steal: bool) -> int:
        """Acquire or renew the lease; return its epoch, or 0 where it is not held."""
        with self._visiting:
            if owner:
                self._owner = owner.encode()
            self._ttl_ms = max(1, int(ttl_s * 1000))
        return self._visit(acquire=True, steal=steal or self._exclusive_owner).epoch

    def release(self) -> None:
        """Give the lease up, if held; stay a writer."""
        with self._visiting:
            self.epoch = 0
            with self._dialect.writing() as (connection, _):
                self._notice_foreign(connection)
                lease = self._lock_lease(connection)
                if lease.holder == self._me:
                    self._set_lease(connection, replace(lease, holder=_NOBODY), changed=True)
                self._remember(connection)
            self._told = False

    def leave(self) -> None:
        """Give the registration up; the next write registers anew, as somebody else.

        A lease that was not released first stays: its holder may still rely on it.
        """
        with self._visiting:
            if not self._admitted or self.epoch or self._told:
                return
            self._admitted = False
            me, self._me = self._me, uuid.uuid4().hex.encode()
            with self._dialect.writing() as (connection, _):
                self._lock_lease(connection)  # no one decides meanwhile
                self._remove(connection, me, None)
                if self._standing is Standing.UNTOLD:
                    self._dialect.execute(connection, _LOSE, (1,))

    def claim_number(self, log: str, wanted: int) -> int:
        """Return the engine number that is a log's alone; see `ports.ArchiveStore.claim_number`."""
        with self._visiting, self._dialect.writing() as (connection, _):
            self._notice_foreign(connection)
            self._lock_lease(connection)  # no one else chooses meanwhile
            self._sign(connection, _SIGN, (self._me,))
            number = claim(self._dialect, connection, log, wanted)
            self._remember(connection)
            return number

    def announce(self, standing: Standing) -> None:
        """Say whether others see what was archived; see `ports.ArchiveStore.announce`."""
        with self._visiting, self._dialect.writing() as (connection, _):
            self._standing = standing
            self._notice_foreign(connection)
            self._sign(connection, _ANNOUNCE, (int(standing), self._me))
            self._remember(connection)

    def _sign(self, connection: Connection, statement: str, args: tuple[Any, ...]) -> None:
        """Give a sign of life with a statement on our row, or register.

        Without it others would take this commit for that of something that is no engine.
        """
        if self._dialect.execute(connection, statement, args) == 0:
            self._admitted = False
            self._register(connection, admitted=False, known=False)

    # -- one visit --------------------------------------------------------------------------------

    def _visit(self, *, acquire: bool, steal: bool) -> _Outcome:
        with self._visiting:
            # Whatever happens to the answer, what was true before is not known any more.
            with self._dialect.writing() as (connection, _):
                self._notice_foreign(connection)
                outcome = self._decide(connection, acquire=acquire, steal=steal)
                self._remember(connection)
            self._admitted = outcome.admitted
            if acquire or not outcome.admitted:
                self.epoch = outcome.epoch
            return outcome

    def _decide(self, connection: Connection, *, acquire: bool, steal: bool) -> _Outcome:
        lease = self._lock_lease(connection)
        writers = self._read_writers(connection)
        now = self._clock.monotonic()  # after the reads: what they show is at least this old
        me, mine = self._me, writers.pop(self._me, None)
        lease_s = self._watch.unchanged_s(b"lease", lease, now)
        dead = [
            name
            for name, writer in writers.items()
            if (steal and writer.owner == self._owner)
            or self._watch.unchanged_s(name, (writer.generation, writer.beat), now)
            >= max(writer.ttl_ms, self._ttl_ms) / 1000
        ]
        self._watch.keep([b"lease", *writers])
        wait_s = 0.0
        if lease.holder not in {_NOBODY, me}:
            holder = writers.get(lease.holder)
            passed_over = holder is not None and steal and holder.owner == self._owner
            wait_s = 0.0 if passed_over else lease.ttl_ms / 1000 - lease_s
            if wait_s <= 0:
                lease = self._set_lease(connection, replace(lease, holder=_NOBODY), changed=True)
        admitted = lease.holder in {_NOBODY, me}
        if admitted and acquire:
            dead = [name for name in dead if self._remove(connection, name, writers[name])]
        else:
            dead = []
        # What our own past left untold is in our log; nobody may ever open that of another.
        lost = sum(writers[name].owner != self._owner for name in dead)
        if lost:
            self._dialect.execute(connection, _LOSE, (lost,))
        self._register(connection, admitted=admitted, known=mine is not None)
        if not admitted:
            return _Outcome(admitted=False, epoch=0, wait_s=max(0.0, wait_s))
        epoch = self._hold(connection, lease, acquire=acquire, alone=len(dead) == len(writers))
        return _Outcome(admitted=True, epoch=epoch, wait_s=0.0)

    def _hold(self, connection: Connection, lease: _Lease, *, acquire: bool, alone: bool) -> int:
        """Take, keep or give up a lease that nobody else holds; return its epoch, or 0."""
        if not acquire:
            return self.epoch
        if not alone:
            if lease.holder == self._me and self._told:
                self._set_lease(connection, replace(lease, holder=_NOBODY), changed=True)
            self._told = lease.holder == self._me
            return 0
        self._told = False
        changed = lease.holder != self._me or self._foreign
        self._foreign = False
        lease = replace(lease, holder=self._me, beat=lease.beat + 1, ttl_ms=self._ttl_ms)
        return self._set_lease(connection, lease, changed=changed).epoch

    def _register(self, connection: Connection, *, admitted: bool, known: bool) -> None:
        if known:
            args: tuple[Any, ...] = (self._ttl_ms, self._owner, int(admitted), self._me)
            self._dialect.execute(connection, _BEAT, args)
            return
        args = (self._me, self._owner, int(admitted), self._ttl_ms, int(self._standing))
        self._dialect.execute(connection, _REGISTER, args)

    def _remove(self, connection: Connection, name: bytes, seen: _Writer | None) -> bool:
        """Remove a registration, keeping its count; False where it has changed since it was seen.

        The row's lock waits for a batch of that writer that is about to commit.
        """
        rows = self._dialect.query(connection, _LOCK_WRITER, (name,))
        if not rows:
            return True
        generation, beat = rows[0]
        if seen is not None and (generation, beat) != (seen.generation, seen.beat):
            return False
        self._dialect.execute(connection, _REMOVE, (name,))
        self._dialect.execute(connection, _RETIRE, (generation,))
        return True

    # -- the tables -------------------------------------------------------------------------------

    def _lock_lease(self, connection: Connection) -> _Lease:
        """Read the lease, and keep every other visit waiting until this transaction ends."""
        self._dialect.execute(connection, _VISIT)
        return self._read_lease(connection)

    def _read_lease(self, connection: Connection) -> _Lease:
        ((holder, epoch, beat, ttl_ms),) = self._dialect.query(connection, _READ_LEASE)
        return _Lease(bytes(holder), epoch, beat, ttl_ms)

    def _set_lease(self, connection: Connection, lease: _Lease, *, changed: bool) -> _Lease:
        if changed:
            lease = replace(lease, epoch=lease.epoch + 1)
        args = (lease.holder, lease.epoch, lease.beat, lease.ttl_ms)
        self._dialect.execute(connection, _SET_LEASE, args)
        return lease

    def _read_writers(self, connection: Connection) -> dict[bytes, _Writer]:
        return {
            bytes(name): _Writer(bytes(owner), *numbers)
            for name, owner, *numbers in self._dialect.query(connection, _READ_WRITERS)
        }

    # -- writers that do not take part (SQLite) ---------------------------------------------------

    def _others(self, connection: Connection) -> Mapping[str, object]:
        """Return what every transaction of another engine changes."""
        writers = self._read_writers(connection)
        writers.pop(self._me, None)
        return {"lease": self._read_lease(connection), "writers": writers}

    def _remember(self, connection: Connection) -> None:
        if self._dialect.data_version(connection) is not None:
            self._peers = self._others(connection)

    def _notice_foreign(self, connection: Connection) -> None:
        """Count commits of other connections to which no engine's counters have moved."""
        version = self._dialect.data_version(connection)
        if version is None or version == self._data_version:
            return
        peers = self._others(connection)
        known = self._data_version
        same_connection = known is not None and known[0] == version[0]
        if same_connection and peers == self._peers:
            self.foreign_writes += 1
            self._foreign = True
        self._data_version, self._peers = version, peers
