"""Event notifications as hints: doubled, shuffled, lost in a crash, and never believed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.listing import listing, make, replay
from support.s3_servers import S3Server

from sync_engine.core import failpoints
from sync_engine.s3 import S3EventQueue
from sync_engine.s3.queue import keys_of
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


@pytest.fixture
def real() -> Iterator[SystemRuntime]:
    runtime = SystemRuntime("test")
    yield runtime
    runtime.close(1)


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


def test_s14_keys_are_decoded_and_other_messages_are_dropped() -> None:
    record = {"s3": {"bucket": {"name": "b"}, "object": {"key": "a+b%2B%C3%A9"}}}
    direct = json.dumps({"Records": [record]})

    assert list(keys_of(direct)) == [("b", "a b+é")]
    assert list(keys_of(json.dumps({"Message": direct}))) == [("b", "a b+é")]
    for other in ('{"Event": "s3:TestEvent"}', "no json", "[]", "null", '{"Records": [{}]}'):
        assert list(keys_of(other)) == []
