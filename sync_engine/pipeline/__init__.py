"""Pipelines: sources, an engine and sinks as one process, described by one file."""

from sync_engine.pipeline.endpoint import Endpoint
from sync_engine.pipeline.model import (
    HttpSettings,
    PipelineConfig,
    RunSettings,
    SinkSpec,
    SourceSpec,
    load,
)
from sync_engine.pipeline.reload import Difference, difference
from sync_engine.pipeline.runner import Pipeline, Stopped

__all__ = [
    "Difference",
    "Endpoint",
    "HttpSettings",
    "Pipeline",
    "PipelineConfig",
    "RunSettings",
    "SinkSpec",
    "SourceSpec",
    "Stopped",
    "difference",
    "load",
]
