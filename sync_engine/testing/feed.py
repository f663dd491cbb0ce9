"""A feed in memory, by which engines in one process tell each other what they wrote."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from sync_engine.core.feed import Chain, Link, Place
from sync_engine.core.item import Change
from sync_engine.errors import FeedGap, StoreUnavailable

__all__ = ["MemoryFeed"]


class _Stream:
    """What all clients of one feed share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: list[tuple[Link, Sequence[Change]]] = []
        self.trimmed = 0
        self.origins: dict[str, tuple[int, int]] = {}


class MemoryFeed:
    """Implements `ports.ChangeFeed`.

    One object is one client; `client` gives another one of the same feed. `down` cuts this client
    off, and `trim` drops what was told.

    Thread-safety: every method.
    """

    name = "memory feed"

    def __init__(self, *, idle_s: float = 0.005) -> None:
        self.idle_s = idle_s
        self.down = False
        self.down_for_telling = False
        self._stream = _Stream()
        self._at = 0
        self._chain = Chain()

    def client(self) -> MemoryFeed:
        """Return another client of the same feed."""
        other = MemoryFeed(idle_s=self.idle_s)
        other._stream = self._stream
        return other

    def trim(self) -> None:
        """Drop everything that was told so far, as a stream that is too long does."""
        stream = self._stream
        with stream.lock:
            stream.trimmed += len(stream.entries)
            stream.entries.clear()

    @property
    def told(self) -> list[tuple[str, str, int]]:
        """Origin, id and version of everything that is there."""
        with self._stream.lock:
            return [
                (link.origin, change.id, change.version)
                for link, changes in self._stream.entries
                for change in changes
            ]

    def _ask(self, operation: str, *, telling: bool = False) -> None:
        if self.down or (telling and self.down_for_telling):
            raise StoreUnavailable(self.name, operation, "switched off")

    def attach(self) -> None:
        """Do nothing, unless it is down."""
        self._ask("attach")

    def position(self, log_uuid: str) -> int | None:
        """Return the position that a log has reached."""
        self._ask("position", telling=True)
        place = self._stream.origins.get(log_uuid)
        return None if place is None else place[0]

    def begin(self, log_uuid: str, position: int, *, after_gap: bool) -> None:
        """Let a log begin after a position."""
        self._ask("begin", telling=True)
        with self._stream.lock:
            self._stream.origins[log_uuid] = (position, position if after_gap else 0)

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        """Tell a batch."""
        self._ask("apply", telling=True)
        stream = self._stream
        with stream.lock:
            if log_uuid not in stream.origins:
                raise StoreUnavailable(self.name, "apply", "the origin has to begin first")
            reached, last = stream.origins[log_uuid]
            if position <= reached:
                return
            if changes:
                bare = [
                    Change(c.id, c.version, None if c.content is None else b"") for c in changes
                ]
                stream.entries.append((Link(log_uuid, last, position), bare))
                last = position
            stream.origins[log_uuid] = (position, last)

    def seek_end(self) -> None:
        """Listen to what comes from now on."""
        self._ask("seek")
        stream = self._stream
        with stream.lock:
            self._at = stream.trimmed + len(stream.entries)
            self._chain = Chain(
                {origin: Place(last) for origin, (_, last) in stream.origins.items() if last}
            )

    def read(self, wait_s: float) -> Sequence[tuple[str, Sequence[Change]]]:
        """Return what was told since; does not wait.

        Raises:
            FeedGap: Something was trimmed away.
        """
        del wait_s
        self._ask("read")
        stream = self._stream
        with stream.lock:
            start = max(0, self._at - stream.trimmed)
            found = stream.entries[start:]
            self._at = stream.trimmed + len(stream.entries)
            ends = {origin: last for origin, (_, last) in stream.origins.items()}
        told = []
        for link, changes in found:
            seen = self._chain.look(link)
            if seen == "repeat":
                continue
            if seen != "next":
                raise FeedGap(seen)
            self._chain.take(link)
            told.append((link.origin, changes))
        missing = self._chain.at_end(ends)
        if missing:
            raise FeedGap(missing)
        return told

    def close(self) -> None:
        """Do nothing."""
