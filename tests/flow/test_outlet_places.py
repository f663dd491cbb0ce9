"""Where a sink stands: kept over restarts, asked of the target, given up where the log is full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sync_engine.core.item import Change
from sync_engine.errors import StoreUnavailable
from sync_engine.testing import MemorySink, PositionedMemorySink
from tests.flow.support_ends import Bench, sink_of


def test_a_sink_goes_on_where_it_was_after_an_orderly_end(bench: Bench) -> None:
    sink = MemorySink()
    bench.engine.submit("a", b"")
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    bench.engine.remove_sink("copy")
    bench.engine.submit("b", b"")
    bench.engine.flush(60)
    sink.batches.clear()

    bench.engine.add_sink("copy", sink)
    assert bench.engine.flush(60, sinks=True).complete
    assert [[change.id for change in batch] for batch in sink.batches] == [["b"]]


def test_the_log_is_kept_for_a_sink_until_it_is_forgotten(bench: Bench) -> None:
    bench.engine.add_sink("copy", MemorySink())
    bench.engine.flush(60, sinks=True)
    bench.engine.remove_sink("copy")
    bench.engine.submit("a", b"")
    bench.engine.flush(60)
    assert bench.engine.stats()["log"]["released"] == 0
    assert any("sink:copy" in told for told in bench.engine.health().degraded)

    assert bench.engine.remove_sink("copy", forget=True)
    assert bench.engine.stats()["log"]["released"] == 1
    assert not bench.engine.remove_sink("copy", forget=True)


def test_a_forgotten_sink_that_comes_again_is_told_of_deletions(bench: Bench) -> None:
    sink = MemorySink()
    bench.engine.submit("a", b"")
    bench.engine.submit("b", b"")
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    bench.engine.remove_sink("copy", forget=True)
    bench.engine.delete("a")
    bench.engine.flush(60)

    bench.engine.add_sink("copy", sink)
    assert bench.engine.flush(60, sinks=True).complete
    assert set(sink.contents()) == {"b"}


def test_a_target_that_went_back_in_time_is_copied_anew_with_deletions(bench: Bench) -> None:
    sink = PositionedMemorySink()
    bench.engine.submit("a", b"")
    bench.engine.submit("b", b"")
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    backup = dict(sink.rows), dict(sink.positions)
    bench.engine.delete("a")
    bench.engine.submit("c", b"")
    bench.engine.flush(60, sinks=True)
    bench.engine.remove_sink("copy")
    sink.rows, sink.positions = backup

    bench.engine.add_sink("copy", sink)
    bench.engine.submit("d", b"")
    assert bench.engine.flush(60, sinks=True).complete
    assert set(sink.contents()) == {"b", "c", "d"}
    assert sink_of(bench)["copies"] == 2


def test_a_target_that_is_new_is_copied_anew(bench: Bench) -> None:
    bench.engine.submit("a", b"")
    bench.engine.add_sink("copy", PositionedMemorySink())
    bench.engine.flush(60, sinks=True)
    bench.engine.remove_sink("copy")

    other = PositionedMemorySink()
    bench.engine.add_sink("copy", other)
    assert bench.engine.flush(60, sinks=True).complete
    assert set(other.contents()) == {"a"}


def test_a_target_that_followed_on_needs_no_copy(bench: Bench) -> None:
    """It says how far it is, whatever the log remembers of it."""
    sink = PositionedMemorySink()
    bench.engine.submit("a", b"")
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    bench.crash()
    bench.engine.add_sink("copy", sink)
    bench.engine.submit("b", b"")
    assert bench.engine.flush(60, sinks=True).complete
    assert sink_of(bench)["copies"] == 1
    assert set(sink.contents()) == {"a", "b"}


def test_a_target_ahead_of_the_log_is_left_alone(bench: Bench) -> None:
    """The log is an older copy of itself: its next positions would look like old ones."""
    sink = PositionedMemorySink()
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    bench.engine.remove_sink("copy")
    (uuid,) = sink.positions
    sink.positions[uuid] = 10_000
    bench.engine.add_sink("copy", sink)
    bench.engine.submit("a", b"")
    assert bench.engine.flush(1, sinks=True).left == {"sink:copy": 1}
    assert "older copy" in str(sink_of(bench)["error"])
    assert sink.contents() == {}


def test_a_full_log_lets_go_of_the_sink_that_fills_it_and_copies_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, log_bytes_max=1 << 20)
    sink = MemorySink()
    bench.engine.submit("gone", b"")
    bench.engine.add_sink("copy", sink, on_full="cut")
    assert bench.engine.flush(60, sinks=True).complete
    bench.engine.delete("gone")

    def down(changes: Sequence[Change]) -> None:
        raise StoreUnavailable("memory", "apply", "switched off")

    sink.on_apply = down
    for n in range(60):
        bench.engine.submit(f"big.{n}", bytes(50_000))
        bench.run(0.3)
    assert bench.engine.backpressure().name == "NORMAL"
    sink.on_apply = None
    assert bench.engine.flush(300, sinks=True).complete
    assert sink.contents() == bench.expected()
    assert "gone" not in sink.contents()
    assert sink_of(bench)["copies"] >= 2
    bench.engine.close()


def test_a_full_log_slows_writers_down_where_the_sink_may_not_be_cut(tmp_path: Path) -> None:
    from sync_engine.errors import Backpressure

    bench = Bench(tmp_path, log_bytes_max=1 << 20, submit_timeout_s=0)
    sink = MemorySink()
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    bench.engine.pause("copy")
    with pytest.raises(Backpressure):
        for n in range(60):
            bench.engine.submit(f"big.{n}", bytes(50_000))
            bench.run(0.3)
    bench.engine.resume("copy")
    assert bench.engine.flush(60, sinks=True).complete
    bench.run(1)
    bench.engine.submit("after", b"")
    bench.engine.close()
