"""Writes to a database as wildly as an application can; the programs of `kit.py` run it.

python writer_child.py DB SECONDS SEED [mix|simple|steady:RATE|fast]
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import time

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, k TEXT, v BLOB)",
    "CREATE INDEX IF NOT EXISTS ti ON t(k)",
)


def connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def transaction(c: sqlite3.Connection, rng: random.Random) -> None:
    c.execute("BEGIN IMMEDIATE")
    for _ in range(rng.randrange(1, 60)):
        row = (str(rng.random()), os.urandom(rng.randrange(10, 4000)))
        c.execute("INSERT INTO t(k, v) VALUES(?, ?)", row)
        if rng.random() < 0.3:
            change = (os.urandom(500), rng.randrange(1, 5000))
            c.execute("UPDATE t SET v=? WHERE id=?", change)
    c.execute("COMMIT")


def spill_and_roll_back(c: sqlite3.Connection, rng: random.Random) -> None:
    """Outgrow the page cache inside a transaction, so that frames reach the log, and undo it."""
    c.execute("PRAGMA cache_size=20")
    c.execute("BEGIN IMMEDIATE")
    for _ in range(400):
        row = (str(rng.random()), os.urandom(3000))
        c.execute("INSERT INTO t(k, v) VALUES(?, ?)", row)
    c.execute("ROLLBACK")
    c.execute("PRAGMA cache_size=-2000")


def main() -> None:
    path, length, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    mode = sys.argv[4] if len(sys.argv) > 4 else "mix"
    rng = random.Random(seed)
    until = time.monotonic() + length
    c = connect(path)
    for statement in SCHEMA:
        c.execute(statement)
    commits = busy = 0
    slowest: dict[str, float] = {}
    latencies: list[float] = []
    steady = float(mode.partition(":")[2]) if mode.startswith("steady") else 0.0
    due = time.monotonic()
    while (began := time.monotonic()) < until:
        kind, draw = "commit", rng.random()
        try:
            if steady or mode == "fast":
                c.execute("INSERT INTO t(k, v) VALUES(?, randomblob(300))", (str(commits),))
                commits += 1
            elif mode == "mix" and draw < 0.02:
                kind = "vacuum"
                c.execute("VACUUM")
            elif mode == "mix" and draw < 0.06:
                c.execute("DELETE FROM t WHERE id % 7 = ?", (rng.randrange(7),))
            elif mode == "mix" and draw < 0.09:
                spill_and_roll_back(c, rng)
            elif mode == "mix" and draw < 0.11:
                kind = rng.choice(["passive", "full", "restart", "truncate"])
                c.execute(f"PRAGMA wal_checkpoint({kind})").fetchall()
            elif mode == "mix" and draw < 0.13:
                c.close()
                c = connect(path)
            else:
                transaction(c, rng)
                commits += 1
        except sqlite3.OperationalError:
            busy += 1
            if c.in_transaction:
                c.execute("ROLLBACK")
        taken = time.monotonic() - began
        latencies.append(taken)
        slowest[kind] = max(slowest.get(kind, 0.0), taken)
        if steady:
            due += 1 / steady
            time.sleep(max(0.0, due - time.monotonic()))
        elif mode != "fast":
            time.sleep(rng.random() * 0.01)
    c.close()
    latencies.sort()
    told = {
        "commits": commits,
        "per_s": round(commits / length, 1),
        "busy": busy,
        "p999_ms": round(latencies[int(len(latencies) * 0.999)] * 1000, 1),
        "slowest_ms": {name: round(value * 1000) for name, value in slowest.items()},
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
