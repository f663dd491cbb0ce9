"""A writer whose power is going to be cut: every acknowledgement is a line in a recorded file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sync_engine.config import SyncEngineConfig
from sync_engine.core.options import Durability, SubmitOptions
from sync_engine.engine import SyncEngine
from sync_engine.wal import log as log_module

WRITES, KEYS = 150, 20


def payload(n: int) -> bytes:
    """Return what step n writes; None of it, every tenth time, is a delete."""
    return b"%d:" % n + bytes([n % 251]) * (500 + 97 * (n % 60))


def main() -> None:
    directory, durability, fsync_interval_ms = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    log_module._CHECKPOINT_BYTES = 200_000  # so that there are some
    acks = os.open(directory / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    config = SyncEngineConfig(
        data_dir=directory / "data", fsync_interval_ms=fsync_interval_ms, log_interval_ms=5
    )
    options = SubmitOptions(durability=Durability(durability))
    with SyncEngine(config) as engine:
        for n in range(1, WRITES + 1):
            id = f"key.{n % KEYS}"
            if n % 10 == 0:
                engine.delete(id, options)
            else:
                engine.submit(id, payload(n), options)
            os.write(acks, b"%d\n" % n)
            if n % 5 == 0:
                engine._house.clock.sleep(0.01)  # type: ignore[union-attr]
        os._exit(0)  # no close: nothing is saved on the way out


if __name__ == "__main__":
    main()
