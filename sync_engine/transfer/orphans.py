"""Uploads in parts that nobody goes on with: which of them are ours, and may be aborted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from sync_engine.errors import ConfigError, StorageError
from sync_engine.ports import Clock
from sync_engine.s3 import S3Client, Upload
from sync_engine.telemetry import get_logger

__all__ = ["SKEW_MS", "Orphans"]

_log = get_logger("transfer")
_PAUSE_S: Final = 3600.0
SKEW_MS: Final = 5_000
"""The server's clock may be so far behind ours, in milliseconds."""


class Orphans:
    """Aborts the uploads in parts that this ledger began and that no file needs any more.

    The ledger keeps the id of every upload it began, and the key before it begins one: an upload
    of such a key that began after that and before this process is ours, too, though its id was
    never noted. What another writer began below the prefix is left alone, unless asked for.

    Thread-safety: `begun` and `ended` from any thread; `step` is one job's.

    Args:
        known: Every id that the ledger noted.
        active: Those of them that a file goes on with.
        intents: Keys for which an upload was about to begin, and when, in Unix milliseconds.
        clock: Time.
    """

    def __init__(
        self,
        known: Iterable[str],
        active: Iterable[str],
        intents: Mapping[str, int],
        clock: Clock,
    ) -> None:
        self._known = set(known)
        self._active = set(active)
        self._intents = dict(intents)
        self._clock = clock
        self._began_ms = clock.now_ms()

    def begun(self, upload_id: str) -> None:
        """Take note of an upload, as soon as its id is known."""
        self._active.add(upload_id)
        self._known.add(upload_id)

    def ended(self, upload_id: str) -> None:
        """Take note that no file goes on with an upload."""
        self._active.discard(upload_id)

    def step(
        self,
        client: S3Client,
        bucket: str,
        prefix: str,
        *,
        foreign_age_s: float,
        stopping: Callable[[], bool],
    ) -> float:
        """Abort what is there and may be; return the seconds until it is worth another look.

        Blocking: network. A server that cannot list uploads is left in peace.

        Args:
            client: How to reach it.
            bucket: Where.
            prefix: Of the keys.
            foreign_age_s: Age at which uploads of others are aborted; infinity leaves them.
            stopping: Whether to give up.
        """
        foreign_ms = self._clock.now_ms() - foreign_age_s * 1000
        with suppress(StorageError, ConfigError):
            for upload in list(client.list_uploads(bucket, prefix)):
                if stopping():
                    break
                if upload.upload_id in self._active:
                    continue
                ours = self._is_ours(upload)
                if ours or upload.started_ms <= foreign_ms:
                    client.abort_multipart(bucket, upload.key, upload.upload_id)
                    _log.info("orphan_aborted", key=upload.key, ours=ours)
        return _PAUSE_S

    def _is_ours(self, upload: Upload) -> bool:
        if upload.upload_id in self._known:
            return True
        since_ms = self._intents.get(upload.key, math.inf)
        return since_ms - SKEW_MS <= upload.started_ms < self._began_ms
