"""Who may use a Redis, and how that is told: passwords, rights, databases, sockets, TLS."""

from __future__ import annotations

import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.processes import find_program, free_port
from support.servers import RedisServer

from sync_engine.errors import ConfigError, StoreRejected, StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.runtime import SystemClock
from sync_engine.stores.redis import RedisStore
from sync_engine.testing.contracts.cache import put


@pytest.fixture
def cache_clock() -> Clock:
    return SystemClock()


SECRET = "s3:c/r@et?#%"


@pytest.fixture
def guarded_server() -> Iterator[Any]:
    """A server of its own: passwords outlive what the shared one is healed of."""
    server = RedisServer("--unixsocket", "redis.sock")
    server.start()
    rights = "+mget +get +set +getrange +eval +evalsha +info +select"
    server.execute("ACL", "SETUSER", "engine", "on", f">{SECRET}", "~se:*", *rights.split())
    server.execute("ACL", "SETUSER", "reader", "on", f">{SECRET}", "~*", "+get", "+mget", "+info")
    yield server
    server.destroy()


@pytest.mark.external
def test_a_user_with_the_least_rights_that_are_documented_is_enough(
    guarded_server: Any, cache_clock: Clock
) -> None:
    secret = quote(SECRET, safe="")
    store = RedisStore(
        f"redis://engine:{secret}@127.0.0.1:{guarded_server.port}/3", clock=cache_clock
    )
    store.attach()

    store.apply([put("a", 1)])
    store.fill([put("b", 2)])

    assert store.get_many(["a", "b"]).keys() == {"a", "b"}
    assert store.ping() >= 0
    store.close()


@pytest.mark.external
@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("redis://engine:wrong@127.0.0.1:{port}", "password"),
        ("redis://nobody:{secret}@127.0.0.1:{port}", "password"),
        ("redis://reader:{secret}@127.0.0.1:{port}", "ACL"),
        ("redis://engine:{secret}@127.0.0.1:{port}/99", "database"),
        ("redis+cluster://127.0.0.1:{port}", "no cluster"),
    ],
)
def test_what_can_never_work_is_a_setting_to_fix_and_shows_no_secret(
    guarded_server: Any, cache_clock: Clock, url: str, hint: str
) -> None:
    secret = quote(SECRET, safe="")
    store = RedisStore(url.format(port=guarded_server.port, secret=secret), clock=cache_clock)

    with pytest.raises(ConfigError, match=hint) as caught:
        store.attach()

    told = "".join(traceback.format_exception(caught.value)) + repr(store)
    assert SECRET not in told
    assert secret not in told
    assert "wrong" not in told
    store.close()


@pytest.mark.external
def test_a_missing_password_is_named(guarded_server: Any, cache_clock: Clock) -> None:
    guarded_server.execute("CONFIG", "SET", "requirepass", SECRET)
    bare = RedisStore(f"redis://127.0.0.1:{guarded_server.port}", clock=cache_clock)
    with pytest.raises(ConfigError, match="asks for a password"):
        bare.attach()
    bare.close()

    secret = quote(SECRET, safe="")
    store = RedisStore(f"redis://:{secret}@127.0.0.1:{guarded_server.port}/3", clock=cache_clock)
    store.attach()
    store.apply([put("a", 1)])
    assert store.get_many(["a"]).keys() == {"a"}
    store.close()


@pytest.mark.external
def test_rights_that_are_taken_away_reject_the_batch(
    guarded_server: Any, cache_clock: Clock
) -> None:
    secret = quote(SECRET, safe="")
    store = RedisStore(
        f"redis://engine:{secret}@127.0.0.1:{guarded_server.port}", clock=cache_clock
    )
    store.attach()
    guarded_server.execute("ACL", "SETUSER", "engine", "-evalsha")

    with pytest.raises(StoreRejected, match="ACL"):
        store.apply([put("a", 1)])
    store.close()


@pytest.mark.external
def test_a_unix_socket_serves(guarded_server: Any, cache_clock: Clock) -> None:
    secret = quote(SECRET, safe="")
    url = f"unix://engine:{secret}@{guarded_server.dir}/redis.sock"
    store = RedisStore(url, clock=cache_clock)
    store.attach()

    store.apply([put("a", 1)])

    assert store.get_many(["a"]).keys() == {"a"}
    store.close()


@pytest.mark.external
def test_tls_verifies_the_server(tmp_path: Path, cache_clock: Clock) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run([find_program(["openssl"], "openssl"), *arguments], check=True, cwd=tmp_path,
                       capture_output=True)  # fmt: skip

    files = ("-keyout", "key.pem", "-out", "cert.pem")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *files, *name)
    tls_port = free_port()
    server = RedisServer(
        "--tls-port", str(tls_port), "--tls-auth-clients", "no",
        "--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file", str(tmp_path / "key.pem"),
    )  # fmt: skip
    try:
        server.start()
        trusted = RedisStore(
            f"rediss://localhost:{tls_port}?ssl_ca_certs={tmp_path}/cert.pem", clock=cache_clock
        )
        trusted.attach()
        trusted.apply([put("a", 1)])
        assert trusted.get_many(["a"]).keys() == {"a"}
        trusted.close()
        for url in (
            f"rediss://localhost:{tls_port}",
            f"rediss://127.0.0.1:{tls_port}?ssl_ca_certs={tmp_path}/cert.pem",
            f"rediss://127.0.0.1:{server.port}?ssl_ca_certs={tmp_path}/cert.pem",
        ):
            store = RedisStore(url, clock=cache_clock)
            with pytest.raises((StoreUnavailable, ConfigError)):
                store.attach()
            store.close()
    finally:
        server.destroy()
