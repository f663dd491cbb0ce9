"""Bursts and kills at random moments: nothing is lost, nothing is removed too early."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from upload.site import FULL, Site, content, kills, wait_until

from sync_engine.core import failpoints

if TYPE_CHECKING:
    from support.s3_servers import S3Server

pytestmark = pytest.mark.external


@pytest.fixture
def rclone_site(tmp_path: Path, rclone_s3: S3Server) -> Iterator[Site]:
    with closing(Site(tmp_path, rclone_s3)) as made:
        yield made


def make_file(site: Site, n: int) -> Path | None:
    """Make a file in one of five ways; return it if it stays."""
    directory = site.dir / f"d{n % 7}"
    if n % 5 == 4:
        directory = directory / f"new{n // 50}" / "deep"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"f{n}"
    data = content(n, n % 3000)
    if n % 5 == 1:
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(data)
        temporary.rename(path)
    elif n % 5 == 2:
        with path.open("wb") as file:
            for low in range(0, len(data), 1000):
                file.write(data[low : low + 1000])
                file.flush()
    elif n % 5 == 3:
        path.write_bytes(data)
        path.unlink()
        return None
    else:
        path.write_bytes(data)
    return path


@pytest.mark.timeout(1800)
def test_every_file_of_a_burst_arrives_though_the_program_is_killed_twice(
    rclone_site: Site,
) -> None:
    site = rclone_site
    count = int(os.environ.get("FILES", "20000" if FULL else "300"))
    kept: dict[str, bytes] = {}
    child = site.child(after="delete", concurrency=8)
    for n in range(count):
        if n in (count // 3, 2 * count // 3):
            child.send_signal(signal.SIGKILL)
            child.communicate()
            child = site.child(after="delete", concurrency=8)
        path = make_file(site, n)
        if path is not None:
            kept[str(path.relative_to(site.dir))] = content(n, n % 3000)
    wait_until(site.emptied, 1200 if FULL else 90, "all uploaded")
    child.send_signal(signal.SIGKILL)
    child.communicate()

    stored = set(site.keys())
    assert stored >= set(kept)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda name: site.get(name) == kept[name], kept))


@pytest.mark.timeout(1800)
def test_a_burst_is_held_with_flat_memory_while_the_server_is_away(site: Site) -> None:
    """Every file waits in the ledger: fifty times as many need no more memory."""
    count = 100_000 if FULL else 2000
    site.endpoint_url = "http://127.0.0.1:9"  # nobody listens there
    child = site.child(until_open=count, deadline_s=0.2)
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    for n in range(count):
        site.write(f"d{n % 100}/{n}", b"x")
    out, errors = child.communicate(timeout=1200)
    assert child.returncode == 0, errors[-3000:]
    assert int(out) < 48 << 10, f"grew by {int(out)} KiB"
    sys.stdout.write(f"{count:,} files waiting: {int(out) / 1024:.1f} MiB more than at the start\n")


@pytest.mark.timeout(1800)
def test_a_kill_at_any_moment_removes_no_file_that_is_not_there(site: Site) -> None:
    chance = random.Random(7)
    made: dict[str, bytes] = {}
    for round_ in range(kills(2)):
        child = site.child(after="delete", concurrency=4)
        assert child.stdout is not None
        child.stdout.readline()  # it has started
        for n in range(20):
            name = f"{round_}/{n}"
            made[name] = content(name, 500)
            site.write(name, made[name])
        time.sleep(chance.random() * 0.5)  # a random moment is what is wanted
        child.send_signal(signal.SIGKILL)
        child.communicate()
        left = site.files()
        for name, data in made.items():
            assert name in left or site.get(name) == data
    site.run(after="delete")
    assert site.objects() == made
    assert site.files() == {}


def test_a_full_disk_under_the_ledger_loses_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite is given no more pages: what it says then is what it says on a full disk."""
    for n in range(50):
        site.write(str(n))
    with site.running(after="delete") as program:
        site.settle(program)
        db = program._ledger._db
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
        for n in range(150):
            site.write(f"more/{'x' * 150}{n}", b"%d" % n)
        wait_until(lambda: "full" in program._fault, 30, "the disk to be full")
        db.execute("PRAGMA max_page_count = 1000000")
        wait_until(site.emptied, 60)
    assert len(site.keys()) == 200
    assert sqlite3.connect(site.ledger).execute("PRAGMA quick_check").fetchone() == ("ok",)
    assert not failpoints.armed
