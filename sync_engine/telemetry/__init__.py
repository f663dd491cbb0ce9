"""What the engine tells of itself: meters, timings, log lines. Exporters are modules of their own.

``sync_engine.telemetry.prometheus`` and ``sync_engine.telemetry.otel`` need their extras.
"""

from sync_engine.telemetry.catalogue import MEANINGS
from sync_engine.telemetry.exposition import CONTENT_TYPE, render_text
from sync_engine.telemetry.logs import EventLogger, JsonFormatter, get_logger
from sync_engine.telemetry.metrics import (
    Counter,
    Family,
    Gauge,
    Histogram,
    HistogramValue,
    Metrics,
    Series,
)
from sync_engine.telemetry.redaction import redact, redact_url
from sync_engine.telemetry.timing import LatencyTimer, time_operation

__all__ = [
    "CONTENT_TYPE",
    "MEANINGS",
    "Counter",
    "EventLogger",
    "Family",
    "Gauge",
    "Histogram",
    "HistogramValue",
    "JsonFormatter",
    "LatencyTimer",
    "Metrics",
    "Series",
    "get_logger",
    "redact",
    "redact_url",
    "render_text",
    "time_operation",
]
