"""One of several engines on one Redis and one database: writes, deletes, reads, compares and sets.

Commands come on standard input, one a line; each is answered by one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import threading
import time

import msgspec

from sync_engine import Conflict, SubmitOptions, SyncEngine
from sync_engine.errors import StoreUnavailable
from sync_engine.testing import Action, History, make_payload, read_payload

BLIND = [f"blind.{n}" for n in range(60)]
COUNTERS = [f"counter.{n}" for n in range(12)]


class Child:
    def __init__(self, name: str, engine: SyncEngine, seconds: float, seed: int) -> None:
        self.name = name
        self.engine = engine
        self.seconds = seconds
        self.seed = seed
        self.history = History(time.monotonic)
        self.claims: dict[str, int] = {}
        self.takes: list[str] = []
        self.errors: list[str] = []
        self.counted = 0

    def run(self) -> None:
        threads = [threading.Thread(target=self.client, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def client(self, number: int) -> None:
        rng = random.Random(self.seed * 10 + number)
        until = time.monotonic() + self.seconds
        step = 0
        while time.monotonic() < until:
            step += 1
            try:
                self.act(rng, f"{self.name}.{number}", number << 40 | step)
            except Exception as exc:  # any other than those expected is a finding
                self.errors.append(f"{type(exc).__name__}: {exc}")
            time.sleep(rng.random() * 0.004)

    def act(self, rng: random.Random, client: str, step: int) -> None:
        roll = rng.random()
        if roll < 0.30:
            self.read(client, rng.choice(BLIND))
        elif roll < 0.45:
            self.read(client, rng.choice(COUNTERS))
        elif roll < 0.65:
            self.put(client, rng.choice(BLIND), step)
        elif roll < 0.72:
            self.delete(client, rng.choice(BLIND))
        elif roll < 0.94:
            self.count(client, rng.choice(COUNTERS), step)
        elif roll < 0.97:
            self.claim(rng.randrange(200))
        else:
            self.take(rng.randrange(200))

    def read(self, client: str, id: str) -> None:
        call = self.history.invoke(client, Action.GET, id, site=self.name)
        item = self.engine.get(id)
        if item is not None:
            read_payload(id, item.content)
        call.ok(0 if item is None else item.version)

    def put(self, client: str, id: str, step: int) -> None:
        call = self.history.invoke(client, Action.PUT, id, site=self.name)
        call.ok(self.engine.submit(id, make_payload(id, step)).version)

    def delete(self, client: str, id: str) -> None:
        call = self.history.invoke(client, Action.DELETE, id, site=self.name)
        self.engine.delete(id)
        call.unknown()  # its version is not told

    def count(self, client: str, id: str, step: int) -> None:
        item = self.engine.get(id)
        expected = 0 if item is None else item.version
        call = self.history.invoke(client, Action.PUT, id, site=self.name, expected=expected)
        options = SubmitOptions(if_version=expected)
        try:
            call.ok(self.engine.submit(id, make_payload(id, step), options).version)
            self.counted += 1
        except Conflict:
            call.failed()
        except StoreUnavailable:
            call.unknown()

    def claim(self, number: int) -> None:
        """One of all engines gets an id that nobody has."""
        id = f"claim.{number}"
        with contextlib.suppress(Conflict):
            self.claims[id] = self.engine.submit(id, b"mine", SubmitOptions(if_absent=True)).version

    def take(self, number: int) -> None:
        """One of all engines deletes an item as it was put there."""
        id = f"take.{number}"
        item = self.engine.get(id)
        if item is None:
            return
        try:
            self.engine.delete(id, SubmitOptions(if_version=item.version))
            self.takes.append(id)
        except Conflict:
            pass


def main() -> None:
    name, data_dir, sql_url, redis_url, seconds, seed = sys.argv[1:7]
    redis = {"redis_url": redis_url} if redis_url else {}
    engine = SyncEngine.open(data_dir, sql_url=sql_url, **redis)
    child = Child(name, engine, float(seconds), int(seed))
    for line in sys.stdin:
        command = line.strip()
        answer: object = "ok"
        if command == "run":
            child.run()
        elif command == "flush":
            answer = engine.flush(30).complete
        elif command == "quiet":
            ids = [*BLIND, *COUNTERS, *(f"{w}.{n}" for w in ("claim", "take") for n in range(200))]
            found = {id: engine.get(id) for id in ids}
            answer = {id: item.version for id, item in found.items() if item is not None}
        elif command == "told":
            answer = {
                "entries": [msgspec.to_builtins(entry) for entry in child.history.entries],
                "claims": child.claims,
                "takes": child.takes,
                "errors": child.errors,
                "counted": child.counted,
            }
        elif command == "root":
            answer = str(engine.merkle_root())
        elif command == "stop":
            answer = engine.close(30).complete
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer
        if command == "stop":
            return


if __name__ == "__main__":
    main()
