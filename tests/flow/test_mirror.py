"""The mirror of the tree: kept where the archive is, honest about where that was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from sync_engine import SyncEngine, SyncItem
from sync_engine.config import SyncEngineConfig
from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.house import Stores
from sync_engine.redis_link.stream import StreamLink
from sync_engine.stores.redis import RedisMerkleStore
from sync_engine.stores.sql import SqlArchive
from sync_engine.testing import ManualRuntime


class Link:
    """A link that counts, and fails when told; over another, or over a server in memory."""

    def __init__(self, real: StreamLink | None = None) -> None:
        self._real = real
        self.memory = fakeredis.FakeRedis()
        self.asked = 0
        self.down = False
        self.closed = False

    def open(self) -> None:
        self.ask("attach", [(b"TYPE", b"any")] if self._real is None else [])
        if self._real is not None:
            self._real.open()

    def ask(self, operation: str, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        self.asked += 1
        if self.down:
            raise StoreUnavailable("redis", operation, "down")
        if self._real is not None:
            return self._real.ask(operation, commands) if commands else []
        return [self.memory.execute_command(*command) for command in commands]

    def names(self) -> list[bytes]:
        pattern = b"se:{feed}:merkle*"
        return [bytes(key) for key in self.ask("test", [(b"KEYS", pattern)])[0]]

    def close(self) -> None:
        self.closed = True
        if self._real is not None:
            self._real.close()


class Bench:
    """One engine whose jobs run when told, its archive and its mirror."""

    def __init__(self, path: Path, link: Link) -> None:
        self.runtime = ManualRuntime(waits_run_jobs=True)
        self.link = link
        clock = self.runtime.clock
        self.archive = SqlArchive(f"sqlite:///{path}/archive.db", clock=clock)
        self.mirror = RedisMerkleStore(self.archive.merkle, link)
        self.engine = SyncEngine(
            SyncEngineConfig(data_dir=path / "data"),
            runtime=self.runtime,
            stores=Stores(None, self.archive, None, self.mirror),
        ).start()

    def write(self, *ids: str) -> None:
        self.engine.submit_many([SyncItem(id, b"v") for id in ids])
        assert self.engine.flush(30).complete

    def run(self, seconds: float = 6.0) -> None:
        self.runtime.event().wait(seconds)


@pytest.fixture(params=["memory", pytest.param("server", marks=pytest.mark.external)])
def link(request: pytest.FixtureRequest) -> Link:
    if request.param == "memory":
        return Link()
    url = request.getfixturevalue("redis_url")
    clock = ManualRuntime().clock
    return Link(StreamLink(url, prefix="se", name="merkle", clock=clock))


@pytest.fixture
def bench(tmp_path: Path, link: Link) -> Iterator[Bench]:
    made = Bench(tmp_path, link)
    yield made
    link.down = False
    made.engine.close(0)


def unavailable(*_: object) -> Any:
    raise StoreUnavailable("l3", "test", "down")


def test_the_mirror_says_what_the_archive_said_at_the_position_it_names(bench: Bench) -> None:
    bench.write("uk.a.1", "uk.a.2", "uk.b", "fr.c")
    bench.run()

    root, uk = bench.engine.merkle_mirrored(), bench.engine.merkle_mirrored("uk")

    assert root.node == bench.engine.merkle_root()
    assert root.page.nodes == bench.engine.merkle_children("").nodes
    assert (uk.node, uk.page.nodes) == (
        bench.engine.merkle_node("uk"),
        bench.engine.merkle_children("uk").nodes,
    )
    assert root.position == uk.position == bench.engine.merkle_state().position
    assert root.behind == 0


def test_what_the_archive_took_since_is_told_until_the_mirror_has_it(bench: Bench) -> None:
    bench.write("a")
    bench.run()
    before = bench.engine.merkle_mirrored()

    bench.write("b")
    behind = bench.engine.merkle_mirrored()
    bench.run()
    after = bench.engine.merkle_mirrored()

    assert (behind.node, behind.position) == (before.node, before.position)
    assert behind.behind is not None
    assert behind.behind >= 1
    assert (after.behind, after.node) == (0, bench.engine.merkle_root())


def test_the_mirror_answers_while_the_archive_is_down_and_does_not_know_how_far_it_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write("a")
    bench.run()
    before = bench.engine.merkle_mirrored()

    monkeypatch.setattr(bench.archive, "info", unavailable)
    monkeypatch.setattr(bench.archive.merkle, "position", unavailable)
    bench.run(60)
    after = bench.engine.merkle_mirrored()

    assert (after.node, after.position, after.behind) == (before.node, before.position, None)
    # It was not seen at this position since, and does not say so.
    assert bench.runtime.clock.now_ms() - after.seen_at_ms >= 50_000


def test_an_archive_that_stands_still_is_looked_at_and_not_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write("a")
    bench.run()
    read: list[int] = []

    def view() -> Any:
        read.append(1)
        return unavailable()

    monkeypatch.setattr(bench.archive.merkle, "view", view)

    bench.run(600)

    assert not read
    seen_ms = bench.engine.merkle_mirrored().seen_at_ms
    assert bench.runtime.clock.now_ms() - seen_ms <= 6_000


@pytest.mark.parametrize("lost", [b"", b":at:", b":latest"])
def test_what_the_mirror_lost_is_no_answer_and_comes_again(bench: Bench, lost: bytes) -> None:
    bench.write("a")
    bench.run()
    gone = [key for key in bench.link.names() if lost in key]
    assert gone
    bench.link.ask("test", [(b"DEL", *gone)])

    with pytest.raises(StoreUnavailable, match="says nothing of the archive"):
        bench.engine.merkle_mirrored()
    bench.run()

    assert bench.engine.merkle_mirrored().node == bench.engine.merkle_root()


def test_a_path_that_the_mirror_lacks_is_not_told_as_empty(bench: Bench) -> None:
    bench.write("a.b.c.d")
    bench.run()
    assert bench.engine.merkle_mirrored("a").node.total.live == 1

    for path in ("a.b.c", "nothing"):
        with pytest.raises(StoreUnavailable, match="does not have"):
            bench.engine.merkle_mirrored(path)


def test_a_damaged_answer_is_no_answer(bench: Bench) -> None:
    bench.write("a")
    bench.run()
    for place in (key for key in bench.link.names() if b":at:" in key):
        for field in bench.link.ask("test", [(b"HKEYS", place)])[0]:
            value = bytes(bench.link.ask("test", [(b"HGET", place, field)])[0])
            bench.link.ask("test", [(b"HSET", place, field, value[:-1] + b"?")])

    with pytest.raises(StoreUnavailable, match="does not have"):
        bench.engine.merkle_mirrored()
    bench.run()

    assert bench.engine.merkle_mirrored().node == bench.engine.merkle_root()


def test_a_position_that_is_no_text_is_written_over(bench: Bench) -> None:
    bench.write("a")
    bench.link.ask("test", [(b"SET", b"se:{feed}:merkle:latest", b"\xff\xfe")])

    bench.run()

    assert bench.engine.merkle_mirrored().behind == 0


def test_a_position_is_not_named_before_its_answers_are_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the first command that writes: what was there is told on."""
    bench.write("a")
    bench.run()
    before = bench.engine.merkle_mirrored()
    bench.write("b")
    ask = bench.link.ask

    def broken(operation: str, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        if commands[0][0] in (b"HSET", b"SET"):
            ask(operation, commands[:1])
            raise StoreUnavailable("redis", operation, "the connection broke")
        return ask(operation, commands)

    with monkeypatch.context() as patch:
        patch.setattr(bench.link, "ask", broken)
        bench.run()
    found = bench.engine.merkle_mirrored()

    assert (found.node, found.position) == (before.node, before.position)


def test_a_mirror_of_another_archive_is_not_believed(bench: Bench) -> None:
    bench.write("a")
    bench.run()
    found = bench.engine.merkle_mirrored()
    bench.mirror.fill("elsewhere:9", {"": (found.node, found.page)}, found.seen_at_ms)

    with pytest.raises(StoreUnavailable, match="another archive"):
        bench.engine.merkle_mirrored()


def test_answers_are_named_by_the_moment_they_were_read_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch comes between looking at the archive and reading it."""
    clock = bench.runtime.clock
    position = bench.archive.merkle.position

    def and_a_batch() -> str:
        found = position()
        bench.archive.apply([Change(f"late.{clock.now_ms()}", clock.now_ms() << 20, b"v")])
        return found

    bench.write("a")
    with monkeypatch.context() as busy:
        busy.setattr(bench.archive.merkle, "position", and_a_batch)
        bench.run()
    late = bench.engine.merkle_mirrored("late")

    assert late.behind == 0
    assert late.node == bench.engine.merkle_node("late")
    assert late.position == late.page.position == bench.engine.merkle_state().position


def test_a_redis_that_is_down_is_left_alone_more_and_more_and_then_caught_up(bench: Bench) -> None:
    bench.write("a")
    bench.run()
    bench.link.down = True
    bench.write("b")
    bench.link.asked = 0

    bench.run(300)
    assert 0 < bench.link.asked < 60
    with pytest.raises(StoreUnavailable):
        bench.engine.merkle_mirrored()
    bench.link.down = False
    bench.run(60)

    assert bench.engine.merkle_mirrored().node == bench.engine.merkle_root()


def test_stats_tell_where_the_mirror_is_and_what_is_wrong_with_it(bench: Bench) -> None:
    bench.write("a")
    bench.run()
    kept = bench.engine.merkle_mirrored().position
    assert bench.engine.stats()["merkle_mirror"] == {"position": kept, "error": ""}

    bench.link.down = True
    bench.write("b")
    bench.run()
    stats = bench.engine.stats()["merkle_mirror"]
    assert stats["position"] == kept
    assert "down" in stats["error"]

    bench.link.down = False
    bench.run(60)
    stats = bench.engine.stats()["merkle_mirror"]
    assert stats == {"position": bench.engine.merkle_mirrored().position, "error": ""}
    assert stats["position"] != kept


def test_a_wide_tree_is_mirrored_in_part_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[Any] = []
    fill: Callable[..., None] = bench.mirror.fill

    def kept(*args: Any) -> None:
        filled.append(args)
        fill(*args)

    monkeypatch.setattr(bench.mirror, "fill", kept)
    bench.write(*(f"d{n:03}.{k}.x" for n in range(100) for k in range(20)))
    bench.run(20)

    answers = filled[-1][1]
    assert sum(len(page.nodes) for _, page in answers.values()) <= 256
    root = bench.engine.merkle_mirrored()
    assert len(root.page.nodes) == 64
    assert root.page.next is not None
    assert root.node.total.live == 2000
    assert bench.engine.merkle_mirrored("d000").page.nodes == (
        bench.engine.merkle_children("d000").nodes
    )


def test_answers_of_positions_left_behind_soon_go(bench: Bench) -> None:
    for id in "abc":
        bench.write(id)
        bench.run()

    places = [key for key in bench.link.names() if b":at:" in key]
    left_ms = sorted(bench.link.ask("test", [(b"PTTL", key) for key in places]))

    assert len(left_ms) >= 3
    assert 0 < left_ms[0] <= left_ms[-2] <= 60_000 < left_ms[-1]


def test_without_a_mirror_there_is_nothing_to_ask(tmp_path: Path) -> None:
    with (
        SyncEngine(SyncEngineConfig(data_dir=tmp_path)) as engine,
        pytest.raises(ConfigError, match="merkle_mirror = true"),
    ):
        engine.merkle_mirrored()


def test_an_engine_that_closes_lets_go_of_the_mirror(bench: Bench) -> None:
    bench.write("a")
    bench.run()
    assert not bench.link.closed

    bench.engine.close(0)

    assert bench.link.closed
