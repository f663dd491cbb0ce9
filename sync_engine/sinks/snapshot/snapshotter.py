"""Makes snapshots: chunk by chunk, only those that changed, while writers go on.

Two threads take part. The one that captures gives an image and keeps it pinned; the other reads it,
compresses it into files, lets the pin go, uploads the files, and writes the manifest last.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sync_engine.core import failpoints
from sync_engine.core.policies import RetryConfig
from sync_engine.errors import ConfigError, StorageError
from sync_engine.ports import Runtime
from sync_engine.sinks.snapshot.checksums import U64, hashes_of
from sync_engine.sinks.snapshot.errors import Changed, Fenced, PositionLost
from sync_engine.sinks.snapshot.format import compress, seal
from sync_engine.sinks.snapshot.image import Image
from sync_engine.sinks.snapshot.inventory import Inventory
from sync_engine.sinks.snapshot.keys import chunk_key, manifest_key
from sync_engine.sinks.snapshot.lease import Lease
from sync_engine.sinks.snapshot.objects import Objects
from sync_engine.sinks.snapshot.plan import Manifest
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.state import State
from sync_engine.sinks.snapshot.uploader import put_same
from sync_engine.telemetry import get_logger

__all__ = ["SnapshotCounts", "Snapshotter"]

_log = get_logger("sinks.snapshot")


@dataclass(slots=True)
class SnapshotCounts:
    """What was done since the process began, and of the last one."""

    made: int = 0
    chunks: int = 0
    reused: int = 0
    put_bytes: int = 0
    seconds: float = 0.0
    txid: int = 0
    time_ms: int = 0
    error: str = ""


class _Job:
    """One snapshot under way."""

    def __init__(self, image: Image, state: State, table: U64) -> None:
        self.image = image
        self.state = state
        self.table = table
        self.chunks: list[dict[str, Any]] = []
        self.waiting: list[tuple[str, Path]] = []
        self.read = False


class Snapshotter:
    """Makes one snapshot at a time.

    Thread-safety: `give` and `wanted` by the capturing thread, `step` by its own job.

    Args:
        objects: The target.
        directory: For chunks that wait for their upload; emptied at the start.
        lease: Asked before every upload.
        inventory: Told of every upload.
        runtime: Time, randomness.
        settings: Sizes, level.
        read: Called when the image is not needed any more.
        done: Called when the manifest is there.
    """

    def __init__(
        self,
        objects: Objects,
        directory: Path,
        lease: Lease,
        inventory: Inventory,
        runtime: Runtime,
        settings: ReplicationSettings,
        *,
        read: Callable[[], None],
        done: Callable[[], None],
    ) -> None:
        self._objects = objects
        self._directory = directory
        self._lease = lease
        self._inventory = inventory
        self._runtime = runtime
        self._settings = settings
        self._read = read
        self._done = done
        self._job: _Job | None = None
        self._previous: Manifest | None = None
        self._retry = RetryConfig(attempts_max=0, delay_s_min=0.2, delay_s_max=30.0)
        self._failures = 0
        self._began = 0.0
        self.counts = SnapshotCounts()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in directory.iterdir():
            leftover.unlink()

    @property
    def busy(self) -> bool:
        """Whether one is under way."""
        return self._job is not None

    @property
    def reading(self) -> bool:
        """Whether an image is still needed."""
        job = self._job
        return job is not None and not job.read

    @property
    def stalled(self) -> bool:
        """Whether reading an image waits for the target, which does not take what has to leave."""
        return self.reading and self._failures > 0

    def give(self, image: Image, state: State, table: U64) -> None:
        """Begin one; the image stays valid until `read` is called."""
        self._began = self._runtime.clock.monotonic()
        self._job = _Job(image, state, table)

    def step(self) -> float:
        """Read an image whole, or upload one chunk of it; return the seconds to wait.

        Raises:
            Fenced: Somebody else took over.
        """
        job = self._job
        if job is None:
            return math.inf
        try:
            if not job.read:
                self._compress(job)
            elif job.waiting:
                self._upload(job)
            else:
                self._finish(job)
                return math.inf
        except Fenced:
            raise
        except PositionLost as exc:
            self._abandon(job, str(exc))
            return math.inf
        except (StorageError, ConfigError, OSError) as exc:
            self._failures += 1
            self.counts.error = str(exc)
            _log.limited("snapshot_failed", error=exc)
            return self._retry.delay_s(self._failures, self._runtime.random())
        self._failures, self.counts.error = 0, ""
        return 0.0

    # -- reading ----------------------------------------------------------------------------------

    def _compress(self, job: _Job) -> None:
        """Read the chunks that changed; those that fit no more into the quota leave at once."""
        state = job.state
        step = max(1, self._settings.chunk_bytes // state.page_size)
        known = self._known(state, step)
        waiting = sum(path.stat().st_size for _, path in job.waiting)
        for place in range(len(job.chunks), math.ceil(state.pages / step)):
            first = place * step + 1
            part = job.table[first - 1 : first - 1 + step]
            digest = hashlib.sha256(part.tobytes()).hexdigest()
            if place < len(known) and known[place]["digest"] == digest:
                job.chunks.append(known[place])
                self.counts.reused += 1
                continue
            while waiting > self._settings.stage_bytes_max and job.waiting:
                waiting -= job.waiting[0][1].stat().st_size
                self._upload(job)
            waiting += self._add_chunk(job, place, first, part, digest)
        job.read = True
        job.image.close()
        self._read()

    def _add_chunk(self, job: _Job, place: int, first: int, part: U64, digest: str) -> int:
        state = job.state
        raw = job.image.run(first, len(part))
        if hashes_of(first, raw, state.page_size, job.image.lock_page) != part.tolist():
            raise PositionLost(f"pages from {first} on changed under the pin")
        data = compress(raw, self._settings.compression_level)
        sha256 = hashlib.sha256(data).hexdigest()
        key = chunk_key(state.db_id, state.epoch, state.txid, place, sha256)
        path = self._directory / f"{place:05d}"
        path.write_bytes(data)
        job.waiting.append((key, path))
        job.chunks.append({"key": key, "size": len(data), "sha256": sha256, "digest": digest})
        return len(data)

    def _known(self, state: State, step: int) -> Sequence[dict[str, Any]]:
        """Return the chunks of the last snapshot, where they are cut as these are."""
        previous = self._previous or self._newest()
        if previous is None:
            return ()
        same = (previous.page_size, previous.chunk_pages) == (state.page_size, step)
        there = self._inventory.sizes
        if not same or any(chunk["key"] not in there for chunk in previous.chunks):
            return ()
        return previous.chunks

    def _newest(self) -> Manifest | None:
        for branch in self._inventory.lineage:
            snapshots = self._inventory.snapshots(branch)
            if snapshots:
                return Manifest.read(self._objects, snapshots[-1][1])
        return None

    def _abandon(self, job: _Job, why: str) -> None:
        _log.warning("snapshot_abandoned", why=why)
        self.counts.error = why
        for _, path in job.waiting:
            path.unlink(missing_ok=True)
        job.image.close()
        self._job = None
        self._read()

    # -- uploading --------------------------------------------------------------------------------

    def _upload(self, job: _Job) -> None:
        key, path = job.waiting[0]
        data = path.read_bytes()
        self._lease.ensure()
        put_same(self._objects, key, data, conditional=self._lease.conditional)
        self._failures = 0  # the target takes things again, though the step goes on
        self._inventory.sizes[key] = len(data)
        self.counts.chunks += 1
        self.counts.put_bytes += len(data)
        path.unlink()
        del job.waiting[0]
        if failpoints.armed:
            failpoints.hit("snapshot.chunk_put")

    def _finish(self, job: _Job) -> None:
        """Write the manifest: from here on, the snapshot is there."""
        state = job.state
        key = manifest_key(state.db_id, state.epoch, state.txid)
        document = {
            "format": 1,
            "db_id": state.db_id,
            "epoch": state.epoch,
            "txid": state.txid,
            "time_ms": state.time_ms,
            "page_size": state.page_size,
            "pages": state.pages,
            "checksum": f"{state.checksum:016x}",
            "chunk_pages": max(1, self._settings.chunk_bytes // state.page_size),
            "chunks": job.chunks,
        }
        data = seal(document)
        self._lease.ensure()
        try:
            self._objects.put(key, data, if_absent=self._lease.conditional)
        except Changed:
            found = Manifest.read(self._objects, key)
            if found.checksum != state.checksum:
                raise Fenced(f"another replicator wrote {key}") from None
        self._inventory.sizes[key] = len(data)
        self._previous = Manifest.read(self._objects, key)
        self.counts.made += 1
        self.counts.txid, self.counts.time_ms = state.txid, state.time_ms
        self.counts.seconds = self._runtime.clock.monotonic() - self._began
        self._job = None
        self._done()
