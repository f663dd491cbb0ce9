"""The cold path: Merkle trees compared, what differs fetched; no server needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

import pytest

from sync_engine import CacheTtl, SubmitOptions, SyncItem
from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.errors import ConfigError
from sync_engine.replication import Peer
from sync_engine.stores.sql import open_archive
from sync_engine.testing import SystemClock
from tests.replication.nodes import Node, equal, until

Make = Callable[..., Node]


def compared(node: Node, peer: Node) -> None:
    """Have a node compare with a peer from now on, once, whole."""
    before = node.engine.stats()["sources"][f"peer-{peer.name}-archive"]["progress"]["comparisons"]
    node.replicator.compare(peer.name)
    until(
        lambda: (
            (p := node.engine.stats()["sources"][f"peer-{peer.name}-archive"]["progress"])[
                "comparisons"
            ]
            > before
            and p["left"] == 0
            and not node.replicator._links[peer.name].compare_wanted
        ),
        "a comparison",
    )


def write_row(url: str, *changes: Change) -> None:
    """Put rows into an archive behind the back of its engine, as another engine would."""
    archive = open_archive(url, clock=SystemClock())
    try:
        until(lambda: not _refused(archive, changes), "the row")
    finally:
        archive.close()


def _refused(archive: object, changes: tuple[Change, ...]) -> bool:
    from sync_engine.errors import StoreUnavailable

    try:
        archive.apply(changes)  # type: ignore[attr-defined]
    except StoreUnavailable:
        return True
    return False


def version_at(ms_ago: float) -> int:
    return (SystemClock().now_ms() - int(ms_ago)) << 20


def two(make_node: Make, **more: object) -> tuple[Node, Node]:
    a, b = make_node("a"), make_node("b")
    a.start()
    b.start(a.peer(cold=True, **more))
    a.replicator.add(b.peer(cold=True, **more))
    return a, b


def test_two_nodes_come_to_equal_roots_by_comparison_alone(make_node: Make) -> None:
    a, b = two(make_node)

    for n in range(300):
        (a if n % 2 else b).engine.submit(f"deep.{n % 7}.{n}", b"v%d" % n)

    until(lambda: equal([a, b]), "equal roots")
    assert b.content("deep.1.1") == b"v1"


def test_a_comparison_that_finds_something_is_no_failure(
    make_node: Make, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = make_node("a").start(), make_node("b").start()
    a.engine.submit("k", b"v")
    a.engine.flush()
    with caplog.at_level(logging.INFO, "sync_engine"):
        b.replicator.add(a.peer(cold=True))
        until(lambda: b.content("k") == b"v")

    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if line.startswith("diverged")]
    assert not [line for line in told if line.startswith("source_failed")]


def test_r1_r3_r4_what_a_peer_does_not_have_is_never_deleted_here(make_node: Make) -> None:
    """Absence is not a deletion: an emptied or new peer costs its neighbours nothing."""
    a = make_node("a").start()
    for n in range(50):
        a.engine.submit(f"single{n}", b"only copy")
    a.engine.flush()
    empty = make_node("b").start()
    a.replicator.add(empty.peer(cold=True))

    compared(a, empty)

    assert a.engine.count_prefix("") == 50


def test_r2_ids_at_every_depth_and_with_any_character_are_found(make_node: Make) -> None:
    a, b = two(make_node)
    ids = ["a", "a.b", "a.b.c.d.e", "x/y/z", "data:1:2", "50%_*[]", "é.ü", ".", "a..b", " "]
    for id in ids:
        a.engine.submit(id, id.encode())

    until(lambda: equal([a, b]), "equal roots")

    assert [b.content(id) for id in ids] == [id.encode() for id in ids]


def test_r5_bytes_and_versions_arrive_as_they_are_and_repair_ends(make_node: Make) -> None:
    """JSON with odd spacing and binary alike: byte for byte, so the trees agree for good."""
    a, b = two(make_node)
    odd = b'{ "b":1,\n "a" :1.0,"a":2 }'
    version = a.engine.submit(SyncItem("json", odd)).version
    a.engine.submit("binary", bytes(range(256)))
    until(lambda: equal([a, b]), "equal roots")
    written = b.appended()

    compared(b, a)
    compared(b, a)

    item = b.engine.get("json")
    assert item is not None
    assert (item.content, item.version) == (odd, version)
    assert b.appended() == written


def test_r6_concurrent_writes_of_one_key_settle_on_the_larger_version(make_node: Make) -> None:
    a, b = make_node("a").start(), make_node("b").start()
    first = a.engine.submit("k", b"from a")
    second = b.engine.submit("k", b"from b")
    newest = b"from a" if first.version > second.version else b"from b"
    a.replicator.add(b.peer(cold=True))
    b.replicator.add(a.peer(cold=True))

    until(lambda: equal([a, b]), "equal roots")
    written = a.appended(), b.appended()
    compared(a, b)
    compared(b, a)

    assert a.content("k") == b.content("k") == newest
    assert (a.appended(), b.appended()) == written


def test_equal_versions_with_other_contents_settle_too(make_node: Make) -> None:
    """Two engines may share the number that versions end with."""
    a, b = make_node("a").start(), make_node("b").start()
    version = version_at(1000)
    write_row(a.sql_url, Change("tie", version, b"one"))
    write_row(b.sql_url, Change("tie", version, b"two"))
    a.replicator.add(b.peer(cold=True))
    b.replicator.add(a.peer(cold=True))

    until(lambda: equal([a, b]), "equal roots")

    assert a.content("tie") == b.content("tie")
    assert a.content("tie") in (b"one", b"two")


def test_of_two_equal_versions_both_sides_know_which_goes_on(make_node: Make) -> None:
    a, b = make_node("a").start(), make_node("b").start()
    version = version_at(1000)
    write_row(a.sql_url, Change("tie", version, b"one"))
    write_row(b.sql_url, Change("tie", version, b"two"))
    until(lambda: a.engine.merkle_state().built and b.engine.merkle_state().built, "trees")
    (found,) = a.engine.diff(b.engine).divergent
    assert found.mine is not None
    assert found.theirs is not None
    stays, goes = (a, b) if found.mine.hash > found.theirs.hash else (b, a)
    content = stays.content("tie")

    goes.replicator.add(stays.peer(cold=True))
    compared(goes, stays)
    assert goes.appended() == 0
    stays.replicator.add(goes.peer(cold=True))

    until(lambda: equal([a, b]), "equal roots")
    assert a.content("tie") == b.content("tie") == content
    assert stays.appended() == goes.appended() == 1


def test_r13_state_deadline_content_type_and_trace_come_along(make_node: Make) -> None:
    a, b = two(make_node)
    sent = SyncItem.from_json("j", {"n": 1}, state="delta")
    a.engine.submit(sent, SubmitOptions(ttl=timedelta(hours=1)))
    until(lambda: equal([a, b]), "equal roots")

    mine, theirs = a.engine.get("j"), b.engine.get("j")

    assert mine == theirs
    assert mine is not None
    assert (mine.state, mine.content_type) == ("delta", sent.content_type)
    assert mine.expires_at_ms > 0


def with_cache(node: Node) -> Node:
    """Start a node's engine with an L2."""
    from sync_engine import SyncEngine, SyncEngineConfig
    from sync_engine.house import Stores
    from sync_engine.replication import Replicator
    from sync_engine.stores.sql import SqlArchive
    from sync_engine.testing import MemoryCacheStore

    clock = SystemClock()
    node.dir.mkdir()
    stores = Stores(MemoryCacheStore(clock), SqlArchive(node.sql_url, clock=clock))
    node.engine = SyncEngine(SyncEngineConfig(data_dir=node.dir), stores=stores).start()
    node.replicator = Replicator(node.engine)
    return node


def test_r13_what_is_only_cached_does_not_become_a_row_on_a_peer(make_node: Make) -> None:
    a = with_cache(make_node("a"))
    b = make_node("b").start()
    a.engine.submit("session", b"x", SubmitOptions.cache(CacheTtl.HOUR))
    a.engine.submit("kept", b"y")
    a.engine.flush()
    b.replicator.add(a.peer(cold=True))

    until(lambda: b.content("kept") == b"y", "the archived one")

    assert b.content("session") is None


def test_a_cached_value_ends_the_older_one_of_a_peer_that_has_no_cache(make_node: Make) -> None:
    a = with_cache(make_node("a"))
    b = make_node("b").start()
    a.engine.submit("session", b"old")
    a.engine.flush()
    b.replicator.add(a.peer(cold=True))
    until(lambda: b.content("session") == b"old", "the archived one")
    b.engine.flush()

    a.engine.submit("session", b"new", SubmitOptions.cache(CacheTtl.HOUR))
    a.engine.flush()
    b.replicator.compare("a")

    until(lambda: b.content("session") is None, "that it is superseded")
    until(lambda: equal([a, b]), "equal roots")


def test_a_deletion_reaches_a_peer_and_stays(make_node: Make) -> None:
    a, b = two(make_node)
    a.engine.submit("gone", b"v")
    until(lambda: b.content("gone") == b"v")

    b.engine.delete("gone")

    until(lambda: a.content("gone") is None, "the deletion")
    until(lambda: equal([a, b]), "equal roots")
    assert a.content("gone") is b.content("gone") is None


def test_a_deletion_beats_an_older_write_that_comes_later(make_node: Make) -> None:
    """The write happened elsewhere, before the deletion, and was cut off until after it."""
    a, b = make_node("a").start(), make_node("b").start()
    b.engine.submit("k", b"old, and late")
    b.engine.flush()
    a.engine.submit("k", b"unaware of it")
    a.engine.delete("k")

    a.replicator.add(b.peer(cold=True))
    b.replicator.add(a.peer(cold=True))

    until(lambda: equal([a, b]), "equal roots")
    assert a.content("k") is b.content("k") is None


def test_a_peer_that_was_silent_longer_than_deletions_are_kept_resurrects_nothing(
    make_node: Make,
) -> None:
    retention_s = 60.0
    a, b = make_node("a", tombstone_retention_s=retention_s), make_node("b").start()
    a.start(b.peer(cold=True))
    compared(a, b)
    until(lambda: a.replicator.status()["b"].compared_s_ago >= 0)
    until(lambda: a.replicator._links["b"].standing.joined)

    # Deleted at a, and forgotten there, while b could not hear of it.
    write_row(b.sql_url, Change("zombie", version_at(3_600_000), b"brains"))
    write_row(b.sql_url, Change("young", version_at(1_000), b"fresh"))
    compared(a, b)

    until(lambda: a.content("young") == b"fresh", "what is young")
    assert a.content("zombie") is None
    until(lambda: a.replicator.status()["b"].held == 1, "the one held")
    assert [why for why in a.engine.health().degraded if "1 items are held back" in why]
    assert [why for why in a.engine.health().degraded if why.startswith("source peer-b-archive")]


def test_what_is_held_is_taken_where_somebody_answers_for_it(make_node: Make) -> None:
    a, b = make_node("a", tombstone_retention_s=60.0), make_node("b").start()
    a.start(b.peer(cold=True))
    until(lambda: a.replicator._links["b"].standing.joined)
    write_row(b.sql_url, Change("old", version_at(3_600_000), b"wanted"))
    compared(a, b)
    until(lambda: a.replicator.status()["b"].held == 1)

    a.replicator.remove("b")
    a.replicator.add(b.peer(cold=True, accept_old=True))

    until(lambda: a.content("old") == b"wanted")
    until(lambda: not a.engine.health().degraded, "all is well again")


def test_a_new_node_takes_everything_however_old(make_node: Make) -> None:
    b = make_node("b").start()
    write_row(b.sql_url, *[Change(f"i{n}", version_at(9e9) + n, b"old") for n in range(500)])
    a = make_node("a", tombstone_retention_s=60.0).start(b.peer(cold=True))

    until(lambda: a.engine.count_prefix("") == 500)


def test_a_version_far_in_the_future_is_refused_told_and_blocks_nothing(make_node: Make) -> None:
    a, b = make_node("a").start(), make_node("b").start()
    write_row(b.sql_url, Change("future", version_at(-3 * 86_400_000), b"tomorrow's"))
    b.engine.submit("now", b"today's")
    b.engine.flush()

    a.replicator.add(b.peer(cold=True))

    until(lambda: a.content("now") == b"today's")
    compared(a, b)
    progress = a.engine.stats()["sources"]["peer-b-archive"]["progress"]
    assert a.content("future") is None
    assert progress["unfit"] >= 1
    assert a.engine.dead_letters() == []  # not one more with every comparison


def test_only_the_wanted_prefixes_are_pulled(make_node: Make) -> None:
    b = make_node("b").start()
    for id in ("uk.a", "uk.b.c", "uk", "ukraine.a", "fr.a"):
        b.engine.submit(id, b"v")
    b.engine.flush()

    a = make_node("a").start(b.peer(cold=True, prefixes=("uk.",)))

    until(lambda: a.engine.count_prefix("") == 2)
    compared(a, b)
    assert sorted(a.engine.ids()) == ["uk.a", "uk.b.c"]


def test_a_pull_keeps_to_its_rate(make_node: Make) -> None:
    b = make_node("b").start()
    b.engine.submit_many([SyncItem(f"i{n}", b"v") for n in range(600)])
    b.engine.flush()
    clock = SystemClock()
    started = clock.monotonic()

    a = make_node("a").start(b.peer(cold=True, items_per_s=400.0))

    until(lambda: a.engine.count_prefix("") == 600)
    assert clock.monotonic() - started >= 0.9  # the last 200 wait for the 400 before them


def test_r11_a_peer_that_is_not_there_at_the_start_is_found_later(make_node: Make) -> None:
    b = make_node("b")
    a = make_node("a").start(b.peer(cold=True))
    a.engine.submit("mine", b"taken meanwhile")
    until(lambda: a.replicator.status()["b"].errors, "an error that is told")
    assert not a.replicator.status()["b"].connected
    assert any("peer-b-archive" in why for why in a.engine.health().degraded)

    b.start()
    b.engine.submit("theirs", b"v")

    until(lambda: a.content("theirs") == b"v", "the peer's item")


@pytest.mark.parametrize(
    "place", ["intake.polled", "intake.written", "replication.fetched", "intake.acked",
              "replication.compared"],
)  # fmt: skip
def test_r7_r8_a_failure_anywhere_on_the_way_loses_and_repeats_nothing(
    make_node: Make, place: str
) -> None:
    b = make_node("b").start()
    b.engine.submit_many([SyncItem(f"i{n}", b"v%d" % n) for n in range(250)])
    b.engine.flush()
    hits = []

    def crash() -> None:
        hits.append(place)
        if len(hits) < 3:
            raise RuntimeError("crash")

    a = make_node("a").start()
    with failpoints.during(place, crash):
        a.replicator.add(b.peer(cold=True))
        until(lambda: len(hits) >= 3, "three passes")
        until(lambda: equal([a, b]), "equal roots")

    assert a.content("i249") == b"v249"


def test_an_engine_is_no_peer_of_itself(make_node: Make) -> None:
    a = make_node("a", sql_url=f"sqlite:///{make_node('b').dir}-x.db")
    a.start()
    with pytest.raises(ConfigError, match="own archive"):
        a.replicator.add(Peer(name="me", sql_url=a.engine.config.sql_url))
    with pytest.raises(ConfigError, match="missing"):
        Peer(name="nobody")
