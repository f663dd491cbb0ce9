"""The listing source: keys of every kind, and which of them are looked at (S11, S12)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_s3 import Answer, FakeS3, Request
from support.listing import make, run, told
from support.s3_servers import S3Server

from sync_engine.errors import ConfigError
from sync_engine.testing import SystemRuntime

ODD = [
    "plain", "a b+c%25", "é", "e\u0301", "日本", "😀\uffee", "x&lt<>y", "quote\"'`", "tab\there",
    "trailing ", "back\\slash", "q?#[]{}|^~", "deep/er/key", "k" * 200, "ü" * 450, "\x7fdel",
    "\x01ctl", "%2F", "+", " ",
]  # fmt: skip


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


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("bad", [["b", "e"], ["a", "b"], list("abcde")])
def test_s11_keys_that_are_no_text_hold_up_no_others(
    fake_s3: FakeS3, state: Path, real: SystemRuntime, ordered: bool, bad: list[str]
) -> None:
    for key in "abcde":
        fake_s3.put(key, key.encode())
    if not ordered:
        fake_s3.order = lambda page: page[::-1]

    def spoil(_: Request, answer: Answer) -> Answer:
        for key in bad:
            answer.body = answer.body.replace(f"<Key>{key}<".encode(), f"<Key>{key}%FF<".encode())
        return answer

    fake_s3.rewrite = spoil
    source = make(fake_s3, "bucket", state, real, s3={"page_size": 2})

    assert [c.key for c in run(source)] == [key for key in "abcde" if key not in bad]


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
