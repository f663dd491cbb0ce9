"""What a replicator does beside replicating: merge, delete, and prove that a restore works."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sync_engine.errors import ConfigError, CorruptData, StorageError, SyncEngineError
from sync_engine.ports import Runtime
from sync_engine.sinks.snapshot.compaction import Compactor
from sync_engine.sinks.snapshot.errors import Fenced
from sync_engine.sinks.snapshot.inventory import Inventory
from sync_engine.sinks.snapshot.lease import Lease
from sync_engine.sinks.snapshot.objects import Objects
from sync_engine.sinks.snapshot.plan import Manifest
from sync_engine.sinks.snapshot.retention import Retention
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.verify import drill
from sync_engine.telemetry import get_logger

__all__ = ["Upkeep"]

_log = get_logger("sinks.snapshot")
_AGAIN_S = 30.0


class Upkeep:
    """One job for all that can wait.

    Thread-safety: `step` in one job; `status` from any thread.

    Args:
        objects: The target.
        lease: The right to write.
        inventory: What is there.
        runtime: Time, threads.
        settings: When to do what.
        directory: Of the replicator.
        busy: Whether a snapshot is under way: nothing is deleted meanwhile.
        checksum_at: What the checksum of the live database was at a transaction; None if unknown.
    """

    def __init__(
        self,
        objects: Objects,
        lease: Lease,
        inventory: Inventory,
        runtime: Runtime,
        settings: ReplicationSettings,
        directory: Path,
        *,
        busy: Callable[[], bool],
        checksum_at: Callable[[int], int | None],
    ) -> None:
        self._objects = objects
        self._inventory = inventory
        self._runtime = runtime
        self._clock = runtime.clock
        self._settings = settings
        self._directory = directory
        self._busy = busy
        self._checksum_at = checksum_at
        self._compactor = Compactor(
            objects,
            lease,
            inventory,
            compression_level=settings.compression_level,
            bytes_max=2 * settings.part_bytes,
        )
        self._retention = Retention(objects, lease, inventory, settings, self._clock)
        now = self._clock.monotonic()
        self._compact_at = [now + width for width in settings.compact_s]
        self._retain_at = now + min(settings.grace_s, settings.fine_s, 60.0)
        self._drill_at = now + settings.drill_interval_s
        self._fresh = False
        self._error = ""
        self._drilled: dict[str, Any] = {"txid": 0, "verified_ms": 0, "seconds": 0.0, "error": ""}
        with suppress(OSError, ValueError, KeyError):
            self._drilled = json.loads(self._drill_path.read_text())
            self._retention.verified = int(self._drilled["snapshot"])

    @property
    def _drill_path(self) -> Path:
        return self._directory / "verified.json"

    def uploaded(self) -> None:
        """Something new is in the target."""
        self._fresh = True

    def step(self) -> float:
        """Do what is due; return the seconds to wait.

        Raises:
            Fenced: Somebody else took over.
        """
        try:
            self._compact()
            self._retain()
            self._error = ""
        except Fenced:
            raise
        except (StorageError, ConfigError, CorruptData) as exc:
            self._error = str(exc)
            _log.limited("upkeep_failed", error=exc)
            return _AGAIN_S
        self._drill()
        return self._wait_s()

    def _wait_s(self) -> float:
        due = [*self._compact_at, self._retain_at]
        if self._settings.drill_interval_s:
            due.append(self._drill_at)
        return max(0.05, min(due) - self._clock.monotonic())

    def _compact(self) -> None:
        now = self._clock.monotonic()
        for place, width in enumerate(self._settings.compact_s):
            if now < self._compact_at[place]:
                continue
            self._compact_at[place] = now + width
            if self._fresh or place:
                self._compactor.compact(place + 1)
            if place == 0:
                self._fresh = False

    def _retain(self) -> None:
        now = self._clock.monotonic()
        if now >= self._retain_at and not self._busy():
            self._retention.step()
            self._retain_at = now + max(0.5, min(60.0, self._settings.grace_s / 4))

    def _drill(self) -> None:
        now = self._clock.monotonic()
        if not self._settings.drill_interval_s or now < self._drill_at:
            return
        self._drill_at = now + self._settings.drill_interval_s
        try:
            done = drill(self._objects, self._directory / "drill", self._runtime)
            live = self._checksum_at(done.txid)
            if live is not None and live != done.checksum:
                raise CorruptData(
                    f"transaction {done.txid}", "the restored database is not the one replicated"
                )
        except SyncEngineError as exc:
            self._drilled |= {"error": str(exc)}
            _log.error("drill_failed", error=exc)
            return
        self._retention.verified = done.snapshot
        self._drilled = {
            "txid": done.txid,
            "snapshot": done.snapshot,
            "verified_ms": self._clock.now_ms(),
            "seconds": round(done.seconds, 3),
            "error": "",
        }
        with suppress(OSError):
            self._drill_path.write_text(json.dumps(self._drilled))

    # -- what the snapshots are -------------------------------------------------------------------

    def snapshot_due_in_s(self) -> float:
        """Return the seconds until the newest snapshot is too old; 0 where nobody can tell."""
        snapshots = self._inventory.snapshots(self._inventory.lineage[0])
        if not snapshots:
            return 0.0
        try:
            made_ms = Manifest.read(self._objects, snapshots[-1][1]).time_ms
        except (StorageError, CorruptData):
            return 0.0
        age_s = max(0.0, (self._clock.now_ms() - made_ms) / 1000)
        return max(0.0, self._settings.snapshot_interval_s - age_s)

    def status(self) -> dict[str, Any]:
        """Return what was done and found."""
        verified_ms = self._drilled["verified_ms"]
        age_s = (self._clock.now_ms() - verified_ms) / 1000 if verified_ms else math.inf
        return {
            "compaction": asdict(self._compactor.counts),
            "retention": asdict(self._retention.counts),
            "drill": self._drilled | {"age_s": age_s if verified_ms else None},
            "upkeep_error": self._error,
            "objects": len(self._inventory.sizes),
            "target_bytes": sum(list(self._inventory.sizes.values())),
        }
