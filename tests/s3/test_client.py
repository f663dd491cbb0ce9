"""The client against two servers that differ wherever they can."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from support.s3_servers import S3Server

from sync_engine.errors import ConfigError, StoreRejected
from sync_engine.s3 import NoSuchKey, NoSuchUpload, PreconditionFailed, S3Client
from sync_engine.testing import SystemRuntime

ODD = [
    "plain", "a b+c%25", "e\u0301 é 日本 😀", "x&lt<>y", "quote\"'`", "tab\there",
    "trailing ", "back\\slash", "q?#[]{}|^~", "deep/er/key", "k" * 200, "\x7fdel", "\x01ctl",
]  # fmt: skip


@pytest.fixture
def client(any_s3: S3Server) -> Iterator[S3Client]:
    runtime = SystemRuntime("test")
    with S3Client(any_s3.settings(deadline_s=10), runtime) as client:
        yield client
    runtime.close(1)


@pytest.fixture
def bucket(any_s3: S3Server) -> str:
    return any_s3.new_bucket()


def test_what_is_put_comes_back_and_is_described(client: S3Client, bucket: str) -> None:
    made = client.put(bucket, "a/b", b"hello", metadata={"who": "me"}, content_type="text/plain")

    found = client.head(bucket, "a/b")
    body = client.get(bucket, "a/b")

    assert found is not None
    assert found.etag == made.etag == "5d41402abc4b2a76b9719d911017c592"
    assert found.size == 5
    assert dict(found.metadata)["who"] == "me"
    assert body.read(100) == b"hello"
    assert client.get(bucket, "a/b", range=(1, 3)).read(10) == b"el"


def test_what_is_absent_is_none_or_an_error(client: S3Client, bucket: str) -> None:
    assert client.head(bucket, "none") is None
    assert client.get_bytes(bucket, "none") is None
    with pytest.raises(NoSuchKey):
        client.get(bucket, "none")
    client.delete(bucket, "none")
    client.delete_many(bucket, ["none", "neither"])


def test_odd_keys_are_listed_byte_for_byte(client: S3Client, bucket: str) -> None:
    for key in ODD:
        client.put(bucket, key, key.encode())

    listed = [row for page in client.iter(bucket) for row in page.rows]

    assert [row[0] for row in listed] == sorted(ODD, key=str.encode)
    assert {row[0]: row[2] for row in listed} == {key: len(key.encode()) for key in ODD}
    client.delete_many(bucket, ODD)
    assert not [row for page in client.iter(bucket) for row in page.rows]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_pages_join_to_the_listing(client: S3Client, bucket: str, size: int) -> None:
    keys = [f"k{n:02}" for n in range(11)]
    for key in keys:
        client.put(bucket, key, b"x")
    small = S3Client(client.settings.with_(page_size=size), client._runtime)

    listed = [row[0] for page in small.iter(bucket) for row in page.rows]
    after = [row[0] for page in small.iter(bucket, start_after="k04x") for row in page.rows]

    assert listed == keys
    assert after == keys[5:]
    small.close()


def test_common_prefixes_are_folded(client: S3Client, bucket: str) -> None:
    for key in ("a+ 1/x", "a+ 1/y", "b/z", "top"):
        client.put(bucket, key, b"x")

    page = client.list_page(bucket, delimiter="/")

    assert list(page.prefixes) == ["a+ 1/", "b/"]
    assert [row[0] for row in page.rows] == ["top"]


def test_parts_join_to_an_object(client: S3Client, bucket: str) -> None:
    upload = client.create_multipart(bucket, "big", metadata={"m": "1"})
    first, last = b"a" * (5 << 20), b"end"

    parts = [
        client.put_part(bucket, "big", upload, 1, first),
        client.put_part(bucket, "big", upload, 2, io.BytesIO(last)),
    ]
    assert client.list_parts(bucket, "big", upload) == parts
    made = client.complete_multipart(bucket, "big", upload, parts)

    assert made.size == len(first) + 3
    assert client.get(bucket, "big").read(1 << 30) == first + last
    assert not list(client.list_uploads(bucket))


def test_an_upload_can_be_found_and_dropped(client: S3Client, bucket: str) -> None:
    upload = client.create_multipart(bucket, "dir/begun +", content_type="a/b")

    assert [(u.key, u.upload_id) for u in client.list_uploads(bucket)] == [("dir/begun +", upload)]
    client.abort_multipart(bucket, "dir/begun +", upload)
    client.abort_multipart(bucket, "dir/begun +", upload)
    with pytest.raises(NoSuchUpload):
        client.list_parts(bucket, "dir/begun +", upload)

    assert not list(client.list_uploads(bucket))


def test_copies_are_made_by_the_server(client: S3Client, bucket: str) -> None:
    client.put(bucket, "from +é", b"abc")

    made = client.copy(bucket, "from +é", bucket, "to")

    assert made.size == 3
    assert client.get(bucket, "to").read(3) == b"abc"


def test_a_missing_bucket_is_a_mistake_in_the_settings(client: S3Client) -> None:
    for call in (client.head_bucket, lambda name: client.list_page(name)):
        with pytest.raises(ConfigError, match="no such bucket"):
            call("nowhere-at-all")


def test_an_absent_bucket_is_no_absent_object_where_that_matters(client: S3Client) -> None:
    """The answer to a HEAD has no body that could tell which of the two it is."""
    assert client.head("nowhere-at-all", "k") is None

    with pytest.raises(ConfigError, match="no such bucket"):
        client.head("nowhere-at-all", "k", sure=True)
    with pytest.raises(ConfigError, match="no such bucket"):
        client.delete("nowhere-at-all", "k", if_match="0" * 32)


def test_an_absent_object_is_surely_absent(client: S3Client, bucket: str) -> None:
    assert client.head(bucket, "none", sure=True) is None


def test_only_the_object_that_was_seen_is_deleted_where_the_server_can(
    client: S3Client, bucket: str, any_s3: S3Server
) -> None:
    seen = client.put(bucket, "k", b"1")
    client.put(bucket, "k", b"2")

    if any_s3.name == "moto-s3":
        with pytest.raises(PreconditionFailed):
            client.delete(bucket, "k", if_match=seen.etag)
        assert client.get(bucket, "k").read(10) == b"2"
    found = client.head(bucket, "k")
    assert found is not None
    client.delete(bucket, "k", if_match=found.etag)
    assert client.head(bucket, "k") is None
    client.delete(bucket, "k", if_match=found.etag)


def test_conditions_are_probed(request: Any, client: S3Client, bucket: str, any_s3: Any) -> None:
    supported = client.supports_conditional_writes(bucket)

    assert supported is (any_s3.name == "moto-s3")
    assert not [row for page in client.iter(bucket) for row in page.rows]
    if supported:
        client.put(bucket, "k", b"1", if_absent=True)
        with pytest.raises(PreconditionFailed):
            client.put(bucket, "k", b"2", if_absent=True)


def test_objects_beyond_the_bound_are_not_read(client: S3Client, bucket: str) -> None:
    client.put(bucket, "k", b"12345")

    with pytest.raises(StoreRejected, match="5 bytes"):
        client.get_bytes(bucket, "k", bytes_max=4)


def test_a_wrong_secret_is_told(rclone_s3: S3Server) -> None:
    bucket = rclone_s3.new_bucket()
    runtime = SystemRuntime("test")
    with (
        S3Client(rclone_s3.settings(secret_access_key="wrong"), runtime) as client,
        pytest.raises(ConfigError, match="secret access key"),
    ):
        client.list_page(bucket)
