"""Three node processes, each with Redis and SQL of its own: partitions, ``kill -9``, healed.

`NODES_SECONDS` says for how long (10 s; 300 is the full run), `NODES_SEED` which way it goes.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sync_engine.core.item import Change
from sync_engine.stores.sql import open_archive
from sync_engine.testing import FaultProxy, SystemClock
from tests.support.servers import RedisServer

pytestmark = [pytest.mark.external, pytest.mark.timeout(900)]
SECONDS = float(os.environ.get("NODES_SECONDS", "10"))
SEED = int(os.environ.get("NODES_SEED", "1"))
CHILD = Path(__file__).with_name("node_child.py")
NAMES = "abc"


class NodeProcess:
    """One node: its servers, its process, and what it said."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.dir = root / name
        self.dir.mkdir()
        self.redis = RedisServer()
        self.redis.start()
        self.proxies: dict[str, FaultProxy] = {}
        self.peers: list[dict[str, Any]] = []
        self.n = 0
        self.written: dict[tuple[str, bytes], int] = {}
        self.deletes: Counter[str] = Counter()
        self.newest: dict[str, int] = {}
        self.acks = 0
        self.answers: queue.Queue[str] = queue.Queue()
        self.process: subprocess.Popen[bytes] | None = None
        self.reader: threading.Thread | None = None

    @property
    def sql_url(self) -> str:
        return f"sqlite:///{self.dir / 'archive.db'}"

    def start(self, seed: int) -> None:
        settings = {
            "name": self.name, "n": self.n, "seed": seed, "data_dir": str(self.dir),
            "sql_url": self.sql_url, "redis_url": self.redis.url, "peers": self.peers,
        }  # fmt: skip
        with (self.dir / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(CHILD), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": os.getcwd()},
            )
        self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self.reader.start()
        assert self.answers.get(timeout=30) == "r", (self.dir / "stderr").read_text()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith(b"\n"):
                break
            kind, *words = line.decode().split()
            if kind == "i":
                op, id, n = words
                self.n = int(n)
                if op == "d":
                    self.deletes[id] += 1
                else:
                    self.written[id, f"{self.name}:{n}".encode()] = 0
            elif kind == "a":
                self.acks += 1
                op, id, n, version = words
                if op == "p":
                    self.written[id, f"{self.name}:{n}".encode()] = int(version)
                self.newest[id] = max(self.newest.get(id, 0), int(version))
            else:
                self.answers.put(words[0] if words else kind)

    def say(self, *words: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(words) + "\n").encode())
        self.process.stdin.flush()

    def kill(self) -> None:
        assert self.process is not None
        assert self.reader is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.reader.join(30)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()

    def root(self) -> str:
        self.say("root")
        return self.answers.get(timeout=60)

    def rows(self) -> dict[str, Change]:
        archive = open_archive(self.sql_url, clock=SystemClock(), create_schema=False)
        try:
            return {row.id: row for row in archive.scan(limit=100_000, tombstones=True)}
        finally:
            archive.close()


class Mesh:
    def __init__(self, root: Path) -> None:
        self.rng = random.Random(SEED)
        self.nodes = {name: NodeProcess(root, name) for name in NAMES}
        self.did: Counter[str] = Counter()
        for node in self.nodes.values():
            for other in self.nodes.values():
                if other is not node:
                    proxy = FaultProxy("127.0.0.1", other.redis.port)
                    node.proxies[other.name] = proxy
                    url = other.redis.url.replace(f":{other.redis.port}", f":{proxy.port}")
                    peer = {"name": other.name, "redis_url": url, "sql_url": other.sql_url}
                    node.peers.append(peer)
        for node in self.nodes.values():
            node.start(self.rng.randrange(1 << 30))
            node.say("write")

    def misfortune(self) -> None:
        node = self.nodes[self.rng.choice(NAMES)]
        other = self.rng.choice([name for name in NAMES if name != node.name])
        proxy = node.proxies[other]
        kind = self.rng.choice(["cut", "cut", "blackhole", "heal", "heal", "kill", "redis"])
        self.did[kind] += 1
        if kind == "cut":
            proxy.refuse = True
            proxy.drop_connections()
            node.say("cut", other)
        elif kind == "blackhole":
            proxy.blackhole = True
            node.say("cut", other)
        elif kind == "heal":
            self.heal(node, other)
        elif kind == "kill":
            node.kill()
            node.start(self.rng.randrange(1 << 30))  # its cuts of the archive are healed by that
            node.say("write")
        else:  # and with it the feed, for it keeps nothing
            node.redis.restart()
            node.redis.flush()

    def heal(self, node: NodeProcess, other: str) -> None:
        node.proxies[other].reset()
        node.proxies[other].drop_connections()
        node.say("heal", other)

    def close(self) -> None:
        for node in self.nodes.values():
            if node.process is not None and node.process.poll() is None:
                node.kill()
            for proxy in node.proxies.values():
                proxy.close()
            node.redis.destroy()


def test_three_nodes_converge_after_partitions_and_kills(tmp_path: Path) -> None:
    """Equal roots, nothing acknowledged is lost to something older, nothing comes back."""
    mesh = Mesh(tmp_path)
    nodes = list(mesh.nodes.values())
    try:
        pause = threading.Event()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            pause.wait(mesh.rng.uniform(0.1, 1.0))
            mesh.misfortune()
        for node in nodes:
            node.say("quiet")
            for other in node.proxies:
                mesh.heal(node, other)
        healed = time.monotonic()
        while len(roots := {node.root() for node in nodes}) > 1 or "-" in roots:
            assert time.monotonic() < healed + 120, f"no equal roots: {roots}"
            pause.wait(0.1)
        took_s = time.monotonic() - healed
    finally:
        mesh.close()

    rows = [node.rows() for node in nodes]
    assert rows[0] == rows[1] == rows[2]
    written = {key: version for node in nodes for key, version in node.written.items()}
    deletes = sum((node.deletes for node in nodes), Counter())
    for id in {id for node in nodes for id in node.newest}:
        newest = max(node.newest.get(id, 0) for node in nodes)
        if newest == 0:
            continue  # only deletions of what was not there
        row = rows[0][id]
        assert row.version >= newest, f"{id}: something older than what was acknowledged"
        if row.content is None:
            assert deletes[id], f"{id}: nobody deleted it"
        else:
            version = written[id, row.content]
            assert version in (0, row.version), f"{id}: an older content came back"
    sys.stdout.write(
        f"\nseconds={SECONDS:.0f} acks={sum(node.acks for node in nodes)}"
        f" misfortunes={dict(mesh.did)} rows={len(rows[0])}"
        f" live={sum(row.content is not None for row in rows[0].values())}"
        f" equal_after_s={took_s:.1f}\n"
    )
