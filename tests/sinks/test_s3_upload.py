"""The upload sink: the contract of all sinks, and what is special about objects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from support.fake_s3 import Request
from upload.spoiling import SpoilingS3

from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, StoreRejected
from sync_engine.ports import AdapterContext, Sink
from sync_engine.runtime import SystemRuntime
from sync_engine.s3 import S3Address
from sync_engine.sinks.s3_upload import KeyTemplate, from_settings
from sync_engine.testing.contracts.sink import SinkContract

if TYPE_CHECKING:
    from support.s3_servers import S3Server

pytestmark = pytest.mark.external


def make(base: Path, server: S3Server, bucket: str, **settings: Any) -> Any:
    context = AdapterContext(
        name="upload", runtime=SystemRuntime("upload"), data_dir=base, wake=lambda: None
    )
    return from_settings(
        context,
        url=f"s3://{bucket}/items",
        endpoint_url=server.endpoint_url,
        region="us-east-1",
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        **settings,
    )


def stored(server: S3Server, bucket: str) -> Mapping[str, bytes]:
    s3 = server.boto()
    found = {}
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="items/")
    for page in pages:
        for each in page.get("Contents", ()):
            answer = s3.get_object(Bucket=bucket, Key=each["Key"])
            metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
            found[unquote(metadata["id"])] = answer["Body"].read()
    return found


class TestS3UploadSink(SinkContract):
    @pytest.fixture(autouse=True)
    def _target(self, tmp_path: Path, moto_s3: S3Server) -> Any:
        self.base, self.server = tmp_path, moto_s3
        self.bucket = moto_s3.new_bucket()
        self.made: list[Any] = []
        yield
        for sink in self.made:
            sink.close()
            sink._context.runtime.close(5.0)

    def make_sink(self) -> Sink:
        self.made.append(make(self.base, self.server, self.bucket))
        sink: Sink = self.made[-1]
        return sink

    def stored(self) -> Mapping[str, bytes]:
        return stored(self.server, self.bucket)

    def refused_change(self) -> Change:
        return Change("x" * 1100, 9, b"")

    def test_a_large_batch_is_taken_whole(self, sink: Sink) -> None:
        """Each item is a request or two: KILLS=50 gives the 3000 of other sinks."""
        count = 3000 if os.environ.get("KILLS") else 200
        sink.apply([Change(f"row.{n:05}", n + 1, b"value") for n in range(count)])
        assert len(self.stored()) == count


def test_items_arrive_on_every_server_and_older_versions_lose(
    tmp_path: Path, any_s3: S3Server
) -> None:
    bucket = any_s3.new_bucket()
    sink = make(tmp_path, any_s3, bucket)
    sink.attach()
    sink.apply([Change("a/ä", 2, b"new"), Change("b", 3, b"b"), Change("c", 4, b"")])
    sink.apply([Change("a/ä", 1, b"old"), Change("b", 5, None)])
    sink.apply([Change("b", 4, b"late")])
    assert stored(any_s3, bucket) == {"a/ä": b"new", "c": b""}
    sink.close()
    sink._context.runtime.close(5.0)


def test_a_deletion_spares_what_was_stored_since_it_looked(
    tmp_path: Path, moto_s3: S3Server
) -> None:
    """The condition of the DELETE names the object that was found older."""
    bucket = moto_s3.new_bucket()
    (tmp_path / "other").mkdir()
    other = make(tmp_path / "other", moto_s3, bucket)
    with SpoilingS3(moto_s3.port) as between:
        server: Any = SimpleNamespace(
            endpoint_url=between.endpoint_url,
            access_key_id=moto_s3.access_key_id,
            secret_access_key=moto_s3.secret_access_key,
        )
        sink = make(tmp_path, server, bucket)
        for each in (sink, other):
            each.attach()
        sink.apply([Change("a", 1, b"old"), Change("b", 1, b"old")])

        def meanwhile(request: Request) -> None:
            if request.method == "DELETE" and request.key.endswith("/a"):
                other.apply([Change("a", 3, b"newer")])

        between.spoil = meanwhile
        sink.apply([Change("a", 2, None), Change("b", 2, None)])

        assert stored(moto_s3, bucket) == {"a": b"newer"}
        for each in (sink, other):
            each.close()
            each._context.runtime.close(5.0)


def test_a_deletion_in_a_bucket_that_is_away_is_not_done(tmp_path: Path, any_s3: S3Server) -> None:
    bucket = any_s3.new_bucket()
    sink = make(tmp_path, any_s3, bucket)
    sink.attach()
    sink.apply([Change("gone", 1, None)])  # there is none, and that is fine
    any_s3.boto().delete_bucket(Bucket=bucket)

    with pytest.raises(ConfigError, match="no such bucket"):
        sink.apply([Change("a", 2, None)])
    sink.close()
    sink._context.runtime.close(5.0)


def test_two_ids_with_one_key_are_refused(tmp_path: Path, moto_s3: S3Server) -> None:
    bucket = moto_s3.new_bucket()
    sink = make(tmp_path, moto_s3, bucket, key_template="{name}")
    sink.attach()
    sink.apply([Change("x/f", 1, b"x")])
    with pytest.raises(StoreRejected, match="another id"):
        sink.apply([Change("y/f", 2, b"y")])
    assert stored(moto_s3, bucket) == {"x/f": b"x"}
    sink.close()
    sink._context.runtime.close(5.0)


def test_templates_make_keys() -> None:
    address = S3Address("bucket", "pre")
    time_ms = 1_767_323_045_000
    made = KeyTemplate(address, "{year}/{month}/{dir}-{stem}{suffix}-{root}")
    assert made.key("a/b.c.gz", root="r", time_ms=time_ms) == "pre/2026/01/a-b.c.gz-r"
    assert KeyTemplate(address).key("a/b") == "pre/a/b"
    assert KeyTemplate(S3Address("bucket", "pre/")).key("a") == "pre/a"
    assert KeyTemplate(S3Address("bucket")).key("a") == "a"


@pytest.mark.parametrize(
    "template", ["", "{nope}", "fixed", "{path!r}", "{path:>9}", "{path", "{}"]
)
def test_templates_that_cannot_be_used_are_refused(template: str) -> None:
    with pytest.raises(ConfigError):
        KeyTemplate(S3Address("bucket"), template)


def test_a_key_that_is_too_long_is_refused() -> None:
    with pytest.raises(StoreRejected):
        KeyTemplate(S3Address("bucket")).key("x" * 1025)
