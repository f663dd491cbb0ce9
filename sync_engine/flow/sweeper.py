"""The sweeper: makes L2 let go of what abandoned epochs left behind, slowly and for ever."""

from __future__ import annotations

from typing import Any

from sync_engine.errors import StorageError, StoreRejected
from sync_engine.flow.tier import Tier
from sync_engine.ports import Clock
from sync_engine.telemetry import get_logger

__all__ = ["Sweeper"]

_log = get_logger("flow.sweeper")
_KEYS_MAX = 500
_RETRY_S = 5.0
_LOOK_S = 5.0
_REST_S = 3600.0


class Sweeper:
    """Walks over the keys of L2 at a bounded pace; rests between walks, unless an epoch ended.

    Owned by one job.

    Args:
        l2: A tier whose store has ``sweep(keys_max)``, true at the end of a walk, and counts
            ``epochs`` in its ``stats``.
        clock: Counts the rest.
        keys_per_s: Keys to look at in a second, at least 1.
    """

    def __init__(self, l2: Tier[Any], clock: Clock, *, keys_per_s: int) -> None:
        self._l2 = l2
        self._clock = clock
        self._keys = min(_KEYS_MAX, keys_per_s)
        self._pause_s = self._keys / keys_per_s
        self._epochs = -1.0
        self._rest_until = 0.0
        self._walking = False

    def step(self) -> float:
        """Look at a few keys; return the seconds to wait."""
        if not self._l2.usable:
            return _RETRY_S
        if not self._walking:
            epochs = self._l2.store.stats()["epochs"]
            if epochs == self._epochs and self._clock.monotonic() < self._rest_until:
                return _LOOK_S
            self._epochs = epochs
            self._walking = True
        try:
            complete = self._l2.call("sweep", self._l2.store.sweep, self._keys)
        except StoreRejected as exc:  # a user with the least rights: that is a choice
            _log.limited("sweep_refused", error=exc)
            self._rest()
            return _LOOK_S
        except StorageError:
            return _RETRY_S
        if complete:
            self._rest()
        return self._pause_s

    def _rest(self) -> None:
        self._walking = False
        self._rest_until = self._clock.monotonic() + _REST_S
