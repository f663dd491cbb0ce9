"""The sink `redis_stream`, on a real server, driven by hand and by an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers import RedisCluster, RedisServer

from sync_engine import SubmitOptions, SyncEngine, SyncItem
from sync_engine.adapters import build
from sync_engine.config import SyncEngineConfig
from sync_engine.core.feed import FeedEntry
from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, FeedGap, StoreRejected, StoreUnavailable
from sync_engine.house import Stores
from sync_engine.ports import AdapterContext
from sync_engine.redis_link.stream import StreamLink
from sync_engine.redis_link.stream_reader import StreamReader
from sync_engine.runtime import SystemClock, SystemRuntime
from sync_engine.sinks.redis_stream import RedisStreamSink, from_settings
from sync_engine.testing import FlakyStore, MemoryArchive

pytestmark = pytest.mark.external

LOG = "0123456789abcdef0123456789abcdef"
CLOCK = SystemClock()


def put(change_id: str, version: int, content: bytes = b"v") -> Change:
    return Change(change_id, version, content)


def reader(url: str) -> StreamReader:
    link = StreamLink(url, prefix="se", name="changes", clock=CLOCK)
    link.open()
    return StreamReader(link)


def read_all(reader: StreamReader) -> list[FeedEntry]:
    entries: list[FeedEntry] = []
    while True:
        batch = reader.read(100)
        entries += batch.entries
        if not batch.more:
            return entries


@pytest.fixture
def make(redis_url: str) -> Iterator[Callable[..., RedisStreamSink]]:
    sinks = []

    def make(**settings: Any) -> RedisStreamSink:
        sinks.append(RedisStreamSink(redis_url, clock=CLOCK, **settings))
        sinks[-1].attach()
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close()


@pytest.fixture
def sink(make: Callable[..., RedisStreamSink]) -> RedisStreamSink:
    sink = make()
    assert sink.position(LOG) is None
    sink.begin(LOG, 0, after_gap=False)
    return sink


def trimmed(
    make: Callable[..., RedisStreamSink], server: RedisServer, *, entries: int, **limits: Any
) -> RedisStreamSink:
    """Return a sink whose server lets go of old entries so many at a time."""
    server.config(**{"stream-node-max-entries": entries})
    sink = make(**limits)
    sink.begin(LOG, 0, after_gap=False)
    return sink


# -- by hand --------------------------------------------------------------------------------------


def test_a_batch_goes_in_with_its_position(sink: RedisStreamSink, redis_url: str) -> None:
    sink.apply_at([put("a", 1), Change("b", 2, None)], LOG, 5)

    assert sink.position(LOG) == 5
    entries = read_all(reader(redis_url))
    assert [(e.changes[0].id, e.link.n, e.link.of) for e in entries] == [("a", 1, 2), ("b", 2, 2)]


def test_a_batch_that_is_sent_again_adds_nothing(sink: RedisStreamSink, redis_url: str) -> None:
    """Its answer was lost, or the process died before it noted it."""
    sink.apply_at([put("a", 1)], LOG, 5)
    sink.apply_at([put("a", 1)], LOG, 5)
    sink.apply_at([put("a", 1)], LOG, 4)
    assert len(read_all(reader(redis_url))) == 1


def test_another_process_goes_on_where_this_one_was(
    sink: RedisStreamSink, make: Callable[..., RedisStreamSink], redis_url: str
) -> None:
    sink.apply_at([put("a", 1)], LOG, 5)
    after = make()
    assert after.position(LOG) == 5
    after.apply_at([put("b", 2)], LOG, 9)
    with pytest.raises(StoreUnavailable):
        sink.apply_at([put("c", 3)], LOG, 12)  # it does not know of the other's batch
    assert len(read_all(reader(redis_url))) == 2


def test_an_empty_batch_moves_the_position_and_makes_no_hole(
    sink: RedisStreamSink, redis_url: str
) -> None:
    sink.apply_at([put("a", 1)], LOG, 5)
    sink.apply_at([], LOG, 50)
    sink.apply_at([put("b", 2)], LOG, 51)
    assert sink.position(LOG) == 51
    assert len(read_all(reader(redis_url))) == 2


def test_a_feed_takes_nothing_out_of_order(sink: RedisStreamSink) -> None:
    with pytest.raises(StoreRejected):
        sink.apply([put("a", 1)])


def test_old_entries_go_by_number_and_a_reader_that_was_slow_is_told(
    make: Callable[..., RedisStreamSink], redis_server: RedisServer, redis_url: str
) -> None:
    sink = trimmed(make, redis_server, entries=10, items_max=50)
    sink.apply_at([put("first", 1)], LOG, 1)
    slow = reader(redis_url)
    assert len(read_all(slow)) == 1

    for n in range(2, 300):
        sink.apply_at([put(f"k{n}", n)], LOG, n)

    assert redis_server.client().xlen("se:{feed}:changes") < 100
    with pytest.raises(FeedGap, match="read up to position 1 "):
        slow.read(100)
    with pytest.raises(FeedGap):
        slow.read(100)  # it goes on saying so
    slow.resume()
    assert 50 <= len(read_all(slow)) < 100


def test_old_entries_go_by_age(
    make: Callable[..., RedisStreamSink], redis_server: RedisServer
) -> None:
    sink = trimmed(make, redis_server, entries=1, age_s_max=0.001)
    client = redis_server.client()
    for n in range(1, 20):
        sink.apply_at([put(f"k{n}", n)], LOG, n)
        client.blpop("nothing", timeout=0.01)  # the server lets time pass
    assert client.xlen("se:{feed}:changes") < 5


def test_a_reader_that_begins_with_a_trimmed_stream_is_told(
    make: Callable[..., RedisStreamSink], redis_server: RedisServer, redis_url: str
) -> None:
    """A cursor of zero is no excuse."""
    sink = trimmed(make, redis_server, entries=10, items_max=10)
    for n in range(1, 100):
        sink.apply_at([put(f"k{n}", n)], LOG, n)
    with pytest.raises(FeedGap, match="beginning"):
        reader(redis_url).read(1000)


def test_entries_trimmed_behind_a_reader_s_back_are_no_gap(
    make: Callable[..., RedisStreamSink], redis_server: RedisServer, redis_url: str
) -> None:
    """Its own cursor's entry is gone, and it missed nothing."""
    sink = trimmed(make, redis_server, entries=10, items_max=10)
    follower = reader(redis_url)
    for n in range(1, 100):
        sink.apply_at([put(f"k{n}", n)], LOG, n)
        assert len(read_all(follower)) == 1
    redis_server.client().xtrim("se:{feed}:changes", maxlen=0)
    assert read_all(follower) == []
    sink.apply_at([put("last", 100)], LOG, 100)
    assert len(read_all(follower)) == 1


def test_a_stream_that_was_emptied_is_a_gap(
    sink: RedisStreamSink, redis_server: RedisServer, redis_url: str
) -> None:
    sink.apply_at([put("a", 1)], LOG, 1)
    follower = reader(redis_url)
    read_all(follower)
    redis_server.flush()
    with pytest.raises(FeedGap, match="is gone"):
        follower.read(10)


def test_a_server_that_came_back_with_an_older_state_is_a_gap_for_who_lacks_entries(
    sink: RedisStreamSink,
    make: Callable[..., RedisStreamSink],
    redis_server: RedisServer,
    redis_url: str,
) -> None:
    client = redis_server.client()
    stream, origins = "se:{feed}:changes", "se:{feed}:changes:origins"
    sink.apply_at([put("a", 1)], LOG, 1)
    ahead, behind = reader(redis_url), reader(redis_url)
    read_all(ahead)
    read_all(behind)
    old = (client.dump(stream), client.dump(origins))
    sink.apply_at([put("b", 2)], LOG, 2)
    read_all(ahead)

    for key, data in zip((stream, origins), old, strict=True):
        client.restore(key, 0, data, replace=True)
    after = make()
    assert after.position(LOG) == 1
    after.begin(LOG, 2, after_gap=True)  # the log's own cursor is further on
    after.apply_at([put("c", 3)], LOG, 3)

    assert [entry.changes[0].id for entry in read_all(ahead)] == ["c"]
    with pytest.raises(FeedGap):
        behind.read(10)


def test_keys_of_a_feed_are_one_slot_and_nobody_s_id(sink: RedisStreamSink, redis_url: str) -> None:
    link = StreamLink(redis_url, prefix="se", name="changes", clock=CLOCK)
    keys = [link.keys.stream, link.keys.origins, link.keys.poison, link.keys.group("g")]
    assert all(key.startswith(b"se:{feed}:") for key in keys)


def test_a_feed_works_on_a_cluster(redis_cluster: RedisCluster) -> None:
    sink = RedisStreamSink(redis_cluster.url, clock=CLOCK)
    sink.attach()
    sink.begin(LOG, 0, after_gap=False)
    sink.apply_at([put("a", 1)], LOG, 1)
    follower = reader(redis_cluster.url)
    assert len(read_all(follower)) == 1
    sink.close()


def test_a_key_of_somebody_else_is_left_alone(make: Any, redis_server: RedisServer) -> None:
    redis_server.client().set("se:{feed}:changes:origins", "mine")
    sink = make()
    with pytest.raises((StoreRejected, StoreUnavailable)):
        sink.position(LOG)
    assert redis_server.client().get("se:{feed}:changes:origins") == b"mine"


@pytest.mark.parametrize(
    "settings",
    [
        {"items_max": -1},
        {"age_s_max": "1d"},
        {"payload": "yes"},
        {"timeout_s": 0},
        {"stream": "a b"},
        {"prefix": "{x}"},
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    context = AdapterContext(
        name="feed", runtime=SystemRuntime(), data_dir=tmp_path, wake=lambda: None
    )
    (name,) = settings
    with pytest.raises(ConfigError, match=f"^sink feed: {name}"):
        from_settings(context, url="redis://127.0.0.1:1", **settings)
    with pytest.raises(ConfigError, match=f"^{name}"):
        RedisStreamSink("redis://127.0.0.1:1", clock=CLOCK, **settings)


def test_a_pipeline_knows_the_settings_of_the_class(tmp_path: Path) -> None:
    context = AdapterContext(
        name="feed", runtime=SystemRuntime(), data_dir=tmp_path, wake=lambda: None
    )
    with pytest.raises(ConfigError, match="did you mean 'items_max'") as unknown:
        build("sink", "redis_stream", context, {"item_max": 3, "clock": CLOCK})
    assert "'clock'" in str(unknown.value)
    assert "'url' is missing" in str(unknown.value)


def test_a_password_is_shown_nowhere(tmp_path: Path) -> None:
    sink = RedisStreamSink("redis://me:hush@127.0.0.1:1", clock=CLOCK, connect_timeout_s=0.1)
    with pytest.raises(StoreUnavailable) as caught:
        sink.attach()
    assert "hush" not in repr(sink) + str(caught.value)


# -- by an engine ---------------------------------------------------------------------------------


def ids(entries: list[FeedEntry]) -> list[str]:
    return [entry.changes[0].id for entry in entries]


def test_an_engine_tells_puts_and_deletions_of_every_kind(tmp_path: Path, redis_url: str) -> None:
    """Whatever the way that a change took: one by one, many at once, by prefix, state or update."""
    with SyncEngine.open(tmp_path) as engine:
        engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        engine.submit("a", b"1", SubmitOptions.durable())
        engine.submit_many([SyncItem("m1", b"1"), SyncItem("m2", b"1"), SyncItem("p.1", b"1")])
        engine.flush(10, sinks=True)
        engine.set_state("m1", "x")
        engine.update("a", lambda item: b"2")
        engine.delete_many(["m2"])
        engine.delete_prefix("p.")
        engine.flush(10, sinks=True)
        engine.delete_by_state("x")
        engine.flush(10, sinks=True)

    told = [(e.changes[0].id, e.changes[0].content) for e in read_all(reader(redis_url))]
    assert sorted(id for id, _ in told) == ["a", "a", "m1", "m1", "m1", "m2", "m2", "p.1", "p.1"]
    last = dict(told)
    assert last == {"a": b"2", "m1": None, "m2": None, "p.1": None}


def test_nothing_is_told_before_the_archive_has_it(tmp_path: Path, redis_url: str) -> None:
    with SyncEngine.open(tmp_path) as engine:
        engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        engine.submit("first", b"1")
        assert engine.flush(10, sinks=True).complete
        engine.pause("l3")
        engine.submit("a", b"1")
        assert engine.flush(0.3, sinks=True).left
        follower = reader(redis_url)
        assert ids(read_all(follower)) == ["first"]

        engine.resume("l3")
        assert engine.flush(10, sinks=True).complete
        assert ids(read_all(follower)) == ["a"]


def test_what_the_archive_refused_is_never_told(tmp_path: Path, redis_url: str) -> None:
    runtime = SystemRuntime("engine")
    archive = FlakyStore(MemoryArchive(runtime.clock))
    archive.reject = frozenset({"poison"})
    config = SyncEngineConfig(data_dir=tmp_path)
    with SyncEngine(config, runtime=runtime, stores=Stores(None, archive)) as engine:
        engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        engine.submit_many([SyncItem("a", b"1"), SyncItem("poison", b"1"), SyncItem("b", b"1")])
        assert engine.flush(10, sinks=True).complete
    assert ids(read_all(reader(redis_url))) == ["a", "b"]


def test_the_feed_goes_on_over_a_restart_without_gap_or_repetition(
    tmp_path: Path, redis_url: str
) -> None:
    follower = reader(redis_url)
    seen: list[str] = []
    for turn in range(3):
        with SyncEngine.open(tmp_path) as engine:
            engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
            for n in range(5):
                engine.submit(f"{turn}.{n}", b"1")
            assert engine.flush(10, sinks=True).complete
        batch = follower.read(100)
        seen += ids(batch.entries)
        assert batch.repeats == 0
    assert seen == [f"{turn}.{n}" for turn in range(3) for n in range(5)]


def test_a_feed_begins_with_what_comes_and_copies_nothing(tmp_path: Path, redis_url: str) -> None:
    with SyncEngine.open(tmp_path) as engine:
        engine.submit_many([SyncItem(f"old{n}", b"1") for n in range(50)])
        assert engine.flush(10).complete
        engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        engine.submit("new", b"1")
        assert engine.flush(10, sinks=True).complete
    assert ids(read_all(reader(redis_url))) == ["new"]


def test_an_outage_of_the_feed_loses_nothing(
    tmp_path: Path, redis_server: RedisServer, redis_url: str
) -> None:
    with SyncEngine.open(tmp_path, delivery_delay_s_max=0.2) as engine:
        engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        engine.submit("a", b"1")
        assert engine.flush(10, sinks=True).complete
        redis_server.pause()
        for n in range(20):
            engine.submit(f"k{n}", b"1")
        assert engine.flush(10).complete
        redis_server.resume()
        assert engine.flush(20, sinks=True).complete
    assert ids(read_all(reader(redis_url))) == ["a", *(f"k{n}" for n in range(20))]


def test_a_feed_that_was_emptied_goes_on_and_tells_of_the_gap(
    tmp_path: Path, redis_server: RedisServer, redis_url: str
) -> None:
    with SyncEngine.open(tmp_path, delivery_delay_s_max=0.2) as engine:
        engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        engine.submit("a", b"1")
        assert engine.flush(10, sinks=True).complete
        follower = reader(redis_url)
        read_all(follower)
        redis_server.flush()
        engine.submit("b", b"1")
        assert engine.flush(10, sinks=True).complete

        with pytest.raises(FeedGap):
            follower.read(10)
        follower.resume()
        assert ids(read_all(follower)) == ["b"]
        with pytest.raises(FeedGap):
            reader(redis_url).read(10)  # a new one learns of it, too


def test_an_item_kept_in_the_cache_alone_is_no_item_of_the_feed(
    tmp_path: Path, redis_url: str
) -> None:
    """A peer must not make a durable row of it."""
    with SyncEngine.open(tmp_path, redis_url=redis_url) as engine:
        engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        engine.submit("session", b"1", SubmitOptions.cache(60))
        engine.submit("kept", b"1", SubmitOptions(ttl=3600, state="x"))
        assert engine.flush(10, sinks=True).complete
    told = {e.changes[0].id: e.changes[0] for e in read_all(reader(redis_url))}
    assert told["session"].content is None
    assert (told["kept"].state, told["kept"].expires_at_ms > 0) == ("x", True)


def test_what_waited_in_the_log_over_a_restart_is_told(tmp_path: Path, redis_url: str) -> None:
    """The way over an outage and a restart is no other way."""
    with SyncEngine.open(tmp_path, close_timeout_s=0.2) as engine:
        engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        engine.pause("l3")
        for n in range(5):
            engine.submit(f"k{n}", b"1")
    with SyncEngine.open(tmp_path) as engine:
        engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        assert engine.flush(10, sinks=True).complete
    assert ids(read_all(reader(redis_url))) == [f"k{n}" for n in range(5)]


def test_no_id_of_a_user_reaches_the_feed(tmp_path: Path, redis_url: str) -> None:
    """Items called like its keys are items, and deleting them deletes items."""
    names = ["changes", "feed", "se:{feed}:changes", "{feed}:changes", "se:{feed}:ids", "cdc"]
    with SyncEngine.open(tmp_path, redis_url=redis_url) as engine:
        engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        for name in names:
            engine.submit(name, b"1")
        assert engine.flush(10, sinks=True).complete
        engine.delete_many(names)
        assert engine.flush(10, sinks=True).complete
    told = [(e.changes[0].id, e.changes[0].content) for e in read_all(reader(redis_url))]
    assert told == [(name, b"1") for name in names] + [(name, None) for name in names]


def test_of_two_engines_on_one_stream_neither_disturbs_the_other(
    tmp_path: Path, redis_url: str
) -> None:
    with SyncEngine.open(tmp_path / "a") as a, SyncEngine.open(tmp_path / "b") as b:
        for engine in (a, b):
            engine.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        for n in range(20):
            (a, b)[n % 2].submit(f"k{n}", b"1")
            (a, b)[n % 2].flush(10, sinks=True)
    entries = read_all(reader(redis_url))
    assert sorted(ids(entries)) == sorted(f"k{n}" for n in range(20))
    assert len({entry.link.origin for entry in entries}) == 2
