"""Loading what is missing: one loader call for all who miss the same id at once."""

from __future__ import annotations

from collections.abc import Callable

from sync_engine.errors import StoreUnavailable
from sync_engine.ports import Event, Runtime

__all__ = ["SingleFlight"]


class _Call:
    __slots__ = ("done", "error", "value")

    def __init__(self, done: Event) -> None:
        self.done = done
        self.value: object = None
        self.error: BaseException | None = None


class SingleFlight:
    """Runs a function once for everybody who asks for the same key at the same time.

    Thread-safety: all methods. A caller whose own function failed gets its exception; so do those
    who waited for it.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = runtime.lock()
        self._calls: dict[str, _Call] = {}

    def do(self, key: str, fn: Callable[[], object], timeout_s: float | None) -> object:
        """Return what the one call returned.

        Raises:
            StoreUnavailable: Another caller's function did not end within the timeout.
        """
        with self._lock:
            call = self._calls.get(key)
            mine = call is None
            if call is None:
                call = self._calls[key] = _Call(self._runtime.event())
        if mine:
            try:
                call.value = fn()
            except BaseException as exc:
                call.error = exc
                raise
            finally:
                with self._lock:
                    del self._calls[key]
                call.done.set()
            return call.value
        if not call.done.wait(timeout_s):
            raise StoreUnavailable("loader", "get_or_load", f"no value within {timeout_s} s")
        if call.error is not None:
            raise call.error
        return call.value
