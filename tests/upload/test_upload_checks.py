"""The checks of files on their way to S3, one by one; KILLS=50 gives the full lengths."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.fake_s3 import Answer, Request, error
from upload.site import FULL, PREFIX, Site, content, kills, wait_until
from upload.spoiling import SpoilingS3

from sync_engine.core import failpoints
from sync_engine.core.policies import RetryConfig
from sync_engine.errors import ConfigError
from sync_engine.s3 import S3Client
from sync_engine.sinks.s3_upload.digests import Digests, holds, multipart_etag
from sync_engine.sources.file_watch import path_of
from sync_engine.transfer.ledger import UploadLedger

if TYPE_CHECKING:
    from support.s3_servers import S3Server

    from sync_engine.testing import FaultProxy

pytestmark = pytest.mark.external
MIB = 1 << 20
QUICKLY = {"retry": RetryConfig(attempts_max=1000, delay_s_min=0.05, delay_s_max=0.2)}
STEPS = [
    "ledger.stable", "ledger.uploading", "upload.sent", "ledger.uploaded", "ledger.verified",
    "cleanup.before", "cleanup.after", "ledger.removed",
]  # fmt: skip
STEPS_IN_PARTS = ["ledger.begun", "upload.part", "ledger.part"]


@pytest.fixture
def site(tmp_path: Path, moto_s3: S3Server) -> Iterator[Site]:
    with closing(Site(tmp_path, moto_s3)) as made:
        yield made


@pytest.fixture
def dated_site(tmp_path: Path, rclone_s3: S3Server) -> Iterator[Site]:
    """A server that tells when an upload in parts began; moto says 2010, always."""
    with closing(Site(tmp_path, rclone_s3)) as made:
        yield made


@pytest.fixture
def any_site(tmp_path: Path, any_s3: S3Server) -> Iterator[Site]:
    with closing(Site(tmp_path, any_s3)) as made:
        yield made


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


def test_u04_a_file_replaced_before_its_removal_is_kept_and_uploaded_again(site: Site) -> None:
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

    with failpoints.during("cleanup.before", replace_first), site.running(after="delete") as prog:
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
            wait_until(lambda: program.started and program.progress().verified > 0, 20)
            time.sleep(0.5)  # nothing is to happen in it
            assert path.exists()
            writer.write(b"+more")
            writer.close()
            site.settle(program)
    assert site.get("f") == b"first+more"
    assert not path.exists()


@pytest.mark.parametrize("verify", ["head", "get"])
def test_u05_both_kinds_of_etags_verify(any_site: Site, verify: str) -> None:
    any_site.write("small", b"small")
    any_site.write("large", content("large", 11 * MIB))
    progress = any_site.run(verify=verify, part_bytes=5 * MIB)
    assert progress.files == {"verified": 2}
    assert any_site.objects() == any_site.files()


def test_u05_every_way_to_tell_a_digest_is_understood(site: Site) -> None:
    client = S3Client(site.server.settings(), site.program()._runtime)
    client.put(site.bucket, "k", b"abc")
    info = client.head(site.bucket, "k")
    assert info is not None
    ours = Digests.of(b"abc")
    parts = Digests(ours.size, ours.md5, ours.sha256, multipart_etag([ours.md5]))

    def seen(**values: Any) -> Any:
        return dataclasses.replace(info, **values)

    assert holds(info, ours) is True
    assert holds(seen(size=4), ours) is False
    assert holds(seen(etag="0" * 32), ours) is False
    assert holds(seen(etag=parts.parts), parts) is True
    assert holds(seen(etag="0" * 32 + "-1"), parts) is False
    assert holds(seen(etag="0" * 32, sse="aws:kms"), ours) is None
    assert holds(seen(etag="x", metadata={"sha256": ours.sha256.upper()}), ours) is True
    assert holds(seen(etag="x", metadata={"sha256": "0" * 64}), ours) is False
    client.close()


def test_u05_an_object_that_was_damaged_is_found_and_sent_again(site: Site) -> None:
    """Between upload and verification, somebody else replaced it."""
    spoiled: list[str] = []

    def spoil_first() -> None:
        if not spoiled:
            spoiled.append("f")
            site.boto.put_object(Bucket=site.bucket, Key=f"{PREFIX}/f", Body=b"other")

    site.write("f", b"right")
    with failpoints.during("upload.sent", spoil_first):
        progress = site.run(after="delete")
    assert spoiled
    assert site.get("f") == b"right"
    assert progress.uploaded == 2


def test_u05_an_object_whose_bytes_are_wrong_is_found_by_reading(site: Site) -> None:
    """The server tells the right size and ETag, and has other bytes."""
    damaged = [2]

    def damage(request: Request) -> Answer | None:
        if request.method != "GET" or not request.key.endswith("/f") or not damaged[0]:
            return None
        damaged[0] -= 1
        return Answer(200, b"wrong", {"ETag": f'"{hashlib.md5(b"right").hexdigest()}"'})

    site.write("f", b"right")
    with SpoilingS3(site.server.port) as front:
        front.spoil = damage
        site.endpoint_url = front.endpoint_url
        progress = site.run(after="delete", verify="get", **QUICKLY)
    assert damaged == [0]
    assert progress.uploaded >= 2
    assert site.get("f") == b"right"
    assert site.files() == {}


SIZES = [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, *([16 * MIB, 100 * MIB] if FULL else [])]


@pytest.mark.parametrize("size", SIZES)
def test_u06_files_of_every_size(any_site: Site, size: int) -> None:
    data = content(size, size)
    any_site.write("f", data)
    any_site.run(part_bytes=5 * MIB)
    assert any_site.get("f") == data


def test_u06_ten_thousand_parts_are_enough(site: Site) -> None:
    settings = site.settings()
    for size in (1, 8 * MIB, 80_000 * MIB, 5 << 40):
        part = settings.part_size(size)
        assert part >= 5 * MIB
        assert -(-size // part) <= 10_000


def test_u07_a_server_that_is_away_is_waited_for(
    site: Site, fault_proxy: Callable[[str, int], FaultProxy]
) -> None:
    proxy = fault_proxy("127.0.0.1", site.server.port)
    site.endpoint_url = f"http://127.0.0.1:{proxy.port}"
    away_s = 30.0 if FULL else 1.0
    with site.running(deadline_s=0.5, **QUICKLY) as program:
        proxy.refuse = True
        proxy.drop_connections()
        for n in range(5):
            site.write(str(n), content(n, 99))
        time.sleep(away_s)  # the length of the outage is what is tested
        assert site.keys() == []
        proxy.reset()
        progress = site.settle(program)
    assert site.objects() == site.files()
    assert progress.retries > 0
    assert progress.parked == 0


def test_u07_a_server_that_answers_503_is_waited_for(site: Site) -> None:
    for n in range(5):
        site.write(str(n), content(n, 99))
    seconds = 30.0 if FULL else 1.0
    refused: list[float] = []

    def busy(request: Request) -> Answer | None:
        now = time.monotonic()
        if request.method != "PUT" or (refused and now > refused[0] + seconds):
            return None
        refused.append(now)
        return error(503, "SlowDown", "Please reduce your request rate.")

    with SpoilingS3(site.server.port) as front:
        front.spoil = busy
        site.endpoint_url = front.endpoint_url
        progress = site.run(deadline_s=0.5, after="delete", **QUICKLY)
    assert refused
    assert progress.retries > 0
    assert progress.parked == 0
    assert progress.stalled_s == 0
    assert len(site.keys()) == 5
    assert site.files() == {}


def test_u07_one_refused_file_is_parked_and_the_others_go_on(site: Site) -> None:
    def refuse_one(request: Request) -> Answer | None:
        if request.method == "PUT" and request.key.endswith("/secret"):
            return error(403, "AccessDenied", "Access Denied")
        return None

    for name in ("a", "secret", "z"):
        site.write(name)
    with SpoilingS3(site.server.port) as front:
        front.spoil = refuse_one
        site.endpoint_url = front.endpoint_url
        progress = site.run(after="delete")
        assert sorted(site.keys()) == ["a", "z"]
        assert progress.parked == 1
        assert [path for path, _ in progress.problems] == ["secret"]
        assert "denied" in progress.problems[0][1].lower()
        assert list(site.files()) == ["secret"]

        front.spoil = lambda request: None
        site.run(after="delete")  # the next run tries again
    assert site.files() == {}


def foreign(site: Site, name: str) -> None:
    site.boto.put_object(Bucket=site.bucket, Key=f"{PREFIX}/{name}", Body=b"theirs")


def test_u08_if_absent_leaves_both_as_they_are(any_site: Site) -> None:
    foreign(any_site, "f")
    any_site.write("f", b"ours")
    any_site.write("g", b"ours")
    progress = any_site.run(overwrite="if_absent", after="delete")
    assert any_site.objects() == {"f": b"theirs", "g": b"ours"}
    assert any_site.files() == {"f": b"ours"}
    assert progress.ignored == 1


def test_u08_error_parks_the_file_or_is_refused(any_site: Site) -> None:
    foreign(any_site, "f")
    any_site.write("f", b"ours")
    if any_site.server.name.startswith("rclone"):
        with pytest.raises(ConfigError, match="conditional"):
            any_site.run(overwrite="error")
        return
    progress = any_site.run(overwrite="error")
    assert any_site.objects() == {"f": b"theirs"}
    assert progress.parked == 1


def test_u08_version_suffix_takes_the_next_key(any_site: Site) -> None:
    foreign(any_site, "f")
    any_site.write("f", b"ours")
    any_site.run(overwrite="version_suffix")
    assert any_site.objects() == {"f": b"theirs", "f~1": b"ours"}


def test_u09_names_that_are_no_utf8_arrive_reversibly(any_site: Site) -> None:
    others = 100 if FULL else 40
    for n in range(others):
        any_site.write(f"good{n}")
    raw = b"bad\xff\xe2\x90\x9b"
    Path(os.fsdecode(os.fsencode(any_site.dir) + b"/" + raw)).write_bytes(b"odd")
    progress = any_site.run()
    assert progress.uploaded == others + 1
    odd = [key for key in any_site.objects() if not key.startswith("good")]
    assert [path_of(key) for key in odd] == [raw]
    assert any_site.get(odd[0]) == b"odd"


def test_u10_links_and_what_is_outside_are_never_touched(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/inner").write_bytes(b"inner")
    (site.dir / "link").symlink_to(secret)
    (site.dir / "dirlink").symlink_to(tmp_path / "dir")
    (site.dir / "up").symlink_to("..")
    site.write("real")
    site.run(after="delete", prune=True)
    assert site.keys() == ["real"]
    assert secret.read_bytes() == b"secret"
    assert (tmp_path / "dir/inner").exists()
    assert (site.dir / "link").is_symlink()


def test_u10_empty_directories_are_pruned_where_asked(site: Site) -> None:
    site.write("a/b/c/f")
    site.write("a/stays/.hidden")
    site.run(after="delete", prune=True)
    assert not (site.dir / "a/b").exists()
    assert (site.dir / "a/stays/.hidden").exists()
    assert site.dir.is_dir()


def test_u10_files_are_moved_where_asked(site: Site, tmp_path: Path) -> None:
    site.write("a/f", b"one")
    done = tmp_path / "done"
    site.run(after="move", move_to=done)
    assert (done / "a/f").read_bytes() == b"one"
    site.write("a/f", b"two")
    site.run(after="move", move_to=done)
    assert (done / "a/f~1").read_bytes() == b"two"
    assert site.get("a/f") == b"two"
    assert site.files() == {}


def test_u11_uploads_in_parts_of_an_earlier_life_are_ended(site: Site) -> None:
    site.write("big", content(1, 16 * MIB))
    site.killed_child(kill_at="upload.part", hits=1, part_bytes=5 * MIB)
    assert len(site.uploads()) == 1
    (site.dir / "big").unlink()

    site.run(part_bytes=5 * MIB)

    assert site.uploads() == []


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


def test_u12_a_name_may_be_used_again(any_site: Site) -> None:
    for n in range(3):
        any_site.write("f", b"%d" % n)
        any_site.run(after="delete")
        assert any_site.get("f") == b"%d" % n
        assert any_site.files() == {}


def test_u12_modes_say_what_becomes_of_changes(site: Site) -> None:
    site.write("a", b"first")
    site.write("b", b"first")
    site.run()
    with (site.dir / "a").open("ab") as file:
        file.write(b"+changed")
    (site.dir / "b").rename(site.dir / "renamed")

    assert site.run().uploaded == 0
    assert site.objects() == {"a": b"first", "b": b"first"}


def test_u12_mirror_follows_changes_renames_and_deletions(any_site: Site) -> None:
    for name in ("a", "b", "c"):
        any_site.write(name, name.encode())
    with any_site.running(find={"mode": "mirror"}) as program:
        any_site.settle(program)
        any_site.write("a", b"changed")
        (any_site.dir / "b").rename(any_site.dir / "renamed")
        (any_site.dir / "c").unlink()
        wait_until(lambda: any_site.objects() == any_site.files(), 30)
    assert any_site.objects() == {"a": b"changed", "renamed": b"b"}


def test_u13_many_small_files_share_commits(site: Site) -> None:
    """At least five times fewer commits than with one for each step of each file."""
    count = 10_000 if FULL else 200
    for n in range(count):
        site.write(f"{n % 10}/{n}", b"%d" % n)
    progress = site.run(timeout_s=600, concurrency=8)
    assert progress.uploaded == count
    steps = 5 * count  # seen, stable, uploading, uploaded, verified
    assert progress.commits * 5 <= steps, (progress.commits, steps)


def test_only_one_program_has_a_ledger(site: Site) -> None:
    with site.running(), pytest.raises(ConfigError, match="another process"):
        site.run()


def test_a_ledger_belongs_to_one_target(site: Site) -> None:
    site.run()
    site.bucket = site.server.new_bucket()
    with pytest.raises(ConfigError, match="target"):
        site.run()


def test_two_files_with_one_key_do_not_overwrite_each_other(site: Site) -> None:
    site.write("a/f", b"a")
    site.write("b/f", b"b")
    progress = site.run(key_template="{name}")
    assert len(site.keys()) == 1
    assert progress.parked == 1


def test_a_vanished_tenth_of_a_thousand_is_no_fault_but_most_of_it_is(site: Site) -> None:
    for n in range(220):
        site.write(str(n))
    site.run(find={"mode": "mirror"}, concurrency=8)
    for n in range(200):
        (site.dir / str(n)).unlink()
    with site.running(find={"mode": "mirror"}) as program:
        wait_until(lambda: program.started and bool(program.progress().errors), 20)
        assert "vanished at once" in program.progress().errors[0]
        assert len(site.keys()) == 220
        program.accept_deletions()
        wait_until(lambda: len(site.keys()) == 20, 30)
