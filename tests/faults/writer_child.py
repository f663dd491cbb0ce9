"""A writer that is going to be killed: says what it does before, and what was acknowledged.

Lines on standard output, each one write(2): ``i op id n`` before a call, ``a op id n version``
after its acknowledgement. The payload is a function of id and n.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys

from sync_engine.config import SyncEngineConfig
from sync_engine.core.options import Durability, SubmitOptions
from sync_engine.engine import SyncEngine


def payload(id: str, n: int) -> bytes:
    """Return what is written under an id at step n."""
    seed = hashlib.blake2b(f"{id}:{n}".encode()).digest()
    return b"%d:" % n + seed * (1 + n % 30)


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def main() -> None:
    data_dir, start, seed, sql_url, redis_url, durability = sys.argv[1:7]
    config = SyncEngineConfig(
        data_dir=data_dir,
        sql_url=sql_url or None,
        redis_url=redis_url or None,
        redis_prefix=f"kill-{os.path.basename(data_dir)}",
        overlay_bytes_max=200_000,
    )
    rng = random.Random(int(seed))
    options = SubmitOptions(durability=Durability(durability))
    engine = SyncEngine(config).start()
    n = int(start)
    say("r")
    while True:
        n += 1
        id = f"key.{rng.randrange(40)}"
        if rng.random() < 0.2:
            say("i", "d", id, n)
            engine.delete(id, options)
            say("a", "d", id, n, 0)
        else:
            say("i", "p", id, n)
            version = engine.submit(id, payload(id, n), options).version
            say("a", "p", id, n, version)


if __name__ == "__main__":
    main()
