"""The listing source: which objects are the same, which are renamed (S9, S10, S13)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_s3 import Answer, FakeS3
from support.listing import OPERATIONS, make, run, told
from support.s3_servers import S3Server

from sync_engine.sources.s3_listing import Deleted, Modified
from sync_engine.testing import SystemRuntime


def test_s09_quotes_are_no_difference(fake_s3: FakeS3, state: Path, real: SystemRuntime) -> None:
    fake_s3.put_many(f"{n:03}" for n in range(50))
    run(make(fake_s3, "bucket", state, real))

    fake_s3.rewrite = lambda _, a: Answer(a.status, a.body.replace(b"&quot;", b""))

    assert run(make(fake_s3, "bucket", state, real)) == []


def test_s09_unquoted_etags_of_a_listing_are_those_of_its_objects(
    rclone_s3: S3Server, state: Path, real: SystemRuntime
) -> None:
    bucket, client = rclone_s3.new_bucket(), rclone_s3.boto()
    client.put_object(Bucket=bucket, Key="k", Body=b"hello")

    (change,) = run(make(rclone_s3, bucket, state, real))

    assert change.new.etag == client.head_object(Bucket=bucket, Key="k")["ETag"].strip('"')
    assert run(make(rclone_s3, bucket, state, real)) == []
    client.close()


def test_s09_what_is_the_same_object_is_a_policy(
    moto_s3: S3Server, tmp_path: Path, real: SystemRuntime
) -> None:
    bucket, client = moto_s3.new_bucket(), moto_s3.boto()
    identities = ["etag", "etag+mtime", "size+mtime"]

    def scans() -> list[list[str]]:
        return [
            [str(c.op) for c in run(make(moto_s3, bucket, tmp_path / f"{i}.db", real, identity=i))]
            for i in identities
        ]

    def put(body: bytes) -> None:
        before = [c["LastModified"] for c in client.list_objects_v2(Bucket=bucket)["Contents"]]
        after = before
        while after == before:  # last-modified has seconds here
            client.put_object(Bucket=bucket, Key="k", Body=body)
            after = [c["LastModified"] for c in client.list_objects_v2(Bucket=bucket)["Contents"]]

    client.put_object(Bucket=bucket, Key="k", Body=b"one")
    assert scans() == [["added"]] * 3
    put(b"two")
    assert scans() == [["modified"]] * 3
    put(b"two")
    assert scans() == [[], ["modified"], ["modified"]]
    client.close()


def test_s09_a_change_of_part_size_is_marked(
    moto_s3: S3Server, state: Path, real: SystemRuntime
) -> None:
    bucket, client = moto_s3.new_bucket(), moto_s3.boto()
    body = bytes(12 << 20)

    def put(part: int) -> None:
        id = client.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
        parts = []
        for number, low in enumerate(range(0, len(body), part), 1):
            done = client.upload_part(
                Bucket=bucket, Key="k", UploadId=id, PartNumber=number, Body=body[low : low + part]
            )
            parts.append({"PartNumber": number, "ETag": done["ETag"]})
        client.complete_multipart_upload(
            Bucket=bucket, Key="k", UploadId=id, MultipartUpload={"Parts": parts}
        )

    put(6 << 20)
    run(make(moto_s3, bucket, state, real))
    put(5 << 20)
    (change,) = run(make(moto_s3, bucket, state, real))

    assert isinstance(change, Modified)
    assert change.etag_kind == "multipart"
    client.close()


def test_s10_renames_are_told_where_they_are_certain(
    any_s3: S3Server, state: Path, real: SystemRuntime
) -> None:
    bucket, client = any_s3.new_bucket(), any_s3.boto()
    moves = 100 if OPERATIONS >= 1000 else 20

    def move(old: str, new: str) -> None:
        client.copy_object(Bucket=bucket, Key=new, CopySource={"Bucket": bucket, "Key": old})
        client.delete_object(Bucket=bucket, Key=old)

    for n in range(moves * 2):
        client.put_object(Bucket=bucket, Key=f"old/{n:03}", Body=f"content {n}".encode())
    for n in range(3):
        client.put_object(Bucket=bucket, Key=f"copies/{n}", Body=b"same")
    client.put_object(Bucket=bucket, Key="void/1", Body=b"")
    source = make(any_s3, bucket, state, real, renames=True)
    assert {c.op for c in run(source)} == {"added"}

    for n in range(moves):
        move(f"old/{n:03}", f"new/{n:03}")
    for n in range(3):
        move(f"copies/{n}", f"moved/{n}")
    move("void/1", "void/2")
    changes = run(make(any_s3, bucket, state, real, renames=True))

    renamed = {c.old.key: c.new.key for c in changes if c.op == "renamed"}
    assert renamed == {f"old/{n:03}": f"new/{n:03}" for n in range(moves)}
    assert sorted(t for t in told(changes) if t[0] != "renamed") == sorted(
        [("added", f"moved/{n}") for n in range(3)]
        + [("deleted", f"copies/{n}") for n in range(3)]
        + [("added", "void/2"), ("deleted", "void/1")]
    )
    client.close()


@pytest.mark.parametrize(("before", "after"), [(["a"], ["b", "c"]), (["a", "b"], ["c"])])
def test_s10_what_went_to_several_places_is_no_rename(
    fake_s3: FakeS3, state: Path, real: SystemRuntime, before: list[str], after: list[str]
) -> None:
    for key in before:
        fake_s3.put(key, b"same")
    run(make(fake_s3, "bucket", state, real, renames=True))
    fake_s3.remove(*before)
    for key in after:
        fake_s3.put(key, b"same")

    changes = run(make(fake_s3, "bucket", state, real, renames=True))

    expected = [("added", key) for key in after] + [("deleted", key) for key in before]
    assert told(changes) == expected


def test_s13_versions_show_rewrites_and_delete_markers(
    moto_s3: S3Server, state: Path, real: SystemRuntime
) -> None:
    bucket, client = moto_s3.new_bucket(), moto_s3.boto()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for key in ("a", "b", "c"):
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    first = run(make(moto_s3, bucket, state, real, versions=True))
    assert told(first) == [("added", "a"), ("added", "b"), ("added", "c")]

    again = client.put_object(Bucket=bucket, Key="b", Body=b"b")
    marker = client.delete_object(Bucket=bucket, Key="c")
    second = run(make(moto_s3, bucket, state, real, versions=True))

    assert told(second) == [("modified", "b"), ("deleted", "c")]
    assert second[0].new.version == again["VersionId"]
    assert isinstance(second[1], Deleted)
    assert second[1].marker == marker["VersionId"]
    assert run(make(moto_s3, bucket, state, real, versions=True)) == []
    client.close()
