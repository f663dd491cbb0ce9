"""The log's own job: write what is only in memory, sync, tidy, measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sync_engine.core.version import ms_of_version
from sync_engine.errors import StoreUnavailable
from sync_engine.flow.writer import Writer
from sync_engine.ports import ChangeLog, Clock
from sync_engine.telemetry import get_logger

__all__ = ["LogUpkeep", "oldest_pending_ms"]

_log = get_logger("flow.log_upkeep")
_ARCHIVE = "l3"
_DISK_RETRY_S = 0.5
_TIDY_S_MIN = 0.1


def oldest_pending_ms(log: ChangeLog, clock: Clock) -> int:
    """Return when the oldest unarchived change was taken, in wall-clock milliseconds."""
    part = log.read(log.cursor(_ARCHIVE), 1, 1)
    for change in part.changes:
        if change is not None:
            return ms_of_version(change.version)
    return clock.now_ms()


class LogUpkeep:
    """Keeps the log's file up to date, and tells the writer how full it is.

    `step` belongs to one job.

    Args:
        log: The write-ahead log.
        writer: Told of the pressure.
        clock: The clock.
        write_s: Seconds after which what is only in memory is written.
        fsync_s: Seconds between syncs while the log grows.
        log_bytes_max: Bound of the file, in bytes.
        tidied: Called before the log is tidied.
        filled: Told how full the file is, 1.0 being its bound.
    """

    JOB = "log"

    def __init__(
        self,
        log: Any,
        writer: Writer,
        clock: Clock,
        *,
        write_s: float,
        fsync_s: float,
        log_bytes_max: int,
        tidied: Callable[[], None],
        filled: Callable[[float], None],
    ) -> None:
        self._log = log
        self._writer = writer
        self._clock = clock
        self._write_s = write_s
        self._fsync_s = fsync_s
        self._log_bytes_max = log_bytes_max
        self._tidied = tidied
        self._filled = filled
        self._sync_at = 0.0
        self._tidy_at = 0.0

    def step(self) -> float:
        """Do what is due; return the seconds until the next step."""
        log, now = self._log, self._clock.monotonic()
        if log.failed is not None:
            return math.inf
        try:
            log.write()
        except StoreUnavailable as exc:  # full disk: no more acknowledgements that rely on it
            _log.limited("log_not_written", error=exc)
            self._writer.measured(disk_fullness=1.0, oldest_age_s=self._writer.oldest_age_s)
            self._tidy_at = now + _DISK_RETRY_S
            return _DISK_RETRY_S
        log.spill()
        if log.synced < log.written and now >= self._sync_at:
            log.sync(log.written)
            self._sync_at = now + self._fsync_s
        if now >= self._tidy_at:
            self._tidied()
            more = log.tidy()
            self._tidy_at = now if more else now + max(_TIDY_S_MIN, self._fsync_s)
            self._measure()
        head = log.head()  # before the look: what comes in between wakes this job
        if log.idle():
            log.want(self.JOB, head + 1)
            return 1.0
        return self._write_s

    def _measure(self) -> None:
        fullness = self._log.used_bytes() / self._log_bytes_max
        age_ms = self._clock.now_ms() - oldest_pending_ms(self._log, self._clock)
        self._writer.measured(disk_fullness=fullness, oldest_age_s=max(0.0, age_ms / 1000))
        self._filled(fullness)
