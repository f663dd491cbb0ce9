"""The source `change_stream`: the contract, alone and in a group, and what can go wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers import RedisServer

from sync_engine import SubmitOptions, SyncEngine, SyncItem, adapters
from sync_engine.core.feed import FIELDS, Link, entry_fields
from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, FeedGap
from sync_engine.ports import AdapterContext
from sync_engine.redis_link.stream import StreamLink
from sync_engine.redis_link.stream_reader import StreamReader
from sync_engine.runtime import SystemClock, SystemRuntime
from sync_engine.sinks.redis_stream import RedisStreamSink
from sync_engine.sources.change_stream import ChangeStream, from_settings
from sync_engine.testing.contracts.source import SourceContract, drain

pytestmark = pytest.mark.external

LOG = "0123456789abcdef0123456789abcdef"
STREAM = "se:{feed}:changes"
CLOCK = SystemClock()


def put(change_id: str, version: int, content: bytes = b"v") -> Change:
    return Change(change_id, version, content)


class Writer:
    """An engine's feed, written by hand."""

    def __init__(self, url: str, origin: str = LOG, **settings: Any) -> None:
        self.sink = RedisStreamSink(url, clock=CLOCK, **settings)
        self.sink.attach()
        self.origin = origin
        self.sink.begin(origin, 0, after_gap=False)
        self.at = 0

    def write(self, *changes: Change) -> None:
        self.at += len(changes)
        self.sink.apply_at(changes, self.origin, self.at)

    def write_each(self, names: Collection[str]) -> None:
        for name in names:
            self.write(put(name, self.at + 1))


@pytest.fixture
def writer(redis_url: str) -> Iterator[Writer]:
    writer = Writer(redis_url)
    yield writer
    writer.sink.close()


@pytest.fixture
def make(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., ChangeStream]]:
    made = []

    def make(name: str = "feed", **settings: Any) -> ChangeStream:
        settings.setdefault("consumer", name)
        settings.setdefault("cursor_path", tmp_path / f"{name}.cursor")
        made.append(ChangeStream(redis_url, clock=CLOCK, **settings))
        made[-1].attach()
        return made[-1]

    yield make
    for source in made:
        source.close()


class TestChangeStreamAlone(SourceContract):
    group = ""

    @pytest.fixture(autouse=True)
    def _place(self, redis_url: str, tmp_path: Path) -> Iterator[None]:
        self.url, self.path = redis_url, tmp_path / "cursor"
        self.writer = Writer(redis_url)
        self.numbers = itertools.count()
        yield
        self.writer.sink.close()

    def make_source(self) -> ChangeStream:
        return ChangeStream(
            self.url, clock=CLOCK, cursor_path=self.path, group=self.group, consumer="me"
        )

    def produce(self, count: int) -> Collection[str]:
        names = [f"item.{next(self.numbers)}" for _ in range(count)]
        self.writer.write_each(names)
        return names


class TestChangeStreamInAGroup(TestChangeStreamAlone):
    group = "workers"


# -- what a change keeps --------------------------------------------------------------------------


def test_a_change_arrives_as_it_was(writer: Writer, make: Callable[..., ChangeStream]) -> None:
    """Version, type, state, deadline and routes: what is kept in the cache alone stays so."""
    change = Change("a", 99, b"\x00{", 1, "review", 4_000_000_000_000, 1, "00-11-22-01")
    writer.write(change, Change("b", 100, None, routes=3))
    assert drain(make()) == [change, Change("b", 100, None, routes=3)]


def test_one_s_own_changes_can_be_left_out(
    writer: Writer, redis_url: str, make: Callable[..., ChangeStream]
) -> None:
    other = Writer(redis_url, "f" * 32)
    writer.write(put("mine", 1))
    other.write(put("theirs", 2))
    source = make(ignore=[LOG])
    assert [change.id for change in drain(source)] == ["theirs"]
    assert source.progress()["own"] == 1


def test_a_feed_without_contents_says_what_to_do(
    redis_url: str, make: Callable[..., ChangeStream]
) -> None:
    Writer(redis_url, payload=False).write(put("a", 1))
    with pytest.raises(ConfigError, match="payload = true"):
        make().poll(10)


# -- poison ---------------------------------------------------------------------------------------


def poisoned(redis_server: RedisServer, **fields: Any) -> None:
    redis_server.client().xadd(STREAM, fields or {"hello": "world"})


@pytest.mark.parametrize("group", ["", "workers"])
def test_entries_that_nobody_understands_are_put_aside_and_passed(
    group: str, writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    writer.write(put("a", 1))
    poisoned(redis_server)
    writer.write(put("b", 2))

    source = make(group=group)
    assert [change.id for change in drain(source)] == ["a", "b"]

    assert source.progress()["poison"] == 1
    ((_, fields),) = redis_server.client().xrange(f"{STREAM}:poison")
    assert fields[b"hello"] == b"world"
    assert b"format" in fields[b"poison_error"]


@pytest.mark.parametrize("group", ["", "workers"])
@pytest.mark.parametrize("number", ["1e20", "-3", "0x10", "inf", "9" * 15, " 7"])
def test_an_entry_with_a_number_that_is_none_blocks_nobody(
    number: str, group: str, writer: Writer, make: Callable[..., ChangeStream],
    redis_server: RedisServer,
) -> None:  # fmt: skip
    """Scripts on the server take more for numbers than they can keep."""
    writer.write(put("a", 1))
    for name in ("after", "position", "n", "of"):
        fields = {"log": "evil", "after": "0", "position": "1", "n": "1", "of": "1", name: number}
        redis_server.client().xadd(STREAM, fields)
        redis_server.client().xadd(STREAM, fields)
    source = make(group=group)
    assert [change.id for change in drain(source)] == ["a"]
    writer.write(put("b", 2))

    assert [change.id for change in drain(source)] == ["b"]
    assert source.progress()["poison"] == 8
    assert source.gaps == 0


@pytest.mark.parametrize("group", ["", "workers"])
def test_a_read_of_nothing_but_poison_moves_on_and_does_not_spin(
    group: str, writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    """Full batches of it, and then nothing: every poll gets further, and the last one waits."""
    make(group=group)
    for _ in range(25):
        poisoned(redis_server)
    source = make(group=group)
    waits = []
    for _ in range(4):
        batch = source.poll(10)
        assert batch.changes == []
        if batch.token:
            source.ack(batch.token)
        waits.append(batch.wait_s)
    assert waits[2] > 0 or waits[3] > 0
    assert source.progress()["poison"] == 25

    again = make(group=group)
    writer.write(put("after", 1))
    assert [change.id for change in drain(again)] == ["after"]
    assert again.progress()["poison"] == 0


@pytest.mark.parametrize("group", ["", "workers"])
def test_an_altered_entry_of_an_engine_is_poison_and_no_gap(
    group: str, writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    writer.write(put("a", 1))
    values = entry_fields(put("broken", 2), Link(LOG, 1, 2))
    fields = dict(zip(FIELDS, values, strict=True)) | {b"data": b"altered"}
    redis_server.client().xadd(STREAM, fields)
    redis_server.client().hset(f"{STREAM}:origins", LOG, "2 2 1")
    after = RedisStreamSink(redis_server.url, clock=CLOCK)
    after.attach()
    assert after.position(LOG) == 2
    after.apply_at([put("c", 3)], LOG, 3)

    source = make(group=group)
    assert [change.id for change in drain(source)] == ["a", "c"]
    assert source.progress()["poison"] == 1
    assert source.gaps == 0
    after.close()


def test_an_altered_entry_excuses_one_hole_and_not_the_next(redis_url: str) -> None:
    """What stands in its place is missing; what is missing later is missing for another reason."""
    link = StreamLink(redis_url, prefix="se", name="changes", clock=CLOCK)
    link.open()
    for name, number in (("a", 1), ("broken", 2), ("c", 3), ("e", 5)):  # and no fourth
        values = entry_fields(put(name, number), Link(LOG, number - 1, number))
        if name == "broken":
            values[-2] = b"altered"
        pairs = [part for pair in zip(FIELDS, values, strict=True) for part in pair]
        link.ask("write", [[b"XADD", STREAM.encode(), b"*", *pairs]])
    reader = StreamReader(link)

    batch = reader.read(10)

    assert [change.id for entry in batch.entries for change in entry.changes] == ["a", "c"]
    assert len(batch.poison) == 1
    with pytest.raises(FeedGap, match="read up to position 3"):
        reader.read(10)
    link.close()


# -- gaps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["", "workers"])
def test_a_trimmed_stream_stops_the_source_until_somebody_decides(
    group: str, writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    source = make(group=group)
    writer.write_each(["a", "b"])
    assert len(drain(source)) == 2
    writer.write_each([f"k{n}" for n in range(10)])
    redis_server.client().xtrim(STREAM, maxlen=5, approximate=False)

    given: list[str] = []
    for _ in range(3):
        try:
            batch = source.poll(100)
        except FeedGap:
            continue
        given += [change.id for change in batch.changes]  # a group finds the hole behind these
        source.ack(batch.token)
    assert source.gaps == 1
    assert source.gap
    source.skip_gap()
    given += [change.id for change in drain(source)]
    assert given == ["k5", "k6", "k7", "k8", "k9"]
    writer.write(put("later", 99))
    assert [change.id for change in drain(source)] == ["later"]
    assert source.gap == ""


@pytest.mark.parametrize("group", ["", "workers"])
def test_a_source_that_may_go_on_counts_the_gap_and_skips_nothing_that_is_there(
    group: str, writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    """The oldest entry left is not passed over."""
    source = make(group=group, on_gap="continue")
    writer.write_each(["a", "b"])
    drain(source)
    writer.write_each([f"k{n}" for n in range(10)])
    redis_server.client().xtrim(STREAM, maxlen=3, approximate=False)
    given: list[str] = []
    for _ in range(3):
        given += [change.id for change in drain(source)]
    assert given == ["k7", "k8", "k9"]
    assert source.gaps == 1


def test_only_the_last_taken_entry_was_trimmed_and_nothing_is_missing(
    writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    source = make()
    writer.write_each(["a", "b"])
    drain(source)
    writer.write(put("c", 3))
    redis_server.client().xtrim(STREAM, maxlen=1, approximate=False)
    assert [change.id for change in drain(source)] == ["c"]


@pytest.mark.parametrize("group", ["", "workers"])
def test_a_feed_that_is_trimmed_while_it_is_read(
    group: str, writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    writer.write_each([f"k{n}" for n in range(50)])
    source = make(group=group, on_gap="continue")
    given = [change.id for change in source.poll(10).changes]
    redis_server.client().xtrim(STREAM, maxlen=20, approximate=False)
    for _ in range(5):
        given += [change.id for change in drain(source)]
    assert given[:10] == [f"k{n}" for n in range(10)]
    assert given[-20:] == [f"k{n}" for n in range(30, 50)]
    assert source.gaps == 1


@pytest.mark.parametrize("group", ["", "workers"])
def test_an_emptied_server_is_a_gap(
    group: str,
    writer: Writer,
    make: Callable[..., ChangeStream],
    redis_server: RedisServer,
    redis_url: str,
) -> None:
    source = make(group=group, on_gap="continue")
    writer.write_each(["a", "b"])
    drain(source)
    redis_server.flush()
    writer.sink.begin(LOG, 7, after_gap=True)
    writer.at = 7
    writer.write(put("c", 8))
    given: list[str] = []
    for _ in range(6):
        try:
            given += [change.id for change in drain(source)]
        except Exception:
            source.close()
            source.attach()
    assert given == ["c"]
    assert source.gaps >= 1


def test_a_new_source_can_begin_with_what_comes(
    writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    writer.write_each(["a", "b", "c"])
    redis_server.client().xtrim(STREAM, maxlen=1, approximate=False)
    for group in ("", "workers"):
        source = make(f"x{group}", group=group, start="new")
        assert drain(source) == []
        writer.write(put("d", writer.at + 1))
        assert [change.id for change in drain(source)] == ["d"]


def test_stream_ids_are_compared_as_numbers(
    writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    """Entry 10 of a millisecond comes after entry 9."""
    client = redis_server.client()
    for n in range(1, 13):
        values = entry_fields(put(f"k{n}", n), Link(LOG, n - 1, n))
        client.xadd(STREAM, dict(zip(FIELDS, values, strict=True)), id=f"5-{n}")
    client.hset(f"{STREAM}:origins", LOG, "12 12 1")
    source = make()
    given = []
    for _ in range(12):
        batch = source.poll(1)
        given += [change.id for change in batch.changes]
        source.ack(batch.token)
        source.close()
        source.attach()
    assert given == [f"k{n}" for n in range(1, 13)]


# -- workers of a group ---------------------------------------------------------------------------


def test_workers_share_a_feed(writer: Writer, make: Callable[..., ChangeStream]) -> None:
    workers = [make(f"w{n}", group="workers") for n in range(3)]
    writer.write_each([f"k{n}" for n in range(90)])
    given: list[str] = []
    for worker in itertools.islice(itertools.cycle(workers), 30):
        batch = worker.poll(7)
        given += [change.id for change in batch.changes]
        if batch.token:
            worker.ack(batch.token)
    assert sorted(given) == sorted(f"k{n}" for n in range(90))
    assert all(worker.progress()["entries"] > 0 for worker in workers)
    assert all(worker.gaps == 0 for worker in workers)


def test_what_a_dead_worker_had_taken_is_taken_over(
    writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    dead = make("dead", group="workers")
    writer.write_each(["a", "b", "c"])
    assert len(dead.poll(2).changes) == 2
    heir = make("heir", group="workers", claim_idle_s=0.05)
    given = {change.id for change in drain(heir)}
    redis_server.client().blpop("nothing", timeout=0.1)
    given |= {change.id for change in drain(heir)}
    assert given == {"a", "b", "c"}


def test_entries_that_were_trimmed_while_a_worker_held_them_block_nobody(
    writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    worker = make(group="workers")
    writer.write_each(["a", "b"])
    assert len(worker.poll(2).changes) == 2
    redis_server.client().xtrim(STREAM, maxlen=0, approximate=False)
    again = make(group="workers")
    assert drain(again) == []
    assert again.progress()["trimmed"] == 2
    writer.write(put("c", 3))
    assert [change.id for change in drain(again)] == ["c"]


# -- in an engine ---------------------------------------------------------------------------------


def test_one_engine_follows_another(tmp_path: Path, redis_url: str) -> None:
    """A session of its cache does not become a row of the other."""
    with (
        SyncEngine.open(tmp_path / "a", redis_url=redis_url, redis_prefix="a") as a,
        SyncEngine.open(tmp_path / "b") as b,
    ):
        a.add_sink("feed", RedisStreamSink(redis_url, clock=CLOCK))
        source = ChangeStream(redis_url, clock=CLOCK, cursor_path=tmp_path / "cursor")
        b.add_source("peer", source)
        a.submit(SyncItem("kept", b"1", state="x"), SubmitOptions(ttl=3600))
        a.submit("session", b"1", SubmitOptions.cache(60))
        a.submit("gone", b"1")
        a.delete("gone")
        a.submit("last", b"1")
        assert a.flush(10, sinks=True).complete
        until = CLOCK.monotonic() + 20
        while b.get("last") is None:
            assert CLOCK.monotonic() < until
            CLOCK.sleep(0.01)
        kept, other = a.get("kept"), b.get("kept")
        assert kept is not None
        assert other == kept
        assert b.get("gone") is None
        assert b.get("session") is None


def test_after_a_crash_a_source_repeats_and_loses_nothing(
    writer: Writer, make: Callable[..., ChangeStream]
) -> None:
    writer.write_each([f"k{n}" for n in range(20)])
    first = make()
    batch = first.poll(5)
    first.ack(batch.token)
    first.poll(5)  # polled, and never acknowledged
    first.close()
    second = make()
    assert [change.id for change in drain(second)] == [f"k{n}" for n in range(5, 20)]


@pytest.mark.parametrize(
    "settings",
    [
        {"start": "middle"}, {"on_gap": "ignore"}, {"idle_s": 0}, {"timeout_s": "1s"},
        {"content_bytes_max": True}, {"group": "a b"}, {"stream": ""},
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_used_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    context = AdapterContext(
        name="feed", runtime=SystemRuntime(), data_dir=tmp_path, wake=lambda: None
    )
    (name,) = settings
    with pytest.raises(ConfigError, match=name):
        from_settings(context, url="redis://127.0.0.1:1", **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prefixx": "se"}, "did you mean 'prefix'"),
        ({"clock": 1}, "no setting 'clock'"),
        ({}, "'url' is missing"),
    ],
)
def test_names_of_settings_are_those_of_the_source(
    settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    context = AdapterContext(
        name="feed", runtime=SystemRuntime(), data_dir=tmp_path, wake=lambda: None
    )
    with pytest.raises(ConfigError, match=told):
        adapters.build("source", "change_stream", context, settings)


def test_settings_make_a_worker_that_comes_back_under_its_name(
    tmp_path: Path, redis_url: str
) -> None:
    context = AdapterContext(
        name="feed", runtime=SystemRuntime(), data_dir=tmp_path, wake=lambda: None
    )
    Writer(redis_url).write(put("a", 1))
    for _ in range(2):
        source = from_settings(context, url=redis_url, group="workers")
        source.attach()
        assert [change.id for change in source.poll(10).changes] == ["a"]
        source.close()


def test_a_gap_can_be_skipped_after_the_source_was_attached_anew(
    writer: Writer, make: Callable[..., ChangeStream], redis_server: RedisServer
) -> None:
    """An engine attaches a source again that goes on failing."""
    source = make()
    writer.write_each(["a", "b"])
    drain(source)
    writer.write_each(["c", "d", "e"])
    redis_server.client().xtrim(STREAM, maxlen=1, approximate=False)
    for _ in range(2):
        with pytest.raises(FeedGap):
            source.poll(10)
        source.close()
        source.attach()
    source.skip_gap()
    assert [change.id for change in drain(source)] == ["e"]
    assert source.gaps == 1


def test_a_gap_shows_in_the_health_of_the_engine_until_it_is_skipped(
    tmp_path: Path, writer: Writer, redis_server: RedisServer, redis_url: str
) -> None:
    writer.write_each([f"k{n}" for n in range(9)])
    redis_server.client().xtrim(STREAM, maxlen=2, approximate=False)
    with SyncEngine.open(tmp_path, delivery_delay_s_max=0.2) as engine:
        source = ChangeStream(redis_url, clock=CLOCK, cursor_path=tmp_path / "cursor")
        engine.add_source("peer", source)
        until = CLOCK.monotonic() + 20
        while not engine.health().degraded:
            assert CLOCK.monotonic() < until
            CLOCK.sleep(0.01)
        assert "is missing" in engine.health().degraded[0]
        assert engine.get("k8") is None
        source.skip_gap()
        while engine.get("k8") is None or engine.health().degraded:
            assert CLOCK.monotonic() < until
            CLOCK.sleep(0.01)


def test_what_was_given_before_attaching_anew_is_not_taken_with_what_came_since(
    writer: Writer, make: Callable[..., ChangeStream]
) -> None:
    source = make(group="workers")
    names = [f"k{n}" for n in range(10)]
    writer.write_each(names)
    assert len(source.poll(10).changes) == 10
    source.close()
    source.attach()
    part = source.poll(3)
    source.ack(part.token)
    source.close()
    source.attach()

    assert [change.id for change in part.changes] == names[:3]
    assert [change.id for change in drain(source)] == names[3:]
