"""Event notifications of a bucket, read from an SQS queue: hints where to look, and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_plus

from sync_engine.ports import Runtime
from sync_engine.s3.address import S3Settings
from sync_engine.s3.errors import translated
from sync_engine.s3.retry import Attempts
from sync_engine.s3.session import make_driver

__all__ = ["EventMessage", "S3EventQueue", "keys_of"]

_MESSAGES: Final = 10


@dataclass(frozen=True, slots=True)
class EventMessage:
    """One message.

    Attributes:
        keys: Bucket and key of each event in it, decoded; empty for a test event.
        handle: Deletes it.
    """

    keys: tuple[tuple[str, str], ...]
    handle: str


class S3EventQueue:
    """Receives events; a message stays in the queue until it is deleted.

    SQS gives messages at least once, in any order.

    Args:
        url: Of the queue.
        settings: Credentials and region; the endpoint is that of SQS.
        runtime: Clock and randomness.
    """

    def __init__(self, url: str, settings: S3Settings, runtime: Runtime) -> None:
        self.url = url
        self._driver = make_driver(settings, "sqs")
        self._attempts = Attempts(runtime.clock, runtime.random, settings.deadline_s)

    def receive(self, wait_s: int = 0) -> list[EventMessage]:
        """Return up to ten messages.

        Args:
            wait_s: Seconds to wait for the first, 0 to 20; below the read timeout.

        Raises:
            StoreUnavailable: Try again later.
            ConfigError: There is no such queue, or the credentials are wrong.
        """

        def attempt(number: int) -> Any:
            del number
            with translated("receive", "queue"):
                return self._driver.receive_message(
                    QueueUrl=self.url, MaxNumberOfMessages=_MESSAGES, WaitTimeSeconds=wait_s
                )

        answer = self._attempts.run(attempt)
        return [
            EventMessage(tuple(keys_of(each["Body"])), each["ReceiptHandle"])
            for each in answer.get("Messages", ())
        ]

    def delete(self, messages: Sequence[EventMessage]) -> None:
        """Take messages out of the queue; at most ten. One that fails comes again."""
        entries = [{"Id": str(n), "ReceiptHandle": m.handle} for n, m in enumerate(messages)]

        def attempt(number: int) -> Any:
            del number
            with translated("delete message", "queue"):
                return self._driver.delete_message_batch(QueueUrl=self.url, Entries=entries)

        if entries:
            self._attempts.run(attempt)

    def close(self) -> None:
        """Close connections; safe twice."""
        self._driver.close()


def keys_of(body: str) -> Iterator[tuple[str, str]]:
    """Yield bucket and key of each event in a message; nothing for other messages.

    Keys come as HTML forms encode them. A message may be wrapped by SNS.
    """
    try:
        told = json.loads(body)
        if isinstance(told, Mapping) and "Records" not in told and "Message" in told:
            told = json.loads(told["Message"])
        for record in told.get("Records", ()):
            found = record["s3"]
            yield str(found["bucket"]["name"]), unquote_plus(str(found["object"]["key"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return
