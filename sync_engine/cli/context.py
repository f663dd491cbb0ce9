"""What a command is given: its arguments, settings, an engine, and a place to print."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sync_engine.cli.command import UsageError
from sync_engine.cli.output import Output, count
from sync_engine.cli.signals import Stop
from sync_engine.config import SETTINGS, SyncEngineConfig
from sync_engine.config.gather import nearest
from sync_engine.core.options import Durability, SubmitOptions
from sync_engine.core.results import FlushReport
from sync_engine.engine import SyncEngine
from sync_engine.errors import ConfigError
from sync_engine.runtime import SystemClock

__all__ = ["Context"]

_READER_CLOSE_S = 1.0


class Context:
    """One run of one command.

    Attributes:
        args: The parsed command line.
        output: Where to print.
        stop: Signals.
        clock: Time.
        closed: What the engine left when it was closed; None before.
    """

    def __init__(self, args: argparse.Namespace, output: Output, stop: Stop) -> None:
        self.args = args
        self.output = output
        self.stop = stop
        self.clock = SystemClock()
        self.closed: FlushReport | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the command line alone."""
        names = [setting.name for setting in SETTINGS]
        found: dict[str, Any] = {}
        for text in (*(self.args.settings or ()), *getattr(self.args, "settings_after", ())):
            name, equals, value = text.partition("=")
            if not equals:
                raise UsageError(f"--set {text}: must be NAME=VALUE")
            if name not in names:
                raise ConfigError(f"--set {name}: there is no such setting{nearest(name, names)}")
            found[name] = value
        options = ("data_dir", "redis_url", "sql_url")
        return found | {n: v for n in options if (v := getattr(self.args, n)) is not None}

    @cached_property
    def config(self) -> SyncEngineConfig:
        """The settings.

        Raises:
            ConfigError: They cannot be used.
        """
        return SyncEngineConfig.load(self.args.config, **self.settings)

    def pipeline_file(self) -> Path:
        """Return the pipeline file that the command line names.

        Raises:
            UsageError: There is another file of settings beside it.
        """
        if self.args.config is not None:
            raise UsageError(
                f"--config: settings are taken from {self.args.file}", "put them into its [engine]"
            )
        return Path(self.args.file)

    def options(self) -> SubmitOptions:
        """Return the options of a write.

        Raises:
            InvalidItem: They cannot be used.
        """
        args = self.args
        return SubmitOptions(
            ttl=args.ttl,
            state=args.state,
            durability=None if args.durability is None else Durability(args.durability),
            if_version=getattr(args, "if_version", None),
            if_absent=getattr(args, "if_absent", False),
        )

    @contextmanager
    def reading(self) -> Iterator[SyncEngine]:
        """Open an engine that only looks: no other engine on the archive notices it.

        Raises:
            UsageError: There is nothing to read.
        """
        with self._existing(passive=True) as engine:
            yield engine

    @contextmanager
    def delivering(self) -> Iterator[SyncEngine]:
        """Open an engine on what is there, to deliver what waits in its log.

        Raises:
            UsageError: There is nothing to deliver.
        """
        with self._existing(passive=False) as engine:
            yield engine

    @contextmanager
    def _existing(self, *, passive: bool) -> Iterator[SyncEngine]:
        """Open an engine; a data_dir that is not there is a mistake."""
        config = self.config
        if config.sql_url is None and not config.data_dir.is_dir():
            raise UsageError(
                f"there is no data_dir {config.data_dir}",
                "name it with --data-dir or SYNC_ENGINE_DATA_DIR, or write something first",
            )
        close_s = 0.0 if passive else min(_READER_CLOSE_S, config.close_timeout_s)
        with self._open(close_s, passive=passive) as engine:
            yield engine

    @contextmanager
    def writing(self) -> Iterator[SyncEngine]:
        """Open an engine to write; at the end, deliver, and tell what is left in the log."""
        with self._open(self.config.close_timeout_s, passive=False) as engine:
            yield engine
        report = self.closed
        if report is not None and report.left:
            waits = ", ".join(
                f"{count(left, 'change')} for {name}" for name, left in report.left.items()
            )
            self.output.warn(f"safe in the log, not yet delivered: {waits}; the next run goes on")
        if report is not None and report.dead_letters:
            letters = count(report.dead_letters, "dead letter")
            self.output.warn(f"{letters} wait for a decision: `sync-engine dlq list`")

    @contextmanager
    def _open(self, close_s: float, *, passive: bool) -> Iterator[SyncEngine]:
        config = replace(self.config, passive=True) if passive else self.config
        engine = SyncEngine(config).start()
        try:
            yield engine
        finally:
            with self.stop.deferred():
                self.closed = engine.close(close_s)
