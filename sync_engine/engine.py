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
from sync_engine.core.batcher import FlushReason
from sync_engine.core.item import Change, Route, SyncItem, check_id, check_state
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
    InvalidItem,
    SyncEngineError,
)
from sync_engine.flow.inspect import engine_stats, item_status, measure_health
from sync_engine.flow.writer import Receipt
from sync_engine.house import House, Stores
from sync_engine.ports import Runtime
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

    def flush(self, timeout: float | None = None) -> FlushReport:
        """Deliver everything acknowledged before this call, and report what is not.

        Args:
            timeout: Seconds; None is ``close_timeout_s``.

        Blocking: until delivered or the timeout.
        """
        house = self._open()
        started = house.clock.monotonic()
        house.log.write()
        left = house.flush(self.config.close_timeout_s if timeout is None else timeout)
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
        """Stop delivering to ``l2`` or ``l3``; the log keeps what comes."""
        self._follower(destination).pause()

    def resume(self, destination: str) -> None:
        """Deliver to a paused destination again."""
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
        followers = self._open().followers
        if destination not in followers:
            raise ConfigError(f"no destination {destination!r}: there is {', '.join(followers)}")
        return followers[destination]

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

    def get(self, id: str) -> SyncItem | None:
        """Return the newest version of an item, or None where it is known not to exist.

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
            house = self._open()
            change = house.reader.get(check_id(id))
            return None if change is None else change.item()
        if change.expires_at_ms and change.expired(self._now_ms()):
            return None
        return change.item()

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
    ) -> SyncItem | None:
        """Return an item, or load, store and return it. One loader call for all who miss at once.

        Args:
            id: The item's id.
            loader: Returns the item, its content, or None where there is none; not stored then.
            ttl: Seconds or timedelta to keep it, in the cache tiers only; None keeps it archived.
            options: In place of `ttl`, for full control.

        Raises:
            StoreUnavailable: As `get`. Whatever the loader raises passes through.
        """
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
        self, *, key: Callable[..., str] | str, ttl: float | timedelta
    ) -> Callable[[Callable[..., bytes]], Callable[..., bytes]]:
        """Decorate a function that returns bytes: its results are kept in the cache tiers.

        Args:
            key: A function of the arguments that returns the id, or a format string for them.
            ttl: Seconds or timedelta to keep a result.
        """

        def decorate(fn: Callable[..., bytes]) -> Callable[..., bytes]:
            @functools.wraps(fn)
            def wrapper(*args: Any, **kwargs: Any) -> bytes:
                id = key.format(*args, **kwargs) if isinstance(key, str) else key(*args, **kwargs)
                item = self.get_or_load(id, lambda: fn(*args, **kwargs), ttl)
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
        """Yield the ids of items, in bytewise order; as `scan_prefix`."""
        return (item.id for item in self.scan_prefix(prefix))

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
        return self._delete_all(self._open().queries.scan(prefix=prefix))

    def delete_by_state(self, state: str) -> int:
        """Delete all items with a state label; return how many. Raises as `delete_prefix`."""
        return self._delete_all(self._open().queries.scan(state=check_state(state)))

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
        return measure_health(self._house, self.state)

    @property
    def metrics(self) -> Metrics:
        """The engine's meters, for the exporters of `sync_engine.telemetry`."""
        return self._open().metrics

    def stats(self) -> dict[str, Any]:
        """Return counters and gauges by name; touches no server."""
        return engine_stats(self._open())

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
