"""The listing source: what it tells, S1 to S13, on two servers and a fake."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_s3 import Answer, FakeS3, Request, error
from support.listing import listing, make, replay, run, told
from support.s3_servers import S3Server

from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.sources.s3_listing import Deleted, Modified, TooManyDeletions
from sync_engine.testing import SystemRuntime

OPERATIONS = int(os.environ.get("S3_OPERATIONS", "300"))
ODD = [
    "plain", "a b+c%25", "é", "e\u0301", "日本", "😀\uffee", "x&lt<>y", "quote\"'`", "tab\there",
    "trailing ", "back\\slash", "q?#[]{}|^~", "deep/er/key", "k" * 200, "ü" * 450, "\x7fdel",
    "\x01ctl", "%2F", "+", " ",
]  # fmt: skip


@pytest.fixture
def real() -> Iterator[SystemRuntime]:
    runtime = SystemRuntime("test")
    yield runtime
    runtime.close(1)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def test_s01_changes_replay_to_the_listing(
    any_s3: S3Server, state: Path, real: SystemRuntime
) -> None:
    """Whatever happens between scans, replaying all that was told gives the bucket."""
    bucket, client, rng = any_s3.new_bucket(), any_s3.boto(), random.Random(1)
    keys = [f"d{n % 7}/k{n}" for n in range(120)]
    known: dict[str, str] = {}
    for scan in range(20 if OPERATIONS >= 1000 else 8):
        for _ in range(OPERATIONS // 20):
            key = rng.choice(keys)
            if rng.random() < 0.35:
                client.delete_object(Bucket=bucket, Key=key)
            else:
                client.put_object(Bucket=bucket, Key=key, Body=rng.randbytes(rng.randrange(40)))

        source = make(any_s3, bucket, state, real, s3={"page_size": 10}, max_delete=10**6)
        replay(run(source), known)

        assert known == listing(any_s3, bucket), scan
    client.close()


def test_s01_a_baseline_tells_nothing(fake_s3: FakeS3, state: Path, real: SystemRuntime) -> None:
    fake_s3.put("a", b"1")

    assert run(make(fake_s3, "bucket", state, real, baseline=True)) == []

    fake_s3.put("b", b"2")
    assert told(run(make(fake_s3, "bucket", state, real, baseline=True))) == [("added", "b")]


@pytest.mark.parametrize("workers", [2, 8])
def test_s04_ranges_side_by_side_find_the_same(
    fake_s3: FakeS3, tmp_path: Path, real: SystemRuntime, workers: int
) -> None:
    keys = [f"f{n % 9}/{n:05}" for n in range(6000)]
    fake_s3.put_many(keys)
    one, many = tmp_path / "one.db", tmp_path / "many.db"
    s3 = {"page_size": 50}
    assert {c.key for c in run(make(fake_s3, "bucket", one, real, s3=s3))} == set(keys)
    assert {c.key for c in run(make(fake_s3, "bucket", many, real, s3=s3, workers=workers))} == set(
        keys
    )
    rng = random.Random(2)
    fake_s3.put_many(rng.sample(keys, 300), generation=1)
    fake_s3.remove(*rng.sample(keys, 200))
    fake_s3.put_many([f"new{n}" for n in range(100)])

    serial = run(make(fake_s3, "bucket", one, real, s3=s3))
    fake_s3.requests.clear()
    parallel = run(make(fake_s3, "bucket", many, real, s3=s3, workers=workers))

    assert sorted(told(serial)) == sorted(told(parallel))
    starts = {r.query["start-after"] for r in fake_s3.requests if "start-after" in r.query}
    assert len(starts) >= workers


def test_s06_a_scan_goes_on_where_it_was(fake_s3: FakeS3, state: Path, real: SystemRuntime) -> None:
    """After a failure at 60 % of the pages, the rest is asked for, by key and not by token."""
    fake_s3.put_many(f"{n:05}" for n in range(2000))
    s3 = {"page_size": 20, "deadline_s": 0.3}

    def spoil(request: Request) -> Answer | None:
        return error(500, "InternalError") if request.number > 60 else None

    fake_s3.spoil = spoil
    seen = []
    with pytest.raises(StoreUnavailable), make(fake_s3, "bucket", state, real, s3=s3) as source:
        for change in source.changes():
            seen.append(change)
            source.ack(change.seq)
    fake_s3.spoil = None
    fake_s3.requests.clear()

    seen += run(make(fake_s3, "bucket", state, real, s3=s3))

    assert [c.key for c in seen] == [f"{n:05}" for n in range(2000)]
    assert len(fake_s3.requests) <= 45
    assert "start-after" in fake_s3.requests[0].query


@pytest.mark.parametrize("fault", ["500", "cut", "empty", "short", "all empty"])
@pytest.mark.parametrize("workers", [1, 4])
def test_s07_a_listing_that_fails_deletes_nothing(
    fake_s3: FakeS3, state: Path, real: SystemRuntime, fault: str, workers: int
) -> None:
    """Whether the server fails, cuts its answer off, or claims that there is no more."""
    fake_s3.put_many(f"{n:05}" for n in range(3000))
    s3 = {"page_size": 100, "deadline_s": 0.3}
    run(make(fake_s3, "bucket", state, real, s3=s3))
    began = fake_s3.count
    nothing = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"

    def rewrite(request: Request, answer: Answer) -> Answer:
        late = request.lists and request.number > began + 8
        if late and request.query.get("max-keys") != "1":
            if fault == "500":
                return error(500, "InternalError")
            if fault == "cut":
                return Answer(200, answer.body[: len(answer.body) // 2])
            if fault == "empty":
                return Answer(200, nothing)
            if fault == "short":
                return Answer(200, answer.body, cut=len(answer.body) // 2)
        return Answer(200, nothing) if fault == "all empty" and request.lists else answer

    fake_s3.rewrite = rewrite

    changes = []
    with (
        pytest.raises((StoreUnavailable, TooManyDeletions)),
        make(fake_s3, "bucket", state, real, s3=s3, workers=workers) as source,
    ):
        changes.extend(source.changes())

    assert changes == []
    fake_s3.rewrite = None
    assert run(make(fake_s3, "bucket", state, real, s3=s3)) == []


def test_s07_many_deletions_wait_for_a_word(
    fake_s3: FakeS3, state: Path, real: SystemRuntime
) -> None:
    fake_s3.put_many(f"{n:05}" for n in range(500))
    run(make(fake_s3, "bucket", state, real))
    fake_s3.remove(*(f"{n:05}" for n in range(300)))
    fake_s3.put("new", b"n")

    changes = []
    source = make(fake_s3, "bucket", state, real)
    with source, pytest.raises(TooManyDeletions, match="300 of 500") as caught:
        for change in source.changes():
            changes.append(change)
            source.ack(change.seq)

    assert told(changes) == [("added", "new")]
    assert (caught.value.missing, caught.value.known) == (300, 500)
    with pytest.raises(TooManyDeletions):
        run(make(fake_s3, "bucket", state, real, max_delete=299))
    assert len(run(make(fake_s3, "bucket", state, real, force_delete=True))) == 300
    assert run(make(fake_s3, "bucket", state, real)) == []


def test_s08_a_listing_without_order_is_sorted_first(
    fake_s3: FakeS3, tmp_path: Path, real: SystemRuntime
) -> None:
    keys = [f"{n:04}" for n in range(1500)]
    fake_s3.put_many(keys)
    rng, s3 = random.Random(3), {"page_size": 100}
    ordered, shuffled = tmp_path / "a.db", tmp_path / "b.db"
    run(make(fake_s3, "bucket", ordered, real, s3=s3))

    def shuffle(page: list[str]) -> list[str]:
        rng.shuffle(page)
        return page

    fake_s3.order = shuffle
    assert {c.key for c in run(make(fake_s3, "bucket", shuffled, real, s3=s3))} == set(keys)
    fake_s3.put_many(keys[100:110], generation=1)
    fake_s3.remove(*keys[500:520])
    second = run(make(fake_s3, "bucket", shuffled, real, s3=s3))
    fake_s3.order = None

    assert told(second) == told(run(make(fake_s3, "bucket", ordered, real, s3=s3)))


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


def test_s11_odd_keys_are_told_byte_for_byte(
    any_s3: S3Server, state: Path, real: SystemRuntime
) -> None:
    bucket, client = any_s3.new_bucket(), any_s3.boto()
    more = ["a//b", "./x", "../y", "/lead"] if any_s3.name == "moto-s3" else []
    keys = [*(key for key in ODD if len(key.encode()) < 250 or more), *more]
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())

    changes = run(make(any_s3, bucket, state, real, s3={"page_size": 3}))

    assert [c.key for c in changes] == sorted(keys, key=str.encode)
    assert run(make(any_s3, bucket, state, real, s3={"page_size": 2})) == []
    client.close()


@pytest.mark.parametrize("encoding", ["url", "none"])
def test_s11_keys_no_file_system_takes_are_told_too(
    fake_s3: FakeS3, state: Path, real: SystemRuntime, encoding: str
) -> None:
    keys = [*ODD, "new\nline", "\r", "a//b", "/lead", "x\x1fy", "amp;&amp;"]
    if encoding == "none":  # an XML that is not encoded cannot hold them
        keys = [key for key in keys if not any(ord(c) < 32 for c in key)]
        fake_s3.spoil = lambda request: request.query.pop("encoding-type", None) and None
    for key in keys:
        fake_s3.put(key, key.encode())

    changes = run(make(fake_s3, "bucket", state, real, s3={"page_size": 4}))

    assert [c.key for c in changes] == sorted(keys, key=str.encode)


def test_s12_filters_never_delete(fake_s3: FakeS3, state: Path, real: SystemRuntime) -> None:
    for key in ("logs/a.txt", "logs/b.tmp", "data/c.txt", "data/d.bin"):
        fake_s3.put(key, key.encode())
    given = {"include": ["*.txt", "*.bin"], "exclude": ["logs/*"]}
    first = run(make(fake_s3, "bucket", state, real, **given))
    assert told(first) == [("added", "data/c.txt"), ("added", "data/d.bin")]

    for other in (
        {"include": ["*.txt"]},
        {"prefix": "data/", **given},
        {"s3": {"endpoint_url": "http://127.0.0.1:9"}, **given},
    ):
        source = make(fake_s3, "bucket", state, real, **other)
        with pytest.raises(ConfigError, match="rebase"):
            source.open()
    with pytest.raises(ConfigError, match="bucket was 'bucket'"):
        make(fake_s3, "other", state, real, **given).open()

    assert run(make(fake_s3, "bucket", state, real, **given)) == []
    narrower = make(fake_s3, "bucket", state, real, include=["*.txt"], rebase=True)
    assert told(run(narrower)) == [("added", "logs/a.txt")]


def test_s12_a_prefix_is_literal(fake_s3: FakeS3, state: Path, real: SystemRuntime) -> None:
    for key in ("a%b/1", "a%b/2", "aXb/3", "a%c"):
        fake_s3.put(key, b"x")

    changes = run(make(fake_s3, "bucket", state, real, prefix="a%b/", s3={"page_size": 1}))

    assert [c.key for c in changes] == ["a%b/1", "a%b/2"]
    fake_s3.remove("a%b/1", "aXb/3")
    assert told(run(make(fake_s3, "bucket", state, real, prefix="a%b/"))) == [("deleted", "a%b/1")]


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
