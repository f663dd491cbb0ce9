"""A store behind its guard, attached when its server appears."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, ParamSpec, TypeVar

from sync_engine.core.item import Change
from sync_engine.errors import CircuitOpen, ConfigError, StorageError, StoreUnavailable
from sync_engine.flow.guard import Guard
from sync_engine.ports import ArchiveInfo, Sink
from sync_engine.telemetry import get_logger

__all__ = ["Tier"]

_log = get_logger("flow.tier")

P = ParamSpec("P")
R = TypeVar("R")


S = TypeVar("S", bound=Sink)


class Tier(Generic[S]):
    """One store: whether it is attached, how to call it, how it does.

    Every call passes the guard, so that a store that is down costs its callers nothing but the
    first few timeouts.

    Attributes:
        attached: Whether the store was reached and checked.
        attach_error: Why the last attempt to attach failed; empty once one went well.
        warnings: What the store said, when it was attached, that weakens the loss contract.
    """

    def __init__(self, name: str, store: S, guard: Guard) -> None:
        self.name = name
        self.store = store
        self.guard = guard
        self.attached = False
        self.parked = False
        self.attach_error = ""
        self.warnings: tuple[str, ...] = ()
        self.renew: Callable[[], None] | None = None
        self.config_error: ConfigError | None = None
        self.prepare: Callable[[Sequence[Change]], Sequence[Change]] | None = None

    def ready(self) -> None:
        """Attach if that is still to be done.

        Raises:
            StoreUnavailable: The server is not there, or cannot serve us as configured.
        """
        if self.parked:
            raise StoreUnavailable(self.name, "attach", "detached on request")
        if not self.attached:
            self._attach()
        if self.renew is not None:
            self.guard.call("renew", self.renew)
            self.renew = None

    def _attach(self) -> None:
        try:
            info = self.guard.call("attach", self.store.attach)
        except StorageError as exc:
            if not isinstance(exc, CircuitOpen):  # it would hide why the circuit is open
                self.attach_error = str(exc)
            raise
        except ConfigError as exc:
            self.attach_error = str(exc)
            if self.config_error is None:
                _log.error("misconfigured", tier=self.name, error=exc)
            self.config_error = exc
            raise StoreUnavailable(self.name, "attach", str(exc)) from exc
        self.config_error = None
        self.attach_error = ""
        self.warnings = info.warnings if isinstance(info, ArchiveInfo) else ()
        self.attached = True
        _log.info("attached", tier=self.name)

    @property
    def usable(self) -> bool:
        """Whether reads may ask the store."""
        return self.attached and self.renew is None

    def detach(self, *, park: bool = False) -> None:
        """Close the store; `ready` attaches it again, unless it is parked until `unpark`."""
        self.parked = park
        self.attached = False
        self.store.close()

    def unpark(self) -> None:
        """Let `ready` attach the store again."""
        self.parked = False

    def call(self, operation: str, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do one call, once.

        Raises:
            StoreUnavailable: Not attached, failing, or its circuit is open.
            StoreRejected: It can never be done.
        """
        if not self.attached:
            raise StoreUnavailable(self.name, operation, self.attach_error or "not attached")
        return self.guard.call(operation, fn, *args, **kwargs)

    def call_with_retry(
        self, operation: str, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Do one call for a caller who waits, a few times where it may help.

        Raises:
            StoreUnavailable: Not attached, failing, or its circuit is open.
            StoreRejected: It can never be done.
        """
        if not self.attached:
            raise StoreUnavailable(self.name, operation, self.attach_error or "not attached")
        return self.guard.call_with_retry(operation, fn, *args, **kwargs)

    def apply(self, changes: Sequence[Change]) -> None:
        """Deliver a batch, as `ports.Sink`."""
        if self.prepare is not None:
            changes = self.prepare(changes)
            if not changes:
                return
        self.call("apply", self.store.apply, changes)

    def alive(self) -> bool:
        """Tell whether the store answers; asks it."""
        try:
            self.store.ping()
        except StorageError:
            return False
        return True
