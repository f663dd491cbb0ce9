"""Engines to measure: as a user opens them, on a directory of their own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sync_engine import SyncEngine, SyncEngineConfig

__all__ = ["forget_near", "opened", "settle", "workdir"]


@contextmanager
def workdir(parent: Path) -> Iterator[Path]:
    """Make a directory, and remove it."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="bench-") as name:
        Path(name).chmod(0o700)
        yield Path(name)


@contextmanager
def opened(directory: Path, **settings: Any) -> Iterator[SyncEngine]:
    """Open an engine, and close it."""
    with SyncEngine(SyncEngineConfig(data_dir=directory / "engine", **settings)) as engine:
        yield engine


def _house(engine: SyncEngine) -> Any:
    return engine._house  # noqa: SLF001 - looks inside, to wait and to forget


def settle(engine: SyncEngine, timeout_s: float = 10.0) -> None:
    """Wait until all is delivered, written, synced and let go of in the log."""
    engine.flush()
    log = _house(engine).log
    until = time.monotonic() + timeout_s
    while not log.idle() and time.monotonic() < until:
        time.sleep(0.01)


def forget_near(engine: SyncEngine) -> None:
    """Empty L1, so that the next read has to ask a server."""
    _house(engine).l1.clear()
