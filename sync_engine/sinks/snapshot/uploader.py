"""Puts staged segments into the target, one after another, identical however often it has to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from sync_engine.core import failpoints
from sync_engine.core.policies import RetryConfig
from sync_engine.errors import ConfigError, StorageError
from sync_engine.ports import Runtime
from sync_engine.sinks.snapshot.errors import Changed, Fenced
from sync_engine.sinks.snapshot.inventory import Inventory
from sync_engine.sinks.snapshot.lease import Lease
from sync_engine.sinks.snapshot.objects import Objects
from sync_engine.sinks.snapshot.stage import Stage
from sync_engine.telemetry import get_logger

__all__ = ["UploadCounts", "Uploader", "put_same"]

_log = get_logger("sinks.snapshot")


@dataclass(slots=True)
class UploadCounts:
    """What uploading did since the process began."""

    puts: int = 0
    put_bytes: int = 0
    failures: int = 0
    repeated: int = 0
    error: str = ""


class Uploader:
    """Delivers the stage, in the order of transactions.

    Thread-safety: owned by one job; `durable` may be read by any thread.

    Args:
        objects: The target.
        stage: What waits.
        lease: Asked before every upload.
        inventory: Told of every upload.
        runtime: Time, randomness.
        uploaded: Called with the transaction that became durable.

    Attributes:
        durable: Last transaction whose segment is in the target, and all before it.
    """

    def __init__(
        self,
        objects: Objects,
        stage: Stage,
        lease: Lease,
        inventory: Inventory,
        runtime: Runtime,
        uploaded: Callable[[int], None],
    ) -> None:
        self._objects = objects
        self._stage = stage
        self._lease = lease
        self._inventory = inventory
        self._runtime = runtime
        self._uploaded = uploaded
        self._retry = RetryConfig(attempts_max=0, delay_s_min=0.2, delay_s_max=30.0)
        self._failures = 0
        self.durable = 0
        self.counts = UploadCounts()

    def step(self) -> float:
        """Upload one object; return the seconds to wait.

        Raises:
            Fenced: Somebody else wrote this transaction, or took over.
        """
        staged = self._stage.next()
        if staged is None:
            return math.inf
        key = str(staged.key)
        data = staged.path.read_bytes()
        try:
            self._lease.ensure()
            self.counts.repeated += not put_same(
                self._objects, key, data, conditional=self._lease.conditional
            )
        except Fenced:
            raise
        except (StorageError, ConfigError) as exc:  # credentials may be mended, buckets come back
            self._failures += 1
            self.counts.failures += 1
            self.counts.error = str(exc)
            _log.limited("upload_failed", key=key, error=exc)
            return self._retry.delay_s(self._failures, self._runtime.random())
        self._failures, self.counts.error = 0, ""
        self.counts.puts += 1
        self.counts.put_bytes += len(data)
        if failpoints.armed:
            failpoints.hit("snapshot.put_answered")
        self._inventory.sizes[key] = len(data)
        if staged.key.part == staged.key.parts - 1:
            self.durable = staged.key.txid_max
        self._stage.done(staged)
        if staged.key.part == staged.key.parts - 1:
            self._uploaded(self.durable)
        return 0.0


def put_same(objects: Objects, key: str, data: bytes, *, conditional: bool) -> bool:
    """Make sure that an object holds these bytes; True where it was put now.

    Raises:
        Fenced: It holds others: somebody else writes here.
    """
    if not conditional and _there(objects, key, data):
        return False
    if failpoints.armed:
        failpoints.hit("snapshot.put_sent")
    try:
        objects.put(key, data, if_absent=conditional)
    except Changed:
        if _there(objects, key, data):
            return False  # an earlier attempt of ours, whose answer was lost
        raise Fenced(f"{key} disappeared while it was compared") from None
    return True


def _there(objects: Objects, key: str, data: bytes) -> bool:
    found = objects.get(key)
    if found is None:
        return False
    if hashlib.sha256(found.data).digest() != hashlib.sha256(data).digest():
        raise Fenced(f"another replicator wrote {key}")
    return True
