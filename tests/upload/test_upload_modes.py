"""Files to S3: which files are followed and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_s3 import Answer, Request, error
from upload.site import PREFIX, QUICKLY, Site, foreign, wait_until
from upload.spoiling import SpoilingS3

pytestmark = pytest.mark.external


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


def test_u12_mirror_deletes_only_what_it_looked_at(site: Site) -> None:
    site.write("a", b"mine")
    site.write("b", b"mine")
    with SpoilingS3(site.server.port) as between:
        site.endpoint_url = between.endpoint_url

        def meanwhile(request: Request) -> None:
            if request.method == "DELETE" and request.key == f"{PREFIX}/a":
                foreign(site, "a")

        with site.running(find={"mode": "mirror"}) as program:
            site.settle(program)
            between.spoil = meanwhile
            (site.dir / "a").unlink()
            (site.dir / "b").unlink()
            wait_until(lambda: site.keys() == ["a"], 30)
            site.settle(program)
    assert site.objects() == {"a": site.get("a")}
    assert site.get("a") != b"mine"


def test_u12_mirror_waits_for_a_bucket_that_is_away(site: Site) -> None:
    """An object that cannot be seen for want of its bucket is not taken for deleted."""
    site.write("a", b"mine")
    with SpoilingS3(site.server.port) as between:
        site.endpoint_url = between.endpoint_url
        asked: list[str] = []

        def away(request: Request) -> Answer:
            asked.append(request.key)
            return error(404, "NoSuchBucket")

        with site.running(find={"mode": "mirror"}, **QUICKLY) as program:
            site.settle(program)
            between.spoil = away
            (site.dir / "a").unlink()
            wait_until(lambda: len(asked) > 3, 30)
            assert site.keys() == ["a"]
            between.spoil = lambda request: None
            wait_until(lambda: site.keys() == [], 30)
