"""Files to S3: what is stored, under which key, and how it is verified."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from support.fake_s3 import Answer, Request
from upload.site import FULL, MIB, PREFIX, QUICKLY, Site, content, foreign
from upload.spoiling import SpoilingS3

from sync_engine.core import failpoints
from sync_engine.errors import ConfigError
from sync_engine.s3 import S3Client
from sync_engine.sinks.s3_upload.digests import Digests, holds, multipart_etag
from sync_engine.sources.file_watch import path_of

pytestmark = pytest.mark.external


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
