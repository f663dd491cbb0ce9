"""How a sink does, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from sync_engine.core.version import ms_of_version
from sync_engine.errors import SyncEngineError
from sync_engine.flow.outlet_view import OutletLog

__all__ = ["SinkStatus", "measure_lag"]

_SAMPLE_ITEMS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkStatus:
    """How one sink does.

    Attributes:
        stage: ``ask`` (not yet attached), ``copy`` or ``follow``.
        attached: Whether it was reached and checked.
        circuit: State of its circuit breaker.
        lag_items: Log positions before it.
        lag_bytes: Their bytes; beyond 1000 changes an estimate from the first 1000.
        lag_s: Seconds since the oldest of them was taken.
        copied_rows: Rows of the copy so far.
        delivered: Changes delivered since the engine started.
        copies: Copies begun since the sink was added first, 1 for one that never lost its place.
        paused: Whether delivery is paused on request.
        error: The last failure, if the last delivery failed.
    """

    stage: str
    attached: bool
    circuit: str
    lag_items: int
    lag_bytes: int
    lag_s: float
    copied_rows: int
    delivered: int
    copies: int
    paused: bool
    error: str


def measure_lag(log: OutletLog, job: str, now_ms: int) -> tuple[int, int, float]:
    """Return the positions before a cursor, their bytes, and the age in seconds of the oldest.

    Cost: one read of up to 1000 changes; beyond them the bytes are an estimate.
    """
    cursor = log.cursor(job)
    items = max(0, log.head() - cursor)
    if not items:
        return 0, 0, 0.0
    try:
        part = log.read(cursor, _SAMPLE_ITEMS, 1 << 62)
    except SyncEngineError:  # released meanwhile: the sink has moved on
        return items, 0, 0.0
    sampled = [change for change in part.changes if change is not None]
    size = sum(change.size_bytes for change in sampled) * items // max(1, len(part.changes))
    oldest_ms = ms_of_version(sampled[0].version) if sampled else now_ms
    return items, size, max(0.0, (now_ms - oldest_ms) / 1000)
