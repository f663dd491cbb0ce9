"""A finder in a process of its own, to be frozen: tells when it watches, and when it knows all."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

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


def main(directory: str, ledger_path: str, count: int) -> None:
    ledger, patterns, waker = FileLedger(Path(ledger_path)), Patterns(), Waker()
    root = ledger.root(os.fsencode(directory))
    watcher = make_watcher("inotify", patterns)
    policy = FindPolicy(settle_s=0.2, rescan_s=1000.0)
    finder = Finder(ledger, [root], Tree(patterns), watcher, policy, SystemRuntime("t").clock)
    told = False
    while ledger.counts().get(State.STABLE, 0) < count:
        finder.read(0.05, waker)
        with ledger.step():
            finder.work()
        if finder.scans and not told:
            told = True
            sys.stdout.write("watching\n")
            sys.stdout.flush()
    shown = {"overflows": watcher.overflows, "rescans": finder.rescans, "scans": finder.scans}
    sys.stdout.write(json.dumps(shown) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
