"""The client against a server that answers late, twice, in part, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from support.fake_s3 import Answer, FakeS3, Request, error

from sync_engine.errors import StoreRejected, StoreUnavailable
from sync_engine.s3 import Part, PreconditionFailed, S3Client
from sync_engine.s3.retry import Attempts
from sync_engine.testing import ManualClock, ManualRuntime, SystemRuntime


@pytest.fixture
def client(fake_s3: FakeS3, runtime: ManualRuntime) -> Iterator[S3Client]:
    with S3Client(fake_s3.settings(deadline_s=30.0), runtime) as client:
        yield client


def answers(fake_s3: FakeS3, method: str, *given: Answer) -> None:
    """Answer requests of a method in this order, the last answer again and again."""
    left = list(given)

    def spoil(request: Request) -> Answer | None:
        if request.method != method:
            return None
        return left.pop(0) if len(left) > 1 else left[0]

    fake_s3.spoil = spoil


def refusals(**codes: str) -> Answer:
    errors = "".join(
        f"<Error><Key>{key}</Key><Code>{code}</Code></Error>" for key, code in codes.items()
    )
    return Answer(200, f"<DeleteResult>{errors}</DeleteResult>".encode())


def test_a_refused_deletion_is_told_although_another_had_to_be_repeated(
    fake_s3: FakeS3, client: S3Client
) -> None:
    answers(fake_s3, "POST", refusals(a="AccessDenied", b="SlowDown", c="NoSuchKey"), refusals())

    with pytest.raises(StoreRejected, match=r"bucket/a: .*AccessDenied"):
        client.delete_many("bucket", ["a", "b", "c", "d"])

    first, second = fake_s3.requests
    assert first.number < second.number
    assert int(second.headers["Content-Length"]) < int(first.headers["Content-Length"])


def test_deletions_that_fail_for_a_while_are_repeated(fake_s3: FakeS3, client: S3Client) -> None:
    again = [refusals(a=code) for code in ("InternalError", "RequestTimeout", "Throttling")]
    answers(fake_s3, "POST", *again, refusals())

    client.delete_many("bucket", ["a"])

    assert len(fake_s3.requests) == 4


@pytest.mark.parametrize("marker", ["<NextKeyMarker>k</NextKeyMarker>", ""])
def test_versions_that_never_end_are_no_listing(
    fake_s3: FakeS3, client: S3Client, marker: str
) -> None:
    page = f"<ListVersionsResult><IsTruncated>true</IsTruncated>{marker}</ListVersionsResult>"
    answers(fake_s3, "GET", Answer(200, page.encode()))

    with pytest.raises(StoreUnavailable, match="how to go on"):
        list(client.list_versions("bucket"))


def test_a_listing_that_never_ends_is_no_listing(fake_s3: FakeS3, client: S3Client) -> None:
    page = b"<ListBucketResult><NextContinuationToken>t</NextContinuationToken>"
    page += b"<IsTruncated>true</IsTruncated></ListBucketResult>"
    answers(fake_s3, "GET", Answer(200, page))

    with pytest.raises(StoreUnavailable, match="how to go on"):
        list(client.iter("bucket"))


def test_a_listing_with_fewer_objects_than_it_counts_is_no_listing(
    fake_s3: FakeS3, client: S3Client
) -> None:
    fake_s3.put_many(["a", "b"])
    fake_s3.rewrite = lambda _, answer: Answer(
        200, answer.body.replace(b"<KeyCount>2<", b"<KeyCount>3<")
    )

    with pytest.raises(StoreUnavailable, match="2 of 3 objects"):
        client.list_page("bucket")


# -- an answer that was lost ---------------------------------------------------------------------


def test_a_conditional_put_whose_answer_was_lost_is_known_by_its_bytes(
    fake_s3: FakeS3, client: S3Client
) -> None:
    answers(fake_s3, "PUT", Answer(reset=True), error(412, "PreconditionFailed"))
    fake_s3.put("k", b"mine")

    assert client.put("bucket", "k", b"mine", if_absent=True).size == 4


def test_a_conditional_put_that_somebody_else_won_is_lost(
    fake_s3: FakeS3, client: S3Client
) -> None:
    answers(fake_s3, "PUT", Answer(reset=True), error(412, "PreconditionFailed"))
    fake_s3.put("k", b"them")

    with pytest.raises(PreconditionFailed):
        client.put("bucket", "k", b"mine", if_absent=True)


PART = Part(1, hashlib.md5(b"mine").hexdigest(), 4)
JOINED = hashlib.md5(hashlib.md5(b"mine").digest()).hexdigest() + "-1"


@pytest.mark.parametrize("code", ["PreconditionFailed", "NoSuchUpload"])
def test_a_completion_whose_answer_was_lost_is_known_by_its_parts(
    fake_s3: FakeS3, client: S3Client, code: str
) -> None:
    status = 412 if code == "PreconditionFailed" else 404
    answers(fake_s3, "POST", Answer(reset=True), error(status, code))
    fake_s3.put("k", b"mine", etag=JOINED)

    made = client.complete_multipart("bucket", "k", "id", [PART], if_absent=True)

    assert made.etag == JOINED


@pytest.mark.parametrize("etag", ["", f"{'0' * 32}-1"])
def test_a_completion_that_somebody_else_won_is_lost(
    fake_s3: FakeS3, client: S3Client, etag: str
) -> None:
    """Theirs has as many bytes as ours."""
    answers(fake_s3, "POST", Answer(reset=True), error(412, "PreconditionFailed"))
    fake_s3.put("k", b"them", etag=etag)

    with pytest.raises(PreconditionFailed):
        client.complete_multipart("bucket", "k", "id", [PART], if_absent=True)


def test_a_deletion_whose_answer_was_lost_is_no_conflict(fake_s3: FakeS3, client: S3Client) -> None:
    answers(fake_s3, "DELETE", Answer(reset=True), error(412, "PreconditionFailed"))

    client.delete("bucket", "k", if_match="0" * 32)

    assert [r.method for r in fake_s3.requests] == ["DELETE", "DELETE", "HEAD", "HEAD"]


def test_a_server_that_knows_no_condition_for_deletions_is_asked_without(
    fake_s3: FakeS3, client: S3Client
) -> None:
    answers(fake_s3, "DELETE", error(501, "NotImplemented"), Answer(204))

    client.delete("bucket", "k", if_match="0" * 32)

    assert [r.headers.get("If-Match") for r in fake_s3.requests] == [f'"{"0" * 32}"', None]


# -- the end -------------------------------------------------------------------------------------


def test_a_closing_runtime_ends_the_attempts() -> None:
    """Its sleeps end at once: without pauses they would be a storm until the deadline."""
    runtime = SystemRuntime("test")
    runtime.close(0)
    attempts = Attempts(runtime.clock, lambda: 1.0, 60.0)
    made: list[int] = []

    def attempt(number: int) -> None:
        made.append(number)
        raise StoreUnavailable("s3", "put")

    with pytest.raises(StoreUnavailable):
        attempts.run(attempt)

    assert made == [1, 2]


def test_pauses_that_are_slept_end_nothing(clock: ManualClock) -> None:
    attempts = Attempts(clock, lambda: 1.0, 60.0)

    def attempt(number: int) -> int:
        if number < 6:
            raise StoreUnavailable("s3", "put")
        return number

    assert attempts.run(attempt) == 6
