"""``sync-engine`` with failpoints: ``KILL_AT=name:count`` dies at the count-th time a name is hit.

``SLOW_PUT_S`` delays every upload, so that kills fall into the middle of things.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from sync_engine.cli import main
from sync_engine.core import failpoints


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
