"""Uploads per second: the program beside a hand-written loop, to the same server.

    python -m benchmarks.uploads [--files 2000] [--size 4096] [--threads 4] [--rounds 3]

Both sides put every file, ask the server for its size and digest, and delete it here. The program
also keeps its ledger. The servers (rclone and moto; one that is not installed is left out) run on
this machine and share its cores.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measure import Plan, Row, interleaved, show
from benchmarks.servers import Servers
from sync_engine.runtime import SystemRuntime
from sync_engine.s3 import S3Address
from sync_engine.sources.file_watch import FindPolicy
from sync_engine.transfer import FilesToS3, TransferSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.processes import MissingServer
from support.s3_servers import MotoS3, RcloneS3, S3Server

__all__ = ["main", "run"]


def _files(where: Path, count: int, size: int) -> None:
    for n in range(count):
        path = where / f"{n % 20}" / f"{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))


def loop(where: Path, server: S3Server, bucket: str, threads: int) -> float:
    """Put every file with stock boto3, ask for its size and MD5, delete it; remember nothing."""
    s3: Any = server.boto()

    def one(path: Path) -> None:
        data = path.read_bytes()
        key = f"in/{path.relative_to(where)}"
        s3.put_object(Bucket=bucket, Key=key, Body=data)
        found = s3.head_object(Bucket=bucket, Key=key)
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found["ContentLength"] == len(data) and found["ETag"].strip('"') == digest:
            path.unlink()

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, [path for path in where.rglob("*") if path.is_file()]))
    return time.perf_counter() - began


def program(where: Path, server: S3Server, bucket: str, threads: int) -> float:
    """Do the same with the program: ledger, settling, verification and deletion included."""
    runtime = SystemRuntime("bench")
    made = FilesToS3(
        [where],
        S3Address(bucket, "in"),
        server.settings(connections_max=threads + 2),
        where.parent / f"{bucket}.db",
        TransferSettings(find=FindPolicy(settle_s=0.0), after="delete", concurrency=threads),
        runtime,
    )
    began = time.perf_counter()
    made.start()
    while not (made.started and made.progress().idle):
        time.sleep(0.01)
    took_s = time.perf_counter() - began
    made.stop(10.0)
    runtime.close(5.0)
    return took_s


def _measure(server: S3Server, files: int, size: int, threads: int, rounds: int) -> Row:
    def side(run: Callable[[Path, S3Server, str, int], float]) -> Callable[[int], float]:
        def measure(turn: int) -> float:
            del turn
            with tempfile.TemporaryDirectory() as base:
                where = Path(base) / "out"
                where.mkdir()
                _files(where, files, size)
                return files / run(where, server, server.new_bucket(), threads)

        return measure

    figures = interleaved(rounds, {"program": side(program), "loop": side(loop)})
    pairs = list(zip(figures["program"], figures["loop"], strict=True))
    return Row.of("uploads", server.name, size, pairs, "items/s")


def _rows(files: int, size: int, threads: int, rounds: int) -> list[Row]:
    rows = []
    for kind in (RcloneS3, MotoS3):
        try:
            server = kind()
            server.start()
        except MissingServer:
            continue
        try:
            rows.append(_measure(server, files, size, threads, rounds))
        finally:
            server.destroy()
    return rows


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Measure every server that is there; it is started here."""
    del servers
    return _rows(100 if plan.quick else 1000, 4096, 4, plan.rounds)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--size", type=int, default=4096, help="bytes of a file")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(show(_rows(args.files, args.size, args.threads, args.rounds), as_json=False))


if __name__ == "__main__":
    main()
