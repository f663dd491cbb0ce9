"""The sieve: which changes of a peer are news here, and which must not come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sync_engine.core.item import Change, Route, SyncItem
from sync_engine.core.version import ms_of_version
from sync_engine.engine import SyncEngine
from sync_engine.errors import CorruptData, InvalidItem
from sync_engine.ports import Clock
from sync_engine.replication.link import PeerLink
from sync_engine.telemetry import get_logger

__all__ = ["AHEAD_MS_MAX", "Sieve", "held_back"]

_log = get_logger("replication.sieve")
_L3 = int(Route.L3)
_L2 = int(Route.L2)
_CACHED_AGE_MS_MAX = 60_000
AHEAD_MS_MAX = 86_400_000  # as the front door has it


def held_back(items: int) -> Sequence[str]:
    """Return what is to be said of items that are held."""
    if not items:
        return ()
    told = f"{items} items are held back: they are older than deletions are kept (accept_old)"
    return (told,)


class Sieve:
    """Decides by version.

    What is known with that version or a newer one is no news: no echo leaves the log, and a change
    goes around a ring of engines once.

    A deletion is remembered for ``tombstone_retention_s``. An item that is older than that and not
    here may have been deleted here and forgotten; once a peer has been joined, such an item is
    *held*: counted, told, and not taken, for taking it could undo a deletion. An item younger than
    that cannot have been: its tombstone would be younger still, and be here.

    Changes that only caches keep are taken while they are young, by engines that have a cache;
    later they only displace what they supersede. None of them becomes a row here.

    Owned by one job; blocking: one query of the archive a batch.

    Args:
        engine: Ours.
        link: The peer.
        clock: Ours.
    """

    def __init__(self, engine: SyncEngine, link: PeerLink, clock: Clock) -> None:
        self._engine = engine
        self._link = link
        self._clock = clock
        self._caches = engine.stats()["l2"] is not None
        self._retention_ms = int(engine.config.tombstone_retention_s * 1000)
        self.counts: Counter[str] = Counter()
        self.ahead_ms = 0

    def known_near(self, id: str, version: int) -> bool:
        """Tell whether memory knows an id with that version or a newer one."""
        known, item = self._engine.warm(id)
        return known and item is not None and item.version >= version

    def forgotten(self, version: int) -> bool:
        """Tell whether a tombstone of that version may have been forgotten here."""
        return ms_of_version(version) < self._clock.now_ms() - self._retention_ms

    def held(self, version: int) -> bool:
        """Tell whether an item of that version that is not here must not be taken."""
        link = self._link
        trusted = link.peer.accept_old or not link.standing.joined
        return not trusted and self.forgotten(version)

    def news(self, changes: Sequence[Change]) -> list[Change]:
        """Return what is to be written, in order.

        Raises:
            StoreUnavailable: Our archive cannot be asked; nothing was decided.
        """
        wanted = []
        for change in changes:
            self.ahead_ms = max(self.ahead_ms, ms_of_version(change.version) - self._clock.now_ms())
            if not self._link.peer.wants(change.id):
                self.counts["unwanted"] += 1
            elif self.known_near(change.id, change.version):
                self.counts["known"] += 1
            else:
                wanted.append(change)
        rows = self._rows([change.id for change in wanted])
        return [news for change in wanted for news in self._decided(change, rows.get(change.id))]

    def _rows(self, ids: Sequence[str]) -> Mapping[str, Change]:
        if not ids:
            return {}
        try:
            return self._engine.merkle_changes(list(dict.fromkeys(ids)))
        except CorruptData:  # the only one asked for: the peer's may be a good copy
            return {}

    def _decided(self, change: Change, row: Change | None) -> Sequence[Change]:
        if row is not None and row.version >= change.version:
            self.counts["known"] += 1
            return ()
        if not change.routes & _L3:
            return self._cached(change)
        if row is None and not self._engine.warm(change.id)[0]:
            if change.content is None:
                if self.forgotten(change.version):
                    self.counts["known"] += 1  # it would be forgotten again at once
                    return ()
            elif self.held(change.version):
                self.counts["held"] += 1
                _log.limited("held_back", peer=self._link.peer.name, id=change.id)
                return ()
        return (change,)

    def _cached(self, change: Change) -> Sequence[Change]:
        """Decide on what only caches keep."""
        if self._engine.warm(change.id) == (True, None):
            self.counts["cache_only"] += 1
            return ()
        now_ms = self._clock.now_ms()
        here = self._engine.get(change.id)
        if here is not None and here.version >= change.version:
            self.counts["known"] += 1
            return ()
        fits = self._caches and now_ms - ms_of_version(change.version) <= _CACHED_AGE_MS_MAX
        if change.content is not None and fits and not change.expired(now_ms):
            return (change,)
        self.counts["cache_only"] += 1
        if here is None:
            return ()
        return (Change(change.id, change.version, None, state=change.state, routes=_L2),)

    def fits(self, change: Change) -> bool:
        """Tell whether the front door would take a change; what it would not is told and counted.

        For what comes again with every comparison: it is not put aside each time.
        """
        why: object = "its version lies more than a day in the future"
        if ms_of_version(change.version) <= self._clock.now_ms() + AHEAD_MS_MAX:
            try:
                self._engine.check(change.item() or SyncItem(change.id, b"", state=change.state))
            except InvalidItem as exc:
                why = exc
            else:
                return True
        self.counts["unfit"] += 1
        _log.limited("unfit_item", peer=self._link.peer.name, id=change.id, error=why)
        return False
