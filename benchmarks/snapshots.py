"""Replication of a database: what it costs writers, and how fast snapshots and restores are.

The floor of throughput is the same writer without a replicator. The floor of a snapshot is
``sqlite3 .backup`` and then zstd at the same level; of a restore, decompressing that.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from benchmarks.measure import Plan, Row
from benchmarks.servers import Servers

SUBJECT = "snapshots"
_LEVEL = 3
_BLOCK = 1 << 22
_WRITER = """
import json, os, sqlite3, sys, time
c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
c.execute("PRAGMA journal_mode=WAL"); c.execute("PRAGMA synchronous=NORMAL")
c.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, k TEXT, v BLOB)")
until, took = time.perf_counter() + float(sys.argv[2]), []
while (began := time.perf_counter()) < until:
    c.execute("INSERT INTO t(k, v) VALUES(?, randomblob(300))", (str(len(took)),))
    took.append(time.perf_counter() - began)
took.sort()
log = os.stat(sys.argv[1] + "-wal").st_size  # it does not shrink: the longest that it was
print(json.dumps([len(took) / float(sys.argv[2]), took[int(len(took) * 0.999)], log]))
"""


@contextlib.contextmanager
def _replicating(database: Path, target: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a replicator beside the block, from its first snapshot on."""
    words = ["replicate", str(database), str(target), "-q", "--no-lease", *options]
    child = subprocess.Popen([sys.executable, "-m", "sync_engine", *words])
    try:
        _until(lambda: _status(database)["pid"] == child.pid and _status(database)["durable_txid"])
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()


def _status(database: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (database.parent / f".{database.name}.replica" / "status.json").read_text()
    )
    return found


def _until(condition: Any, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if condition():
                return
        time.sleep(0.01)
    raise TimeoutError("the replicator did not get there")


def _write(database: Path, seconds: float) -> tuple[float, float, float]:
    """Return commits a second, the 99.9th percentile of their seconds, and bytes of the log."""
    words = [sys.executable, "-c", _WRITER, str(database), str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    rate, slow, log = json.loads(done.stdout)
    return rate, slow, log


def _throughput(plan: Plan, directory: Path) -> list[Row]:
    seconds = 3.0 if plan.quick else 15.0
    rates, slows, logs = [], [], []
    for number in range(plan.rounds):
        alone = directory / f"alone-{number}.db"
        beside = directory / f"beside-{number}.db"
        for path in (alone, beside):
            _write(path, 0.2)
        without = _write(alone, seconds)
        with _replicating(beside, directory / f"target-{number}"):
            with_it = _write(beside, seconds)
        rates.append((with_it[0], without[0]))
        slows.append((with_it[1] * 1e3, without[1] * 1e3))
        logs.append((with_it[2] / 1e6, without[2] / 1e6))
    name = "unlimited writer"
    return [
        Row.of(SUBJECT, f"{name}, commits", 0, rates, "commits/s", ratio_min=0.6),
        Row.of(SUBJECT, f"{name}, p99.9", 0, slows, "ms", value_max=150.0),
        Row.of(SUBJECT, f"{name}, longest log", 0, logs, "MB", value_max=100.0),
    ]


def _fill(path: Path, size: int) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as c:
        c.execute("PRAGMA journal_mode=WAL")
        c.execute("PRAGMA synchronous=OFF")
        c.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, v BLOB)")
        while path.stat().st_size < size:
            c.execute(
                "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 20000)"
                ' INSERT INTO t(k, v) SELECT printf(\'{"user":%d,"name":"user-%d"}\', i, i * 7),'
                " CASE WHEN i % 3 THEN CAST(hex(randomblob(300)) AS BLOB)"
                " ELSE randomblob(900) END FROM s"
            )
            c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _backup(path: Path, into: Path) -> float:
    """Return the seconds of a backup and its compression."""
    began = time.perf_counter()
    plain = into.with_suffix(".plain")
    with (
        contextlib.closing(sqlite3.connect(path)) as source,
        contextlib.closing(sqlite3.connect(plain)) as copy,
    ):
        source.backup(copy)
    packer = zstandard.ZstdCompressor(level=_LEVEL)
    with plain.open("rb") as raw, into.open("wb") as packed:
        packer.copy_stream(raw, packed, read_size=_BLOCK)
        packed.flush()
        os.fsync(packed.fileno())
    plain.unlink()
    return time.perf_counter() - began


def _unpack(packed: Path, into: Path) -> float:
    began = time.perf_counter()
    with packed.open("rb") as source, into.open("wb") as raw:
        zstandard.ZstdDecompressor().copy_stream(source, raw, write_size=_BLOCK)
        raw.flush()
        os.fsync(raw.fileno())
    return time.perf_counter() - began


def _peak_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def _large(plan: Plan, directory: Path) -> list[Row]:
    """Measure one large database once a round: its size makes it steady enough."""
    path = directory / "large.db"
    _fill(path, (100 << 20) if plan.quick else (1 << 30))
    mib = path.stat().st_size / 2**20
    snapshots, restores, peaks = [], [], []
    for number in range(1 if plan.quick else 2):
        target = directory / f"large-{number}"
        with _replicating(
            path, target, "--state-dir", str(directory / ".large.db.replica")
        ) as child:
            taken_s = _status(path)["snapshot"]["seconds"]
            peaks.append(_peak_mib(child.pid))
        floor_s = _backup(path, directory / "large.zst")
        snapshots.append((mib / taken_s, mib / floor_s))
        out = directory / f"restored-{number}.db"
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        began = time.perf_counter()
        words = ["restore", str(target), str(out), "-q"]
        subprocess.run([sys.executable, "-m", "sync_engine", *words], check=True)
        restored_s = time.perf_counter() - began
        peaks.append(max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024)
        restores.append((mib / restored_s, mib / _unpack(directory / "large.zst", out)))
        out.unlink()
    peak = max(peaks)
    size = f"{mib:,.0f} MiB"
    return [
        Row.of(SUBJECT, f"snapshot of {size}", 0, snapshots, "MiB/s"),
        Row.of(SUBJECT, f"restore of {size}", 0, restores, "MiB/s"),
        Row.of(SUBJECT, "peak memory", 0, [(peak, peak)], "MiB", value_max=400.0),
    ]


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Measure; needs no server."""
    del servers
    with tempfile.TemporaryDirectory(dir=plan.directory) as name:
        directory = Path(name)
        rows = _throughput(plan, directory)
        rows += _large(plan, directory)
    return rows
