"""The long run: wild writers, and kills of everything, then a comparison byte for byte.

    python tests/snapshot/soak.py [--seconds 600] [--kill-replicator] [--kill-writers] [--dir DIR]

Prints one JSON document; exit code 1 where the restored database is another one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.snapshot.kit import Replica, assert_identical, replica, told

PHASE_S = 10.0


def soak(
    directory: Path, seconds: float, *, kill_replicator: bool, kill_writers: bool, seed: int = 1
) -> dict[str, Any]:
    """Run for some seconds, restore, compare; return what happened.

    Raises:
        AssertionError: The restored database differs.
    """
    rng = random.Random(seed)
    total: dict[str, float] = {"replicator_kills": 0, "writer_kills": 0, "commits": 0}
    slowest: dict[str, int] = {}
    with replica(directory) as made:
        told(made.writer(0.5, 0, "simple"))
        made.start("--option", "compact_s=3,15,60")
        end = time.monotonic() + seconds
        round_ = 0
        while time.monotonic() < end:
            round_ += 1
            phase_s = min(PHASE_S, max(1.0, end - time.monotonic()))
            writers = [made.writer(phase_s, round_ * 10 + n) for n in range(2)]
            _disturb(made, writers, phase_s, rng, total, kill_replicator, kill_writers)
            for writer in writers:
                output, _ = writer.communicate()
                if writer.returncode == 0:
                    said = json.loads(output)
                    total["commits"] += said["commits"]
                    for name, value in said["slowest_ms"].items():
                        slowest[name] = max(slowest.get(name, 0), value)
            _collect(made, total)
        if made.process is None or made.process.poll() is not None:
            made.start()
        made.durable()
        _collect(made, total)
        largest = made.status()["resident_bytes"]
        made.stop()
        checked = made.run("snapshots", "verify", made.target, "--full")
        assert checked.returncode == 0, checked.stderr
        restored = made.restore(None, "--check", "full")
        assert_identical(made.db, restored)
        return total | {
            "slowest_ms": slowest,
            "resident_mib": round(largest / 2**20),
            "database_bytes": made.db.stat().st_size,
            "identical": True,
        }


def _disturb(
    made: Replica,
    writers: list[Any],
    phase_s: float,
    rng: random.Random,
    total: dict[str, float],
    kill_replicator: bool,
    kill_writers: bool,
) -> None:
    """Kill and start things until the writers' time is over."""
    end = time.monotonic() + phase_s
    while time.monotonic() < end:
        time.sleep(min(0.8 + rng.random(), max(0.0, end - time.monotonic())))
        if kill_replicator:
            _collect(made, total)
            made.kill()
            total["replicator_kills"] += 1
            made.start(
                "--interval", "150ms", "--option", "compact_s=1,3,9",
                ready=rng.random() < 0.7, SLOW_PUT_S=str(rng.random() * 0.1),
            )  # fmt: skip
        if kill_writers:
            victim = rng.randrange(len(writers))
            if writers[victim].poll() is None:
                writers[victim].kill()
                writers[victim].communicate()
                total["writer_kills"] += 1
                left = max(0.5, end - time.monotonic())
                writers[victim] = made.writer(left, rng.randrange(1 << 30))


def _collect(made: Replica, total: dict[str, float]) -> None:
    """Add up what this process of the replicator did; they forget it when they die."""
    try:
        status = made.status()
    except (OSError, ValueError):
        return
    seen: dict[int, dict[str, float]] = total.setdefault("_by_pid", {})  # type: ignore[assignment]
    seen[status["pid"]] = dict(status.get("capture", {})) | {
        "snapshots": status.get("snapshot", {}).get("made", 0),
        "merged": status.get("compaction", {}).get("merged", 0),
    }
    names = ("comparisons", "full_scans", "yields", "seals", "segments", "snapshots", "merged")
    for name in names:
        total[name] = sum(counts.get(name, 0) for counts in seen.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kill-replicator", action="store_true")
    parser.add_argument("--kill-writers", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        try:
            found = soak(
                Path(directory), args.seconds, kill_replicator=args.kill_replicator,
                kill_writers=args.kill_writers, seed=args.seed,
            )  # fmt: skip
        except AssertionError as exc:
            sys.stdout.write(json.dumps({"identical": False, "why": str(exc)[-2000:]}) + "\n")
            return 1
    found.pop("_by_pid", None)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
