"""Meters, timings, log lines, exporters."""

from __future__ import annotations

import dis
import io
import json
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.telemetry import (
    MEANINGS,
    Counter,
    Gauge,
    Histogram,
    HistogramValue,
    JsonFormatter,
    LatencyTimer,
    Metrics,
    get_logger,
    redact,
    redact_url,
    render_text,
    time_operation,
)
from sync_engine.telemetry.logs import REPEAT_S
from sync_engine.telemetry.metrics import SERIES_MAX
from sync_engine.telemetry.otel import OtelExporter
from sync_engine.telemetry.prometheus import PrometheusExporter

# -- meters ---------------------------------------------------------------------------------------

ATOMIC = [Counter.inc, Counter.add, Gauge.add, Histogram.observe]
SWITCHES = ("CALL", "JUMP", "FOR_ITER", "SEND", "RESUME", "YIELD", "PRECALL")


@pytest.mark.parametrize("method", ATOMIC, ids=lambda method: method.__qualname__)
def test_nothing_between_load_and_store_lets_another_thread_run(
    method: Callable[..., None],
) -> None:
    """CPython changes threads after calls, on backward jumps and on entry, and nowhere else."""
    names = [instruction.opname for instruction in dis.get_instructions(method)]
    stores = [i for i, name in enumerate(names) if name in {"STORE_ATTR", "STORE_SUBSCR"}]
    assert stores
    for store in stores:
        add = max(i for i in range(store) if names[i] == "BINARY_OP")
        loads = {"STORE_ATTR": "LOAD_ATTR", "STORE_SUBSCR": "BINARY_SUBSCR"}
        load = max(i for i in range(add) if names[i].startswith(loads[names[store]]))
        between = names[load + 1 : store]
        assert not [name for name in between if name.startswith(SWITCHES)], between


def test_no_increment_is_lost_between_threads() -> None:
    counter, histogram = Counter(), Histogram()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work() -> None:
        for _ in range(20_000):
            counter.inc()
            histogram.observe(1.0)

    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert counter.value == 80_000
    assert histogram.read().count == 80_000
    assert histogram.read().sum == 80_000.0


BOUNDS = st.integers(min_value=0, max_value=27).map(lambda power: 1e-6 * 2**power)


@given(st.lists(BOUNDS | st.floats(min_value=-1, max_value=1e6), max_size=50))
def test_each_bucket_counts_what_is_not_above_its_bound(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)

    read = histogram.read()

    assert read.count == len(values)
    assert read.sum == pytest.approx(sum(values))
    assert read.buckets[-1] == (math.inf, len(values))
    for bound, count in read.buckets:
        assert count == sum(value <= bound for value in values)


def test_a_quantile_is_exact_to_a_factor_of_two() -> None:
    histogram = Histogram()
    for millis in range(1, 101):
        histogram.observe(millis / 1000)

    assert 0.050 <= histogram.read().quantile(0.5) <= 0.100
    assert 0.099 <= histogram.read().quantile(0.99) <= 0.198
    assert Histogram().read().quantile(0.99) == 0


def test_a_name_and_labels_always_give_the_same_meter() -> None:
    metrics = Metrics()

    assert metrics.counter("reads", tier="l1") is metrics.counter("reads", tier="l1")
    assert metrics.counter("reads", tier="l1") is not metrics.counter("reads", tier="l2")
    assert metrics.gauge("lag_items") is metrics.gauge("lag_items")
    assert metrics.histogram("a_bytes", x="1", y="2") is metrics.histogram("a_bytes", y="2", x="1")


def test_snapshot_names_every_series() -> None:
    metrics = Metrics()
    metrics.counter("reads", tier="l1").add(3)
    metrics.gauge("lag_items", tier="l3").set(7)
    metrics.gauge_callback("open_files", lambda: 2)
    metrics.histogram("flush_seconds", tier="l3").observe(0.5)

    snapshot = metrics.snapshot()

    timed = snapshot.pop('sync_engine_flush_seconds{tier="l3"}')
    assert isinstance(timed, HistogramValue)
    assert snapshot == {
        'sync_engine_lag_items{tier="l3"}': 7,
        "sync_engine_open_files": 2,
        'sync_engine_reads_total{tier="l1"}': 3,
    }


def test_a_metric_keeps_its_kind_and_label_names() -> None:
    metrics = Metrics()
    metrics.counter("reads", tier="l1")

    with pytest.raises(ValueError, match="is a counter with labels"):
        metrics.gauge("reads", tier="l1")
    with pytest.raises(ValueError, match="is a counter with labels"):
        metrics.counter("reads", store="l1")


@pytest.mark.parametrize("name", ["", "Reads", "reads-per-s", "1st", "a" * 64, "x\ny"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        Metrics().counter(name)


def test_labels_are_bounded() -> None:
    metrics = Metrics()
    for n in range(SERIES_MAX * 3):
        metrics.counter("reads", id=str(n)).inc()

    series = metrics.read("reads")

    assert len(series) == SERIES_MAX + 1
    assert sum(s.value for s in series if not isinstance(s.value, HistogramValue)) == SERIES_MAX * 3
    assert dict(metrics.snapshot())['sync_engine_reads_total{id="other"}'] == SERIES_MAX * 2


def test_a_broken_gauge_hides_no_other() -> None:
    metrics = Metrics()
    metrics.gauge_callback("broken", lambda: 1 / 0)
    metrics.gauge("whole").set(1)

    assert metrics.snapshot() == {"sync_engine_whole": 1}


def test_a_gauge_function_replaces_the_earlier_one() -> None:
    metrics = Metrics()
    metrics.gauge_callback("state", lambda: 1, tier="l2")
    metrics.gauge_callback("state", lambda: 2, tier="l2")

    assert metrics.snapshot() == {'sync_engine_state{tier="l2"}': 2}


def test_a_watcher_hears_of_known_and_of_new_metrics_once() -> None:
    metrics, heard = Metrics(), []
    metrics.counter("reads", tier="l1")

    def watcher(name: str, kind: str) -> None:
        heard.append((name, kind))

    metrics.watch(watcher)
    metrics.counter("reads", tier="l2")
    metrics.gauge("lag_items")
    metrics.unwatch(watcher)
    metrics.unwatch(watcher)
    metrics.gauge("unheard")

    assert heard == [("reads", "counter"), ("lag_items", "gauge")]


def test_a_block_is_timed_whether_it_succeeds_or_raises() -> None:
    histogram, ticks = Histogram(), iter([10.0, 10.5, 20.0, 22.0])
    with LatencyTimer(histogram, lambda: next(ticks)) as timer:
        pass
    with pytest.raises(OSError, match="x"), LatencyTimer(histogram, lambda: next(ticks)):
        raise OSError("x")

    assert timer.seconds == 0.5
    assert histogram.read().sum == 2.5


def test_a_decorated_function_is_timed_at_every_call() -> None:
    histogram, ticks = Histogram(), iter(range(100))

    @time_operation(histogram, lambda: next(ticks))
    def double(n: int) -> int:
        """Double it."""
        return 2 * n

    assert [double(n) for n in range(3)] == [0, 2, 4]
    assert (histogram.read().count, histogram.read().sum) == (3, 3.0)
    assert double.__name__ == "double"


# -- exporters ------------------------------------------------------------------------------------


def filled() -> Metrics:
    metrics = Metrics()
    metrics.counter("reads", tier="l1").add(3)
    metrics.counter("reads", tier='we"ird\\\n').inc()
    metrics.gauge("lag_items", tier="l3").set(2.5)
    metrics.histogram("flush_seconds", tier="l3").observe(0.003)
    return metrics


def samples(families: Iterator[object]) -> set[tuple[object, ...]]:
    return {
        (s.name, tuple(sorted(s.labels.items())), s.value)
        for family in families
        for s in family.samples  # type: ignore[attr-defined]
    }


def test_the_text_is_what_prometheus_reads() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    read = samples(text_string_to_metric_families(render_text(filled())))

    assert ("sync_engine_reads_total", (("tier", "l1"),), 3.0) in read
    assert ("sync_engine_reads_total", (("tier", 'we"ird\\\n'),), 1.0) in read
    assert ("sync_engine_lag_items", (("tier", "l3"),), 2.5) in read
    assert ("sync_engine_flush_seconds_count", (("tier", "l3"),), 1.0) in read
    assert ("sync_engine_flush_seconds_bucket", (("le", "+Inf"), ("tier", "l3")), 1.0) in read


def test_text_and_registry_show_the_same() -> None:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    registry, metrics = CollectorRegistry(), filled()
    exporter = PrometheusExporter(metrics, registry)
    shown = generate_latest(registry).decode()

    assert samples(text_string_to_metric_families(shown)) == samples(
        text_string_to_metric_families(render_text(metrics))
    )
    exporter.close()
    exporter.close()
    assert generate_latest(registry) == b""


def test_opentelemetry_reads_known_and_new_meters_and_gets_spans() -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, reader, metrics = InMemorySpanExporter(), InMemoryMetricReader(), filled()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    exporter = OtelExporter(metrics, meter_provider=meters, tracer_provider=tracers)
    metrics.counter("writes").add(5)

    def seen() -> dict[tuple[str, str], float]:
        data = reader.get_metrics_data()
        return {
            (metric.name, point.attributes.get("tier", "")): point.value
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }

    first = seen()
    assert first["sync_engine_reads_total", "l1"] == 3
    assert first["sync_engine_lag_items", "l3"] == 2.5
    assert first["sync_engine_flush_seconds_count", "l3"] == 1
    assert first["sync_engine_flush_seconds_sum", "l3"] == 0.003
    assert first["sync_engine_writes_total", ""] == 5

    assert metrics.spans is not None
    with pytest.raises(OSError, match="x"), metrics.spans("l2.get", {"tier": "l2"}):
        raise OSError("x")
    (span,) = spans.get_finished_spans()
    assert (span.name, dict(span.attributes or {})) == ("l2.get", {"tier": "l2"})
    assert not span.status.is_ok

    exporter.close()
    exporter.close()
    assert seen() == {}
    assert metrics.spans is None
    meters.shutdown()
    tracers.shutdown()


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("prometheus_client", "sync-engine[prometheus]", PrometheusExporter),
        ("opentelemetry", "sync-engine[otel]", OtelExporter),
    ],
)
def test_a_missing_extra_is_named(
    module: str, extra: str, make: Callable[[Metrics], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigError) as told:
        make(Metrics())

    assert f"pip install '{extra}'" in str(told.value)


def test_meanings_are_sentences_about_well_formed_names() -> None:
    metrics = Metrics()
    for name, meaning in MEANINGS.items():
        metrics.counter(name)
        assert meaning.endswith(".")


# -- log lines ------------------------------------------------------------------------------------


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("sync_engine.test")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def written(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_a_name_and_fields(lines: io.StringIO) -> None:
    log = get_logger("test")
    log.debug("opened")
    log.info("delivered", items=3, tier="l3", ids=("a", "b"))
    log.warning("late", by_s=0.5)
    log.error("refused", error=ValueError("no"))

    opened, delivered, late, refused = written(lines)
    assert (opened["event"], opened["level"]) == ("opened", "debug")
    assert opened["logger"] == "sync_engine.test"
    assert (delivered["items"], delivered["ids"]) == (3, ["a", "b"])
    assert late["by_s"] == 0.5
    assert refused["error"] == "ValueError: no"


def test_a_field_cannot_forge_another_or_break_the_line(lines: io.StringIO) -> None:
    get_logger("test").info("put", id='a\n{"event":"forged"}', level="x", time="y")

    (line,) = written(lines)
    assert line["event"] == "put"
    assert (line["level"], line["level_"], line["time_"]) == ("info", "x", "y")


def test_payloads_are_never_logged(lines: io.StringIO) -> None:
    get_logger("test").info("put", content=b"private", nested={"deep": [bytearray(b"private")]})

    assert "private" not in lines.getvalue()
    assert written(lines)[0]["content"] == "<7 bytes>"


def test_plain_formatters_show_the_fields_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sync_engine")
    get_logger("part").info("delivered", items=3, reason="two words", id="a\nb", empty="")

    assert caplog.messages == [r'delivered items=3 reason="two words" id="a\nb" empty=""']
    (record,) = caplog.records
    assert (record.name, record.funcName) == (
        "sync_engine.part",
        "test_plain_formatters_show_the_fields_too",
    )
    assert record.__dict__["fields"]["items"] == 3


def test_a_repeated_event_is_held_back_and_counted(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, now = get_logger("test"), 1000.0
    make = logging.getLogger("sync_engine.test").makeRecord

    def at_our_time(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)  # type: ignore[arg-type]
        record.created = now
        return record

    monkeypatch.setattr(logging.getLogger("sync_engine.test"), "makeRecord", at_our_time)
    for n in range(5):
        log.limited("failed", n=n)
    log.limited("another")
    now += REPEAT_S
    log.limited("failed", n=5)
    now -= 10 * REPEAT_S  # the wall clock was set back
    log.limited("failed", n=6)

    assert [(line["event"], line.get("n"), line.get("suppressed")) for line in written(lines)] == [
        ("failed", 0, None),
        ("another", None, None),
        ("failed", 5, 4),
        ("failed", 6, None),
    ]


def test_lines_of_other_libraries_are_formatted_too(lines: io.StringIO) -> None:
    logger = logging.getLogger("sync_engine.test")
    try:
        raise StoreUnavailable("redis", "get", "redis://u:canary@h/0")
    except StoreUnavailable:
        logger.exception("cannot reach %s", "redis://u:canary@h/0", extra={"attempt": 2})

    (line,) = written(lines)
    assert line["event"] == "cannot reach redis://u:***@h/0"
    assert line["attempt"] == 2
    assert "StoreUnavailable" in str(line["exception"])
    assert "canary" not in lines.getvalue()


# -- redaction ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:canary@h/0", "redis://:***@h/0"),
        ("rediss://user:canary@h:1/0?ssl_ca=x", "rediss://user:***@h:1/0?ssl_ca=x"),
        ("mysql+pymysql://u:ca@nary/x#y@h/db", "mysql+pymysql://u:***@h/db"),
        ("redis+cluster://u:canary@a:1,b:2/0", "redis+cluster://u:***@a:1,b:2/0"),
        (
            "postgresql://h/db?user=u&password=canary&x=1",
            "postgresql://h/db?user=u&password=***&x=1",
        ),
        ("redis://h?PASSWORD=canary", "redis://h?PASSWORD=***"),
        ("s3://b?aws_secret_access_key=canary", "s3://b?aws_secret_access_key=***"),
        ("unix://u:canary@/run/redis.sock", "unix://u:***@/run/redis.sock"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert redact_url(url) == shown
    assert redact(f"cannot reach {url} now") == f"cannot reach {shown} now"


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n\r "), min_size=1))
def test_no_password_survives_however_badly_it_is_escaped(tail: str) -> None:
    url = f"mysql://user:canary{tail}@host/db"

    assert "canary" not in redact_url(url)


def test_ordinary_text_stays_as_it_is() -> None:
    text = "12 items at 10:30, mail a@b.example, see https://docs.example/page?tokens=off"

    assert redact("12 items at 10:30, mail a@b.example") == "12 items at 10:30, mail a@b.example"
    assert redact(text).startswith("12 items at 10:30")
