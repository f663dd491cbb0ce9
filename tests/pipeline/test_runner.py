"""A pipeline in this process: started, changed while it runs, asked over HTTP, stopped."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sync_engine import SyncEngine
from sync_engine.errors import ConfigError
from sync_engine.pipeline import Pipeline, PipelineConfig, load
from sync_engine.ports import SourceBatch
from sync_engine.replication import Replicator
from tests.pipeline.adapters_for_tests import Counting, rows

HERE = "tests.pipeline.adapters_for_tests"


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.01)


class Files:
    """A pipeline file, written part by part."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "pipeline.toml"

    def source(self, name: str, count: int, prefix: str = "n.") -> str:
        return (
            f'[[source]]\nname = "{name}"\ntype = "{HERE}:counting"\n'
            f'count = {count}\nprefix = "{prefix}"\n'
        )

    def sink(self, name: str, prefix: str = "") -> str:
        path = self.directory / f"{name}.db"
        return (
            f'[[sink]]\nname = "{name}"\ntype = "{HERE}:file_sink"\nid_prefix = "{prefix}"\n'
            f'path = "{path}"\n'
        )

    def load(self, *parts: str, listen: str = ":0", **engine: Any) -> PipelineConfig:
        settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in engine.items())
        self.path.write_text(
            f'[engine]\ndata_dir = "{self.directory / "data"}"\n{settings}'
            f'[http]\nlisten = "{listen}"\n' + "".join(parts)
        )
        return load(self.path, {})

    def rows(self, name: str) -> dict[str, bytes]:
        return rows(self.directory / f"{name}.db")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def get(pipeline: Pipeline, path: str) -> tuple[int, str]:
    assert pipeline.endpoint is not None
    host, port = pipeline.endpoint.address
    with closing(http.client.HTTPConnection(host, port, timeout=10)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_what_a_source_gives_reaches_the_sinks(files: Files) -> None:
    config = files.load(files.source("in", 5000), files.sink("all"), files.sink("some", "n.12"))
    with Pipeline(config) as pipeline:
        until(lambda: pipeline.status()["sources"]["in"]["taken"] == 5000)
        assert pipeline.stop().complete
    assert len(files.rows("all")) == 5000
    assert set(files.rows("some")) == {id for id in files.rows("all") if id.startswith("n.12")}


def test_it_tells_over_http_how_it_does(files: Files) -> None:
    with Pipeline(files.load(files.source("in", 100), files.sink("out"))) as pipeline:
        until(lambda: pipeline.status()["sources"]["in"]["taken"] == 100)
        assert pipeline.engine.flush(20, sinks=True).complete
        assert get(pipeline, "/healthz") == (200, '{"state": "running"}\n')
        status, body = get(pipeline, "/readyz")
        assert status == 200
        assert json.loads(body)["sinks"]["out"]["stage"] == "follow"
        status, body = get(pipeline, "/metrics")
        assert status == 200
        assert 'sync_engine_source_items_total{source="in"} 100' in body
        assert 'sync_engine_sink_lag_items{sink="out"} 0.0' in body
        assert 'sync_engine_sink_copying{sink="out"} 0.0' in body
        assert 'of="next",source="in"' in body


def test_it_listens_at_loopback_unless_told_otherwise(files: Files) -> None:
    with Pipeline(files.load(files.source("in", 1))) as pipeline:
        assert pipeline.endpoint is not None
        assert pipeline.endpoint.address[0] == "127.0.0.1"


def test_parts_come_and_go_while_the_others_run(files: Files) -> None:
    first = files.load(files.source("one", 100, "one."), files.sink("a"))
    with Pipeline(first) as pipeline:
        until(lambda: len(files.rows("a")) == 100)
        engine = pipeline.engine
        new = files.load(
            files.source("one", 200, "one."), files.source("two", 50, "two."), files.sink("b")
        )
        found = pipeline.reload(new)
        assert found.sources_gone == ("one",)
        assert found.sinks_left == ("a",)
        until(lambda: len(files.rows("b")) == 250)
        assert pipeline.engine is engine
        assert len(files.rows("a")) == 100
        assert any("sink:a" in told for told in engine.health().degraded)

        pipeline.reload(files.load(files.sink("a"), files.sink("b")))
        until(lambda: len(files.rows("a")) == 250)


def test_a_new_file_that_cannot_be_used_changes_nothing(files: Files) -> None:
    with Pipeline(files.load(files.source("one", 10), files.sink("a"))) as pipeline:
        until(lambda: len(files.rows("a")) == 10)
        before = pipeline.config
        bad = files.load(files.source("one", -1), files.sink("b"))
        with pytest.raises(ConfigError, match="count must be"):
            pipeline.reload(bad)
        assert pipeline.config is before
        assert set(pipeline.status()["sinks"]) == {"a"}


def test_settings_that_need_a_restart_are_told_and_left(files: Files) -> None:
    with Pipeline(files.load(files.source("one", 10))) as pipeline:
        found = pipeline.reload(files.load(files.source("one", 10), l1_bytes_max="1MiB"))
        assert found.needs_restart == ("engine.l1_bytes_max",)
        again = pipeline.reload(files.load(files.source("one", 10), l1_bytes_max="1MiB"))
        assert again.needs_restart == found.needs_restart


def test_a_sink_taken_out_of_the_file_can_be_forgotten(files: Files) -> None:
    with Pipeline(files.load(files.source("one", 10), files.sink("a"))) as pipeline:
        until(lambda: len(files.rows("a")) == 10)
        with pytest.raises(ConfigError, match="in the file"):
            pipeline.forget("a")
        pipeline.reload(files.load(files.source("one", 10)))
        assert pipeline.forget("a")
        assert not pipeline.forget("a")


def test_a_pipeline_that_cannot_start_leaves_nothing_running(files: Files) -> None:
    pipeline = Pipeline(files.load(files.source("one", -1), files.sink("a")))
    with pytest.raises(ConfigError):
        pipeline.start()
    with Pipeline(files.load(files.source("one", 5), files.sink("a"))) as again:
        until(lambda: again.status()["sources"]["one"]["taken"] == 5)


def test_stopping_an_idle_pipeline_is_quick(files: Files) -> None:
    pipeline = Pipeline(files.load(files.source("one", 10), files.sink("a"))).start()
    until(lambda: len(files.rows("a")) == 10)
    assert pipeline.stop().seconds < 1.0


def test_a_check_tells_all_that_is_wrong_and_touches_nothing(files: Files) -> None:
    config = files.load(
        files.source("one", -1),
        files.sink("a"),
        f'[[sink]]\nname = "b"\ntype = "{HERE}:file_sink"\npaht = "x"\n',
    )
    with pytest.raises(ConfigError) as refused:
        Pipeline.check(config)
    assert "count must be" in str(refused.value)
    assert "did you mean 'path'" in str(refused.value)
    assert not (files.directory / "data").exists()


def test_what_is_taken_when_it_stops_is_delivered_though_there_is_more(files: Files) -> None:
    config = files.load(files.source("in", 10_000_000), files.sink("out"))
    with Pipeline(config) as pipeline:
        until(lambda: pipeline.status()["sources"]["in"]["taken"] > 2000)
        stopped = pipeline.stop(20.0)
    assert stopped.left == {}
    assert len(files.rows("out")) > 2000


def test_a_batch_that_is_being_taken_when_it_stops_is_delivered_with_the_rest(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that wrote after the flush would leave changes behind, though nothing is amiss."""
    polled, flushes = threading.Event(), threading.Event()
    pipeline = Pipeline(files.load(files.source("in", 10), files.sink("out")))
    flush, seen = SyncEngine.flush, []

    def poll(source: Counting, items_max: int) -> SourceBatch:
        polled.set()
        flushes.wait(0.3)
        return Counting.poll(source, items_max)

    def flushed(engine: SyncEngine, *args: Any, **options: Any) -> Any:
        seen.append(engine.stats()["sources"]["in"]["taken"])
        flushes.set()
        return flush(engine, *args, **options)

    monkeypatch.setattr(SyncEngine, "flush", flushed)
    monkeypatch.setattr(f"{HERE}.Counting", type("Slow", (Counting,), {"poll": poll}))
    pipeline.start()
    assert polled.wait(20)
    stopped = pipeline.stop(20.0)

    assert seen == [10]
    assert stopped.left == {}
    assert len(files.rows("out")) == 10


def test_a_new_part_that_fails_in_its_own_way_leaves_the_others_as_configured(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs is known afterwards: the next file is compared with that."""
    with Pipeline(files.load(files.source("one", 10), files.sink("a"))) as pipeline:
        until(lambda: len(files.rows("a")) == 10)
        add = SyncEngine.add_sink

        def fails(engine: SyncEngine, name: str, *args: Any, **options: Any) -> Any:
            if name == "b":
                raise OSError("no such device")
            return add(engine, name, *args, **options)

        monkeypatch.setattr(SyncEngine, "add_sink", fails)
        new = files.load(files.source("one", 10), files.sink("b"), files.sink("c"))
        with pytest.raises(ConfigError, match="OSError: no such device"):
            pipeline.reload(new)
        assert {spec.name for spec in pipeline.config.sinks} == {"c"}
        monkeypatch.undo()
        pipeline.reload(new)
        until(lambda: len(files.rows("b")) == 10 == len(files.rows("c")))


def test_a_tier_that_hangs_keeps_nobody_from_learning_that_the_process_lives(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who restarts what does not answer would restart it for a fault of its database."""
    asked, go_on = threading.Event(), threading.Event()
    health = SyncEngine.health

    def hung(engine: SyncEngine) -> Any:
        asked.set()
        assert go_on.wait(30)
        return health(engine)

    monkeypatch.setattr(SyncEngine, "health", hung)
    with Pipeline(files.load(files.source("in", 1))) as pipeline:
        try:
            status, body = get(pipeline, "/readyz")
            assert (status, json.loads(body)["ready"]) == (503, False)
            assert asked.is_set()
            assert get(pipeline, "/healthz")[0] == 200
        finally:
            go_on.set()
        until(lambda: get(pipeline, "/readyz")[0] == 200)


def test_readiness_is_asked_for_once_a_second_at_most(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    health = SyncEngine.health

    def counted(engine: SyncEngine) -> Any:
        asked.append(time.monotonic())
        return health(engine)

    monkeypatch.setattr(SyncEngine, "health", counted)
    with Pipeline(files.load(files.source("in", 1))) as pipeline:
        until(lambda: get(pipeline, "/readyz")[0] == 200 and len(asked) > 2)
    pauses = [after - before for before, after in pairwise(asked)]
    assert min(pauses) >= 0.95


def test_what_is_gone_has_no_value_in_the_metrics(files: Files) -> None:
    """Its last lag would be watched for ever."""
    with Pipeline(files.load(files.source("in", 1), files.sink("a"), files.sink("b"))) as pipeline:
        until(lambda: len(files.rows("b")) == 1)
        until(lambda: 'sink_lag_bytes{sink="b"} 0.0' in get(pipeline, "/metrics")[1])
        pipeline.reload(files.load(files.source("other", 1), files.sink("a")))

        body = get(pipeline, "/metrics")[1]

        assert 'sync_engine_sink_lag_bytes{sink="b"} NaN' in body
        assert 'sync_engine_sink_lag_bytes{sink="a"} NaN' not in body
        assert 'sync_engine_source_progress{of="next",source="in"} NaN' in body
        pipeline.reload(files.load(files.source("in", 1), files.sink("a"), files.sink("b")))
        until(lambda: 'sink_lag_bytes{sink="b"} 0.0' in get(pipeline, "/metrics")[1])


def test_settings_of_the_process_are_taken_without_a_restart(files: Files) -> None:
    with Pipeline(files.load(files.source("one", 10))) as pipeline:
        found = pipeline.reload(files.load(files.source("one", 10), "[run]\nreport_s = 7\n"))
        assert found.needs_restart == ()
        assert pipeline.config.run.report_s == 7.0


def test_nothing_more_is_taken_from_peers_when_it_stops(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    close, flush = Replicator.close, SyncEngine.flush

    def closed(replicator: Replicator) -> Any:
        order.append("peers")
        return close(replicator)

    def flushed(engine: SyncEngine, *args: Any, **options: Any) -> Any:
        order.append("flush")
        return flush(engine, *args, **options)

    monkeypatch.setattr(Replicator, "close", closed)
    monkeypatch.setattr(SyncEngine, "flush", flushed)
    with Pipeline(files.load(files.source("one", 10))):
        pass
    assert order == ["peers", "flush"]
