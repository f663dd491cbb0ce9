"""`SyncEngine`: the public face. Limits, choices and order live in the rooms it calls."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast, overload

from sync_engine.config import SyncEngineConfig
from sync_engine.core.batcher import BatchConfig, FlushReason
from sync_engine.core.item import Change, Route, SyncItem, check_id, check_state
from sync_engine.core.merkle import (
    MerkleDiff,
    MerkleNode,
    MerklePage,
    MerkleState,
    MerkleTree,
)
from sync_engine.core.options import SubmitOptions, ttl_ms
from sync_engine.core.pressure import BackpressureLevel
from sync_engine.core.results import (
    BatchResult,
    EngineState,
    FlushReport,
    Health,
    ItemStatus,
)
from sync_engine.errors import (
    ConfigError,
    CorruptData,
    EngineClosed,
    EngineFailed,
    InvalidItem,
    StoreUnavailable,
    SyncEngineError,
)
from sync_engine.flow.feed import ArchivedChange, Feed
from sync_engine.flow.inspect import engine_stats, item_status, measure_health
from sync_engine.flow.outlet import OnFull
from sync_engine.flow.repair import MerklePeer, RepairReport
from sync_engine.flow.verify import VerifyReport
from sync_engine.flow.writer import Receipt
from sync_engine.house import House, Stores
from sync_engine.ports import AdapterContext, Runtime, Sink, Source
from sync_engine.runtime import SystemRuntime
from sync_engine.telemetry import Metrics
from sync_engine.wal.records import DeadLetter

__all__ = ["SyncEngine"]

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULT = SubmitOptions()
_RUNNING = EngineState.RUNNING
_L3 = int(Route.L3)


class SyncEngine:
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

    def __init__(
        self,
        config: SyncEngineConfig | None = None,
        *,
        runtime: Runtime | None = None,
        stores: Stores | None = None,
    ) -> None:
        self.config = SyncEngineConfig() if config is None else config
        self._runtime = runtime
        self._stores = stores
        self._state = EngineState.CREATED
        self._pid = 0
        self._house: House | None = None
        self._durability = self.config.durability

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

    # -- lifecycle --------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""
        house = self._house
        if self._state is EngineState.RUNNING and house is not None and house.log.failed:
            return EngineState.FAILED
        return self._state

    def start(self) -> Self:
        """Open the log, attach what is there, and begin to deliver; safe twice.

        Servers that are down are attached when they appear; reads and writes work meanwhile.

        Blocking: the log's recovery, and at most the connect timeouts of the tiers.

        Raises:
            ConfigError: A setting cannot be used, or another process owns the log.
            CorruptData: The log file is damaged or foreign.
            EngineClosed: The engine was closed before; make a new one.
        """
        if self._state is EngineState.RUNNING and self._pid == os.getpid():
            return self
        if self._state is not EngineState.CREATED:
            raise EngineClosed(f"the engine is {self._state.value}: make a new one")
        self._state = EngineState.STARTING
        runtime = self._runtime or SystemRuntime(self.config.engine_name)
        try:
            self._house = house = House(self.config, runtime, self._stores)
        except BaseException:
            self._state = EngineState.CREATED
            runtime.close(1.0)
            raise
        try:
            house.start()
        except BaseException:
            self._state = EngineState.CLOSED
            house.stop(self.config.close_timeout_s)
            raise
        self._pid = os.getpid()
        self._overlay = house.log.overlay
        self._near = house.log.overlay.entries.get
        self._l1_get = house.l1.get
        self._now_ms = house.clock.now_ms
        self._has_l2 = house.l2 is not None
        self._state = EngineState.RUNNING
        house.runtime.at_exit(self.close)
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> House:
        if self._state is not _RUNNING or self._pid != os.getpid():
            raise self._closed()
        return self._house  # type: ignore[return-value]

    def _closed(self) -> EngineClosed:
        if self._pid not in (0, os.getpid()):
            return EngineClosed(
                "this engine belongs to the parent process: open one after the fork"
            )
        return EngineClosed(f"the engine is {self._state.value}: call start(), or make a new one")

    def flush(self, timeout: float | None = None, *, sinks: bool = False) -> FlushReport:
        """Deliver everything acknowledged before this call, and report what is not.

        Args:
            timeout: Seconds; None is ``close_timeout_s``.
            sinks: Whether the sinks have to have it, too.

        Blocking: until delivered or the timeout.
        """
        house = self._open()
        started = house.clock.monotonic()
        house.log.write()
        timeout = self.config.close_timeout_s if timeout is None else timeout
        left = house.flush(timeout, sinks=sinks)
        return FlushReport(
            left=left,
            dead_letters=len(house.log.dead),
            seconds=house.clock.monotonic() - started,
        )

    def close(self, timeout: float | None = None) -> FlushReport:
        """Flush within a timeout, and close. What is left stays in the log and is delivered later.

        Safe twice, and before `start`. Blocking: up to twice the timeout.

        Args:
            timeout: Seconds; None is ``close_timeout_s``.
        """
        house = self._house
        if self._state is not EngineState.RUNNING or house is None or self._pid != os.getpid():
            if self._state is EngineState.CREATED:
                self._state = EngineState.CLOSED
            return FlushReport(left={}, dead_letters=0, seconds=0.0)
        timeout = self.config.close_timeout_s if timeout is None else timeout
        started = house.clock.monotonic()
        self._state = EngineState.DRAINING
        house.doors.hold_sources()
        try:
            house.log.write()
            left = house.flush(timeout, FlushReason.SHUTDOWN)
            dead = len(house.log.dead)
        except SyncEngineError:
            left, dead = {"l3": house.log.pending_items}, 0
        finally:
            house.runtime.at_exit(None)
            house.stop(max(1.0, timeout))
            self._state = EngineState.CLOSED
        return FlushReport(left=left, dead_letters=dead, seconds=house.clock.monotonic() - started)

    def pause(self, destination: str) -> None:
        """Stop delivering to ``l2``, ``l3`` or a sink, or taking from a source, by name."""
        self._follower(destination).pause()

    def resume(self, destination: str) -> None:
        """Deliver to a paused destination again, or take from a paused source."""
        self._follower(destination).resume()

    def detach(self, destination: str) -> None:
        """Close the connections to ``l2`` or ``l3`` and stop using it until `attach`."""
        follower = self._follower(destination)
        follower.destination.detach(park=True)

    def attach(self, destination: str) -> None:
        """Use a detached destination again."""
        follower = self._follower(destination)
        follower.destination.unpark()
        follower.resume()

    def _follower(self, destination: str) -> Any:
        house = self._open()
        found = house.followers.get(destination) or house.doors.get(destination)
        if found is None:
            names = ", ".join([*house.followers, *house.doors.names])
            raise ConfigError(f"no destination {destination!r}: there is {names}")
        return found

    # -- sources and sinks ------------------------------------------------------------------------

    def add_sink(
        self,
        name: str,
        sink: Sink,
        *,
        prefix: str | Sequence[str] = "",
        batch: BatchConfig | None = None,
        on_full: OnFull = "block",
    ) -> None:
        """Deliver what the archive keeps to a sink: a copy first, then every change, in order.

        The sink's place is kept in the log under its name, over restarts: added again, it goes on
        where it was. Until it has taken a change, the log keeps it. Sinks that keep positions of
        their own (`ports.PositionedSink`) are asked where they stand.

        Args:
            name: 1 to 64 letters, digits, or any of . _ -; unique among sinks.
            sink: Attached by the engine, in a job of its own; closed with the engine.
            prefix: Deliver ids that begin so, or with one of these. A wider prefix than last time
                begins a new copy.
            batch: When to deliver; None is up to 1000 changes or 4 MiB, after at most 50 ms.
            on_full: When this sink is what fills the log: ``block`` slows writers down until it
                takes something; ``cut`` gives up its place and copies everything again once it can,
                deletions included as long as the archive remembers them.

        Raises:
            ConfigError: The name is taken or cannot be used, or the engine is passive.
            StoreUnavailable: The log could not be written.

        Blocking: the log's file only; the sink is attached in the background.
        """
        self._active().doors.add_sink(name, sink, prefix=prefix, batch=batch, on_full=on_full)

    def remove_sink(self, name: str, *, forget: bool = False) -> bool:
        """Stop delivering to a sink and close it; return whether there was one.

        Args:
            name: As for `add_sink`; with `forget` it may also be one that was not added again.
            forget: Give its place in the log up. Otherwise the log keeps all it has not taken.

        Raises:
            StoreUnavailable: It did not end what it was doing within 30 s. It ends with that; call
                again then.
        """
        return self._active().doors.remove_sink(name, forget=forget)

    def add_source(self, name: str, source: Source, *, items_max: int = 1000) -> None:
        """Take changes from a source: poll, write, wait for the disk, acknowledge, again and again.

        A crash anywhere repeats changes and never loses one. Under back-pressure it waits.

        Args:
            name: 1 to 64 letters, digits, or any of . _ -; unique among sources.
            source: Attached by the engine, in a job of its own; closed with the engine.
            items_max: Changes to ask for at a time (at least 1).

        Raises:
            ConfigError: The name is taken or cannot be used, or the engine is passive.
        """
        self._active().doors.add_source(name, source, items_max=items_max)

    def remove_source(self, name: str) -> bool:
        """Stop taking changes from a source and close it; return whether there was one.

        Raises:
            StoreUnavailable: It did not end what it was doing within 30 s. It ends with that; call
                again then.
        """
        return self._active().doors.remove_source(name)

    # -- the feed ---------------------------------------------------------------------------------

    def changes(
        self, after: str | None = None, *, name: str = "", timeout: float | None = None
    ) -> Iterator[ArchivedChange]:
        """Yield what this engine has archived, in the order of its log, and wait for more.

        Every acknowledged write and delete of this engine comes once the archive has it; what the
        archive refused for good is left out. Changes of other engines are in their own feeds.

        Args:
            after: `ArchivedChange.token` of the last one taken; None begins with what is archived
                from now on, or where the named consumer was.
            name: Of a consumer for whom the log keeps what it has not taken, over restarts: 1 to 64
                letters, digits, or any of . _ -. A new one begins with the oldest change kept. A
                change counts as taken when the next one is asked for. Empty: the log is held while
                the iterator lives, and by ``feed_items_kept`` beyond that.
            timeout: End once nothing has come for so many seconds; 0 ends with what is archived
                now; None waits until the engine is closed.

        Raises:
            FeedGap: The log no longer reaches back to `after`, or is another one: scan first.
            InvalidItem: `after` is no token.
            ConfigError: The name cannot be used.
            EngineClosed: The engine was closed meanwhile.

        Thread-safety: one iterator belongs to one thread. Blocking: as `timeout` says.
        """
        return self._open().feeds.iterate(after, name, timeout, self._open)

    def forget_consumer(self, name: str) -> bool:
        """Let go of what a named consumer of `changes` has not taken; tell if there was one.

        Raises:
            ConfigError: The name cannot be used.
        """
        return self._open().feeds.forget(name)

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

    def adapter_context(self, kind: str, name: str) -> AdapterContext:
        """Return what the factory of a ``source`` or ``sink`` of this name is given."""
        return self._active().doors.context(kind, name)

    def _active(self) -> House:
        house = self._open()
        if self.config.passive:
            raise ConfigError("a passive engine has no sources and sinks: it changes nothing")
        return house

    # -- writing ----------------------------------------------------------------------------------

    @overload
    def submit(self, item: SyncItem, options: SubmitOptions | None = None, /) -> Receipt: ...
    @overload
    def submit(
        self, id: str, content: bytes, options: SubmitOptions | None = None, /
    ) -> Receipt: ...
    def submit(self, item: Any, content: Any = None, options: Any = None, /) -> Receipt:
        """Write one item; return when it is acknowledged at the durability asked for.

        Args:
            item: An item, or its id followed by its content.
            content: Bytes, where the first argument is an id.
            options: Where to keep it, for how long, under which condition.

        Returns:
            The receipt, which can be waited on.

        Raises:
            InvalidItem: Outside the limits; nothing was accepted.
            Backpressure: No room on the way to the archive; nothing was accepted.
            Conflict: `if_version` or `if_absent` does not hold; nothing was accepted.
            StoreUnavailable: The log could not be written (nothing was accepted), or the archive
                did not take it in time at durability `archive` (it stays in the log).
            EngineClosed: The engine is not running.
            EngineFailed: The disk failed a sync; nothing more is accepted.

        Blocking: `memory` not at all, `log` for one commit, `fsync` for one sync of the disk shared
        by all callers, `archive` for the archive. Cost: a few microseconds plus that.
        """
        house = self._open()
        if type(item) is SyncItem:
            options = content if options is None else options
        else:
            if type(content) is not bytes:
                raise InvalidItem(f"content must be bytes, not {type(content).__name__}")
            item = SyncItem(item, content)
        options = _DEFAULT if options is None else options
        draft = self._draft(item, options)
        house.writer.check(draft)
        if options.if_absent or options.if_version is not None:
            last, change = house.atomic.put_if(
                draft,
                options.expected or 0,
                options.durability or self._durability,
                options.timeout,
            )
            return Receipt(change, last, house.writer)
        last, changes = house.writer.write(
            (draft,), options.durability or self._durability, options.timeout
        )
        return Receipt(changes[0], last, house.writer)

    def _draft(self, item: SyncItem, options: SubmitOptions) -> Change:
        routes = options.routes
        if not routes & _L3 and not self._has_l2:
            routes |= _L3  # no cache tier: what is acknowledged is kept in the archive instead
        expires_at_ms = item.expires_at_ms
        if options.ttl is not None:
            expires_at_ms = self._now_ms() + ttl_ms(options.ttl)
        return Change(
            item.id,
            0,
            item.content,
            item.content_type,
            item.state if options.state is None else options.state,
            expires_at_ms,
            routes,
            item.trace_parent,
        )

    def submit_many(
        self, items: Iterable[SyncItem], options: SubmitOptions | None = None
    ) -> BatchResult:
        """Write items in order, as one group in the log.

        An item outside the limits is refused alone and told in the result; all others are taken.

        Args:
            items: In the order of their writing; an id may come twice.
            options: For all of them; conditions are not allowed here.

        Raises:
            Backpressure: No room for the group; nothing was accepted.
            StoreUnavailable: As `submit`, for the group.
        """
        house = self._open()
        options = _DEFAULT if options is None else options
        if options.expected is not None:
            raise InvalidItem("conditions are for single items: use submit or update")
        drafts: list[Change] = []
        places: list[int] = []
        errors: dict[int, Exception] = {}
        total = 0
        for place, item in enumerate(items):
            total += 1
            try:
                draft = self._draft(item, options)
                house.writer.check(draft)
            except (InvalidItem, AttributeError) as exc:
                errors[place] = exc
            else:
                drafts.append(draft)
                places.append(place)
        if not drafts:
            return BatchResult(total=total, versions={}, errors=errors, position=0)
        last, changes = house.writer.write(
            drafts, options.durability or self._durability, options.timeout
        )
        versions = {place: change.version for place, change in zip(places, changes, strict=True)}
        return BatchResult(total=total, versions=versions, errors=errors, position=last)

    def delete(self, id: str, options: SubmitOptions | None = None) -> bool:
        """Delete an item in every tier; return whether there may have been one.

        A delete is taken under back-pressure, and while servers are down. False means that the item
        was known not to exist; nothing is written then.

        Args:
            id: The item's id.
            options: Durability, `if_version` and timeout are honoured.

        Raises:
            InvalidItem: Not an id.
            Conflict: `if_version` does not hold.
            StoreUnavailable: As `submit`.
        """
        house = self._open()
        check_id(id)
        options = _DEFAULT if options is None else options
        durability = options.durability or self._durability
        if options.expected is not None:
            draft = Change(id, 0, None)
            house.atomic.put_if(draft, options.expected, durability, options.timeout)
            return True
        return bool(house.atomic.delete((id,), durability, options.timeout))

    def delete_many(self, ids: Iterable[str], options: SubmitOptions | None = None) -> int:
        """Delete items; return how many there may have been. As `delete`, with one query a tier."""
        house = self._open()
        unique = list(dict.fromkeys(check_id(id) for id in ids))
        options = _DEFAULT if options is None else options
        durability = options.durability or self._durability
        return len(house.atomic.delete(unique, durability, options.timeout))

    def update(
        self,
        id: str,
        fn: Callable[[SyncItem | None], SyncItem | bytes | None],
        options: SubmitOptions | None = None,
    ) -> SyncItem | None:
        """Replace an item by a function of itself, again and again until nobody came between.

        Args:
            id: The item's id.
            fn: Takes the item or None; returns the new item, its content, or None to delete. It
                may be called several times and must not have side effects.
            options: For the write; conditions are not allowed.

        Returns:
            What was written.

        Raises:
            Conflict: Overtaken a hundred times.
            StoreUnavailable: As `get` and `submit`.
        """
        options = _DEFAULT if options is None else options

        def decision(newest: Change | None) -> Change:
            old = None if newest is None else newest.item()
            new = fn(old)
            if type(new) is bytes:
                new = SyncItem(id, new) if old is None else _with_content(old, new)
            draft = Change(id, 0, None) if new is None else self._draft(cast("Any", new), options)
            if draft.id != id:
                raise InvalidItem(f"update of {id!r} returned an item with id {draft.id!r}")
            return draft

        durability = options.durability or self._durability
        _, change = self._open().atomic.decide(check_id(id), decision, durability, options.timeout)
        return change.item()

    def set_state(self, id: str, state: str) -> bool:
        """Change an item's state label; return False where there is no such item.

        Raises:
            InvalidItem: Not a label.
            StoreUnavailable: As `update`.
        """
        check_state(state)

        def decision(item: SyncItem | None) -> SyncItem:
            if item is None:
                raise _Absent
            return _with_state(item, state)

        try:
            self.update(id, decision)
        except _Absent:
            return False
        return True

    # -- for the asyncio face ---------------------------------------------------------------------

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
        if change is None and not self._overlay.has_pinned:
            change = self._l1_get(id)
        if type(change) is not Change:
            return False, None
        if change.expires_at_ms and change.expired(self._now_ms()):
            return True, None
        return True, change.item()

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

    # -- reading ----------------------------------------------------------------------------------

    def get(self, id: str, *, stale_if_error: float | timedelta | None = None) -> SyncItem | None:
        """Return the newest version of an item, or None where it is known not to exist.

        Args:
            id: The item's id.
            stale_if_error: Where no tier that would know can be asked, return the last copy known
                here if its deadline passed at most so many seconds ago; its `stale` is True then.

        Raises:
            InvalidItem: Not an id.
            StoreUnavailable: The tier that would know cannot be asked.
            CorruptData: The only copy fails its checksum.
            EngineClosed: The engine is not running.

        Blocking: not for a warm item; else up to ``read_timeout_s``. A warm hit takes no lock.
        """
        if self._state is not _RUNNING:
            raise self._closed()
        change = self._near(id)
        if change is None and not self._overlay.has_pinned:
            change = self._l1_get(id)
        if type(change) is not Change:
            return self._get_far(check_id(id), stale_if_error)
        if change.expires_at_ms and change.expired(self._now_ms()):
            return None
        return change.item()

    def _get_far(self, id: str, stale_if_error: float | timedelta | None) -> SyncItem | None:
        try:
            change = self._open().reader.get(id)
        except StoreUnavailable:
            item = self.stale_copy(id, stale_if_error)
            if item is None:
                raise
            return item
        return None if change is None else change.item()

    def stale_copy(self, id: str, within: float | timedelta | None) -> SyncItem | None:
        """Return the last copy known here or in the archive, marked as stale, or None.

        Args:
            id: The item's id.
            within: The longest time since its deadline, in seconds; None is no copy at all.
        """
        if within is None:
            return None
        change = self._open().reader.get_stale(check_id(id), ttl_ms(within))
        return None if change is None else change.item(stale=True)

    def get_many(self, ids: Sequence[str]) -> list[SyncItem | None]:
        """Return one entry per id, in order, None where absent; one query a tier for all.

        Raises:
            InvalidItem: Not an id.
            StoreUnavailable: A tier that would know cannot be asked.
        """
        house = self._open()
        for id in ids:
            check_id(id)
        found = house.reader.get_many(ids)
        items = {id: change.item() for id, change in found.items()}
        return [items.get(id) for id in ids]

    def get_verified(self, id: str, content_hash: str) -> SyncItem | None:
        """Return an item after comparing the SHA-256 of its content with the one expected.

        Raises:
            CorruptData: It differs.
            StoreUnavailable: As `get`.
        """
        item = self.get(id)
        if item is not None and item.content_hash != content_hash:
            raise CorruptData(id, "the content's SHA-256 is not the expected one")
        return item

    def is_current(self, id: str, content_hash: str) -> bool:
        """Tell whether an item's content has this SHA-256, in hex."""
        item = self.get(id)
        return item is not None and item.content_hash == content_hash

    def get_or_load(
        self,
        id: str,
        loader: Callable[[], SyncItem | bytes | None],
        ttl: float | timedelta | None = None,
        *,
        options: SubmitOptions | None = None,
        stale_if_error: float | timedelta | None = None,
    ) -> SyncItem | None:
        """Return an item, or load, store and return it. One loader call for all who miss at once.

        Args:
            id: The item's id.
            loader: Returns the item, its content, or None where there is none; not stored then.
            ttl: Seconds or timedelta to keep it, in the cache tiers only; None keeps it archived.
            options: In place of `ttl`, for full control.
            stale_if_error: Where the loader or the tiers fail, return the last copy known here if
                its deadline passed at most so many seconds ago; its `stale` is True then.

        Raises:
            StoreUnavailable: As `get`. Whatever the loader raises passes through.
        """
        try:
            return self._get_or_load(id, loader, ttl, options)
        except (EngineClosed, EngineFailed, InvalidItem):
            raise
        except Exception:
            item = self.stale_copy(id, stale_if_error)
            if item is None:
                raise
            return item

    def _get_or_load(
        self,
        id: str,
        loader: Callable[[], SyncItem | bytes | None],
        ttl: float | timedelta | None,
        options: SubmitOptions | None,
    ) -> SyncItem | None:
        item = self.get(id)
        if item is not None:
            return item
        if options is None:
            options = _DEFAULT if ttl is None else SubmitOptions.cache(ttl)

        def draft() -> Change | None:
            loaded = loader()
            if loaded is None:
                return None
            fresh = SyncItem(id, loaded) if isinstance(loaded, bytes) else loaded
            return self._draft(fresh, options)

        durability = options.durability or self._durability
        change = self._open().atomic.load(id, draft, durability, options.timeout)
        return None if change is None else change.item()

    def cached(
        self,
        *,
        key: Callable[..., str] | str,
        ttl: float | timedelta,
        stale_if_error: float | timedelta | None = None,
    ) -> Callable[[Callable[..., bytes]], Callable[..., bytes]]:
        """Decorate a function that returns bytes: its results are kept in the cache tiers.

        Args:
            key: A function of the arguments that returns the id, or a format string for them.
            ttl: Seconds or timedelta to keep a result.
            stale_if_error: As `get_or_load`.
        """

        def decorate(fn: Callable[..., bytes]) -> Callable[..., bytes]:
            @functools.wraps(fn)
            def wrapper(*args: Any, **kwargs: Any) -> bytes:
                id = key.format(*args, **kwargs) if isinstance(key, str) else key(*args, **kwargs)
                item = self.get_or_load(
                    id, lambda: fn(*args, **kwargs), ttl, stale_if_error=stale_if_error
                )
                if item is None:
                    raise InvalidItem(f"{fn.__name__} returned None, not bytes")
                return item.content

            return wrapper

        return decorate

    def contains(self, id: str) -> bool:
        """Tell whether an item exists. Raises and blocks as `get`."""
        return self.get(id) is not None

    def definitely_missing(self, id: str) -> bool:
        """Tell whether an item is known not to exist, without asking any server."""
        house = self._open()
        change = house.reader.near(check_id(id))
        if change is not None:
            return change.content is None or change.expired(self._now_ms())
        return house.filters.definitely_absent(id)

    def might_exist(self, id: str) -> bool:
        """Tell the opposite of `definitely_missing`."""
        return not self.definitely_missing(id)

    def status(self, id: str) -> ItemStatus:
        """Tell where an item is, asking each tier. Blocking: one round trip a tier."""
        return item_status(self._open(), check_id(id))

    # -- prefixes and states ----------------------------------------------------------------------

    def scan_prefix(
        self, prefix: str = "", *, after: str | None = None, limit: int | None = None
    ) -> Iterator[SyncItem]:
        """Yield items whose id begins with a literal prefix, in bytewise order of ids.

        Args:
            prefix: Taken literally; empty is all.
            after: Begin after this id.
            limit: At most so many; None is all.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        return self._items(self._open().queries.scan(prefix=prefix, after=after), limit)

    def get_by_state(
        self, state: str, *, after: str | None = None, limit: int | None = None
    ) -> Iterator[SyncItem]:
        """Yield items with a state label, in bytewise order of ids; as `scan_prefix`."""
        queries = self._open().queries
        return self._items(queries.scan(state=check_state(state), after=after), limit)

    def ids(self, prefix: str = "") -> Iterator[str]:
        """Yield the ids of items, in bytewise order; as `scan_prefix`, and no contents are read."""
        return (change.id for change in self._open().queries.scan(prefix=prefix, keys_only=True))

    def _items(self, changes: Iterator[Change], limit: int | None) -> Iterator[SyncItem]:
        for count, change in enumerate(changes):
            if limit is not None and count >= limit:
                return
            yield cast("SyncItem", change.item())

    def count_prefix(self, prefix: str = "") -> int:
        """Count items whose id begins with a literal prefix.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        return self._open().queries.count(prefix=prefix)

    def count_by_state(self, state: str) -> int:
        """Count items with a state label. Raises as `count_prefix`."""
        return self._open().queries.count(state=check_state(state))

    def delete_prefix(self, prefix: str) -> int:
        """Delete all items whose id begins with a literal, non-empty prefix; return how many.

        Raises:
            InvalidItem: The prefix is empty.
            StoreUnavailable: The archive cannot be asked; what was deleted stays deleted.
        """
        if not prefix:
            raise InvalidItem("delete_prefix needs a prefix; an empty one would delete everything")
        return self._delete_all(self._open().queries.scan(prefix=prefix, keys_only=True))

    def delete_by_state(self, state: str) -> int:
        """Delete all items with a state label; return how many. Raises as `delete_prefix`."""
        changes = self._open().queries.scan(state=check_state(state), keys_only=True)
        return self._delete_all(changes)

    def _delete_all(self, changes: Iterator[Change]) -> int:
        house = self._open()
        count = 0
        batch: list[Change] = []
        for change in changes:
            batch.append(Change(change.id, 0, None))
            if len(batch) == 1000:
                house.writer.write(batch, self._durability)
                count += len(batch)
                batch = []
        if batch:
            house.writer.write(batch, self._durability)
        return count + len(batch)

    # -- verification -----------------------------------------------------------------------------

    def merkle_root(self) -> MerkleNode:
        """Return the root of the archive's Merkle tree: equal archives have equal hashes.

        The tree is the archive's: what is still on its way there is not in it. `flush` first.

        Raises:
            ConfigError: The tree is off.
            StoreUnavailable: The archive cannot be asked, or its tree is being built.

        Blocking: the archive. Cost: a few queries, whatever the archive holds.
        """
        return self._open().trees.root()

    def merkle_node(self, path: str) -> MerkleNode:
        """Return the node of a path, an empty one where nothing is stored; see `merkle_root`."""
        return self._open().trees.node(path)

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """Return up to `limit` children of a node; see `merkle_root`.

        Args:
            path: The node's path; with `grouped`, what ids begin with, literally.
            after: `MerklePage.next` of the page before; None begins.
            limit: 1 to 10,000.
            grouped: Return entries, or groups of ids that begin alike, in place of children.
        """
        return self._open().trees.children(path, after, limit, grouped=grouped)

    def merkle_state(self) -> MerkleState:
        """Return how the tree does: whether it is built, its separator, its archive position.

        Raises:
            ConfigError: The tree is off.
            StoreUnavailable: The archive cannot be asked.
        """
        return self._open().trees.state()

    def merkle_rebuild(self, progress: Callable[[int], object] = lambda _: None) -> int:
        """Throw the tree away and build it from the rows; return how many.

        Safe to interrupt: the next engine goes on. Others may write meanwhile, and cannot read the
        tree until it is built. Blocking: until done.

        Args:
            progress: Called now and then with the rows read so far.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        return self._open().trees.build(progress)

    def merkle_changes(self, ids: Sequence[str]) -> Mapping[str, Change]:
        """Return the archive's changes of ids, tombstones included; absent ids are left out.

        What `repair` of another engine asks for. Blocking: the archive, one query per 500 ids.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        return self._open().trees.changes(ids)

    def diff(self, other: MerkleTree, *, path: str = "", **options: Any) -> MerkleDiff:
        """Compare this engine's archive with another, without listing what they have in common.

        Args:
            other: Another engine, or anything with `merkle_root`, `merkle_node` and
                `merkle_children`.
            path: Compare only this node and what is below it.
            options: As `core.merkle.diff`: `tombstones`, `limit`, `page`, `pause`.

        Raises:
            StoreUnavailable: One of the two cannot be asked, or its tree is being built.

        Blocking: both archives. Cost: for each difference a few questions a side, see
        `core.merkle.diff`.
        """
        return self._open().trees.diff(other, path=path, **options)

    def verify(
        self,
        *,
        after: str | None = None,
        sample: float = 1.0,
        items_max: int | None = None,
        items_per_s: float | None = None,
        progress: Callable[[VerifyReport], object] = lambda _: None,
    ) -> VerifyReport:
        """Compare archive rows with their checksums and the tree, L2 and filter with the archive.

        Changes nothing.

        Args:
            after: `VerifyReport.next` of a verification to go on with; None begins.
            sample: Share of the ranges to look at, above 0 and at most 1.
            items_max: Stop after about so many rows; None goes on to the end.
            items_per_s: Rows to read in a second at most; None is as fast as it goes.
            progress: Called after each range of some 500 rows.

        Raises:
            ConfigError: A number is out of range, or the tree is off.
            StoreUnavailable: The archive cannot be asked, or its tree is being built.

        Blocking: until done. Cost: reads every row it looks at.
        """
        return self._open().trees.verify(
            after=after,
            sample=sample,
            items_max=items_max,
            items_per_s=items_per_s,
            progress=progress,
        )

    def repair(
        self,
        other: MerklePeer | None = None,
        *,
        dry_run: bool = False,
        path: str = "",
        tombstones: bool = True,
        **options: Any,
    ) -> RepairReport:
        """Verify and mend; or compare with another engine, and take what is newer there.

        The larger version wins, and what is absent on one side deletes nothing on the other: to
        make two engines equal, let each repair from the other.

        Args:
            other: The other engine; None mends what `verify` finds.
            dry_run: Only tell what would be done.
            path: With `other`: only this node and what is below it.
            tombstones: With `other`: whether a tombstone on one side alone counts.
            options: Without `other`: as `verify`.

        Raises:
            StoreUnavailable: A side cannot be asked; what is done is done.

        Blocking: until done; what was taken is in the log then.
        """
        return self._open().trees.repair(
            other, dry_run=dry_run, path=path, tombstones=tombstones, **options
        )

    # -- dead letters -----------------------------------------------------------------------------

    def dead_letters(self) -> list[DeadLetter]:
        """Return what destinations refused for good, in log order."""
        return self._open().log.dead.list()

    def requeue_dead_letters(self, positions: Iterable[int] | None = None) -> int:
        """Send dead letters again, with the versions they have; return how many.

        Args:
            positions: Which; None is all.
        """
        log = self._open().log
        letters = self._letters(positions)
        for letter in letters:
            log.requeue(letter)
        return len(letters)

    def drop_dead_letters(self, positions: Iterable[int] | None = None) -> int:
        """Forget dead letters for good; return how many. The only call that gives data up."""
        log = self._open().log
        return sum(log.dead.drop(letter) for letter in self._letters(positions))

    def _letters(self, positions: Iterable[int] | None) -> list[DeadLetter]:
        letters = self.dead_letters()
        if positions is None:
            return letters
        wanted = set(positions)
        return [letter for letter in letters if letter.position in wanted]

    # -- observation ------------------------------------------------------------------------------

    def backpressure(self) -> BackpressureLevel:
        """Return how much room is left on the way to the archive."""
        return self._open().writer.level()

    def health(self) -> Health:
        """Ask every tier now, and tell what is amiss. Blocking: one round trip a tier."""
        house, state = self._house, self.state
        health = measure_health(house, state)
        if house is None or not health.live or self.config.passive:
            return health
        return house.doors.told_in(health)

    @property
    def metrics(self) -> Metrics:
        """The engine's meters, for the exporters of `sync_engine.telemetry`."""
        return self._open().metrics

    def stats(self) -> dict[str, Any]:
        """Return counters and gauges by name; touches no server."""
        house = self._open()
        return engine_stats(house) | house.doors.stats()

    def __repr__(self) -> str:
        return f"<SyncEngine {self.config.engine_name!r} {self.state.value}>"


class _Absent(Exception):
    """There is nothing to update."""


def _with_content(item: SyncItem, content: bytes) -> SyncItem:
    return SyncItem(
        item.id, content, item.content_type, item.state, 0, item.expires_at_ms, item.trace_parent
    )


def _with_state(item: SyncItem, state: str) -> SyncItem:
    return SyncItem(
        item.id, item.content, item.content_type, state, 0, item.expires_at_ms, item.trace_parent
    )
