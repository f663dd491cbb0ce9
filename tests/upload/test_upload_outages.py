"""Files to S3: a server that is away, or refuses; KILLS=50 gives the full lengths."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from support.fake_s3 import Answer, Request, error
from upload.site import FULL, Site, content
from upload.spoiling import SpoilingS3

if TYPE_CHECKING:
    from sync_engine.testing import FaultProxy
from upload.site import QUICKLY

pytestmark = pytest.mark.external


def test_u07_a_server_that_is_away_is_waited_for(
    site: Site, fault_proxy: Callable[[str, int], FaultProxy]
) -> None:
    proxy = fault_proxy("127.0.0.1", site.server.port)
    site.endpoint_url = f"http://127.0.0.1:{proxy.port}"
    away_s = 30.0 if FULL else 1.0
    with site.running(deadline_s=0.5, **QUICKLY) as program:
        proxy.refuse = True
        proxy.drop_connections()
        for n in range(5):
            site.write(str(n), content(n, 99))
        time.sleep(away_s)  # the length of the outage is what is tested
        assert site.keys() == []
        proxy.reset()
        progress = site.settle(program)
    assert site.objects() == site.files()
    assert progress.retries > 0
    assert progress.parked == 0


def test_u07_a_server_that_answers_503_is_waited_for(site: Site) -> None:
    for n in range(5):
        site.write(str(n), content(n, 99))
    seconds = 30.0 if FULL else 1.0
    refused: list[float] = []

    def busy(request: Request) -> Answer | None:
        now = time.monotonic()
        if request.method != "PUT" or (refused and now > refused[0] + seconds):
            return None
        refused.append(now)
        return error(503, "SlowDown", "Please reduce your request rate.")

    with SpoilingS3(site.server.port) as front:
        front.spoil = busy
        site.endpoint_url = front.endpoint_url
        progress = site.run(deadline_s=0.5, after="delete", **QUICKLY)
    assert refused
    assert progress.retries > 0
    assert progress.parked == 0
    assert progress.stalled_s == 0
    assert len(site.keys()) == 5
    assert site.files() == {}


def test_u07_one_refused_file_is_parked_and_the_others_go_on(site: Site) -> None:
    def refuse_one(request: Request) -> Answer | None:
        if request.method == "PUT" and request.key.endswith("/secret"):
            return error(403, "AccessDenied", "Access Denied")
        return None

    for name in ("a", "secret", "z"):
        site.write(name)
    with SpoilingS3(site.server.port) as front:
        front.spoil = refuse_one
        site.endpoint_url = front.endpoint_url
        progress = site.run(after="delete")
        assert sorted(site.keys()) == ["a", "z"]
        assert progress.parked == 1
        assert [path for path, _ in progress.problems] == ["secret"]
        assert "denied" in progress.problems[0][1].lower()
        assert list(site.files()) == ["secret"]

        front.spoil = lambda request: None
        site.run(after="delete")  # the next run tries again
    assert site.files() == {}
