"""A directory and a bucket for every test here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from upload.site import Site

if TYPE_CHECKING:
    from support.s3_servers import S3Server


@pytest.fixture
def site(tmp_path: Path, moto_s3: S3Server) -> Iterator[Site]:
    with closing(Site(tmp_path, moto_s3)) as made:
        yield made


@pytest.fixture
def dated_site(tmp_path: Path, rclone_s3: S3Server) -> Iterator[Site]:
    """A server that tells when an upload in parts began; moto says 2010, always."""
    with closing(Site(tmp_path, rclone_s3)) as made:
        yield made


@pytest.fixture
def any_site(tmp_path: Path, any_s3: S3Server) -> Iterator[Site]:
    with closing(Site(tmp_path, any_s3)) as made:
        yield made
