"""The log as a sink is shown it, and the sink as its follower is shown it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sync_engine.core.item import Change, Route
from sync_engine.errors import StorageError, StoreUnavailable
from sync_engine.flow.backfill import tombstone_of
from sync_engine.flow.tier import Tier
from sync_engine.ports import Clock, LogSlice

__all__ = ["Delivery", "OutletFace", "OutletLog", "View"]

_L3 = int(Route.L3)  # a plain number: flags are slow on hot paths


class OutletLog(Protocol):
    """What an outlet needs of the log; `wal.WriteAheadLog` documents each."""

    uuid: str

    @property
    def followers(self) -> dict[str, int]: ...  # noqa: D102
    @property
    def written(self) -> int: ...  # noqa: D102
    @property
    def synced(self) -> int: ...  # noqa: D102
    def head(self) -> int: ...  # noqa: D102
    def read(self, after: int, items_max: int, bytes_max: int) -> LogSlice: ...  # noqa: D102
    def cursor(self, name: str) -> int: ...  # noqa: D102
    def advance(self, name: str, position: int) -> None: ...  # noqa: D102
    def want(self, name: str, position: int) -> None: ...  # noqa: D102
    def follow(self, name: str, *, at_head: bool = False) -> None: ...  # noqa: D102
    def unfollow(self, name: str) -> None: ...  # noqa: D102
    def write(self) -> None: ...  # noqa: D102
    def sync(self, position: int) -> None: ...  # noqa: D102
    def put_snapshot(self, name: str, data: bytes) -> None: ...  # noqa: D102
    def get_snapshot(self, name: str) -> bytes | None: ...  # noqa: D102
    def dead_letter(  # noqa: D102
        self, follower: str, position: int, change: Change, error: str
    ) -> None: ...


class OutletFace(Protocol):
    """What view and delivery need of their outlet."""

    job: str
    positioned: bool
    prefixes: tuple[str, ...]
    destination: Tier[Any]

    def apply_at(self, changes: Sequence[Change], position: int) -> None:
        """Deliver a batch with the position that it ends at."""

    def moved(self, position: int) -> None:
        """Move the cursor to what the sink has."""

    def translated(self, operation: str) -> AbstractContextManager[None]:
        """Return the context in which the sink is called."""


class View:
    """The log as the sink sees it: its prefixes, each id once in a slice, and only what is safe."""

    def __init__(self, outlet: OutletFace, log: OutletLog, clock: Clock) -> None:
        self._outlet = outlet
        self._log = log
        self._now_ms = clock.now_ms
        self._places: dict[str, int] = {}
        self._last = self._newest_last = 0
        self.probing = False
        prefixes = outlet.prefixes
        self._prefixes = () if "" in prefixes else prefixes

    def head(self) -> int:
        """Return the last position that may be delivered."""
        return self._log.head()

    def cursor(self, name: str) -> int:
        """Return the delivered position."""
        return self._log.cursor(name)

    def want(self, name: str, position: int) -> None:
        """Ask to be woken once the head reaches a position."""
        self._log.want(name, position)

    def dead_letter(self, follower: str, position: int, change: Change, error: str) -> None:
        """Put a change aside, durably."""
        self._log.dead_letter(follower, position, change, error)

    def read(self, after: int, items_max: int, bytes_max: int) -> LogSlice:
        """Return what is to be delivered after a position; None where nothing is."""
        part = self._log.read(after, items_max, bytes_max)
        self.make_safe(part.last)
        # What a follower reads beyond its cursor it delivers out of turn, to see what is taken.
        self.probing = after > self._log.cursor(self._outlet.job)
        newest: dict[str, int] = {}
        changes: list[Change | None] = []
        now_ms, prefixes = self._now_ms(), self._prefixes
        for index, change in enumerate(part.changes):
            if change is None or (prefixes and not change.id.startswith(prefixes)):
                changes.append(None)
                continue
            known = newest.get(change.id)
            if known is not None:
                older = changes[known]
                if older is not None and older.version >= change.version:
                    changes.append(None)
                    continue
                changes[known] = None
            newest[change.id] = index
            kept = change.routes & _L3 and not change.expired(now_ms)
            changes.append(change if kept or change.content is None else tombstone_of(change))
        self._places = {id: after + 1 + index for id, index in newest.items()}
        self._last = part.last
        self._newest_last = max(newest.values(), default=-1) + after + 1
        return LogSlice(after, changes)

    def make_safe(self, position: int) -> None:
        """See to it that no crash undoes what is about to be delivered."""
        if self._log.synced >= position:
            return
        if self._log.written < position:
            self._log.write()
        self._log.sync(position)
        if self._log.synced < position:
            raise StoreUnavailable("log", "sync", "what is to be delivered is not yet on disk")

    def end_of(self, changes: Sequence[Change]) -> int:
        """Return the position that is reached once these were delivered."""
        place = self._places[changes[-1].id]
        return self._last if place == self._newest_last else place

    def advance(self, name: str, position: int) -> None:
        """Move the cursor, and a sink that keeps positions with it."""
        outlet = self._outlet
        if outlet.positioned and self._log.cursor(name) < position:
            outlet.apply_at((), position)
        self._log.advance(name, position)


class Delivery:
    """The sink as its follower sees it."""

    def __init__(self, outlet: OutletFace, view: View) -> None:
        self._outlet = outlet
        self._view = view

    def ready(self) -> None:
        """Do nothing: the outlet attached it."""

    def apply(self, changes: Sequence[Change]) -> None:
        """Deliver a batch, as `ports.Sink`; with its position where the sink keeps one."""
        outlet, view = self._outlet, self._view
        if outlet.positioned and not view.probing:
            position = view.end_of(changes)
            outlet.apply_at(changes, position)
            outlet.moved(position)
            return
        with outlet.translated("apply"):
            outlet.destination.apply(changes)

    def alive(self) -> bool:
        """Tell whether the sink answers at all."""
        try:
            with self._outlet.translated("ping"):
                return self._outlet.destination.alive()
        except StorageError:
            return False
