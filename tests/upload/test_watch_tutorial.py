"""The tutorial, as a user runs it, and the command line around it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.fake_s3 import error
from upload.site import Site, wait_until
from upload.spoiling import SpoilingS3

if TYPE_CHECKING:
    from support.s3_servers import S3Server

pytestmark = pytest.mark.external
PAGE = Path(__file__).parents[2] / "docs/tutorials/watch-and-upload.md"


def environment(server: S3Server) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("SYNC_ENGINE_", "AWS_"))}
    return kept | {
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def blocks() -> list[str]:
    parts = PAGE.read_text("utf-8").split("```")
    return [part.removeprefix("bash\n") for part in parts if part.startswith("bash\n")]


def shell(text: str, server: S3Server, bucket: str, where: Path) -> list[str]:
    text = text.replace("http://localhost:9000", server.endpoint_url)
    text = text.replace("s3://bucket/", f"s3://{bucket}/")
    done = subprocess.run(
        ["/bin/sh", "-ec", text], cwd=where, env=environment(server), capture_output=True,
        text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, (text, done.stdout, done.stderr)
    return done.stdout.splitlines()


def test_the_tutorial_does_what_it_says(any_s3: S3Server, tmp_path: Path) -> None:
    bucket = any_s3.new_bucket()
    begin, look, once, deleting = blocks()
    shell(begin, any_s3, bucket, tmp_path)

    planned = [line.split()[0] for line in shell(look, any_s3, bucket, tmp_path)[:-1]]
    assert planned == ["upload", "upload"]
    assert not (tmp_path / "watch.db").exists()

    assert json.loads(shell(once, any_s3, bucket, tmp_path)[-1])["uploaded"] == 2
    assert json.loads(shell(once, any_s3, bucket, tmp_path)[-1])["uploaded"] == 0

    shell(deleting, any_s3, bucket, tmp_path)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    found = any_s3.boto().list_objects_v2(Bucket=bucket)["Contents"]
    assert [each["Key"] for each in found] == [
        "backup/first.txt", "backup/logs/second.txt", "backup/third.txt",
    ]  # fmt: skip


def test_sigterm_reports_and_ends(moto_s3: S3Server, tmp_path: Path) -> None:
    site = Site(tmp_path, moto_s3)
    command = [
        sys.executable, "-m", "sync_engine", "watch", str(site.dir), f"s3://{site.bucket}/in",
        "--ledger", str(site.ledger), "--endpoint-url", moto_s3.endpoint_url, "--settle", "0.2",
    ]  # fmt: skip
    child = subprocess.Popen(
        command, env=environment(moto_s3), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for n in range(20):
        site.write(str(n))
    wait_until(lambda: len(site.keys()) == 20, 40)
    child.send_signal(signal.SIGTERM)
    out, errors = child.communicate(timeout=30)
    assert child.returncode == 143, errors
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["uploaded"]) == ("end", 20)


def test_a_bucket_that_is_not_there_is_told_of(moto_s3: S3Server, tmp_path: Path) -> None:
    site = Site(tmp_path, moto_s3)
    done = subprocess.run(
        [
            sys.executable, "-m", "sync_engine", "watch", str(site.dir), "s3://not-there/in",
            "--ledger", str(site.ledger), "--endpoint-url", moto_s3.endpoint_url, "--once",
        ],
        env=environment(moto_s3), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no such bucket" in done.stderr


def test_once_ends_with_an_error_where_the_server_stays_away(
    moto_s3: S3Server, tmp_path: Path
) -> None:
    site = Site(tmp_path, moto_s3)
    site.write("f")
    command = [
        sys.executable, "-m", "sync_engine", "watch", str(site.dir), f"s3://{site.bucket}/in",
        "--ledger", str(site.ledger), "--endpoint-url", "",
        "--once", "--give-up-after", "1s", "--settle", "0.2",
    ]  # fmt: skip

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=environment(moto_s3), capture_output=True, text=True, timeout=100
        )

    with SpoilingS3(moto_s3.port) as front:
        front.spoil = lambda request: error(503, "SlowDown", "Please reduce your request rate.")
        command[command.index("")] = front.endpoint_url
        done = run()
        assert done.returncode == 4, done.stderr
        assert "--give-up-after" in done.stderr
        assert (site.dir / "f").exists()

        front.spoil = lambda request: None
        done = run()
        assert done.returncode == 0, done.stderr
    assert site.objects() == {"f": b"data"}
