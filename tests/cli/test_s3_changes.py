"""`sync-engine s3-changes` on servers, and the exit code of each thing that may go wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from support.fake_s3 import Answer, FakeS3, Request, error
from support.s3_servers import S3Server

from tests.cli.conftest import Cli


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3Server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3Server.secret_access_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_changes_are_lines_and_are_told_once(cli: Cli, any_s3: S3Server) -> None:
    bucket, client = any_s3.new_bucket(), any_s3.boto()
    for key in ("a", "dir/b +", "dir/c"):
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    words = ["s3-changes", f"s3://{bucket}/", "--endpoint", any_s3.endpoint_url]

    first = cli(*words)
    client.put_object(Bucket=bucket, Key="a", Body=b"other")
    client.delete_object(Bucket=bucket, Key="dir/c")
    second = cli(*words, "--json")
    third = cli(*words, "-q")

    assert first.code == second.code == third.code == 0, first.err
    assert [(x["op"], x.get("key")) for x in first.lines] == [
        ("added", "a"), ("added", "dir/b +"), ("added", "dir/c"), ("summary", None),
    ]  # fmt: skip
    changed, deleted, summary = second.lines
    assert changed["op"] == "modified"
    assert changed["old"]["size"] == 1
    assert changed["new"]["size"] == 5
    assert (deleted["op"], deleted["key"]) == ("deleted", "dir/c")
    assert (summary["unchanged"], summary["objects"], summary["waiting"]) == (1, 2, 0)
    assert [x["op"] for x in third.lines] == ["summary"]
    client.close()


def test_s19_check_tells_differences_and_changes_nothing(cli: Cli, any_s3: S3Server) -> None:
    bucket, client = any_s3.new_bucket(), any_s3.boto()
    for key in "abcd":
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    words = ["s3-changes", f"s3://{bucket}", "--endpoint", any_s3.endpoint_url]
    assert cli(*words, "--check").code == 2
    cli(*words)
    assert cli(*words, "--check").code == 0

    client.put_object(Bucket=bucket, Key="b", Body=b"planted")
    client.put_object(Bucket=bucket, Key="aa", Body=b"new")
    client.delete_object(Bucket=bucket, Key="d")
    checked, again = cli(*words, "--check"), cli(*words, "--check", "--json")

    assert checked.code == again.code == 1
    assert checked.out.splitlines()[:3] == ["+ aa", "* b", "- d"]
    assert again.lines[-1]["counts"] == {"=": 2, "+": 1, "-": 1, "*": 1, "!": 0}
    assert len(cli(*words).lines) == 4
    client.close()


def test_s19_versions_are_checked_as_versions(cli: Cli, moto_s3: S3Server) -> None:
    bucket, client = moto_s3.new_bucket(), moto_s3.boto()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for key in "abc":
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    words = ["s3-changes", f"s3://{bucket}", "--endpoint", moto_s3.endpoint_url, "--versions"]
    cli(*words)
    assert cli(*words, "--check").code == 0

    client.put_object(Bucket=bucket, Key="b", Body=b"b")
    client.delete_object(Bucket=bucket, Key="c")
    checked = cli(*words, "--check")

    assert checked.code == 1
    assert checked.out.splitlines()[:2] == ["* b", "- c"]
    client.close()


def test_s19_a_check_takes_no_state_over(cli: Cli) -> None:
    ran = cli("s3-changes", "s3://bucket", "--check", "--rebase")

    assert ran.code == 2
    assert "--check changes nothing" in ran.err


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (error(503, "SlowDown", Retry_After="1"), 4, "slow down"),
        (error(500, "InternalError"), 4, "server failed"),
        (error(403, "AccessDenied"), 1, "access denied"),
        (error(403, "ExpiredToken"), 2, "session token has expired"),
        (error(403, "InvalidAccessKeyId"), 2, "access key id"),
        (error(403, "SignatureDoesNotMatch"), 2, "secret access key is wrong"),
        (error(403, "RequestTimeTooSkewed"), 2, "clock"),
        (error(404, "NoSuchBucket"), 2, "no such bucket"),
        (error(301, "PermanentRedirect", x_amz_bucket_region="eu-west-3"), 2, "'eu-west-3'"),
        (
            error(400, "AuthorizationHeaderMalformed", "wrong; expecting 'ap-south-1'"),
            2,
            "'ap-south-1'",
        ),
        (Answer(200, b"<html>hello</html>"), 4, "no listing"),
    ],
)
def test_each_bad_day_has_its_words_and_its_code(
    cli: Cli, fake_s3: FakeS3, answer: Answer, code: int, words: str
) -> None:
    fake_s3.spoil = lambda _: answer

    ran = cli("s3-changes", "s3://bucket", "--endpoint", fake_s3.endpoint_url, "--deadline", "1.5")

    assert ran.code == code, ran.err
    assert words in ran.err
    assert "Traceback" not in ran.err
    assert S3Server.secret_access_key not in ran.err


def test_too_many_deletions_are_told_apart(cli: Cli, fake_s3: FakeS3) -> None:
    fake_s3.put_many(f"{n:04}" for n in range(300))
    words = ["s3-changes", "s3://bucket", "--endpoint", fake_s3.endpoint_url]
    assert len(cli(*words).lines) == 301
    fake_s3.clear()

    refused = cli(*words)
    forced = cli(*words, "--force-delete")

    assert refused.code == 3
    assert "300 of 300" in refused.err
    assert "--force-delete" in refused.err
    assert len(forced.lines) == 301


def test_a_crash_of_the_server_is_taken_up(cli: Cli, fake_s3: FakeS3) -> None:
    fake_s3.put_many(f"{n:04}" for n in range(50))
    words = ["s3-changes", "s3://bucket", "--endpoint", fake_s3.endpoint_url, "--page-size", "10"]

    def spoil(request: Request) -> Answer | None:
        return error(503, "SlowDown") if request.number > 3 else None

    fake_s3.spoil = spoil
    broken = cli(*words, "--deadline", "0.3")
    fake_s3.spoil = None
    mended = cli(*words)

    assert broken.code == 4
    keys = [x["key"] for x in broken.lines + mended.lines if x["op"] == "added"]
    assert keys == [f"{n:04}" for n in range(50)]


def test_what_nobody_read_is_told_again(
    cli: Cli, start: Callable[..., subprocess.Popen[bytes]], fake_s3: FakeS3
) -> None:
    """Whoever reads us went away: what it was not given is not acknowledged."""
    fake_s3.put_many(f"{n:04}" for n in range(50))
    words = ["s3-changes", "s3://bucket", "--endpoint", fake_s3.endpoint_url]
    with start(*words) as child:
        assert child.stdout is not None
        child.stdout.close()
        child.wait(30)
    assert fake_s3.count

    told = cli(*words).lines

    assert [x["key"] for x in told[:-1]] == [f"{n:04}" for n in range(50)]


def test_other_words_are_refused(cli: Cli) -> None:
    for url in ("http://bucket", "s3://", "s3://key:secret@bucket"):
        ran = cli("s3-changes", url)
        assert ran.code == 2
        assert "secret" not in ran.err or "credentials" in ran.err
