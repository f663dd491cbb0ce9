"""The stores of blobs: the contract on two servers and a directory, and what is theirs alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.s3_servers import S3Server

from sync_engine.core import failpoints
from sync_engine.errors import ConfigError, StoreRejected, StoreUnavailable
from sync_engine.s3 import S3Client
from sync_engine.stores.blobs import DirectoryBlobs, S3Blobs
from sync_engine.testing import SystemRuntime
from sync_engine.testing.contracts.blobs import BlobsContract


@pytest.fixture
def real() -> Iterator[SystemRuntime]:
    runtime = SystemRuntime("test")
    yield runtime
    runtime.close(1)


class TestDirectory(BlobsContract):
    conditional_writes = True
    free_keys = True

    @pytest.fixture
    def blobs(self, tmp_path: Path) -> DirectoryBlobs:
        return DirectoryBlobs(tmp_path / "blobs")


class TestMoto(BlobsContract):
    conditional_writes = True
    free_keys = True

    @pytest.fixture
    def blobs(self, moto_s3: S3Server, real: SystemRuntime) -> Iterator[S3Blobs]:
        with S3Client(moto_s3.settings(), real) as client:
            yield S3Blobs(client, moto_s3.new_bucket(), "some/prefix +/")


class TestRclone(BlobsContract):
    conditional_writes = False
    free_keys = False

    @pytest.fixture
    def blobs(self, rclone_s3: S3Server, real: SystemRuntime) -> Iterator[S3Blobs]:
        with S3Client(rclone_s3.settings(deadline_s=5.0), real) as client:
            yield S3Blobs(client, rclone_s3.new_bucket())


def test_nothing_is_seen_of_a_put_that_failed(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    blobs.put("d/k", b"before")

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with failpoints.during("blobs.before_rename", fail), pytest.raises(StoreUnavailable):
        blobs.put("d/k", b"after")

    assert blobs.get("d/k") == b"before"
    assert list((tmp_path / ".beside").iterdir()) == []


@pytest.mark.parametrize("if_absent", [True, False])
def test_a_put_that_somebody_undoes_at_once_was_a_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, if_absent: bool
) -> None:
    """Another process may delete the object, and its folder, before we look again."""
    blobs, other = DirectoryBlobs(tmp_path), DirectoryBlobs(tmp_path)
    undone: list[str] = []
    steps = {"replace": Path.replace, "link": os.link}

    def undo() -> None:
        other.delete(["d/k"])
        undone.append("d/k")

    def replace(self: Path, target: Path) -> None:
        steps["replace"](self, target)
        undo()

    def link(source: Path, target: Path) -> None:
        steps["link"](source, target)
        undo()

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(os, "link", link)

    made = blobs.put("d/k", b"12345", if_absent=if_absent)

    assert (made.key, made.size) == ("d/k", 5)
    assert undone == ["d/k"]
    assert blobs.get("d/k") is None


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    """It is not listed, and the next one to open the directory removes it."""
    program = (
        "import os, signal, sys\n"
        "from sync_engine.core import failpoints\n"
        "from sync_engine.stores.blobs import DirectoryBlobs\n"
        "blobs = DirectoryBlobs(sys.argv[1])\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with failpoints.during('blobs.before_rename', kill):\n"
        "    blobs.put('k', b'half')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / ".beside").iterdir())) == 1

    blobs = DirectoryBlobs(tmp_path)

    assert list(blobs.list("")) == []
    assert list((tmp_path / ".beside").iterdir()) == []


def test_nothing_is_written_outside_the_directory(tmp_path: Path) -> None:
    root = tmp_path / "in" / "side"
    blobs = DirectoryBlobs(root)
    for key in ("../out", "../../out", "/etc/passwd", "a/../../out", ".beside/x", "..", "."):
        blobs.put(key, b"x")

    outside = [path for path in tmp_path.rglob("*") if path.is_file() and root not in path.parents]

    assert outside == []
    assert len(list(blobs.list(""))) == 7


def test_a_key_that_no_file_can_have_is_rejected(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    for key in ("", "x" * 300, "\udcff"):
        with pytest.raises(StoreRejected):
            blobs.put(key, b"x")


def test_a_directory_that_cannot_be_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(ConfigError, match="cannot be used"):
        DirectoryBlobs(tmp_path / "file")


def test_the_data_is_synced_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes, rename, directory: the order that survives power loss."""
    steps: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        steps.append("sync file" if Path(path).is_file() else "sync folder")
        real_sync(handle)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    blobs = DirectoryBlobs(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    blobs.put("k", b"x")

    assert steps == ["sync file", "rename", "sync folder"]
