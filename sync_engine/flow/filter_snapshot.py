"""The filter's life over a clean shutdown: kept in the log, bound to the archive's state."""

from __future__ import annotations

import contextlib
from typing import Any

from sync_engine.core.filters import FilterManager
from sync_engine.errors import StorageError
from sync_engine.flow.tier import Tier
from sync_engine.ports import ArchiveStore
from sync_engine.telemetry import get_logger

__all__ = ["FilterSnapshot"]

_log = get_logger("flow.filter_snapshot")
_NAME = "filter"


class FilterSnapshot:
    """Saves and restores the existence filter; the caller holds the lease for both.

    Args:
        l3: The archive.
        filters: The filter.
        log: The write-ahead log, which keeps the bytes.
    """

    def __init__(self, l3: Tier[ArchiveStore], filters: FilterManager, log: Any) -> None:
        self._l3 = l3
        self._filters = filters
        self._log = log

    def restore(self) -> bool:
        """Take the filter of the last clean shutdown, if the archive has not changed since.

        Returns:
            Whether the filter is trusted now.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        data = self._log.get_snapshot(_NAME)
        if not data:
            return False
        info = self._l3.call("info", self._l3.store.info)
        restored = self._filters.restore(
            data,
            archive_uuid=info.uuid,
            generation=info.generation,
            ids_after=self._log.overlay.ids(),
        )
        _log.info("filter_restored", restored=restored, reason=self._filters.reason)
        return restored

    def save(self) -> None:
        """Keep the filter for the next start; without the archive's word there is none to keep."""
        with contextlib.suppress(StorageError):
            info = self._l3.call("info", self._l3.store.info)
            data = self._filters.snapshot(info.uuid, info.generation, self._log.head())
            self._log.put_snapshot(_NAME, data)
