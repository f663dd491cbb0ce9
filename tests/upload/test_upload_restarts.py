"""Files to S3: kills, restarts, and what an earlier life left; KILLS=50 gives the full lengths."""

from __future__ import annotations

import time

import pytest
from upload.site import FULL, MIB, PREFIX, Site, content, kills, wait_until

from sync_engine.transfer.ledger import UploadLedger

pytestmark = pytest.mark.external


STEPS = [
    "ledger.stable", "ledger.uploading", "upload.sent", "ledger.uploaded", "ledger.verified",
    "cleanup.before", "cleanup.checked", "cleanup.aside", "cleanup.after", "ledger.removed",
]  # fmt: skip
STEPS_IN_PARTS = ["ledger.begun", "upload.part", "ledger.part"]


@pytest.mark.parametrize("step", STEPS)
def test_u01_a_kill_at_any_step_loses_nothing(step: str, site: Site) -> None:
    for round_ in range(kills()):
        files = {f"{round_}/{n}": content((round_, n), 100 + n) for n in range(3)}
        for name, data in files.items():
            site.write(name, data)

        site.killed_child(kill_at=step, hits=1, after="delete")

        for name, data in files.items():  # no file was removed before it was there
            assert (site.dir / name).exists() or site.get(name) == data
        site.run(after="delete")
        assert {name: site.get(name) for name in files} == files
        assert site.files() == {}


@pytest.mark.parametrize("step", STEPS_IN_PARTS)
def test_u01_a_kill_between_parts_loses_nothing(step: str, site: Site) -> None:
    kill_between_parts(step, site)


def test_u01_a_kill_before_an_upload_is_noted_loses_nothing(dated_site: Site) -> None:
    kill_between_parts("upload.begun", dated_site)


def kill_between_parts(step: str, site: Site) -> None:
    for round_ in range(kills()):
        data = content(round_, 11 * MIB + round_)
        site.write(f"{round_}.big", data)

        site.killed_child(kill_at=step, hits=1, after="delete", part_bytes=5 * MIB)
        assert (site.dir / f"{round_}.big").exists()

        site.run(after="delete", part_bytes=5 * MIB)
        assert site.get(f"{round_}.big") == data
        assert site.files() == {}
        assert site.uploads() == []


def test_u02_files_made_while_it_was_stopped_are_uploaded(any_site: Site) -> None:
    any_site.write("before")
    any_site.run()
    count = 1000 if FULL else 60
    for n in range(count):
        any_site.write(f"d{n % 7}/{n}", content(n, 50))

    progress = any_site.run()

    assert progress.uploaded == count
    assert any_site.objects() == any_site.files()


def test_u02_what_was_handled_is_not_uploaded_again(site: Site) -> None:
    for n in range(20):
        site.write(str(n))
    site.run()
    assert site.run().uploaded == 0


def test_u11_uploads_in_parts_of_an_earlier_life_are_ended(site: Site) -> None:
    site.write("big", content(1, 16 * MIB))
    site.killed_child(kill_at="upload.part", hits=1, part_bytes=5 * MIB)
    assert len(site.uploads()) == 1
    (site.dir / "big").unlink()

    site.run(part_bytes=5 * MIB)

    assert site.uploads() == []


def test_u11_an_upload_that_somebody_else_ended_is_begun_anew(dated_site: Site) -> None:
    """On rclone: moto answers 500 where an upload is gone."""
    data = content(1, 11 * MIB)
    dated_site.write("big", data)
    dated_site.killed_child(kill_at="upload.part", hits=1, part_bytes=5 * MIB)
    (upload_id,) = dated_site.uploads()
    dated_site.boto.abort_multipart_upload(
        Bucket=dated_site.bucket, Key=f"{PREFIX}/big", UploadId=upload_id
    )

    progress = dated_site.run(part_bytes=5 * MIB)

    assert progress.parked == 0
    assert dated_site.get("big") == data
    assert dated_site.uploads() == []


def test_u11_an_upload_whose_id_was_never_noted_is_ended(dated_site: Site) -> None:
    """Killed between the server's answer and the commit; then the file goes away."""
    dated_site.write("big", content(1, 11 * MIB))
    dated_site.killed_child(kill_at="upload.begun", part_bytes=5 * MIB)
    assert len(dated_site.uploads()) == 1
    (dated_site.dir / "big").unlink()

    with dated_site.running(part_bytes=5 * MIB):
        wait_until(lambda: dated_site.uploads() == [], 20)


def test_u11_uploads_of_others_are_left_alone_unless_asked_for(site: Site) -> None:
    def begin(key: str) -> str:
        made = site.boto.create_multipart_upload(Bucket=site.bucket, Key=key)
        upload_id: str = made["UploadId"]
        return upload_id

    ours, theirs, elsewhere = begin(f"{PREFIX}/ours"), begin(f"{PREFIX}/a"), begin("else/b")
    ledger = UploadLedger(site.ledger)
    with ledger.step():
        ledger.begun(ours, f"{PREFIX}/ours", f"{PREFIX}/ours", time.time_ns() // 1_000_000)
    ledger.close()

    with site.running(orphan_age_s=0.0):
        wait_until(lambda: ours not in site.uploads(), 20)
        site_uploads = set(site.uploads())
    assert site_uploads == {theirs, elsewhere}

    with site.running(orphan_age_s=0.0, abort_foreign=True):
        wait_until(lambda: site.uploads() == [elsewhere], 20)
