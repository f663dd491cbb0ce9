"""The tutorial on changes of a bucket, run as it stands against two servers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.s3_servers import S3Server

from tests.docs.pages import ROOT, script

PAGE = ROOT / "docs" / "tutorials" / "s3-changes.md"


def test_the_tutorial_runs_against_a_server(any_s3: S3Server, tmp_path: Path) -> None:
    path = tmp_path / "tutorial.py"
    path.write_text(script(PAGE), "utf-8")
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("SYNC_ENGINE_", "AWS"))}
    environment |= {
        "S3_ENDPOINT": any_s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": any_s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": any_s3.secret_access_key,
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "added 2026/a.jpg 16" in done.stdout
