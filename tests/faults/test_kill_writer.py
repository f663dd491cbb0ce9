"""kill -9 at random moments: nothing acknowledged is lost, reordered or resurrected."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.engine import SyncEngine
from tests.faults.writer_child import payload

KILLS = int(os.environ.get("WRITER_KILLS", "12"))
CHILD = Path(__file__).with_name("writer_child.py")


@dataclass
class Expected:
    """What the parent knows of one id: the newest acknowledged step, and those under way."""

    acked: int = 0
    acked_content: bytes | None = None
    later: dict[int, bytes | None] = field(default_factory=dict)

    def allows(self, content: bytes | None) -> bool:
        return content == self.acked_content or content in self.later.values()


class Parent:
    """Owns the history; the child owns nothing."""

    def __init__(self, data_dir: Path, sql_url: str, redis_url: str, durability: str) -> None:
        self.args = [str(data_dir)], [sql_url, redis_url, durability]
        self.expected: dict[str, Expected] = {}
        self.n = 0
        self.acks = 0

    def run_and_kill(self, seed: int, after_acks: int, delay_s: float) -> None:
        head, tail = self.args
        command = [sys.executable, str(CHILD), *head, str(self.n), str(seed), *tail]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}
        )
        assert child.stdout is not None
        acks = 0
        timer: threading.Timer | None = None
        for line in child.stdout:
            acks += self._note(line.split())
            if acks >= after_acks and timer is None:
                timer = threading.Timer(delay_s, child.send_signal, [signal.SIGKILL])
                timer.start()
        assert child.wait(60) == -signal.SIGKILL
        child.stdout.close()
        if timer is not None:
            timer.join()
        self.acks += acks

    def _note(self, words: list[bytes]) -> int:
        if words[0] == b"r":
            return 0
        kind, op, id, n = words[0], words[1], words[2].decode(), int(words[3])
        entry = self.expected.setdefault(id, Expected())
        content = payload(id, n) if op == b"p" else None
        self.n = max(self.n, n)
        if kind == b"i":
            entry.later[n] = content
            return 0
        entry.acked, entry.acked_content = n, content
        entry.later = {m: c for m, c in entry.later.items() if m > n}
        return 1

    def verify(self, engine: SyncEngine) -> None:
        for id, entry in self.expected.items():
            item = engine.get(id)
            content = item.content if item is not None else None
            assert entry.allows(content), f"{id}: not what was acknowledged at {entry.acked}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kind",
    [
        "sqlite",
        pytest.param("mariadb", marks=pytest.mark.external),
        pytest.param("postgres", marks=pytest.mark.external),
    ],
)
def test_random_kills_lose_nothing_that_was_acknowledged(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sql_url = redis_url = ""
    if kind != "sqlite":
        sql_url = request.getfixturevalue("archive_url")(kind)
        redis_url = request.getfixturevalue("redis_server").url
    data_dir = tmp_path / f"d{uuid.uuid4().hex[:8]}"
    parent = Parent(data_dir, sql_url, redis_url, "log")
    rng = random.Random(20)

    for seed in range(KILLS):
        parent.run_and_kill(seed, after_acks=rng.randrange(1, 200), delay_s=rng.random() * 0.1)

    config = SyncEngineConfig(
        data_dir=data_dir,
        sql_url=sql_url or None,
        redis_url=redis_url or None,
        redis_prefix=f"kill-{data_dir.name}",
    )
    with SyncEngine(config) as engine:
        parent.verify(engine)
        assert engine.flush(60).complete
        parent.verify(engine)
        engine._house.l1.clear()  # type: ignore[union-attr]
        parent.verify(engine)
    config = SyncEngineConfig(
        data_dir=tmp_path / "other", sql_url=sql_url or f"sqlite:///{data_dir}/archive.db"
    )
    with SyncEngine(config) as engine:  # the archive alone
        parent.verify(engine)
    assert parent.acks > KILLS
