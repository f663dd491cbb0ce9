"""The listing source: scans tell what the listing has, whole and in parts (S1 to S8)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.fake_s3 import Answer, FakeS3, Request, error
from support.listing import OPERATIONS, listing, make, replay, run, told
from support.s3_servers import S3Server

from sync_engine.errors import StoreUnavailable
from sync_engine.testing import SystemRuntime


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


def test_s01_a_state_taken_over_for_another_bucket_begins_with_a_baseline(
    moto_s3: S3Server, state: Path, real: SystemRuntime
) -> None:
    first, second, client = moto_s3.new_bucket(), moto_s3.new_bucket(), moto_s3.boto()
    for bucket in (first, second):
        client.put_object(Bucket=bucket, Key=f"of {bucket}", Body=b"x")
    run(make(moto_s3, first, state, real))

    assert run(make(moto_s3, second, state, real, rebase=True, baseline=True)) == []

    client.put_object(Bucket=second, Key="new", Body=b"y")
    assert told(run(make(moto_s3, second, state, real, baseline=True))) == [("added", "new")]
    client.close()


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


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_s04_one_source_scans_again_and_again(
    fake_s3: FakeS3, state: Path, real: SystemRuntime, workers: int
) -> None:
    """What one scan has come to is nothing to the next."""
    fake_s3.put_many(f"f{n % 9}/{n:05}" for n in range(900))
    source = make(fake_s3, "bucket", state, real, s3={"page_size": 20}, workers=workers)
    with source:
        for generation in range(1, 5):
            changes = list(source.changes())
            source.ack(changes[-1].seq)
            assert source.statistics().listed == 900
            fake_s3.put_many(["f0/00000"], generation=generation)
            expected = [("modified", "f0/00000")]
            assert generation == 1 or told(changes) == expected


def test_s06_a_scan_goes_on_where_it_was(fake_s3: FakeS3, state: Path, real: SystemRuntime) -> None:
    """After a failure at 60 % of the pages, the rest is asked for, by key and not by token."""
    fake_s3.put_many(f"{n:05}" for n in range(2000))
    s3 = {"page_size": 20}
    short = {"page_size": 20, "deadline_s": 1.0}

    def spoil(request: Request) -> Answer | None:
        return error(500, "InternalError") if request.number > 60 else None

    fake_s3.spoil = spoil
    seen = []
    with pytest.raises(StoreUnavailable), make(fake_s3, "bucket", state, real, s3=short) as source:
        for change in source.changes():
            seen.append(change)
            source.ack(change.seq)
    fake_s3.spoil = None
    fake_s3.requests.clear()

    seen += run(make(fake_s3, "bucket", state, real, s3=s3))

    assert [c.key for c in seen] == [f"{n:05}" for n in range(2000)]
    assert len(fake_s3.requests) <= 45
    assert "start-after" in fake_s3.requests[0].query


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
