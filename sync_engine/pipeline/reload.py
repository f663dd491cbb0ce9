"""What changes from one pipeline file to the next, and what of it a running process can take."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

from sync_engine.config import SyncEngineConfig
from sync_engine.pipeline.model import PipelineConfig, SinkSpec, SourceSpec

__all__ = ["Difference", "difference"]

Spec = TypeVar("Spec", SourceSpec, SinkSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Steps from one configuration to another.

    Attributes:
        sources_gone: Names of sources to stop; those that changed are among them.
        sources_new: Sources to start.
        sinks_gone: Names of sinks to stop; those that changed are among them.
        sinks_new: Sinks to start.
        sinks_left: Names of sinks that the new file has no more: the log keeps their place.
        needs_restart: Settings that only a restart takes, by name.
    """

    sources_gone: tuple[str, ...]
    sources_new: tuple[SourceSpec, ...]
    sinks_gone: tuple[str, ...]
    sinks_new: tuple[SinkSpec, ...]
    sinks_left: tuple[str, ...]
    needs_restart: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        return not (
            self.sources_gone
            or self.sources_new
            or self.sinks_gone
            or self.sinks_new
            or self.needs_restart
        )


def difference(old: PipelineConfig, new: PipelineConfig) -> Difference:
    """Compare two configurations of one pipeline; pure."""
    sources_gone, sources_new, _ = _changed(old.sources, new.sources)
    sinks_gone, sinks_new, sinks_left = _changed(old.sinks, new.sinks)
    return Difference(
        sources_gone=sources_gone,
        sources_new=sources_new,
        sinks_gone=sinks_gone,
        sinks_new=sinks_new,
        sinks_left=sinks_left,
        needs_restart=_fixed(old, new),
    )


def _changed(
    old: tuple[Spec, ...], new: tuple[Spec, ...]
) -> tuple[tuple[str, ...], tuple[Spec, ...], tuple[str, ...]]:
    before = {spec.name: spec for spec in old}
    after = {spec.name: spec for spec in new}
    gone = tuple(name for name, spec in before.items() if after.get(name) != spec)
    started = tuple(spec for name, spec in after.items() if before.get(name) != spec)
    return gone, started, tuple(name for name in before if name not in after)


def _fixed(old: PipelineConfig, new: PipelineConfig) -> tuple[str, ...]:
    found = [
        f"engine.{item.name}"
        for item in fields(SyncEngineConfig)
        if getattr(old.engine, item.name) != getattr(new.engine, item.name)
    ]
    if old.http != new.http:
        found.append("http.listen")
    if old.peers != new.peers:
        found.append("peer")
    return tuple(found)
