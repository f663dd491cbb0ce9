"""Event notifications as hints: doubled, shuffled, lost in a crash, and never believed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any, cast

import pytest
from support.fake_s3 import FakeS3
from support.listing import listing, make, replay, run
from support.s3_servers import S3Server

from sync_engine.core import failpoints
from sync_engine.s3 import S3EventQueue
from sync_engine.s3.queue import EventMessage, keys_of
from sync_engine.testing import SystemRuntime

EVENTS = int(os.environ.get("S3_EVENTS", "60"))


class Notified:
    """A bucket whose notifications go to a queue."""

    def __init__(self, server: S3Server) -> None:
        self.bucket = server.new_bucket()
        self.s3, self.sqs = server.boto(), server.boto("sqs")
        self.url = self.sqs.create_queue(QueueName=self.bucket)["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])
        self.s3.put_bucket_notification_configuration(
            Bucket=self.bucket,
            NotificationConfiguration={
                "QueueConfigurations": [
                    {
                        "QueueArn": arn["Attributes"]["QueueArn"],
                        "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
                    }
                ]
            },
        )

    def bodies(self) -> list[str]:
        """Take every message out of the queue."""
        found: list[str] = []
        while messages := self.sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            for each in messages:
                found.append(each["Body"])
                self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=each["ReceiptHandle"])
        return found

    def send(self, bodies: list[str]) -> None:
        for low in range(0, len(bodies), 10):
            entries = [
                {"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies[low : low + 10])
            ]
            self.sqs.send_message_batch(QueueUrl=self.url, Entries=entries)

    def close(self) -> None:
        self.s3.close()
        self.sqs.close()


@pytest.fixture
def notified(moto_s3: S3Server) -> Iterator[Notified]:
    made = Notified(moto_s3)
    yield made
    made.close()


def test_s14_events_doubled_and_shuffled_tell_the_truth(
    notified: Notified, moto_s3: S3Server, tmp_path: Path, real: SystemRuntime
) -> None:
    """A crash between the commit and the deletion of the message repeats, and adds nothing."""
    rng = random.Random(14)
    for n in range(EVENTS):
        key = f"dir/k +{rng.randrange(EVENTS // 3)}é"
        if rng.random() < 0.3:
            notified.s3.delete_object(Bucket=notified.bucket, Key=key)
        else:
            notified.s3.put_object(Bucket=notified.bucket, Key=key, Body=str(n).encode())
    bodies = notified.bodies()
    assert any("TestEvent" in body for body in bodies)
    bodies *= 2
    rng.shuffle(bodies)
    notified.send(bodies)

    queue = S3EventQueue(notified.url, moto_s3.settings(), real)
    changes: list[Any] = []
    with make(moto_s3, notified.bucket, tmp_path / "state.db", real) as source:

        def crash() -> None:
            raise KeyboardInterrupt

        with (
            failpoints.during("s3_listing.before_delete_message", crash),
            pytest.raises(KeyboardInterrupt),
        ):
            source.take_events(queue)
        before = source.state.head
        while source.take_events(queue):
            pass
        changes = source.waiting(0, 10_000)
        known = replay(changes, {})
        assert before > 0
        assert known == listing(moto_s3, notified.bucket)
        source.ack(changes[-1].seq)

        assert list(source.changes()) == []
    queue.close()


class Told:
    """A queue that holds one message about a key."""

    def __init__(self, key: str) -> None:
        self.messages = [EventMessage((("bucket", key),), "handle")]

    def receive(self, wait_s: int = 0) -> list[EventMessage]:
        del wait_s
        return self.messages

    def delete(self, messages: list[EventMessage]) -> None:
        assert messages == self.messages
        self.messages = []


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("now", ["added", "modified", "deleted"])
def test_s14_what_an_event_told_is_not_taken_back_by_an_older_page(
    fake_s3: FakeS3, tmp_path: Path, real: SystemRuntime, ordered: bool, now: str
) -> None:
    """Pages are asked for ahead, or gathered first: they may be older than the event."""
    keys = [f"{n // 10}/{n:02}" for n in range(100)]
    fake_s3.put_many(keys)
    state, s3 = tmp_path / "state.db", {"page_size": 3}
    known = replay(run(make(fake_s3, "bucket", state, real, s3=s3)), {})
    if not ordered:
        fake_s3.order = lambda page: page[::-1]
    key = "0/055" if now == "added" else "0/05"
    with make(fake_s3, "bucket", state, real, s3=s3, workers=2) as source:
        scan = source._opened()[1]
        while not (scan._waiting if ordered else source.state.scan.phase == "merging"):
            source.step()
        wait(scan._waiting.values())
        if now == "deleted":
            fake_s3.remove(key)
        else:
            fake_s3.put_many([key], generation=7)
        source.take_events(cast("S3EventQueue", Told(key)))

        changes = list(source.changes())
        source.ack(changes[-1].seq)

    assert [(str(c.op), c.key) for c in changes] == [(now, key)]
    assert replay(changes, known) == {key: tag for key, (tag, _, _) in fake_s3.objects.items()}


@pytest.mark.parametrize("generation", [0, 7])
def test_s14_what_an_event_found_again_is_not_told_as_deleted(
    fake_s3: FakeS3, tmp_path: Path, real: SystemRuntime, generation: int
) -> None:
    """The scan had missed it already."""
    keys = [f"{n:02}" for n in range(40)]
    fake_s3.put_many(keys)
    state, s3 = tmp_path / "state.db", {"page_size": 10}
    run(make(fake_s3, "bucket", state, real, s3=s3))
    fake_s3.remove("05")
    with make(fake_s3, "bucket", state, real, s3=s3) as source:
        while not source.state.missing:
            source.step()
        fake_s3.put_many(["05"], generation=generation)
        source.take_events(cast("S3EventQueue", Told("05")))

        changes = list(source.changes())

    assert [(str(c.op), c.key) for c in changes] == [("modified", "05")] * bool(generation)


@pytest.mark.parametrize("gone", [True, False])
def test_s14_an_addition_held_back_is_told_once_or_not_at_all(
    fake_s3: FakeS3, tmp_path: Path, real: SystemRuntime, gone: bool
) -> None:
    """Additions wait for the end of a scan that looks for renames; an event may come before."""
    fake_s3.put_many([f"{n:02}" for n in range(40)])
    state, s3 = tmp_path / "state.db", {"page_size": 10}
    with make(fake_s3, "bucket", state, real, s3=s3, renames=True) as source:
        while not source.state.scan.objects:
            source.step()
        if gone:
            fake_s3.remove("05")
        else:
            fake_s3.put_many(["05"], generation=7)
        source.take_events(cast("S3EventQueue", Told("05")))

        changes = list(source.changes())
        objects = source.statistics().objects

    assert {c.op for c in changes} == {"added"}
    assert sorted(c.key for c in changes) == sorted(fake_s3.objects)
    assert objects == len(fake_s3.objects)


def test_s14_keys_are_decoded_and_other_messages_are_dropped() -> None:
    record = {"s3": {"bucket": {"name": "b"}, "object": {"key": "a+b%2B%C3%A9"}}}
    direct = json.dumps({"Records": [record]})

    assert list(keys_of(direct)) == [("b", "a b+é")]
    assert list(keys_of(json.dumps({"Message": direct}))) == [("b", "a b+é")]
    for other in ('{"Event": "s3:TestEvent"}', "no json", "[]", "null", '{"Records": [{}]}'):
        assert list(keys_of(other)) == []
