"""A bucket listed and compared: the source beside a stock boto3 paginator that compares nothing.

    python -m benchmarks.listing [--keys 1000000] [--latency-ms 50] [--json]

A small list server runs in a process of its own, and so does each measurement. Memory is the growth
of the resident set from after the imports to its peak.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Plan, Row
from benchmarks.servers import Servers

__all__ = ["main", "run"]

ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests" / "support" / "fake_s3.py"
CHANGES = 1000


class ListServer:
    """The list server, in a process of its own."""

    def __init__(self, keys: int) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        from support.processes import free_port

        self.url = f"http://127.0.0.1:{free_port()}"
        self._process = subprocess.Popen(
            [sys.executable, str(FAKE), self.url.rpartition(":")[2], str(keys)],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def control(self, **words: Any) -> None:
        """Change what is listed, or how."""
        request = urllib.request.Request(
            f"{self.url}/_control", json.dumps(words).encode(), method="PUT"
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            answer.read()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def listing(keys: int) -> Iterator[ListServer]:
    """Run a list server for a block."""
    server = ListServer(keys)
    try:
        yield server
    finally:
        server.close()


def measure(kind: str, url: str, state: Path, **options: Any) -> dict[str, Any]:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.listing", "--child", kind, url, str(state),
         json.dumps(options)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _resident_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _child(kind: str, url: str, state: str, options: dict[str, Any]) -> None:
    calls = {"boto3": _boto3, "source": _source}
    prepare, work = calls[kind](url, state, options)
    prepare()
    before = _resident_kib("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    found |= {
        "cpu_s": round(time.process_time() - cpu, 3),
        "wall_s": round(time.perf_counter() - wall, 3),
        "growth_mib": round((_resident_kib("VmHWM") - before) / 1024, 1),
    }
    print(json.dumps(found))


def _boto3(url: str, state: str, options: dict[str, Any]) -> Any:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="a", aws_secret_access_key="b",
        region_name="us-east-1", config=Config(s3={"addressing_style": "path"}, proxies={}),
    )  # fmt: skip

    def work() -> dict[str, Any]:
        count = 0
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
            for each in page.get("Contents", ()):
                count += bool(each["Key"])
        return {"listed": count}

    return lambda: client.list_objects_v2(Bucket="bucket", MaxKeys=1), work


def _source(url: str, state: str, options: dict[str, Any]) -> Any:
    from sync_engine.runtime import SystemRuntime
    from sync_engine.s3 import S3Settings
    from sync_engine.sources.s3_listing import S3ListingSource

    settings = S3Settings(endpoint_url=url, access_key_id="a", secret_access_key="b")
    source = S3ListingSource(
        "bucket", SystemRuntime("bench"), state=state, settings=settings, **options
    )

    def work() -> dict[str, Any]:
        ops: dict[str, int] = {}
        seen: list[tuple[str, str]] = []
        waiting = 0
        for change in source.changes():
            ops[change.op] = ops.get(change.op, 0) + 1
            if len(seen) < 2 * CHANGES:
                seen.append((str(change.op), change.key))
            waiting += 1
            if waiting == 1000:
                source.ack(change.seq)
                waiting = 0
        source.ack(source.state.head)
        found = source.statistics()
        size = sum(p.stat().st_size for p in Path(state).parent.glob(Path(state).name + "*"))
        digest = sorted(seen) if len(seen) < 2 * CHANGES else []
        return {
            "listed": found.listed, "pages": found.pages, "told": ops, "changes": digest,
            "state_mib": round(size / (1 << 20), 1),
        }  # fmt: skip

    return lambda: source.client.list_page("bucket", max_keys=1), work


def passes(keys: int, directory: Path) -> dict[str, dict[str, Any]]:
    """Measure the passes that matter over a bucket of so many keys."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.fake_s3 import numbered

    found: dict[str, dict[str, Any]] = {}
    third = CHANGES // 3
    step = max(1, keys // (CHANGES + 1))
    changed = [n * step for n in range(third)]
    removed = [(third + n) * step for n in range(third)]
    added = [keys + n for n in range(CHANGES - 2 * third)]
    expected = sorted(
        [["modified", numbered(n)] for n in changed]
        + [["deleted", numbered(n)] for n in removed]
        + [["added", numbered(n)] for n in added]
    )
    with listing(keys) as server, tempfile.TemporaryDirectory(dir=directory) as folder:
        state = Path(folder) / "state.db"
        found["boto3 paginator"] = measure("boto3", server.url, state)
        found["first pass"] = measure("source", server.url, state)
        found["nothing changed"] = measure("source", server.url, state)
        server.control(change=changed, remove=removed, add=added, generation=7)
        found["1,000 changes"] = measure("source", server.url, state)
        right = found["1,000 changes"].pop("changes") == expected
        found["1,000 changes"]["exactly those"] = right
        server.control(clear=True)
        found["all deleted"] = measure("source", server.url, state, force_delete=True)
    for each in found.values():
        each.pop("changes", None)
    return found


def ranges(keys: int, latency_ms: float, directory: Path) -> dict[str, dict[str, Any]]:
    """Measure one range after the other against eight at a time, with a slow server."""
    found: dict[str, dict[str, Any]] = {}
    with listing(keys) as server, tempfile.TemporaryDirectory(dir=directory) as folder:
        state = Path(folder) / "state.db"
        measure("source", server.url, state)
        server.control(latency_ms=latency_ms)
        for workers in (1, 8):
            name = f"{latency_ms:g} ms away, {workers} at a time"
            found[name] = measure("source", server.url, state, workers=workers)
            found[name].pop("changes", None)
    return found


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Return the figures as rows: processor microseconds a key."""
    del servers
    keys = 100_000 if plan.quick else 1_000_000
    found = passes(keys, plan.directory)
    floor = found.pop("boto3 paginator")["cpu_s"] / keys * 1e6
    return [
        Row.of(
            "listing", f"{name}, CPU a key", 0, [(each["cpu_s"] / keys * 1e6, floor)], "us",
            ratio_max=0.25 if name == "1,000 changes" else None,
        )
        for name, each in found.items()
    ]  # fmt: skip


def main() -> int:
    """Print the figures; return 1 where an aim was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="measure ranges, too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        kind, url, state, options = given.child
        _child(kind, url, state, json.loads(options))
        return 0
    found = passes(given.keys, given.dir)
    if given.latency_ms:
        found |= ranges(given.keys, given.latency_ms, given.dir)
    ratio = found["1,000 changes"]["cpu_s"] / found["boto3 paginator"]["cpu_s"]
    good = ratio <= 0.25 and found["1,000 changes"]["exactly those"]
    good &= all(each["growth_mib"] <= 64 for each in found.values())
    if given.json:
        print(json.dumps(found | {"ratio": round(ratio, 3)}, indent=2))
        return int(not good)
    print(f"{'':28}{'CPU s':>9}{'wall s':>9}{'MiB more':>10}{'keys listed':>13}")
    for name, each in found.items():
        print(
            f"{name:28}{each['cpu_s']:9.2f}{each['wall_s']:9.2f}{each['growth_mib']:10.1f}"
            f"{each['listed']:13,}  {each.get('told', '')}"
        )
    print(f"CPU of the pass with 1,000 changes / stock boto3: {ratio:.3f} (aim: <= 0.25)")
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
