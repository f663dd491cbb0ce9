"""The hot path: a peer's feed followed, on a real Redis."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable

import pytest

from sync_engine import SubmitOptions, SyncItem
from sync_engine.core import failpoints
from sync_engine.core.version import ms_of_version
from sync_engine.testing import FaultProxy, SystemClock
from tests.replication.nodes import Node, equal, until

pytestmark = pytest.mark.external
Make = Callable[..., Node]


@pytest.fixture
def hot_node(make_node: Make, redis_url: str) -> Make:
    """Make a node with a feed of its own."""
    run = uuid.uuid4().hex[:8]

    def make(name: str, **options: object) -> Node:
        node = make_node(name, feed_url=redis_url, **options)
        node.stream = f"feed-{run}-{name}"
        return node

    return make


def mesh(nodes: list[Node], **paths: bool) -> None:
    for node in nodes:
        node.start()
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.replicator.add(other.peer(**paths))


def progress(node: Node, peer: str) -> dict[str, float]:
    found: dict[str, float] = node.engine.stats()["sources"][f"peer-{peer}-feed"]["progress"]
    return found


def test_a_write_and_a_deletion_arrive_by_the_feed_alone(hot_node: Make) -> None:
    a, b = hot_node("a"), hot_node("b")
    mesh([a, b], hot=True)

    sent = SyncItem.from_json("k", {"n": 1}, state="delta")
    version = a.engine.submit(sent, SubmitOptions(ttl=3600)).version
    until(lambda: b.content("k") is not None)

    item = b.engine.get("k")
    assert item is not None
    assert item == a.engine.get("k")
    assert (item.version, item.state) == (version, "delta")
    b.engine.delete("k")
    until(lambda: a.content("k") is None)
    until(lambda: equal([a, b]), "equal roots")


def test_r6_three_nodes_do_not_play_ping_pong(hot_node: Make) -> None:
    """Every node publishes what it takes from others; each appends each change once."""
    nodes = [hot_node(name) for name in "abc"]
    mesh(nodes, hot=True)
    for n in range(60):
        nodes[n % 3].engine.submit(f"k{n % 20}", b"v%d" % n)

    until(lambda: equal(nodes), "equal roots")
    # What still goes round is heard: each feed has a mark that comes last.
    for node in nodes:
        node.engine.submit(f"mark.{node.name}", b"end")
    until(lambda: all(n.content(f"mark.{m.name}") for n in nodes for m in nodes))
    until(lambda: equal(nodes), "equal roots")
    written = [node.appended() for node in nodes]
    for node in nodes:
        node.engine.submit(f"last.{node.name}", b"end")
    until(lambda: all(n.content(f"last.{m.name}") for n in nodes for m in nodes))
    until(lambda: equal(nodes), "equal roots")

    assert all(count <= 63 for count in written)
    assert [node.appended() - before for node, before in zip(nodes, written, strict=True)] == [
        3, 3, 3,
    ]  # fmt: skip


def test_r9_a_gap_is_seen_and_made_good_by_a_comparison_at_once(
    hot_node: Make, redis_server: object
) -> None:
    a, b = hot_node("a"), hot_node("b")
    a.start()
    b.start(a.peer(hot=True, cold=True, interval_s=3600.0))
    a.engine.submit("first", b"v")
    until(lambda: b.content("first") == b"v")
    until(lambda: b.replicator.status()["a"].compared_s_ago >= 0)
    assert not b.engine.health().degraded
    b.engine.pause("peer-a-feed")
    a.engine.submit_many([SyncItem(f"missed{n}", b"v") for n in range(50)])
    a.engine.flush(5.0, sinks=True)
    keys = list(redis_server.client().keys(f"*{a.stream}*"))  # type: ignore[attr-defined]
    stream = next(k for k in keys if redis_server.execute("TYPE", k) == b"stream")  # type: ignore[attr-defined]
    redis_server.execute("XTRIM", stream, "MAXLEN", 1)  # type: ignore[attr-defined]

    b.engine.resume("peer-a-feed")

    until(lambda: equal([a, b]), "equal roots")
    until(lambda: b.replicator.status()["a"].gap == "", "the gap closed")
    assert progress(b, "a")["gaps"] >= 1
    assert not b.engine.health().degraded


def test_r9_a_gap_without_an_archive_to_compare_with_stays_told(
    hot_node: Make, redis_server: object
) -> None:
    a, b = hot_node("a"), hot_node("b")
    a.start()
    b.start(a.peer(hot=True))
    a.engine.submit("first", b"v")
    until(lambda: b.content("first") == b"v")
    redis_server.flush()  # type: ignore[attr-defined]
    a.engine.submit("second", b"v")

    until(lambda: b.replicator.status()["a"].gap, "the gap told")
    until(lambda: b.content("second") == b"v", "what came behind it")
    b.stop()
    b.start(a.peer(hot=True))
    gap = b.replicator.status()["a"].gap
    assert gap
    assert f"source peer-a-feed: {gap}" in b.engine.health().degraded


def test_what_a_feed_holds_back_is_told_where_nobody_compares(hot_node: Make) -> None:
    a, b = hot_node("a"), hot_node("b", tombstone_retention_s=0.5)
    a.start()
    a.engine.submit("first", b"v")
    a.engine.flush(5.0, sinks=True)
    b.start(a.peer(hot=True))
    until(lambda: b.content("first") == b"v")
    until(lambda: b.replicator._links["a"].standing.joined)
    b.engine.pause("peer-a-feed")
    version = a.engine.submit("old", b"it may have been deleted here, and forgotten").version
    a.engine.flush(5.0, sinks=True)
    clock = SystemClock()
    until(lambda: clock.now_ms() - ms_of_version(version) > 500, "the retention over")

    b.engine.resume("peer-a-feed")

    until(lambda: b.replicator.status()["a"].held == 1, "the one held")
    assert b.content("old") is None
    assert [why for why in b.engine.health().degraded if "1 items are held back" in why]


def test_r10_entries_nobody_understands_neither_block_nor_spin(
    hot_node: Make, redis_server: object
) -> None:
    a, b = hot_node("a"), hot_node("b")
    a.start()
    a.engine.submit("before", b"v")
    a.engine.flush(5.0, sinks=True)
    client = redis_server.client()  # type: ignore[attr-defined]
    stream = next(k for k in client.keys(f"*{a.stream}*") if client.type(k) == b"stream")
    for _ in range(120):
        client.xadd(stream, {"op": "garbage"})
    b.start(a.peer(hot=True))

    a.engine.submit("after", b"v")

    until(lambda: b.content("after") == b"v")
    assert b.content("before") == b"v"
    assert progress(b, "a")["poison"] == 120


def test_r7_a_replay_from_the_beginning_changes_nothing(hot_node: Make) -> None:
    a, b = hot_node("a"), hot_node("b")
    a.start()
    b.start(a.peer(hot=True))
    for n in range(30):
        a.engine.submit(f"k{n % 5}", b"v%d" % n)
    until(lambda: equal([a, b]), "equal roots")
    b.engine.submit("k0", b"newer, here")
    b.engine.delete("k1")
    b.engine.flush()
    written = b.appended()
    b.stop()
    (b.dir / "peer-a-feed.cursor").unlink()

    b.start(a.peer(hot=True))
    until(lambda: progress(b, "a")["entries"] >= 5)
    a.engine.submit("mark", b"end")
    until(lambda: b.content("mark") == b"end")

    assert b.content("k0") == b"newer, here"
    assert b.content("k1") is None
    assert b.appended() == written + 1


@pytest.mark.parametrize(
    "place",
    ["intake.polled", "intake.written", "replication.ack", "intake.acked"],
)
def test_r8_the_cursor_waits_for_the_log_at_every_failpoint(hot_node: Make, place: str) -> None:
    a, b = hot_node("a"), hot_node("b")
    a.start()
    a.engine.submit_many([SyncItem(f"i{n}", b"v%d" % n) for n in range(200)])
    a.engine.flush(5.0, sinks=True)
    hits = []

    def crash() -> None:
        hits.append(place)
        if len(hits) < 3:
            raise RuntimeError("crash")

    b.start()
    with failpoints.during(place, crash):
        b.replicator.add(a.peer(hot=True))
        until(lambda: len(hits) >= 3)
        until(lambda: equal([a, b]), "equal roots")
    assert b.content("i199") == b"v199"


def test_r8_while_our_archive_is_down_nothing_is_passed_over(hot_node: Make) -> None:
    """What is news cannot be told without it: the feed waits, and nothing is lost."""
    a, b = hot_node("a"), hot_node("b")
    a.start()
    b.start(a.peer(hot=True))
    a.engine.submit("first", b"v")
    until(lambda: b.content("first") == b"v")
    b.engine.flush()
    b.engine.detach("l3")
    a.engine.submit_many([SyncItem(f"i{n}", b"v%d" % n) for n in range(20)])
    until(lambda: b.replicator.status()["a"].errors or b.content("i19"), "it is told")

    b.engine.attach("l3")

    until(lambda: equal([a, b]), "equal roots")


def test_r11_a_partition_of_any_length_heals_by_itself(
    hot_node: Make, redis_server: object, fault_proxy: Callable[[str, int], FaultProxy]
) -> None:
    a, b = hot_node("a"), hot_node("b")
    proxy = fault_proxy("127.0.0.1", redis_server.port)  # type: ignore[attr-defined]
    url = redis_server.url.replace(f":{redis_server.port}", f":{proxy.port}")  # type: ignore[attr-defined]
    a.start()
    b.start(a.peer(hot=True, redis_url=url))
    a.engine.submit("k", b"1")
    until(lambda: b.content("k") == b"1")

    for n in range(2, 5):
        proxy.refuse = True
        proxy.drop_connections()
        a.engine.submit("k", b"%d" % n)
        until(lambda: b.replicator.status()["a"].errors, "the outage told")
        assert b.content("k") == b"%d" % (n - 1)
        proxy.refuse = False
        until(lambda n=n: b.content("k") == b"%d" % n, "healed")
    until(lambda: not b.replicator.status()["a"].errors, "the error taken back")


def test_a_peer_without_redis_is_followed_by_comparison(hot_node: Make) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"redis://127.0.0.1:{nobody.getsockname()[1]}"
        a, b = hot_node("a"), hot_node("b")
        a.start()
        b.start(a.peer(hot=True, cold=True, redis_url=dead))
        a.engine.submit("k", b"v")

        until(lambda: b.content("k") == b"v")
        assert not b.replicator.status()["a"].connected
