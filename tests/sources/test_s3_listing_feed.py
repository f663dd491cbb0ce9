"""The listing source as a source of the engine: items, contents, what is put aside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_s3 import Answer, FakeS3, error
from support.s3_servers import S3Server

from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.ports import AdapterContext
from sync_engine.sources.s3_listing import S3ListingFeed, from_settings
from sync_engine.testing import ManualClock, ManualRuntime, SystemRuntime


@pytest.fixture
def context(tmp_path: Path, clock: ManualClock) -> AdapterContext:
    return AdapterContext(
        name="photos", runtime=ManualRuntime(clock), data_dir=tmp_path, wake=lambda: None
    )


def of(server: Any, bucket: str = "bucket", **settings: Any) -> dict[str, Any]:
    return {
        "bucket": bucket, "endpoint_url": server.endpoint_url, "deadline_s": 5.0,
        "access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key,
    } | settings  # fmt: skip


@pytest.fixture
def feeds() -> Iterator[list[S3ListingFeed]]:
    made: list[S3ListingFeed] = []
    yield made
    for feed in made:
        feed.close()


def take(feed: S3ListingFeed, items_max: int = 10) -> list[Change]:
    """Poll and acknowledge until the source asks to wait."""
    changes: list[Change] = []
    while True:
        batch = feed.poll(items_max)
        assert len(batch.changes) <= items_max
        changes += batch.changes
        feed.ack(batch.token)
        if batch.wait_s:
            return changes


def test_objects_become_items_that_describe_them(
    fake_s3: FakeS3, context: AdapterContext, clock: ManualClock
) -> None:
    for n in range(25):
        fake_s3.put(f"in/{n:02}", str(n).encode())
    feed = from_settings(
        context, **of(fake_s3, prefix="in/", id_template="s3.{name}", interval_s=30.0)
    )
    feed.attach()

    first = take(feed)

    assert [c.id for c in first] == [f"s3.{n:02}" for n in range(25)]
    assert json.loads(first[7].content or b"") == {
        "bucket": "bucket", "key": "in/07", "etag": "8f14e45fceea167a5a36dedd4bea2543", "size": 1,
        "modified_ms": 1767323045000,
    }  # fmt: skip
    fake_s3.remove("in/03")
    assert take(feed) == []
    clock.advance(31)
    assert take(feed) == [Change("s3.03", 0, None)]
    assert feed.progress()["scans"] == 2
    feed.close()


@pytest.mark.parametrize("crash", [True, False])
def test_what_was_not_acknowledged_is_given_again(
    fake_s3: FakeS3, context: AdapterContext, crash: bool
) -> None:
    fake_s3.put_many(f"{n}" for n in range(6))
    feed = from_settings(context, **of(fake_s3))
    feed.attach()
    while not (batch := feed.poll(4)).changes:
        pass
    feed.ack(batch.token)
    second = feed.poll(4)
    assert [c.id for c in second.changes] == ["2", "3"]
    if crash:
        feed.close()
        feed = from_settings(context, **of(fake_s3))
    else:
        feed.close()
    feed.attach()

    again = take(feed)

    assert [c.id for c in again] == ["2", "3", "4", "5"]
    feed.close()


def test_contents_are_verified_and_what_does_not_fit_is_parked(
    any_s3: S3Server, tmp_path: Path
) -> None:
    bucket, client = any_s3.new_bucket(), any_s3.boto()
    for key, body in (("a", b"alpha"), ("big", b"x" * 2000), ("k" * 200, b"long id"), ("z", b"")):
        client.put_object(Bucket=bucket, Key=key, Body=body)
    real = SystemRuntime("test")
    context = AdapterContext(name="x", runtime=real, data_dir=tmp_path, wake=lambda: None)
    settings = of(
        any_s3, bucket, content="object", bytes_max=1000, id_template="{key}{key}{key}",
    )  # fmt: skip
    feed = from_settings(context, **settings)
    feed.attach()

    changes = take(feed)

    assert {c.id: c.content for c in changes} == {"aaa": b"alpha", "zzz": b""}
    assert feed.progress()["parked"] == 2
    parked = {key: reason for key, _, reason in feed.source.state.parked()}
    assert "2,000 bytes" in parked["big"]
    assert "1 to 512 bytes" in parked["k" * 200]
    feed.close()
    real.close(1)
    client.close()


def test_damaged_bytes_are_no_item(fake_s3: FakeS3, context: AdapterContext) -> None:
    fake_s3.put("k", b"good")
    fake_s3.rewrite = lambda r, a: Answer(200, b"evil", a.headers) if r.key else a
    feed = from_settings(context, **of(fake_s3, content="object"))
    feed.attach()

    assert take(feed) == []
    assert feed.source.state.parked()[0][0] == "k"
    feed.close()


def test_what_was_put_aside_and_taken_later_is_put_aside_no_more(
    fake_s3: FakeS3, context: AdapterContext, clock: ManualClock
) -> None:
    fake_s3.put("k", b"x" * 2000)
    feed = from_settings(context, **of(fake_s3, content="object", bytes_max=1000, interval_s=10.0))
    feed.attach()
    assert take(feed) == []
    assert [key for key, _, _ in feed.source.state.parked()] == ["k"]

    fake_s3.put("k", b"small")
    clock.advance(11)

    assert [c.content for c in take(feed)] == [b"small"]
    assert feed.source.state.parked() == []
    feed.close()


@pytest.mark.parametrize("damaged", [True, False])
def test_what_was_refused_is_asked_for_again(
    fake_s3: FakeS3, context: AdapterContext, clock: ManualClock, damaged: bool
) -> None:
    """A permission that was missing, or a bad wire, must not cost the object for good."""
    fake_s3.put("k", b"good")
    fake_s3.put("large", b"x" * 2000)
    feed = from_settings(context, **of(fake_s3, content="object", bytes_max=1000, interval_s=10.0))
    feed.attach()
    bad = error(403, "AccessDenied")
    fake_s3.rewrite = lambda r, a: (Answer(200, b"evil", a.headers) if damaged else bad) if (
        r.key == "k"
    ) else a  # fmt: skip
    for _ in range(2):
        assert take(feed) == []
        assert feed.progress()["parked"] == 2
        clock.advance(11)

    fake_s3.rewrite = None

    assert [c.content for c in take(feed)] == [b"good"]
    assert [key for key, _, _ in feed.source.state.parked()] == ["large"]
    assert len([r for r in fake_s3.requests if r.key == "large"]) == 1
    feed.close()


def test_an_object_with_a_bad_id_leaves_nothing_when_it_goes(
    fake_s3: FakeS3, context: AdapterContext, clock: ManualClock
) -> None:
    fake_s3.put("k" * 600, b"1")
    settings = of(fake_s3, renames=True, interval_s=10.0)
    feed = from_settings(context, **settings)
    feed.attach()
    assert take(feed) == []
    assert feed.progress()["parked"] == 1

    fake_s3.remove("k" * 600)
    fake_s3.put("fine", b"1")
    clock.advance(11)

    assert [(c.id, c.content is None) for c in take(feed)] == [("fine", False)]
    assert feed.source.state.parked() == []
    assert feed.progress()["parked"] == 1
    feed.close()


@pytest.mark.parametrize("back", [True, False])
def test_what_was_gone_for_a_moment_is_not_lost(
    fake_s3: FakeS3, context: AdapterContext, clock: ManualClock, back: bool
) -> None:
    """It comes back as it was listed: to the listing, nothing has happened."""
    fake_s3.put("k", b"bytes")
    feed = from_settings(context, **of(fake_s3, content="object", interval_s=10.0))
    feed.attach()
    fake_s3.spoil = lambda r: error(404, "NoSuchKey") if r.key else None
    assert take(feed) == []
    assert feed.progress()["vanished"] == 1

    fake_s3.spoil = None
    if not back:
        fake_s3.remove("k")
    clock.advance(11)

    assert [c.content for c in take(feed)] == [b"bytes" if back else None]
    clock.advance(11)
    assert take(feed) == []
    feed.close()


def test_a_failure_skips_nothing_and_what_came_before_it_does_not_wait(
    fake_s3: FakeS3, context: AdapterContext, feeds: list[S3ListingFeed]
) -> None:
    for n in range(5):
        fake_s3.put(f"{n}", str(n).encode())
    feeds.append(from_settings(context, **of(fake_s3, content="object", deadline_s=0.3)))
    (feed,) = feeds
    feed.attach()
    fake_s3.spoil = lambda r: error(503, "SlowDown") if r.key == "2" else None

    while not (batch := feed.poll(10)).changes:
        pass
    assert [c.content for c in batch.changes] == [b"0", b"1"]
    with pytest.raises(StoreUnavailable):
        feed.poll(10)
    assert [r.key for r in fake_s3.requests if r.key in {"0", "1"}] == ["0", "1"]
    fake_s3.spoil = None

    assert [c.content for c in take(feed)] == [b"2", b"3", b"4"]


def poll_through(feed: S3ListingFeed) -> tuple[list[Change], int]:
    """Poll and acknowledge until the source asks to wait; count the failures on the way."""
    changes: list[Change] = []
    failures = 0
    while True:
        try:
            batch = feed.poll(10)
        except StoreUnavailable:
            failures += 1
            assert failures < 50
            continue
        changes += batch.changes
        feed.ack(batch.token)
        if batch.wait_s:
            return changes, failures


def test_objects_that_always_fail_hold_up_no_others(
    fake_s3: FakeS3, context: AdapterContext, clock: ManualClock, feeds: list[S3ListingFeed]
) -> None:
    """They are put aside after five tries, asked for once after each scan, and then taken."""
    for n in range(4):
        fake_s3.put(f"{n}", str(n).encode())
    settings = of(fake_s3, content="object", deadline_s=0.01, interval_s=10.0)
    feeds.append(from_settings(context, **settings))
    (feed,) = feeds
    feed.attach()
    fake_s3.spoil = lambda r: error(500, "InternalError") if r.key in {"1", "2"} else None

    changes, failures = poll_through(feed)

    assert [c.content for c in changes] == [b"0", b"3"]
    assert failures == 2 * 3  # the first of five tries ended a batch, the last put it aside
    assert [key for key, _, _ in feed.source.state.parked()] == ["1", "2"]
    clock.advance(11)
    assert poll_through(feed) == ([], 0)

    fake_s3.spoil = None
    clock.advance(11)

    assert [c.content for c in poll_through(feed)[0]] == [b"1", b"2"]
    assert feed.source.state.parked() == []


def test_a_server_that_is_away_puts_nothing_aside(
    fake_s3: FakeS3, context: AdapterContext, feeds: list[S3ListingFeed]
) -> None:
    for n in range(3):
        fake_s3.put(f"{n}", str(n).encode())
    feeds.append(from_settings(context, **of(fake_s3, content="object", deadline_s=0.01)))
    (feed,) = feeds
    feed.attach()
    while not feed.source.step():
        pass
    fake_s3.spoil = lambda _: error(500, "InternalError")

    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            feed.poll(10)
    fake_s3.spoil = None

    assert [c.content for c in take(feed)] == [b"0", b"1", b"2"]
    assert feed.progress()["parked"] == 0


def test_a_refused_scan_is_counted_and_others_go_on(
    fake_s3: FakeS3, context: AdapterContext, clock: ManualClock
) -> None:
    fake_s3.put_many(f"{n:03}" for n in range(200))
    feed = from_settings(context, **of(fake_s3, interval_s=10.0))
    feed.attach()
    assert len(take(feed, 100)) == 200
    fake_s3.clear()
    clock.advance(11)

    assert take(feed) == []

    assert feed.progress()["refused_scans"] == 1
    feed.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "needs url"),
        ({"url": "s3://b/p", "bucket": "b"}, "not both"),
        ({"url": "http://b"}, "s3://bucket/prefix"),
        ({"bucket": "b"}, "bucket name"),
        ({"bucket": "bucket", "colour": "red"}, "unknown settings colour"),
        ({"bucket": "bucket", "content": "all"}, "content must be"),
        ({"bucket": "bucket", "id_template": "{nothing}"}, "id_template"),
        ({"bucket": "bucket", "id_template": "same"}, "gives all objects one id"),
        ({"bucket": "bucket", "interval_s": 0}, "interval_s"),
        ({"bucket": "bucket", "page_size": 0}, "page_size"),
        ({"bucket": "bucket", "workers": 9}, "workers"),
        ({"bucket": "bucket", "identity": "name"}, "identity"),
        ({"bucket": "bucket", "include": "*.txt"}, "include must be a list"),
    ],
)
def test_mistakes_in_settings_are_named(
    context: AdapterContext, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        from_settings(context, **settings)


def test_a_missing_bucket_is_told_at_once(
    fake_s3: FakeS3, context: AdapterContext, feeds: list[S3ListingFeed]
) -> None:
    feeds.append(from_settings(context, **of(fake_s3, "nowhere")))

    with pytest.raises(ConfigError, match="no such bucket"):
        feeds[0].attach()
