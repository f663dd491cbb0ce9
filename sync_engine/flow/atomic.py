"""Writes that depend on what is there: decide on the newest version, append unless overtaken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sync_engine.core.item import Change, Route
from sync_engine.core.options import Durability
from sync_engine.errors import Conflict, CorruptData, InvalidItem, StorageError
from sync_engine.flow.arbiter import Arbiter
from sync_engine.flow.loading import SingleFlight
from sync_engine.flow.reader import Reader
from sync_engine.flow.writer import Writer
from sync_engine.ports import Overtaken, Runtime, WritableLog

__all__ = ["AtomicWrites"]

_ATTEMPTS_MAX = 100
_ARCHIVE = "l3"
_L3 = int(Route.L3)  # a plain number: flags are slow on hot paths


class AtomicWrites:
    """Compare-and-set, updates, loads and deletes.

    Each notes the log's head, looks at the item, decides, and appends only if no change of the id
    came after that head. Whoever was overtaken waits until the faster one is visible, and looks
    again. That decides between all threads of this engine, and holds while it provably is the
    archive's only writer. While it is not, the archive decides, see `Arbiter`: what was decided
    here before has to be in the archive first, so the lease is only given up once `settled`.

    Items that are kept in L2 alone are decided by this engine alone: between engines, the larger
    version of them wins.

    Thread-safety: all methods. Blocking: as the reads and writes they are made of.
    """

    def __init__(
        self,
        log: WritableLog,
        reader: Reader,
        writer: Writer,
        runtime: Runtime,
        *,
        alone: Callable[[], bool],
        timeout_s: float,
        arbiter: Arbiter | None,
    ) -> None:
        self._log = log
        self._reader = reader
        self._writer = writer
        self._alone = alone
        self._arbiter = arbiter
        self._clock = runtime.clock
        self._random = runtime.random
        self._now_ms = runtime.clock.now_ms
        self._timeout_s = timeout_s
        self._loads = SingleFlight(runtime)
        self._lock = runtime.lock()
        self._under_way = 0
        self._decided_up_to: int | None = None

    def _live(self, change: Change | None) -> Change | None:
        if change is None or change.content is None or change.expired(self._now_ms()):
            return None
        return change

    def settled(self) -> bool:
        """Tell whether the archive has everything that was decided without it.

        Asked, again and again, after this engine is no longer alone.
        """
        with self._lock:
            if self._under_way:
                self._decided_up_to = None
                return False
        if self._decided_up_to is None:
            self._decided_up_to = self._log.appended
        if self._log.cursor(_ARCHIVE) < self._decided_up_to:
            return False
        self._decided_up_to = None
        return True

    def decide(
        self,
        change_id: str,
        decision: Callable[[Change | None], Change],
        durability: Durability,
        timeout_s: float | None,
    ) -> tuple[int, Change]:
        """Write what a decision makes of the newest change; again while overtaken.

        Args:
            change_id: The item's id.
            decision: Takes the live change or None, returns the draft to write, or raises.
            durability: What to wait for.
            timeout_s: As `Writer.write`.

        Returns:
            The position, and the change with its version.

        Raises:
            Conflict: Overtaken a hundred times.
            StoreUnavailable: The newest change cannot be read, or as `Writer.write`. Where other
                engines write, also: whether the archive took it is not known.
        """
        for attempt in range(_ATTEMPTS_MAX):
            with self._lock:
                self._under_way += 1
            try:
                if self._arbiter is None or self._alone():
                    written = self._decide_here(change_id, decision, durability, timeout_s)
                    if written is not None:
                        return written
                    continue
            finally:
                with self._lock:
                    self._under_way -= 1
            written = self._decide_there(self._arbiter, change_id, decision, durability, timeout_s)
            if written is not None:
                return written
            self._clock.sleep(self._random() * min(0.002 * 2 ** min(attempt, 5), 0.05))
        raise Conflict(change_id, 0, 0)

    def _decide_here(
        self,
        change_id: str,
        decision: Callable[[Change | None], Change],
        durability: Durability,
        timeout_s: float | None,
    ) -> tuple[int, Change] | None:
        """Decide by the log; None where somebody was faster."""
        seen = self._log.head()
        newest = self._log.pending(change_id)
        if newest is None:
            newest = (self._reader.get if self._alone() else self._reader.get_fresh)(change_id)
        draft = decision(self._live(newest))
        self._writer.check(draft)
        return self._append(draft, durability, timeout_s, seen)

    def _decide_there(
        self,
        arbiter: Arbiter,
        change_id: str,
        decision: Callable[[Change | None], Change],
        durability: Durability,
        timeout_s: float | None,
    ) -> tuple[int, Change] | None:
        """Let the archive decide; None where somebody was faster."""
        head = self._log.head()
        seen = arbiter.look(change_id)
        draft = decision(self._live(seen.newest))
        self._writer.check(draft)
        if not draft.routes & _L3:
            return self._append(draft, durability, timeout_s, head)
        return arbiter.put(draft, seen.row_version, durability)

    def _append(
        self, draft: Change, durability: Durability, timeout_s: float | None, unless_after: int
    ) -> tuple[int, Change] | None:
        try:
            last, changes = self._writer.write(
                (draft,), durability, timeout_s, unless_after=unless_after
            )
        except Overtaken:
            self._log.commit(self._log.appended, 0)  # until who was faster is visible
            return None
        return last, changes[0]

    def put_if(
        self, draft: Change, expected: int, durability: Durability, timeout_s: float | None
    ) -> tuple[int, Change]:
        """Write a draft over one version only; 0 is absent.

        Raises:
            Conflict: Another version is there.
            StoreUnavailable: As `decide`.
        """

        def decision(newest: Change | None) -> Change:
            actual = 0 if newest is None else newest.version
            if actual != expected:
                raise Conflict(draft.id, expected, actual)
            return draft

        return self.decide(draft.id, decision, durability, timeout_s)

    def load(
        self,
        change_id: str,
        loader: Callable[[], Change | None],
        durability: Durability,
        timeout_s: float | None,
    ) -> Change | None:
        """Return the live change, or store what the loader gives; one load for all who wait.

        A value that was written while the loader ran wins over the loaded one.

        Raises:
            StoreUnavailable: As `decide`, or no value within the read timeout.
        """

        def load() -> Change | None:
            seen = self._log.head()
            known = self._reader.get(change_id)
            if known is not None:
                return known
            draft = loader()
            if draft is None:
                return None
            if draft.id != change_id:
                raise InvalidItem(f"the loader of {change_id!r} returned an item of {draft.id!r}")
            self._writer.check(draft)
            try:
                _, changes = self._writer.write((draft,), durability, timeout_s, unless_after=seen)
            except Overtaken:
                self._log.commit(self._log.appended, 0)
                return self._reader.get(change_id)
            return changes[0]

        value = self._loads.do(change_id, load, self._timeout_s)
        return value if isinstance(value, Change) else None

    def delete(
        self, ids: Sequence[str], durability: Durability, timeout_s: float | None
    ) -> Sequence[str]:
        """Delete those of the ids that may have an item; return them.

        Where nobody can say whether there is one, a tombstone is right either way.
        """
        try:
            there: Sequence[str] = self._reader.get_existing(ids)
        except (StorageError, CorruptData):
            there = ids
        # A pending tombstone may be less durable than asked for now: it is written once more.
        gone = set(there)
        again = [id for id in ids if id not in gone and self._log.pending(id) is not None]
        if there or again:
            drafts = [Change(id, 0, None) for id in (*there, *again)]
            self._writer.write(drafts, durability, timeout_s)
        return there
