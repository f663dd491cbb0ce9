"""The engine's life: start, deliver, pause, close."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

from sync_engine.config import SyncEngineConfig
from sync_engine.core.batcher import FlushReason
from sync_engine.core.item import Change, Route, SyncItem
from sync_engine.core.options import SubmitOptions, ttl_ms
from sync_engine.core.results import (
    EngineState,
    FlushReport,
)
from sync_engine.errors import (
    ConfigError,
    EngineClosed,
    SyncEngineError,
)
from sync_engine.house import House, Stores
from sync_engine.ports import Runtime
from sync_engine.runtime import SystemRuntime

__all__ = ["Face"]

_RUNNING = EngineState.RUNNING
_L3 = int(Route.L3)


class Face:
    """Opens and closes the house; what every part of the public face stands on."""

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
        self._superseded = house.reader.superseded
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
        house.doors.hold_sources(timeout)
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

    def _active(self) -> House:
        house = self._open()
        if self.config.passive:
            raise ConfigError("a passive engine has no sources and sinks: it changes nothing")
        return house

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

    def __repr__(self) -> str:
        return f"<SyncEngine {self.config.engine_name!r} {self.state.value}>"
