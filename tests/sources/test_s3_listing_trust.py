"""The listing source: which listings are believed, and which deletions wait (S7)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_s3 import Answer, FakeS3, Request, error
from support.listing import make, run, told

from sync_engine.errors import StoreUnavailable
from sync_engine.sources.s3_listing import TooManyDeletions
from sync_engine.testing import SystemRuntime

NOTHING = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


@pytest.mark.parametrize("fault", ["500", "cut", "empty", "short", "all empty"])
@pytest.mark.parametrize("workers", [1, 4])
def test_s07_a_listing_that_fails_deletes_nothing(
    fake_s3: FakeS3, state: Path, real: SystemRuntime, fault: str, workers: int
) -> None:
    """Whether the server fails, cuts its answer off, or claims that there is no more."""
    fake_s3.put_many(f"{n:05}" for n in range(3000))
    s3 = {"page_size": 100}
    # What answers nothing ends by the deadline; a scan that ends by itself must not be cut short.
    short = s3 if fault.endswith("empty") else {"page_size": 100, "deadline_s": 0.3}
    run(make(fake_s3, "bucket", state, real, s3=s3))
    began = fake_s3.count

    def rewrite(request: Request, answer: Answer) -> Answer:
        late = request.lists and request.number > began + 8
        if late and request.query.get("max-keys") != "1":
            if fault == "500":
                return error(500, "InternalError")
            if fault == "cut":
                return Answer(200, answer.body[: len(answer.body) // 2])
            if fault == "empty":
                return Answer(200, NOTHING)
            if fault == "short":
                return Answer(200, answer.body, cut=len(answer.body) // 2)
        return Answer(200, NOTHING) if fault == "all empty" and request.lists else answer

    fake_s3.rewrite = rewrite

    changes = []
    with (
        pytest.raises((StoreUnavailable, TooManyDeletions)),
        make(fake_s3, "bucket", state, real, s3=short, workers=workers) as source,
    ):
        changes.extend(source.changes())

    assert changes == []
    fake_s3.rewrite = None
    assert run(make(fake_s3, "bucket", state, real, s3=s3)) == []


@pytest.mark.parametrize("workers", [1, 4])
def test_s07_a_listing_that_ends_a_little_early_is_not_believed(
    fake_s3: FakeS3, state: Path, real: SystemRuntime, workers: int
) -> None:
    """Few enough are missing: they are asked for before they are told."""
    keys = [f"{n:05}" for n in range(1000)]
    fake_s3.put_many(keys)
    s3 = {"page_size": 100}
    run(make(fake_s3, "bucket", state, real, s3=s3))

    def spoil(request: Request) -> Answer | None:
        token = bytes.fromhex(request.query.get("continuation-token", "")).decode()
        after = token or request.query.get("start-after", "")
        return Answer(200, NOTHING) if after >= keys[899] else None

    fake_s3.spoil = spoil
    with pytest.raises(StoreUnavailable, match="left out"):
        run(make(fake_s3, "bucket", state, real, s3=s3, workers=workers))

    fake_s3.spoil = None
    assert run(make(fake_s3, "bucket", state, real, s3=s3)) == []
    fake_s3.remove(*keys[900:])
    fake_s3.spoil = spoil
    assert len(run(make(fake_s3, "bucket", state, real, s3=s3, workers=workers))) == 100


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
