"""``sync-engine`` with failpoints: ``KILL_AT=name:count`` dies at the count-th time a name is hit.

``SLOW_PUT_S`` delays every upload, so that kills fall into the middle of things. It knows the
commands of replication alone: it starts in half the time without what the others import.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from typing import Any

_commands: list[Any] = []
_table = types.ModuleType("sync_engine.cli.table")
_table.__dict__["COMMANDS"] = _commands
sys.modules[_table.__name__] = _table

from sync_engine.cli import main  # noqa: E402 - after the short table is in place
from sync_engine.cli.replicate import REPLICATE  # noqa: E402
from sync_engine.cli.restore import RESTORE  # noqa: E402
from sync_engine.cli.snapshots import SNAPSHOTS  # noqa: E402
from sync_engine.core import failpoints  # noqa: E402

_commands += [REPLICATE, RESTORE, SNAPSHOTS]


def arm(name: str, count: int) -> None:
    left = [count]

    def die() -> None:
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints._actions[name] = die
    failpoints.armed = True


if __name__ == "__main__":
    if kill_at := os.environ.get("KILL_AT"):
        point, _, times = kill_at.partition(":")
        arm(point, int(times or 1))
    if slow := os.environ.get("SLOW_PUT_S"):
        failpoints._actions["snapshot.put_sent"] = lambda: time.sleep(float(slow))
        failpoints.armed = True
    sys.exit(main(sys.argv[1:]))
