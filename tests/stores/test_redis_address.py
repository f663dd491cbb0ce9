"""Redis URLs: what a driver would misread is refused, and no password is ever shown."""

from __future__ import annotations

import pytest

from sync_engine.errors import ConfigError
from sync_engine.redis_link.address import Kind, parse_address
from sync_engine.stores.redis import RedisStore
from sync_engine.testing import ManualClock


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "database"),
    [
        ("redis://h", Kind.SERVER, (("h", 6379),), 0),
        ("redis://h/", Kind.SERVER, (("h", 6379),), 0),
        ("redis://h:1/15", Kind.SERVER, (("h", 1),), 15),
        ("redis://h?db=3", Kind.SERVER, (("h", 6379),), 3),
        ("rediss://h:65535", Kind.SERVER, (("h", 65535),), 0),
        ("redis://[::1]:7000/2", Kind.SERVER, (("::1", 7000),), 2),
        ("redis://[fe80::1%25eth0]", Kind.SERVER, (("fe80::1%eth0", 6379),), 0),
        ("redis+cluster://a,b:7001,[::1]:7002", Kind.CLUSTER,
         (("a", 6379), ("b", 7001), ("::1", 7002)), 0),
        ("rediss+cluster://a/0", Kind.CLUSTER, (("a", 6379),), 0),
        ("redis+sentinel://a,b:1/mymaster/4", Kind.SENTINEL, (("a", 26379), ("b", 1)), 4),
    ],
)  # fmt: skip
def test_usable_urls_say_what_they_mean(
    url: str, kind: Kind, hosts: tuple[tuple[str, int], ...], database: int
) -> None:
    address = parse_address(url)

    assert (address.kind, address.hosts, address.database) == (kind, hosts, database)
    assert (address.tls is not None) == url.startswith("rediss")


def test_credentials_are_percent_decoded() -> None:
    address = parse_address("redis://us%40er:p%3A%2F%23%3F%25%C3%A9@h/1")

    assert (address.username, address.password) == ("us@er", "p:/#?%é")
    assert parse_address("redis://:secret@h").username is None


def test_a_socket_has_a_path_and_its_database_as_an_option() -> None:
    address = parse_address("unix://:secret@/run/my%20redis.sock?db=2")

    assert (address.kind, address.path, address.database) == (Kind.SOCKET, "/run/my redis.sock", 2)


def test_tls_verifies_unless_it_is_told_otherwise() -> None:
    assert parse_address("rediss://h").tls == {
        "ssl_cert_reqs": "required", "ssl_check_hostname": True
    }  # fmt: skip
    lenient = parse_address("rediss://h?ssl_check_hostname=false&ssl_ca_certs=/ca.pem").tls
    assert lenient == {
        "ssl_cert_reqs": "required", "ssl_check_hostname": False, "ssl_ca_certs": "/ca.pem"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://h", "must start"),
        ("redis:h", "must start"),
        ("redi://h", "must start"),
        ("redis://", "no host"),
        ("redis://:6379", "no host"),
        ("redis://h:99999", "port"),
        ("redis://h:0", "port"),
        ("redis://h:x", "port"),
        ("redis://h:", "port"),
        ("redis://h:\u0666\u0663", "port"),
        ("redis://::1", "malformed"),
        ("redis://h/notanint", "database"),
        ("redis://h/-1", "database"),
        ("redis://h/1/2", "database"),
        ("redis://h/1?db=2", "twice"),
        ("redis://h?db=", "without a value"),
        ("redis://h?nonsense=1", "'nonsense'"),
        ("redis://h?ssl_ca_certs=/x", "'ssl_ca_certs'"),
        ("rediss://h?ssl_check_hostname=perhaps", "ssl_check_hostname"),
        ("rediss://h?ssl_cert_reqs=optional", "ssl_cert_reqs"),
        ("redis://a,b", "several hosts"),
        ("redis://h h", "blanks"),
        ("redis+cluster://h/1", "number 0 only"),
        ("redis+cluster://h:x", "port"),
        ("redis+cluster://a,,b", "no host"),
        ("redis+sentinel://h:26379", "master"),
        ("redis+sentinel://h/m/x", "database"),
        ("unix://", "path"),
        ("unix://relative/path?x=1", "'x'"),
        ("unix://run/redis.sock", "path"),
        ("unix://:s3cret@run/redis.sock", "path"),
        ("redis://user@h", "no password"),
        ("redis://u:s3cret@h:99999", "port"),
        ("redis://u:s3c@ret@h", "@ too many"),
        ("redis://u:s3c/ret@h", "@ too many"),
        ("redis://u:s3c?ret@h", "@ too many"),
        ("redis://u:s3c#ret@h", "#"),
        ("redis://u:s3c:ret@h", ": too many"),
        ("redis://u:s3c%ret@h", "%"),
        ("redis://u:s3c%ffret@h", "UTF-8"),
        ("redis+sentinel://u:s3cret@h/m?sentinel_password=s3cret&x=1", "'x'"),
    ],
)
def test_unusable_urls_are_refused_and_never_shown(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        RedisStore(url, clock=ManualClock())

    assert "s3c" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("prefix", ["", "{a}", "a b", "a*", ":a", "ä", "x" * 65])
def test_unusable_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="redis_prefix"):
        RedisStore("redis://h", prefix=prefix, clock=ManualClock())


def test_a_password_is_in_no_repr() -> None:
    url = "redis+sentinel://u:s3cret@h/m?sentinel_password=s3cret"

    assert "s3cret" not in repr(RedisStore(url, clock=ManualClock()))
    assert "s3cret" not in repr(parse_address(url))
