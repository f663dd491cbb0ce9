"""Options of Redis URLs: what the store would refuse at its start is refused with the settings."""

from __future__ import annotations

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.errors import ConfigError
from sync_engine.redis_link.address import parse_address

USABLE = [
    "redis://h",
    "redis://h/3",
    "redis://h?db=3",
    "rediss://u:p@h?ssl_ca_certs=/ca.pem&ssl_check_hostname=false&ssl_cert_reqs=none",
    "rediss+cluster://a,b?ssl_certfile=/c&ssl_keyfile=/k",
    "redis+cluster://a,b:1",
    "redis+sentinel://a/m/1?sentinel_username=u&sentinel_password=p",
    "unix:///run/redis.sock?db=2",
]
UNUSABLE = [
    ("redis://h?bd=3", "unknown option bd; known here: db"),
    ("redis://h?max_connections=10", "unknown option max_connections; known here: db"),
    ("redis+cluster://h?decode=1", "unknown option decode; known here: none"),
    ("rediss://h?ssl_ca_cert=/ca.pem", "did you mean ssl_ca_certs?"),
    ("redis://h?ssl_ca_certs=/ca.pem", "goes with rediss:// or rediss+cluster://"),
    ("redis://h?sentinel_password=hidden", "goes with redis+sentinel://"),
    ("redis+cluster://h?db=1", "goes with redis:// or rediss:// or unix://"),
    ("redis://h?db=one", "a database that is no number"),
    ("redis://h?db=", "the option db without a value"),
    ("redis://h?db=1&db=2", "the option db twice"),
    ("redis://h/1?db=1", "names its database twice"),
    ("rediss://h?ssl_cert_reqs=optional", "none of required, none"),
    ("rediss://h?ssl_check_hostname=maybe", "none of true, false"),
    ("redis://h?p%00ss=hidden", "has an unknown option; known here: db"),
]


@pytest.mark.parametrize("url", USABLE)
def test_options_that_the_store_takes_are_taken(url: str) -> None:
    assert SyncEngineConfig(redis_url=url).redis_url == url
    parse_address(url)


@pytest.mark.parametrize(("url", "told"), UNUSABLE)
def test_options_that_the_store_refuses_are_refused_with_a_suggestion(url: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SyncEngineConfig(redis_url=url)

    assert told in str(caught.value)
    assert "hidden" not in str(caught.value)
    with pytest.raises(ConfigError):
        parse_address(url)
