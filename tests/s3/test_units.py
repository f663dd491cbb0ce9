"""The parts of the S3 room that need no server."""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync_engine.core.policies import RetryConfig
from sync_engine.errors import (
    ConfigError,
    StoreBusy,
    StoreRejected,
    StoreUnavailable,
    SyncEngineError,
)
from sync_engine.s3 import PreconditionFailed, S3Address, S3Client, S3Settings
from sync_engine.s3.errors import classify
from sync_engine.s3.listing import cut, modified_ms, parse_rows
from sync_engine.s3.retry import Attempts, time_left_s
from sync_engine.testing import ManualClock, ManualRuntime

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://photos", "photos", ""),
        ("s3://photos/", "photos", ""),
        ("s3://photos/2026/a b%20+", "photos", "2026/a b%20+"),
        ("s3://photos//lead", "photos", "/lead"),
    ],
)
def test_an_address_is_taken_as_it_stands(url: str, bucket: str, prefix: str) -> None:
    assert S3Address.parse(url) == S3Address(bucket, prefix)


@pytest.mark.parametrize("url", ["photos/x", "http://photos", "s3://", "s3://k:s@b/x", "s3://a b"])
def test_what_is_no_address_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigError):
        S3Address.parse(url)


def test_options_of_an_address_become_settings() -> None:
    address, settings = S3Settings.from_url(
        "s3://bkt/p%3Fq?region=eu-west-1&endpoint=http://h:9&page_size=7&verify_tls=no",
        profile="me",
    )

    assert address == S3Address("bkt", "p?q")
    assert (settings.region, settings.endpoint_url, settings.page_size) == (
        "eu-west-1", "http://h:9", 7,
    )  # fmt: skip
    assert settings.path_style
    assert settings.verify_tls is False
    for url in ("s3://bkt?secret_access_key=x", "s3://bkt?page_size=x", "s3://bkt?colour=red"):
        with pytest.raises(ConfigError):
            S3Settings.from_url(url)


@pytest.mark.parametrize(
    "settings",
    [
        {"page_size": 0},
        {"page_size": 1001},
        {"deadline_s": 0},
        {"read_timeout_s": float("inf")},
        {"access_key_id": "a"},
        {"session_token": "t"},
        {"access_key_id": "a", "secret_access_key": "b", "profile": "p"},
        {"addressing": "sideways"},
        {"endpoint_url": "ftp://h"},
        {"endpoint_url": "http://u:p@h"},
        {"endpoint_url": "http://h:x"},
        {"connections_max": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        S3Settings(**settings)


def test_a_missing_driver_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    client = S3Client(S3Settings(endpoint_url="http://h:9"), ManualRuntime(ManualClock()))

    with pytest.raises(ConfigError, match=r"sync-engine\[s3\]"):
        client.list_page("bucket")


# -- listings ------------------------------------------------------------------------------------


def page(keys: list[str], dialect: str) -> bytes:
    """Write a page as four servers do, that agree on nothing but the names."""
    encode = escape if dialect == "plain" else quote_plus
    quote = {"aws": "&quot;", "moto": '"', "rclone": "", "plain": "&#34;"}[dialect]
    gap = "\n    " if dialect == "moto" else ""
    parts = []
    for key in keys:
        fields = [
            f"<Key>{encode(key)}</Key>",
            "<LastModified>2026-01-02T03:04:05.678Z</LastModified>",
            f"<ETag>{quote}0cc175b9c0f1b6a831c399e269772661-2{quote}</ETag>",
            "<Size>77</Size>",
            "<StorageClass>STANDARD</StorageClass>",
        ]
        if dialect == "aws":
            fields.insert(3, "<ChecksumAlgorithm>CRC32</ChecksumAlgorithm>")
            fields.insert(4, "<ChecksumType>FULL_OBJECT</ChecksumType>")
        if dialect == "plain":
            fields = [fields[3], fields[2], "<Owner><ID>me</ID></Owner>", fields[1], fields[0]]
        parts.append(f"<Contents>{gap}{gap.join(fields)}{gap}</Contents>{gap}")
    kind = "" if dialect == "plain" else "<EncodingType>url</EncodingType>"
    return (
        f"<?xml version='1.0'?><ListBucketResult>{kind}{gap}{''.join(parts)}"
        "<IsTruncated>false</IsTruncated></ListBucketResult>"
    ).encode()


@given(keys=st.lists(KEYS, max_size=8), dialect=st.sampled_from(["aws", "moto", "rclone"]))
def test_every_dialect_gives_the_same_rows(keys: list[str], dialect: str) -> None:
    expected = [
        (key, "0cc175b9c0f1b6a831c399e269772661-2", 77, "2026-01-02T03:04:05.678Z") for key in keys
    ]

    assert parse_rows(*cut(page(keys, dialect))) == expected


def test_an_unknown_form_is_left_to_a_real_parser() -> None:
    keys = ["a&b<c>", "d e", "é"]

    assert [row[:3] for row in parse_rows(*cut(page(keys, "plain")))] == [
        (key, "0cc175b9c0f1b6a831c399e269772661-2", 77) for key in keys
    ]


@given(data=st.data())
def test_a_page_that_was_cut_off_is_never_taken(data: st.DataObject) -> None:
    """Cut inside the objects, it raises; cut around them, the rest of it is no XML."""
    whole = page(["a", "b", "c"], "aws")
    place = data.draw(st.integers(1, len(whole) - 1))
    try:
        objects, around = cut(whole[:place])
        rows = parse_rows(objects, around)
    except StoreUnavailable:
        return
    assert len(rows) <= 3
    assert not around.endswith(b"</ListBucketResult>")


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2026-01-02T03:04:05.678Z", 1767323045678),
        ("2026-01-02T03:04:05Z", 1767323045000),
        ("2026-01-02T04:04:05.000+01:00", 1767323045000),
        ("yesterday", 0),
    ],
)
def test_times_of_listings_become_milliseconds(text: str, ms: int) -> None:
    assert modified_ms(text) == ms


# -- errors --------------------------------------------------------------------------------------


class Refused(Exception):
    """An answer as botocore wraps it."""

    def __init__(self, status: int, code: str, message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.response = {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
        }


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "SlowDown", StoreBusy),
        (429, "429", StoreBusy),
        (500, "InternalError", StoreUnavailable),
        (502, "502", StoreUnavailable),
        (400, "RequestTimeout", StoreUnavailable),
        (400, "BadDigest", StoreUnavailable),
        (409, "ConditionalRequestConflict", StoreUnavailable),
        (200, "Strange", StoreUnavailable),
        (403, "AccessDenied", StoreRejected),
        (403, "403", StoreRejected),
        (400, "KeyTooLongError", StoreRejected),
        (418, "Teapot", StoreRejected),
        (412, "PreconditionFailed", PreconditionFailed),
        (403, "RequestTimeTooSkewed", ConfigError),
        (400, "ExpiredToken", ConfigError),
        (404, "NoSuchBucket", ConfigError),
    ],
)
def test_answers_are_sorted_by_what_to_do(
    status: int, code: str, kind: type[SyncEngineError]
) -> None:
    assert type(classify(Refused(status, code), "put", "bucket/key")) is kind


def test_the_right_region_is_named() -> None:
    for exc in (
        Refused(301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-west-3"}),
        Refused(400, "AuthorizationHeaderMalformed", "is wrong; expecting 'eu-west-3'"),
        Refused(301, "301", **{"x-amz-bucket-region": "eu-west-3"}),
    ):
        assert "region = 'eu-west-3'" in str(classify(exc, "list", "bucket"))


def test_errors_of_the_driver_are_known_by_name() -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    config, transient, rejected = (
        [exceptions.NoCredentialsError(), exceptions.ProfileNotFound(profile="x")],
        [
            exceptions.ReadTimeoutError(endpoint_url="http://h"),
            exceptions.ConnectTimeoutError(endpoint_url="http://h"),
            exceptions.EndpointConnectionError(endpoint_url="http://h"),
            exceptions.ConnectionClosedError(endpoint_url="http://h"),
            exceptions.SSLError(endpoint_url="http://h", error="EOF occurred"),
            OSError("anything"),
        ],
        [exceptions.ParamValidationError(report="bad")],
    )

    assert {type(classify(exc, "list")) for exc in config} == {ConfigError}
    assert {type(classify(exc, "list")) for exc in transient} == {StoreUnavailable}
    assert {type(classify(exc, "list")) for exc in rejected} == {StoreRejected}


# -- retries -------------------------------------------------------------------------------------


def test_attempts_end_at_the_deadline(clock: ManualClock, runtime: ManualRuntime) -> None:
    attempts = Attempts(clock, runtime.random, 10.0)
    made: list[float] = []
    began = clock.monotonic()

    def attempt(number: int) -> None:
        made.append(time_left_s())
        clock.sleep(0.5)
        raise StoreUnavailable("s3", "list", str(number))

    with pytest.raises(StoreUnavailable):
        attempts.run(attempt)

    assert clock.monotonic() - began <= 10.5
    assert len(made) > 3
    assert made[0] == 10.0
    assert made == sorted(made, reverse=True)
    assert attempts.retries == len(made) - 1


@pytest.mark.parametrize("answered", [True, False], ids=["answered before", "never answered"])
def test_an_attempt_that_the_deadline_cuts_short_does_not_hide_what_the_server_said(
    clock: ManualClock, runtime: ManualRuntime, *, answered: bool
) -> None:
    attempts = Attempts(clock, runtime.random, 3.0)

    def attempt(number: int) -> None:
        if answered and number == 1:
            raise StoreUnavailable("s3", "list", "what came is no listing")
        clock.sleep(time_left_s())
        raise StoreUnavailable("s3", "list", "no answer in time")

    with pytest.raises(StoreUnavailable, match="no listing" if answered else "in time"):
        attempts.run(attempt)


def test_what_the_server_asks_for_is_waited(clock: ManualClock, runtime: ManualRuntime) -> None:
    attempts = Attempts(clock, runtime.random, 60.0, RetryConfig(attempts_max=0))
    times: list[float] = []

    def attempt(number: int) -> str:
        times.append(clock.monotonic())
        if number == 1:
            raise StoreBusy("s3", "list", "slow down", 7.0)
        return "done"

    assert attempts.run(attempt) == "done"
    assert 7.0 <= times[1] - times[0] <= 9.0


def test_a_wait_beyond_the_deadline_is_not_begun(
    clock: ManualClock, runtime: ManualRuntime
) -> None:
    attempts, began = Attempts(clock, runtime.random, 5.0), clock.monotonic()

    def attempt(number: int) -> None:
        raise StoreBusy("s3", "list", "slow down", 600.0)

    with pytest.raises(StoreBusy):
        attempts.run(attempt)
    assert clock.monotonic() == began


def test_a_call_within_a_call_keeps_the_outer_deadline(
    clock: ManualClock, runtime: ManualRuntime
) -> None:
    outer, inner = Attempts(clock, runtime.random, 5.0), Attempts(clock, runtime.random, 50.0)

    assert outer.run(lambda _: inner.run(lambda _: time_left_s())) == 5.0
