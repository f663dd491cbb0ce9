"""Files to S3: files that are written, replaced or modified on their way."""

from __future__ import annotations

import os
import time
from contextlib import closing

import pytest
from upload.site import FULL, MIB, PREFIX, Site, content, wait_until

from sync_engine.core import failpoints
from sync_engine.transfer.ledger import UploadLedger

pytestmark = pytest.mark.external


def test_u03_a_writer_that_pauses_is_waited_for(site: Site) -> None:
    pause_s = 3.0 if FULL else 0.5
    with site.running() as program:
        wait_until(lambda: program.started, 10)
        with (site.dir / "slow").open("wb") as file:
            for n in range(3):
                file.write(content(n, 1000))
                file.flush()
                time.sleep(pause_s)  # the pace of this writer is what is tested
                assert site.keys() == []
        site.settle(program)
    assert site.get("slow") == b"".join(content(n, 1000) for n in range(3))


def test_u03_a_writer_found_by_a_scan_is_waited_for(site: Site) -> None:
    """It began before the program: nobody saw it open the file, and the lease tells of it."""
    with (site.dir / "slow").open("wb") as file:
        file.write(b"one")
        file.flush()
        with site.running(backend="poll") as program:
            wait_until(lambda: program.started and program.progress().scans > 3, 20)
            assert site.keys() == []
            file.write(b"two")
            file.close()
            site.settle(program)
    assert site.get("slow") == b"onetwo"


def test_u03_a_file_appended_during_its_upload_ends_whole(site: Site) -> None:
    data = content("a", 20 * MIB)
    path = site.write("log", data)
    with site.running(find={"mode": "mirror"}, part_bytes=5 * MIB) as program:
        wait_until(lambda: bool(site.uploads()), 30)
        with path.open("ab") as file:
            file.write(b"tail")
        progress = site.settle(program)
    assert site.get("log") == data + b"tail"
    assert site.uploads() == []
    assert progress.changed >= 1


def test_u03_a_file_changed_in_place_while_it_is_read_is_read_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells of it but the time of change, looked at after the last byte."""
    path = site.write("f", b"first")
    read = os.read
    changed: list[bytes] = []

    def change_after(handle: int, size: int) -> bytes:
        data = read(handle, size)
        if data == b"first" and not changed:
            changed.append(data)
            path.write_bytes(b"other")
        return data

    monkeypatch.setattr(os, "read", change_after)
    never = {"poll_s": 1000.0, "rescan_s": 1000.0}
    with site.running(backend="poll", find=never) as program:  # no scan finds out later
        wait_until(lambda: program.started and program.progress().verified > 0, 20)
        wait_until(lambda: program.progress().idle, 20)
    assert changed
    assert site.get("f") == b"other"


def test_u04_a_file_modified_before_its_removal_is_kept_and_uploaded_again(site: Site) -> None:
    """At the last moment: its verification is committed, its removal is next."""
    path = site.write("f", b"first")
    removals: list[bytes] = []

    def modify_first() -> None:
        removals.append(site.get("f"))
        if len(removals) == 1:
            path.write_bytes(b"second")

    with failpoints.during("cleanup.before", modify_first), site.running(after="delete") as program:
        wait_until(lambda: bool(removals), 20)
        progress = site.settle(program)

    assert removals == [b"first", b"second"]
    assert progress.changed == 1
    assert site.get("f") == b"second"
    assert site.files() == {}


@pytest.mark.parametrize("step", ["cleanup.before", "cleanup.checked"])
def test_u04_a_file_replaced_before_its_removal_is_kept_and_uploaded_again(
    site: Site, step: str
) -> None:
    """Of the same size and with the same times: the inode alone tells it."""
    path = site.write("f", b"first")
    before = path.stat()
    removals: list[bytes] = []

    def replace_first() -> None:
        removals.append(site.get("f"))
        if len(removals) == 1:
            other = site.base / "other"
            other.write_bytes(b"other")
            os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
            other.rename(path)

    with failpoints.during(step, replace_first), site.running(after="delete") as prog:
        wait_until(lambda: bool(removals), 20)
        site.settle(prog)

    assert removals == [b"first", b"other"]
    assert site.files() == {}


def test_u04_a_file_that_somebody_writes_is_not_removed(site: Site) -> None:
    path = site.write("f", b"first")
    with path.open("ab") as writer:
        progress = site.program().settings
        assert progress.after == "keep"
        with site.running(after="delete", find={"writer_wait_s": 0.0}) as program:
            # What cannot be removed yet is verified again first: this is the third attempt.
            wait_until(lambda: program.started and program.progress().verified > 2, 20)
            assert path.exists()
            writer.write(b"+more")
            writer.close()
            site.settle(program)
    assert site.get("f") == b"first+more"
    assert not path.exists()


@pytest.mark.parametrize("after", ["keep", "delete"])
def test_u04_a_file_that_a_kill_left_aside_is_uploaded_if_the_server_lost_it(
    site: Site, after: str
) -> None:
    """Whatever the next run is to do with local files: no file stays hidden."""
    site.write("d/f", b"data")
    site.killed_child(kill_at="cleanup.aside", after="delete")
    assert not (site.dir / "d/f").exists()
    site.boto.delete_object(Bucket=site.bucket, Key=f"{PREFIX}/d/f")
    site.write("d/g", b"more")

    site.run(after=after, overwrite="if_absent")

    if after == "delete":
        assert site.objects() == {"d/f": b"data", "d/g": b"more"}
        assert site.files() == {}
    else:  # it is taken for verified: as any file whose object somebody deleted
        assert site.files() == {"d/f": b"data", "d/g": b"more"}
    with closing(UploadLedger(None, copy_of=site.ledger)) as ledger:
        assert ledger.leaving() == []


def test_u04_a_file_that_a_kill_left_aside_waits_for_its_directory(site: Site) -> None:
    site.write("d/f", b"data")
    site.killed_child(kill_at="cleanup.aside", after="delete")
    away = site.base / "away"
    site.dir.rename(away)
    site.dir.mkdir()  # the mount point of what is not mounted
    with site.running() as program:
        wait_until(lambda: program.started and bool(program.progress().errors), 20)
    site.dir.rmdir()
    away.rename(site.dir)

    site.run()

    assert site.files() == {"d/f": b"data"}
