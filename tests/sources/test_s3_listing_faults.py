"""The listing source on bad days: kills, networks, locks, and secrets that must not show."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_s3 import Answer, FakeS3, Request, error
from support.listing import listing, make, run, told
from support.s3_servers import S3Server

from sync_engine.core import failpoints
from sync_engine.errors import ConfigError, CorruptData, StoreUnavailable
from sync_engine.s3 import S3Client, S3Settings
from sync_engine.sources.s3_listing import S3ListingSource
from sync_engine.testing import FaultProxy, SystemRuntime

KILLS = int(os.environ.get("KILLS", "5"))
CHILD = Path(__file__).parents[1] / "support" / "listing_child.py"
POINTS = [
    "s3_listing.before_commit", "s3_listing.merged", "s3_listing.acked",
    "s3_listing.before_release",
]  # fmt: skip


class Consumer:
    """Runs children, kills them, and keeps the book on what they delivered."""

    def __init__(self, server: Any, bucket: str, tmp_path: Path, *, renames: bool) -> None:
        self.notes = tmp_path / "notes"
        self.notes.touch()
        self._command = [
            sys.executable, str(CHILD), server.endpoint_url, server.access_key_id,
            server.secret_access_key, bucket, str(tmp_path / "state.db"), str(self.notes),
            "yes" if renames else "no",
        ]  # fmt: skip
        self.starts = 0

    def run(
        self, *, kill_after_s: float | None = None, point: tuple[str, int] | None = None
    ) -> int:
        self.starts += 1
        words = [] if point is None else [point[0], str(point[1])]
        child = subprocess.Popen(
            [*self._command, *words], env={**os.environ, "PYTHONPATH": os.getcwd()}
        )
        if kill_after_s is not None:
            while self.count("ready") < self.starts and child.poll() is None:
                time.sleep(0.005)
            time.sleep(kill_after_s)  # a moment that nothing chose
            child.send_signal(signal.SIGKILL)
        return child.wait(60)

    def entries(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.notes.read_text().splitlines()]

    def count(self, word: str) -> int:
        return self.notes.read_text().count(f'["{word}"')

    def replayed(self) -> dict[str, str]:
        """Replay what was delivered; nothing may come again after its acknowledgement."""
        onto: dict[str, str] = {}
        acked, seen = 0, 0
        for word, *rest in self.entries():
            if word == "acked":
                acked = max(acked, rest[0])
            elif word == "given":
                seq, _, old, new = rest
                assert seq > acked, "delivered again after its acknowledgement"
                if seq <= seen:
                    continue
                assert seq > seen
                seen = seq
                if old is not None:
                    assert onto.pop(old[0]) == old[1]
                if new is not None:
                    assert new[0] not in onto
                    onto[new[0]] = new[1]
        return onto


def stir(client: Any, bucket: str, rng: random.Random) -> None:
    for _ in range(12):
        key = f"k{rng.randrange(150):03}"
        if rng.random() < 0.4:
            client.delete_object(Bucket=bucket, Key=key)
        else:
            client.put_object(Bucket=bucket, Key=key, Body=rng.randbytes(8))


@pytest.mark.parametrize("renames", [False, True])
def test_s05_kills_at_random_lose_nothing(any_s3: S3Server, tmp_path: Path, renames: bool) -> None:
    """kill -9 anywhere: what was delivered, each change once, replays to the listing."""
    bucket, client, rng = any_s3.new_bucket(), any_s3.boto(), random.Random(5)
    for n in range(150):
        client.put_object(Bucket=bucket, Key=f"k{n:03}", Body=str(n).encode())
    consumer = Consumer(any_s3, bucket, tmp_path, renames=renames)

    killed = 0
    for _ in range(KILLS):
        stir(client, bucket, rng)
        code = consumer.run(kill_after_s=rng.uniform(0, 0.2))
        killed += code == -signal.SIGKILL
    assert consumer.run() == 0
    assert consumer.run() == 0

    assert consumer.replayed() == listing(any_s3, bucket)
    assert killed
    client.close()


@pytest.mark.parametrize("point", POINTS)
def test_s05_kills_at_each_line_that_matters_lose_nothing(
    fake_s3: FakeS3, tmp_path: Path, point: str
) -> None:
    fake_s3.put_many(f"{n:03}" for n in range(60))
    consumer = Consumer(fake_s3, "bucket", tmp_path, renames=False)
    assert consumer.run() == 0
    fake_s3.put_many([f"{n:03}" for n in range(20, 30)], generation=1)
    fake_s3.remove(*(f"{n:03}" for n in range(40, 50)))

    for count in (1, 2):
        code = consumer.run(point=(point, count))
        assert code == -signal.SIGKILL or count == 2
    assert consumer.run() == 0

    assert consumer.replayed() == {key: tag for key, (tag, _, _) in fake_s3.objects.items()}


def test_s15_secrets_show_nowhere(
    fake_s3: FakeS3, tmp_path: Path, real: SystemRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in a repr, a log line at DEBUG, a traceback, the state, or a pickle."""
    canaries = ["AKIACANARYCANARY", "canary/secret+key", "canary-session-token"]
    settings = S3Settings(
        endpoint_url=fake_s3.endpoint_url, access_key_id=canaries[0],
        secret_access_key=canaries[1], session_token=canaries[2], deadline_s=0.3,
    )  # fmt: skip
    builder = S3ListingSource.builder().bucket("bucket").credentials(*canaries)
    builder.endpoint(fake_s3.endpoint_url).state(tmp_path / "state.db")
    shown = [repr(settings), str(settings), repr(builder)]
    fake_s3.put("k", b"x")
    with caplog.at_level(logging.DEBUG):
        source = builder.timeouts(deadline_s=0.3).build(real)
        run(source)
        shown += [repr(source), repr(source.client), repr(source.statistics())]
        for answer in (
            error(403, "InvalidAccessKeyId", canaries[0]),
            error(403, "SignatureDoesNotMatch", canaries[1]),
            error(503, "SlowDown"),
        ):
            fake_s3.spoil = lambda _, answer=answer: answer
            try:
                run(source)
            except Exception:
                shown.append(traceback.format_exc())
        with pytest.raises(TypeError):
            source.client.__reduce__()
        with pytest.raises(TypeError):
            settings.__reduce__()
    source.close()
    shown.append(caplog.text)
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]

    assert len(caplog.records) > 20
    assert any(r.name.startswith("botocore") for r in caplog.records)
    for canary in canaries:
        assert not [text for text in shown if canary in text]


def test_s16_settings_reach_the_wire(fake_s3: FakeS3, real: SystemRuntime) -> None:
    fake_s3.put_many(f"{n}" for n in range(5))
    with S3Client(fake_s3.settings(page_size=2), real) as client:
        assert [len(page.rows) for page in client.iter("bucket")] == [2, 2, 1]
    sent = fake_s3.requests[0]
    assert sent.query["encoding-type"] == "url"
    assert "/us-east-1/s3/" in sent.headers["Authorization"]

    with S3Client(fake_s3.settings(region="eu-north-1"), real) as client:
        client.list_page("bucket")
    assert "/eu-north-1/s3/" in fake_s3.requests[-1].headers["Authorization"]


def test_s16_proxies_of_the_environment_are_left_alone(
    fake_s3: FakeS3, real: SystemRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with S3Client(fake_s3.settings(), real) as client:
        client.list_page("bucket")


def test_s17_a_second_scanner_is_told_to_wait(
    fake_s3: FakeS3, state: Path, real: SystemRuntime
) -> None:
    """The lock ends with its process, however it ends."""
    program = (
        "import sys, time\nfrom sync_engine.sources.s3_listing import S3ListingSource\n"
        "from sync_engine.runtime import SystemRuntime\n"
        "from sync_engine.s3 import S3Settings\n"
        "s = S3ListingSource('bucket', SystemRuntime('x'), state=sys.argv[1],"
        " settings=S3Settings(endpoint_url=sys.argv[2]))\n"
        "s.open(); print('open', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(state), fake_s3.endpoint_url], stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"open\n"

    with pytest.raises(ConfigError, match="in use by another process"):
        make(fake_s3, "bucket", state, real).open()

    other.kill()
    other.wait()
    other.stdout.close()
    assert run(make(fake_s3, "bucket", state, real)) == []


def test_s18_a_scan_never_alters_the_schema(
    fake_s3: FakeS3, state: Path, real: SystemRuntime
) -> None:
    def schema() -> list[tuple[str, ...]]:
        db = sqlite3.connect(state)
        found = db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
        db.close()
        return found

    make_one = make(fake_s3, "bucket", state, real, renames=True)
    make_one.open()
    make_one.close()
    before = schema()
    for generation in range(3):
        fake_s3.put_many([f"{n}" for n in range(50)], generation=generation)
        run(make(fake_s3, "bucket", state, real, renames=True))
        fake_s3.remove("3", "4")

    assert schema() == before


def test_a_foreign_or_newer_or_damaged_file_is_refused(
    fake_s3: FakeS3, state: Path, real: SystemRuntime
) -> None:
    db = sqlite3.connect(state)
    db.execute("CREATE TABLE mine (x)")
    db.close()
    with pytest.raises(ConfigError, match="something else"):
        make(fake_s3, "bucket", state, real).open()

    newer = state.with_name("newer.db")
    run(make(fake_s3, "bucket", newer, real))
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="version 99"):
        make(fake_s3, "bucket", newer, real).open()

    damaged = state.with_name("damaged.db")
    damaged.write_bytes(b"no database at all" * 1000)
    with pytest.raises(CorruptData, match="damaged"):
        make(fake_s3, "bucket", damaged, real).open()


def test_a_state_file_that_cannot_be_is_a_mistake(
    fake_s3: FakeS3, tmp_path: Path, real: SystemRuntime
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="cannot be made"):
        make(fake_s3, "bucket", tmp_path / "file" / "state.db", real).open()


def test_a_full_disk_loses_nothing(fake_s3: FakeS3, state: Path, real: SystemRuntime) -> None:
    fake_s3.put_many(f"{n:03}" for n in range(100))

    def full() -> None:
        exc = sqlite3.OperationalError("database or disk is full")
        exc.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise exc

    with (
        failpoints.during("s3_listing.before_commit", full),
        pytest.raises(StoreUnavailable, match="full"),
    ):
        run(make(fake_s3, "bucket", state, real, s3={"page_size": 10}))

    assert len(run(make(fake_s3, "bucket", state, real, s3={"page_size": 10}))) == 100


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("drip", "whole in time"),
        ("blackhole", "no answer in time"),
        ("refuse", "the connection was lost|cannot be reached"),
        ("reset", "cut off|connection was lost"),
        ("half_close", "connection was lost"),
    ],
)
def test_a_bad_network_ends_at_the_deadline_and_is_survived(
    fake_s3: FakeS3, state: Path, real: SystemRuntime,
    fault_proxy: Callable[[str, int], FaultProxy], fault: str, words: str,
) -> None:  # fmt: skip
    fake_s3.put_many(f"{n:03}" for n in range(300))
    proxy = fault_proxy("127.0.0.1", fake_s3.port)
    s3 = {
        "endpoint_url": f"http://127.0.0.1:{proxy.port}", "page_size": 100, "deadline_s": 1.0,
        "read_timeout_s": 0.3, "connect_timeout_s": 0.3,
    }  # fmt: skip
    faults: dict[str, dict[str, Any]] = {
        "drip": {}, "blackhole": {"blackhole": True}, "refuse": {"refuse": True},
        "reset": {"rst_after": 900}, "half_close": {"half_close": True},
    }  # fmt: skip
    for name, value in faults[fault].items():
        setattr(proxy, name, value)
    if fault == "drip":
        fake_s3.rewrite = lambda _, a: Answer(a.status, a.body, a.headers, drip_s=0.01)
    began = time.monotonic()

    with pytest.raises(StoreUnavailable, match=words):
        run(make(fake_s3, "bucket", state, real, s3=s3))

    assert time.monotonic() - began < 5
    fake_s3.rewrite = None
    proxy.reset()
    proxy.drop_connections()
    assert len(run(make(fake_s3, "bucket", state, real, s3=s3))) == 300


def test_passing_errors_are_repeated_and_retry_after_is_kept(
    fake_s3: FakeS3, state: Path, clock: Any
) -> None:
    from sync_engine.testing import ManualRuntime

    fake_s3.put_many(f"{n}" for n in range(3))
    bad = [
        error(503, "SlowDown", Retry_After="7"), error(500, "InternalError"),
        Answer(reset=True), Answer(200, b"<ListBucketResult><Contents><Key>x"),
        error(429, "TooManyRequests"), error(400, "RequestTimeout"), Answer(502, b"<html>"),
    ]  # fmt: skip

    def spoil(request: Request) -> Answer | None:
        return bad[request.number - 1] if request.number <= len(bad) else None

    fake_s3.spoil = spoil
    began = clock.monotonic()
    source = make(fake_s3, "bucket", state, ManualRuntime(clock), s3={"deadline_s": 100.0})

    assert len(run(source)) == 3
    assert source.client.retries == 0  # a new client: the one that retried is closed
    assert clock.monotonic() - began >= 7
    assert len(fake_s3.requests) == len(bad) + 1


def test_permanent_errors_are_not_repeated(
    fake_s3: FakeS3, state: Path, real: SystemRuntime
) -> None:
    fake_s3.spoil = lambda _: error(403, "ExpiredToken")

    with pytest.raises(ConfigError, match="session token has expired"):
        run(make(fake_s3, "bucket", state, real))

    assert len(fake_s3.requests) == 1


def test_what_was_found_is_told_before_anything_is_asked(
    fake_s3: FakeS3, state: Path, real: SystemRuntime
) -> None:
    fake_s3.put_many(f"{n}" for n in range(5))
    with make(fake_s3, "bucket", state, real, s3={"page_size": 3}) as source:
        changes = source.changes()
        first = next(changes)
        source.ack(first.seq)
        changes.close()
    fake_s3.spoil = lambda _: error(503, "SlowDown")

    with (
        make(fake_s3, "bucket", state, real, s3={"deadline_s": 0.2}) as source,
        pytest.raises(StoreUnavailable),
    ):
        given = []
        given.extend(source.changes())

    assert told(given) == [("added", "1"), ("added", "2")]
