"""Where changes come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sync_engine.core.item import Change
from sync_engine.ports.runtime import Runtime

__all__ = ["AdapterContext", "CandidSource", "Source", "SourceBatch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceBatch:
    """What a source gives at one time.

    Attributes:
        changes: In the order they happened; an id may come again. A version of 0 asks the engine
            for one; any other is kept, and an older one than the engine's own changes nothing.
        token: Acknowledges these changes and all before them; opaque.
        wait_s: Seconds until asking again is worth it: 0.0 is now, infinity waits for a wake.
    """

    changes: Sequence[Change]
    token: bytes
    wait_s: float = 0.0


class Source(Protocol):
    """Gives changes. What was acknowledged is not given again; all else is, after any crash.

    Owned by one job: no two methods run at a time.
    """

    name: str

    def attach(self) -> object:
        """Connect, and open what is remembered. Called again after `close` or a failure.

        Raises:
            StoreUnavailable: It is not there now.
            ConfigError: It can never serve us as configured; says what to do.
        """

    def poll(self, items_max: int) -> SourceBatch:
        """Return up to `items_max` changes that follow those of the last poll.

        Bounded: returns an empty batch rather than wait for something to happen.

        Raises:
            StoreUnavailable: Try again later; nothing was skipped.
        """

    def ack(self, token: bytes) -> None:
        """Remember, durably, that everything up to the token was taken; older tokens are fine."""

    def progress(self) -> Mapping[str, float]:
        """Return counters and gauges for people to see. Never blocks; any thread."""

    def close(self) -> None:
        """Let go of everything; what was polled and not acknowledged is given again."""


class CandidSource(Source, Protocol):
    """A source that can tell what is amiss although it works; any source may."""

    def amiss(self) -> Sequence[str]:
        """Return sentences for `Health.degraded`, none if all is well. Any thread; never blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterContext:
    """What the factory of a source or sink is given beside its own settings.

    A factory is ``factory(context, **settings)``; it checks its settings, raises `ConfigError` that
    names the wrong one, and connects to nothing yet.

    Attributes:
        name: Name of this instance, unique in its engine.
        runtime: Time, locks, randomness.
        data_dir: Directory for files of its own; name them after the instance.
        wake: Ends the waiting of its job now; any thread.
    """

    name: str
    runtime: Runtime
    data_dir: Path
    wake: Callable[[], None]
