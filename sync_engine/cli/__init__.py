"""The command line: ``sync-engine``, and the same as ``python -m sync_engine``."""

from __future__ import annotations

from sync_engine.cli.program import main, make_parser

__all__ = ["main", "make_parser"]
