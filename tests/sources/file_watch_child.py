"""A finder on a directory, stepped by hand; as a program, a process of its own, to be frozen.

The program tells when it watches, and in the end what it knows.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sync_engine.runtime import SystemRuntime
from sync_engine.sources.file_watch import (
    FileLedger,
    Finder,
    FindPolicy,
    Patterns,
    State,
    Tree,
    Waker,
    make_watcher,
)

__all__ = ["Watch"]


class Watch:
    """A finder on a directory, stepped by the test."""

    def __init__(self, base: Path, backend: str = "inotify", **policy: Any) -> None:
        self.dir = base / "in"
        self.dir.mkdir(exist_ok=True)
        self.ledger = FileLedger(base / "files.db")
        patterns = Patterns()
        self.watcher: Any = make_watcher(backend, patterns)
        self.waker = Waker()
        given = {"settle_s": 0.2, "rescan_s": 1000.0, "poll_s": 0.2} | policy
        root = self.ledger.root(os.fsencode(self.dir))
        self.finder = Finder(
            self.ledger,
            [root],
            Tree(patterns),
            self.watcher,
            FindPolicy(**given),
            SystemRuntime("t").clock,
        )
        self.until(lambda: self.finder.scans > 0)

    def step(self) -> None:
        self.finder.read(0.02, self.waker)
        with self.ledger.step():
            self.finder.work()

    def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> float:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < timeout_s, self.ledger.counts()
            self.step()
        return time.monotonic() - began

    def count(self, state: State = State.STABLE) -> int:
        return self.ledger.counts().get(state, 0)

    def names(self) -> set[str]:
        rows = self.ledger.page(1, None, 100_000)
        return {row.path.decode() for row in rows if row.size >= 0}

    def close(self) -> None:
        self.watcher.close()
        self.waker.close()
        self.ledger.close()


def main(base: str, count: int) -> None:
    """Watch until so many files are settled."""
    watch = Watch(Path(base))
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    while watch.count() < count:
        watch.step()
    told = {"overflows": watch.watcher.overflows, "rescans": watch.finder.rescans}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
