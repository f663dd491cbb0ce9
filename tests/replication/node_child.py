"""A node that is going to be killed: an engine, its feed, its peers, and a writer.

Standard input: ``write``, ``quiet``, ``cut NAME``, ``heal NAME``, ``root``. Standard output, each
line one write(2): ``i op id n`` before a call, ``a op id n version`` after its acknowledgement,
``r`` when running, ``root HASH`` (``-`` while something is left or the archive cannot be asked).
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
from contextlib import suppress

from sync_engine import SubmitOptions, SyncEngine, SyncEngineConfig
from sync_engine.errors import ConfigError, StoreUnavailable, SyncEngineError
from sync_engine.replication import Peer, Replicator
from sync_engine.sinks.redis_stream import RedisStreamSink
from sync_engine.testing import SystemClock


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Child:
    def __init__(self, settings: dict[str, object]) -> None:
        self.name = settings["name"]
        self.n = int(str(settings["n"]))
        self.rng = random.Random(int(str(settings["seed"])))
        self.writing = False
        self.input = b""
        config = SyncEngineConfig(
            data_dir=str(settings["data_dir"]),
            sql_url=settings["sql_url"],  # type: ignore[arg-type]
            redis_url=settings["redis_url"],  # type: ignore[arg-type]
            delivery_delay_s_max=0.5,
            l2_circuit_open_s=0.3,
            l3_circuit_open_s=0.3,
        )
        self.engine = SyncEngine(config).start()
        sink = RedisStreamSink(str(settings["redis_url"]), clock=SystemClock())
        self.engine.add_sink("feed", sink)
        peers = [Peer(interval_s=1.0, **peer) for peer in settings["peers"]]  # type: ignore[attr-defined]
        self.replicator = Replicator(self.engine, peers)

    def run(self) -> None:
        say("r")
        while True:
            if select.select([0], [], [], 0.001 if self.writing else 1.0)[0]:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, self.input = (self.input + data).split(b"\n")
                for line in lines:
                    self.command(line.decode().split())
            if self.writing:
                with suppress(SyncEngineError):
                    self.write()

    def command(self, words: list[str]) -> None:
        if words[0] in ("write", "quiet"):
            self.writing = words[0] == "write"
        elif words[0] in ("cut", "heal"):
            change = self.engine.pause if words[0] == "cut" else self.engine.resume
            with suppress(ConfigError):
                change(f"peer-{words[1]}-archive")
        else:
            done = self.engine.flush(5.0, sinks=True).complete
            try:
                say("root", self.engine.merkle_root().hash if done else "-")
            except StoreUnavailable:
                say("root", "-")

    def write(self) -> None:
        self.n += 1
        id = f"k.{self.rng.randrange(8)}.{self.rng.randrange(40)}"
        if self.rng.random() < 0.3:
            known = self.engine.get(id)
            say("i", "d", id, self.n)
            self.engine.delete(id)
            # Its version is not told, but it is larger than that of what it deleted.
            item, version = None, 0 if known is None else known.version + 1
        else:
            say("i", "p", id, self.n)
            content = f"{self.name}:{self.n}".encode()
            item, version = content, self.engine.submit(id, content, SubmitOptions()).version
        say("a", "d" if item is None else "p", id, self.n, version)


if __name__ == "__main__":
    Child(json.loads(sys.argv[1])).run()
