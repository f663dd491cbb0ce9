"""`SyncEngine`: the public face. Limits, choices and order live in the rooms it calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from sync_engine.config import SyncEngineConfig
from sync_engine.core.item import Change, SyncItem
from sync_engine.core.options import SubmitOptions
from sync_engine.core.results import EngineState
from sync_engine.face.checks import Checks
from sync_engine.face.ends import Ends
from sync_engine.face.lists import Lists
from sync_engine.face.reads import Reads
from sync_engine.face.upkeep import Upkeep
from sync_engine.face.writes import Writes
from sync_engine.flow.feed import Feed
from sync_engine.flow.writer import Receipt

__all__ = ["SyncEngine"]

_DEFAULT = SubmitOptions()
_RUNNING = EngineState.RUNNING


class SyncEngine(Writes, Reads, Lists, Ends, Checks, Upkeep):
    """A tiered store of byte items that never loses what it acknowledged.

    Embedded by default: memory, SQLite archive and log under ``data_dir``, no server needed.

    Example:
        >>> with SyncEngine.open("./data") as engine:
        ...     engine.submit("greeting", b"hello")
        ...     engine.get("greeting").content
        b'hello'

    Thread-safety: every method may be called from any thread. After a fork, the child has to open
    an engine of its own.

    Args:
        config: Settings; None takes the defaults. `from_env` takes the environment.
        runtime: Time, locks and jobs; None is the real ones.
        stores: Stores to use in place of the configured ones.

    Raises:
        ConfigError: A setting cannot be used.
    """

    @classmethod
    def open(cls, data_dir: str | Path, **settings: Any) -> SyncEngine:
        """Start an engine on a directory; settings as in `SyncEngineConfig`.

        Raises:
            ConfigError: A setting cannot be used.
        """
        return cls(SyncEngineConfig.load(data_dir=data_dir, **settings)).start()

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> SyncEngine:
        """Make an engine configured by ``SYNC_ENGINE_*`` variables; not started."""
        return cls(SyncEngineConfig.from_env(env))

    @classmethod
    def from_toml(cls, path: str | Path) -> SyncEngine:
        """Make an engine configured by a TOML file; not started."""
        return cls(SyncEngineConfig.from_toml(path))

    # -- for the asyncio face ---------------------------------------------------------------------

    def open_feed(self, after: str | None, name: str) -> tuple[Feed, str]:
        """Open a feed for the asyncio face; see `changes`."""
        return self._open().feeds.open(after, name)

    def leave_feed(self, cursor: str) -> None:
        """Close a feed of `open_feed`."""
        if self._state is _RUNNING:
            self._open().feeds.leave(cursor)

    def when_fed(self, feed: Feed, callback: Callable[[], None]) -> None:
        """Call back, in some thread, once a feed has more."""
        self._open().feeds.when_more(feed, callback)

    def check(self, item: SyncItem) -> None:
        """Raise `InvalidItem` if an item is outside the limits."""
        self._open().writer.check(self._draft(item, _DEFAULT))

    def submit_group(self, items: Sequence[SyncItem]) -> list[Receipt]:
        """Write items as one group at the engine's durability; all or none of them."""
        house = self._open()
        drafts = [self._draft(item, _DEFAULT) for item in items]
        for draft in drafts:
            house.writer.check(draft)
        return house.writer.receipts(*house.writer.write(drafts, self._durability))

    def warm(self, id: str) -> tuple[bool, SyncItem | None]:
        """Return whether memory alone knows how an item stands, and the item; never blocks."""
        if self._state is not _RUNNING:
            raise self._closed()
        change = self._near(id)
        if change is None:
            if not self._overlay.has_pinned:
                change = self._l1_get(id)
        elif self._superseded(change):
            change = None
        if type(change) is not Change:
            return False, None
        if change.expires_at_ms and change.expired(self._now_ms()):
            return True, None
        return True, change.item()

    def hold_sources(self, timeout_s: float) -> None:
        """Take nothing more from any source, for good; wait a moment for steps under way."""
        self._open().doors.hold_sources(timeout_s)

    def when_archived(self, position: int, callback: Callable[[], None]) -> None:
        """Call back, in some thread, once the archive has taken a log position."""
        house = self._open()
        house.followers["l3"].hurry()
        house.arrivals.when("l3", position, callback)

    def dead_letter_error(self, position: int) -> str | None:
        """Return the error with which the archive refused a log position, if it did."""
        return self._open().log.dead_error("l3", position)

    def executor(self) -> Executor:
        """Return the engine's few worker threads."""
        return self._open().runtime.executor()
