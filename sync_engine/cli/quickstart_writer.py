"""The process that ``quickstart`` kills: writes files, and says so after each acknowledgement.

Standard input: a line of settings, a line for each file, an empty line; then nothing, and no end.
Standard output: ``{"ready": …}``, then one line a file: its version and SHA-256, or an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from sync_engine.cli.command import UsageError
from sync_engine.cli.files import read_whole
from sync_engine.config import SyncEngineConfig
from sync_engine.engine import SyncEngine
from sync_engine.errors import SyncEngineError
from sync_engine.telemetry import redact

__all__: list[str] = []


def _say(answer: dict[str, Any]) -> None:
    os.write(1, f"{json.dumps(answer)}\n".encode())  # one write a line: nothing waits in a buffer


def _write(engine: SyncEngine, id: str, path: str) -> dict[str, Any]:
    try:
        content = read_whole(Path(path), engine.config.max_payload_bytes)
        receipt = engine.submit(id, content)
    except (OSError, UsageError, SyncEngineError) as exc:
        return {"id": id, "error": redact(str(exc))}
    digest = hashlib.sha256(content).hexdigest()
    return {"id": id, "version": receipt.version, "bytes": len(content), "sha256": digest}


def _main() -> None:
    settings = json.loads(sys.stdin.readline())
    files = [json.loads(line) for line in iter(sys.stdin.readline, "\n")]
    try:
        engine = SyncEngine(SyncEngineConfig(**settings)).start()
    except SyncEngineError as exc:
        _say({"failed": redact(f"{exc}")})
        return
    _say({"ready": os.getpid()})
    for file in files:
        _say(_write(engine, file["id"], file["path"]))
    sys.stdin.read()  # until killed


if __name__ == "__main__":
    _main()
