"""How a peer is asked: over TLS, each entry once, with pauses while it is down, as it is set."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.processes import find_program, free_port, run
from support.servers import RedisServer
from support.serving import serve

from sync_engine import SyncEngine, SyncItem
from sync_engine.errors import StoreUnavailable
from sync_engine.replication import Peer
from sync_engine.replication.cold import PeerArchive
from sync_engine.replication.link import PeerLink
from sync_engine.replication.sieve import Sieve
from sync_engine.sinks.redis_stream import RedisStreamSink
from sync_engine.testing import FaultProxy, SystemClock
from tests.replication.nodes import Node, until

Make = Callable[..., Node]


class TlsRedis(RedisServer):
    """A Redis that also listens with TLS, under a certificate that only `ca` vouches for."""

    def __init__(self) -> None:
        super().__init__()
        self.tls_port = free_port()
        self.ca = self.dir / "cert.pem"
        key = self.dir / "key.pem"
        run(
            [
                find_program(["openssl"], "openssl"), "req", "-x509", "-newkey", "rsa:2048",
                "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
                "-addext", "subjectAltName=IP:127.0.0.1",
                "-keyout", str(key), "-out", str(self.ca),
            ]
        )  # fmt: skip
        self._options = (
            "--tls-port", str(self.tls_port), "--tls-cert-file", str(self.ca),
            "--tls-key-file", str(key), "--tls-auth-clients", "no",
        )  # fmt: skip

    @property
    def tls_url(self) -> str:
        return f"rediss://127.0.0.1:{self.tls_port}/0"


@pytest.fixture
def tls_redis() -> Iterator[TlsRedis]:
    yield from serve(TlsRedis)


def progress(node: Node, source: str) -> dict[str, float]:
    found: dict[str, float] = node.engine.stats()["sources"][source]["progress"]
    return found


def reads(server: RedisServer) -> int:
    """Return how often a stream was read since the statistics were reset."""
    with server.client() as client:
        return int(client.info("commandstats").get("cmdstat_xread", {}).get("calls", 0))


@pytest.mark.external
def test_r14_feed_and_cache_are_reached_over_tls(make_node: Make, tls_redis: TlsRedis) -> None:
    url = f"{tls_redis.tls_url}?ssl_ca_certs={tls_redis.ca}"
    a = make_node("a", feed_url=url, redis_url=url).start()
    b = make_node("b").start(a.peer(hot=True))

    a.engine.submit("k", b"v")

    until(lambda: b.content("k") == b"v")
    assert b.replicator.status()["a"].connected
    assert a.engine.health().tiers["l2"].error == ""


@pytest.mark.external
def test_r14_a_certificate_that_nobody_vouches_for_is_refused_and_told(
    make_node: Make, tls_redis: TlsRedis
) -> None:
    a = make_node("a", feed_url=tls_redis.url).start()
    a.engine.submit("k", b"v")
    a.engine.flush(5.0, sinks=True)

    b = make_node("b").start(a.peer(hot=True, redis_url=tls_redis.tls_url))

    until(lambda: b.replicator.status()["a"].errors, "the refusal told")
    assert not b.replicator.status()["a"].connected
    assert any("peer-a-feed" in why for why in b.engine.health().degraded)
    assert b.content("k") is None


@pytest.fixture
def feeding(make_node: Make, redis_server: RedisServer) -> Node:
    """A node with a feed and 500 items in it."""
    a = make_node("a", feed_url=redis_server.url)
    a.stream = f"feed-{uuid.uuid4().hex[:8]}"
    a.start()
    a.engine.submit_many([SyncItem(f"i{n}", b"v%d" % n) for n in range(500)])
    assert a.engine.flush(5.0, sinks=True).complete
    return a


@pytest.mark.external
def test_r15_an_entry_is_read_once_though_it_cannot_be_taken_yet(
    make_node: Make, feeding: Node, redis_server: RedisServer
) -> None:
    b = make_node("b").start(feeding.peer(hot=True))
    until(lambda: b.content("i499") == b"v499")
    assert b.engine.flush(5.0).complete
    before = progress(b, "peer-a-feed")
    assert (before["entries"], before["repeats"]) == (500, 0)

    b.engine.detach("l3")  # without it, nobody can tell what is news
    feeding.engine.submit("more", b"v")
    feeding.engine.flush(5.0, sinks=True)
    until(lambda: b.replicator.status()["a"].errors, "the wait told")
    redis_server.execute("CONFIG", "RESETSTAT")
    threading.Event().wait(0.5)
    asked = reads(redis_server)
    b.engine.attach("l3")

    until(lambda: b.content("more") == b"v")
    assert asked <= 2  # where it attaches anew; a loop asks some hundred times
    assert progress(b, "peer-a-feed")["entries"] <= 503


@pytest.mark.external
def test_r15_the_end_of_a_feed_is_asked_at_the_pace_of_idling(
    make_node: Make, feeding: Node, redis_server: RedisServer
) -> None:
    b = make_node("b").start(feeding.peer(hot=True))
    until(lambda: b.content("i499") == b"v499")
    redis_server.execute("CONFIG", "RESETSTAT")

    threading.Event().wait(0.5)

    assert 1 <= reads(redis_server) <= 12  # every 0.05 s
    assert progress(b, "peer-a-feed")["repeats"] == 0


@pytest.mark.external
def test_r12_a_peer_that_is_down_is_asked_with_pauses_that_grow(
    make_node: Make,
    feeding: Node,
    redis_server: RedisServer,
    fault_proxy: Callable[[str, int], FaultProxy],
) -> None:
    """What goes on about a failure is what decides when the peer is asked again."""
    proxy = fault_proxy("127.0.0.1", redis_server.port)
    proxy.refuse = True
    clock = SystemClock()
    url = f"redis://127.0.0.1:{proxy.port}/0"
    began = clock.monotonic()
    b = make_node("b").start(feeding.peer(hot=True, redis_url=url))
    until(lambda: b.replicator.status()["a"].errors, "the outage told")

    until(lambda: clock.monotonic() - began > 2.0)

    assert 2 <= proxy.connections <= 20
    assert b.engine.health().ready  # a peer that is down is no reason not to work
    proxy.refuse = False
    until(lambda: b.content("i499") == b"v499", "healed")
    until(lambda: not b.replicator.status()["a"].errors)


@pytest.mark.external
def test_r12_prefix_and_stream_of_a_peer_are_those_that_are_read(
    make_node: Make, redis_server: RedisServer
) -> None:
    a = make_node("a").start()
    sink = RedisStreamSink(redis_server.url, clock=SystemClock(), prefix="other", stream="way")
    a.engine.add_sink("feed", sink)
    a.engine.submit("k", b"v")
    peer = Peer(name="a", redis_url=redis_server.url, redis_prefix="other", stream="way")

    b = make_node("b").start(peer)

    until(lambda: b.content("k") == b"v")


def test_r12_bytes_of_a_pull_keep_to_their_rate(make_node: Make) -> None:
    b = make_node("b").start()
    b.engine.submit_many([SyncItem(f"i{n}", b"v" * 1000) for n in range(300)])
    b.engine.flush()
    clock = SystemClock()
    began = clock.monotonic()

    a = make_node("a").start(b.peer(cold=True, bytes_per_s=250_000.0))

    until(lambda: a.engine.count_prefix("") == 300)
    assert clock.monotonic() - began >= 0.75  # the last 100 wait for 200 KB before them


@pytest.mark.parametrize(("chance", "pause_s"), [(0.0, 80.0), (0.5, 100.0), (1.0, 120.0)])
def test_r12_interval_and_jitter_set_the_pause_between_comparisons(
    make_node: Make, chance: float, pause_s: float
) -> None:
    b, a = make_node("b").start(), make_node("a").start()
    context = a.engine.adapter_context("source", "peer-b-archive")
    runtime = _Chance(context.runtime, chance)
    peer = b.peer(cold=True, interval_s=100.0, jitter=0.4)
    link = PeerLink(peer, context.runtime, a.dir / "peer-b.standing")
    sieve = Sieve(a.engine, link, context.runtime.clock)
    until(lambda: _is_built(a) and _is_built(b), "trees")
    source = PeerArchive(a.engine, link, sieve, replace(context, runtime=runtime))
    try:
        source.attach()
        waits = [source.poll(100).wait_s for _ in range(3)]
    finally:
        source.close()

    assert waits[-1] == pytest.approx(pause_s, abs=1.0)


@pytest.fixture
def between(make_node: Make) -> Iterator[tuple[PeerArchive, PeerLink]]:
    """A source that has compared once, and would not do it again for an hour."""
    b, a = make_node("b").start(), make_node("a").start()
    context = a.engine.adapter_context("source", "peer-b-archive")
    link = PeerLink(b.peer(cold=True, interval_s=3600.0), context.runtime, a.dir / "b.standing")
    until(lambda: _is_built(a) and _is_built(b), "trees")
    sieve = Sieve(a.engine, link, context.runtime.clock)
    source = PeerArchive(a.engine, link, sieve, context)
    source.attach()
    assert [source.poll(100).wait_s for _ in range(3)][-1] > 1000
    yield source, link
    source.close()


def test_a_comparison_that_was_asked_for_and_fails_is_made_as_soon_as_it_can_be(
    between: tuple[PeerArchive, PeerLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, link = between
    link.missed("a gap")
    with monkeypatch.context() as broken:
        broken.setattr(SyncEngine, "diff", _unavailable)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                source.poll(100)
    assert link.standing.gap == "a gap"

    waits = [source.poll(100).wait_s for _ in range(2)]

    assert waits[-1] > 1000
    assert link.standing.gap == ""
    assert source.progress()["comparisons"] == 2


def test_a_comparison_that_could_not_be_noted_is_noted_without_another(
    between: tuple[PeerArchive, PeerLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, link = between
    link.missed("a gap")
    source.poll(100)
    with monkeypatch.context() as broken:
        broken.setattr(link, "compared", _unavailable)
        with pytest.raises(StoreUnavailable):
            source.poll(100)
    assert link.standing.gap == "a gap"

    source.poll(100)

    assert link.standing.gap == ""
    assert source.progress()["comparisons"] == 2


def _unavailable(*_: Any, **__: Any) -> Any:
    raise StoreUnavailable("peer", "test", "down")


class _Chance:
    """A runtime whose dice have fallen."""

    def __init__(self, runtime: Any, chance: float) -> None:
        self._runtime = runtime
        self.random = lambda: chance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


def _is_built(node: Node) -> bool:
    return bool(node.engine.merkle_state().built)
