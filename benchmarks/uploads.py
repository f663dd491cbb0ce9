"""Uploads per second: the program beside a hand-written loop, to the same server."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.s3_servers import MotoS3, RcloneS3, S3Server

from sync_engine.runtime import SystemRuntime
from sync_engine.s3 import S3Address
from sync_engine.sources.file_watch import FindPolicy
from sync_engine.transfer import FilesToS3, TransferSettings

__all__ = ["main"]


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


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--size", type=int, default=4096, help="bytes of a file")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    print(f"{args.files:,} files of {args.size:,} B, {args.threads} threads; best of {args.rounds}")
    for kind in (RcloneS3, MotoS3):
        server = kind()
        server.start()
        try:
            rates = {}
            for name, run in (("loop", loop), ("program", program)):
                best = float("inf")
                for _ in range(args.rounds):
                    with tempfile.TemporaryDirectory() as base:
                        where = Path(base) / "out"
                        where.mkdir()
                        _files(where, args.files, args.size)
                        best = min(best, run(where, server, server.new_bucket(), args.threads))
                rates[name] = args.files / best
            share = rates["program"] / rates["loop"]
            print(
                f"{server.name:<10} loop {rates['loop']:>7,.0f}/s   "
                f"program {rates['program']:>7,.0f}/s   {share:.2f}"
            )
        finally:
            server.destroy()


if __name__ == "__main__":
    main()
