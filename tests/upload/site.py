"""A directory, a bucket and the program between them, in this process or in one to be killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sync_engine.core.policies import RetryConfig
from sync_engine.runtime import SystemRuntime
from sync_engine.s3 import S3Address
from sync_engine.sources.file_watch import FindPolicy
from sync_engine.transfer import FilesToS3, Progress, TransferSettings

if TYPE_CHECKING:
    from support.s3_servers import S3Server

CHILD = Path(__file__).with_name("child.py")
PREFIX = "in"
MIB = 1 << 20
QUICKLY = {"retry": RetryConfig(attempts_max=1000, delay_s_min=0.05, delay_s_max=0.2)}
FULL = bool(os.environ.get("KILLS"))
"""Whether the checks run at their full lengths."""


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str = "") -> None:
    """Look again and again; the things waited for happen in other threads and processes."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"timed out after {timeout_s} s {what}"
        time.sleep(0.02)


class Site:
    """One directory and one prefix of a bucket."""

    def __init__(self, base: Path, server: S3Server) -> None:
        self.base = base
        self.server = server
        self.bucket = server.new_bucket()
        self.boto = server.boto()
        self.dir = base / "out"
        self.dir.mkdir(parents=True)
        self.ledger = base / "ledger.db"
        self.endpoint_url = server.endpoint_url
        self.children: list[subprocess.Popen[str]] = []

    def close(self) -> None:
        """End what a failed test left running."""
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.communicate()
        self.boto.close()

    def settings(self, **given: Any) -> TransferSettings:
        find = {"settle_s": 0.2, "rescan_s": 2.0, "poll_s": 0.3} | given.pop("find", {})
        return TransferSettings(find=FindPolicy(**find), **given)

    def program(self, runtime: Any = None, **given: Any) -> FilesToS3:
        s3 = self.server.settings(
            endpoint_url=self.endpoint_url, deadline_s=given.pop("deadline_s", 10.0)
        )
        return FilesToS3(
            [self.dir],
            S3Address(self.bucket, PREFIX),
            s3,
            self.ledger,
            self.settings(**given),
            runtime or SystemRuntime("watch"),
        )

    @contextmanager
    def running(self, **given: Any) -> Iterator[FilesToS3]:
        runtime = SystemRuntime("watch")
        program = self.program(runtime, **given)
        try:
            program.start()
            yield program
        finally:
            stuck = program.stop(20.0)
            runtime.close(5.0)
            assert stuck == []

    def settle(self, program: FilesToS3, timeout_s: float = 60.0) -> Progress:
        """Wait until nothing is left to do, as a scan that began after this call says."""
        scans = program.progress().scans if program.started else 0
        program.look_now()

        def done() -> bool:
            return program.started and program.progress().scans > scans and program.progress().idle

        try:
            wait_until(done, timeout_s)
        except AssertionError:
            raise AssertionError(f"not done: {program.progress()}") from None
        return program.progress()

    def run(self, timeout_s: float = 60.0, **given: Any) -> Progress:
        with self.running(**given) as program:
            return self.settle(program, timeout_s)

    # -- the two sides, read without our own code -------------------------------------------------

    def write(self, name: str, data: bytes = b"data") -> Path:
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def files(self) -> dict[str, bytes]:
        found = {}
        for path in self.dir.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with suppress(FileNotFoundError):  # removed since it was listed
                    found[str(path.relative_to(self.dir))] = path.read_bytes()
        return found

    def emptied(self) -> bool:
        """Tell whether no file is left."""
        return not any(names for _, _, names in os.walk(self.dir))

    def keys(self) -> list[str]:
        pages = self.boto.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{PREFIX}/"
        )
        return [o["Key"][len(PREFIX) + 1 :] for page in pages for o in page.get("Contents", ())]

    def get(self, name: str) -> bytes:
        found = self.boto.get_object(Bucket=self.bucket, Key=f"{PREFIX}/{name}")
        data: bytes = found["Body"].read()
        return data

    def objects(self) -> dict[str, bytes]:
        found = {}
        for name in self.keys():
            with suppress(self.boto.exceptions.NoSuchKey):  # deleted since it was listed
                found[name] = self.get(name)
        return found

    def uploads(self) -> list[str]:
        found = self.boto.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return [upload["UploadId"] for upload in found]

    # -- in a process of its own ------------------------------------------------------------------

    def child(
        self, *, kill_at: str = "", hits: int = 1, until_open: int = 0, deadline_s: float = 10.0,
        **settings: Any,
    ) -> subprocess.Popen[str]:  # fmt: skip
        given = {
            "dir": str(self.dir),
            "bucket": self.bucket,
            "prefix": PREFIX,
            "ledger": str(self.ledger),
            "endpoint_url": self.endpoint_url,
            "access_key_id": self.server.access_key_id,
            "secret_access_key": self.server.secret_access_key,
            "kill_at": kill_at,
            "hits": hits,
            "until_open": until_open,
            "deadline_s": deadline_s,
            "find": {"settle_s": 0.2, "rescan_s": 1.0, "poll_s": 0.5},
            "settings": settings,
        }
        child = subprocess.Popen(
            [sys.executable, str(CHILD), json.dumps(given)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.children.append(child)
        return child

    def killed_child(self, timeout_s: float = 60.0, **given: Any) -> None:
        """Run a child that ends by its own failpoint; fails if it comes to an end alive."""
        child = self.child(**given)
        _, errors = child.communicate(timeout=timeout_s)
        assert child.returncode == -signal.SIGKILL, (child.returncode, errors[-3000:])


def content(seed: object, size: int) -> bytes:
    """Return bytes that tell which they are."""
    unit = hashlib.sha256(repr(seed).encode()).digest()
    return (unit * (size // len(unit) + 1))[:size]


def kills(short: int = 1) -> int:
    return int(os.environ.get("KILLS", str(short)))


def foreign(site: Site, name: str) -> None:
    """Store an object of somebody else under the key of a file."""
    site.boto.put_object(Bucket=site.bucket, Key=f"{PREFIX}/{name}", Body=b"theirs")
