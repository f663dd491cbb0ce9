"""The benchmarks: the engine beside the shortest code that does the same, in one process and run.

    python -m benchmarks.run [--quick] [--only NAME] [--json]

See README.md in this directory for what each figure means.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    costs,
    delivery,
    feed,
    listing,
    merkle,
    outage,
    reads,
    replication,
    snapshots,
    table_rows,
    uploads,
    writes,
)
from benchmarks.measure import Plan, Row, show
from benchmarks.servers import KINDS, Servers, running

_SUBJECTS: dict[str, Callable[[Plan, Servers], list[Row]]] = {
    "writes": writes.run,
    "reads": reads.run,
    "delivery": delivery.run,
    "outage": outage.run,
    "costs": costs.run,
    "merkle": merkle.run,
    "feed": feed.run,
    "replication": replication.run,
    "listing": listing.run,
    "table_rows": table_rows.run,
    "uploads": uploads.run,
    "snapshots": snapshots.run,
}
_ON_REQUEST = {"costs", "feed", "merkle", "snapshots"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and items")
    parser.add_argument("--only", choices=_SUBJECTS, action="append", help="may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument(
        "--minutes", type=float, help="length of the outage (10, or 0.2 with --quick)"
    )
    parser.add_argument(
        "--servers",
        default=",".join(KINDS),
        help="servers to start, by commas; none is empty (default: %(default)s)",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where logs and files go: its disk is measured, too (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    """Run what was asked for; return 1 if an aim was missed."""
    arguments = _arguments()
    servers = frozenset(filter(None, arguments.servers.split(",")))
    unknown = servers - set(KINDS)
    if unknown:
        print(f"unknown servers: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    plan = Plan(
        quick=arguments.quick,
        minutes=arguments.minutes or (0.2 if arguments.quick else 10.0),
        directory=arguments.dir,
        servers=servers,
    )
    names = arguments.only or [name for name in _SUBJECTS if name not in _ON_REQUEST]
    rows: list[Row] = []
    with running(servers) as started:
        for name in names:
            made = _SUBJECTS[name](plan, started)
            rows += made
            if not arguments.json and made:
                print(show(made, as_json=False), flush=True)
    if arguments.json:
        print(show(rows, as_json=True))
    return int(any(row.reached is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
