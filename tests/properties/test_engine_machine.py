"""The engine beside a dict: any order of writes, reads, job steps, outages and crashes.

Short in the suite; ``MACHINE_EXAMPLES=50000 pytest tests/properties`` runs it at length.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sync_engine.config import SyncEngineConfig
from sync_engine.core.item import SyncItem
from sync_engine.core.options import Durability, SubmitOptions
from sync_engine.engine import SyncEngine
from sync_engine.errors import CircuitOpen, Conflict, StoreBusy, StoreUnavailable
from sync_engine.house import Stores
from sync_engine.testing import (
    FlakyStore,
    ManualClock,
    ManualRuntime,
    MemoryArchive,
    MemoryCacheStore,
)

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "2000"))
IDS = st.sampled_from(["a", "a.b", "b", "ä"])
JOBS = st.sampled_from(["l2", "l3", "log", "keeper"])
DURABILITY = st.sampled_from([Durability.MEMORY, Durability.LOG, Durability.FSYNC])


class Shared:
    """What outlives an engine: the servers, their switches, and the clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.archive = MemoryArchive(clock=self.clock)
        self.cache = MemoryCacheStore(clock=self.clock)
        self.l3_down = False
        self.l2 = FlakyStore(self.cache)

    def l3_call(self, operation: str) -> None:
        if self.l3_down:
            raise StoreUnavailable("l3", operation, "switched off")


class Driven:
    """One engine whose jobs run only when told to."""

    def __init__(self, shared: Shared, path: Path) -> None:
        self.shared = shared
        self.path = path
        self.open()

    def open(self) -> None:
        self.runtime = ManualRuntime(clock=self.shared.clock)
        config = SyncEngineConfig(
            data_dir=self.path,
            durability=Durability.LOG,
            l1_bytes_max=2_000,
            overlay_bytes_max=600,
            l3_batch_items_max=3,
            l2_batch_items_max=2,
            l2_lag_items_max=6,
            filter_capacity=64,
            lease_ttl_s=3,
            read_timeout_s=0.1,
        )
        l3 = FlakyStore(self.shared.archive.client())
        l3.on_call = self.shared.l3_call
        stores = Stores(self.shared.l2, l3)
        self.engine = SyncEngine(config, runtime=self.runtime, stores=stores).start()

    @property
    def number(self) -> int:
        """What its versions end with."""
        house: Any = self.engine._house
        return int(house.log.versions._number)

    def crash(self) -> None:
        """Die as by kill -9: nothing is flushed, only the kernel's work is done."""
        house: Any = self.engine._house
        house.log._file.close()
        house.owner.release()
        self.engine._state = type(self.engine._state).CLOSED


class EngineMachine(RuleBasedStateMachine):
    """One engine: its answers equal those of a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp(prefix="machine-"))
        self.shared = Shared()
        self.model: dict[str, tuple[int, bytes]] = {}
        self.soft: set[str] = set()
        self.number = 0

    @initialize()
    def start(self) -> None:
        self.a = Driven(self.shared, self.dir / "a")

    def teardown(self) -> None:
        with contextlib.suppress(Exception):
            self.a.crash()
        shutil.rmtree(self.dir, ignore_errors=True)

    def may_be_unavailable(self, exc: StoreUnavailable) -> bool:
        house: Any = self.a.engine._house
        down = self.shared.l3_down or self.shared.l2.down
        # What could not say goodbye to the archive is waited for until the keeper's next step.
        waits = isinstance(exc, StoreBusy) and not house.keeper.covered()
        return down or waits or isinstance(exc, CircuitOpen) or not house.l3.attached

    def content(self) -> bytes:
        self.number += 1
        return b"%d" % self.number * (1 + self.number % 7 * 20)

    @rule(id=IDS, durability=DURABILITY)
    def submit(self, id: str, durability: Durability) -> None:
        content = self.content()
        receipt = self.a.engine.submit(id, content, SubmitOptions(durability=durability))
        self.model[id] = (receipt.version, content)
        self._note(id, durability)

    @rule(id=IDS)
    def submit_to_archive_only(self, id: str) -> None:
        content = self.content()
        receipt = self.a.engine.submit(id, content, SubmitOptions.durable())
        self.model[id] = (receipt.version, content)
        self._note(id, Durability.LOG)

    @rule(ids=st.lists(IDS, min_size=1, max_size=4))
    def submit_many(self, ids: list[str]) -> None:
        items = [SyncItem(id, self.content()) for id in ids]
        result = self.a.engine.submit_many(items)
        assert result.ok
        for place, item in enumerate(items):
            self.model[item.id] = (result.versions[place], item.content)
            self._note(item.id, Durability.LOG)

    @rule(id=IDS, durability=DURABILITY)
    def delete(self, id: str, durability: Durability) -> None:
        there = self.a.engine.delete(id, SubmitOptions(durability=durability))
        assert there or id not in self.model
        self.model.pop(id, None)
        self._note(id, durability)

    @rule(id=IDS, stale=st.booleans())
    def compare_and_set(self, id: str, stale: bool) -> None:
        known = self.model.get(id, (0, b""))[0]
        content = self.content()
        options = SubmitOptions(if_version=max(0, known - 1) if stale and known else known)
        try:
            receipt = self.a.engine.submit(id, content, options)
        except Conflict:
            assert stale
            assert known
        except StoreUnavailable as exc:
            assert self.may_be_unavailable(exc)
        else:
            assert not (stale and known)
            self.model[id] = (receipt.version, content)
            self._note(id, Durability.LOG)

    def _note(self, id: str, durability: Durability) -> None:
        log = self.a.engine._house.log  # type: ignore[union-attr]
        if log.written >= log.appended:  # a commit takes everything before it along
            self.soft.clear()
        elif durability is Durability.MEMORY:
            self.soft.add(id)

    @rule(id=IDS)
    def get(self, id: str) -> None:
        try:
            item = self.a.engine.get(id)
        except StoreUnavailable as exc:
            assert self.may_be_unavailable(exc)
            return
        assert (item and (item.version, item.content)) == self.model.get(id)

    @rule()
    def get_many(self) -> None:
        ids = ["a", "a.b", "b", "ä", "never"]
        try:
            items = self.a.engine.get_many(ids)
        except StoreUnavailable:
            return
        for id, item in zip(ids, items, strict=True):
            assert (item and (item.version, item.content)) == self.model.get(id)

    @rule()
    def scan_and_count(self) -> None:
        try:
            found = {item.id: item.content for item in self.a.engine.scan_prefix("a")}
            count = self.a.engine.count_prefix("a")
        except StoreUnavailable:
            return
        expected = {id: c for id, (_, c) in self.model.items() if id.startswith("a")}
        assert found == expected
        assert count == len(expected)

    @rule(job=JOBS)
    def step(self, job: str) -> None:
        self.a.runtime.step(job)
        if job == "log" and self.a.engine._house.log.written == self.a.engine._house.log.appended:  # type: ignore[union-attr]
            self.soft.clear()

    @rule(seconds=st.sampled_from([0.02, 1.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.shared.clock.advance(seconds)

    @rule()
    def switch_l2(self) -> None:
        self.shared.l2.down = not self.shared.l2.down

    @rule()
    def switch_l3(self) -> None:
        self.shared.l3_down = not self.shared.l3_down

    @rule(id=IDS)
    def redis_evicts(self, id: str) -> None:
        self.shared.cache.forget(id)

    @rule()
    def drop_l1(self) -> None:
        self.a.engine._house.l1.clear()  # type: ignore[union-attr]

    @precondition(lambda self: not self.soft)
    @rule()
    def crash_and_reopen(self) -> None:
        self.a.crash()
        self.a.open()

    @rule()
    def close_and_reopen(self) -> None:
        # The jobs run in no thread here, so what a close would deliver stays in the log.
        self.a.engine.close(timeout=0)
        self.soft.clear()
        self.a.open()

    @invariant()
    def the_filter_never_denies_what_exists(self) -> None:
        if hasattr(self, "a"):
            for id in self.model:
                assert not self.a.engine.definitely_missing(id)


class TwoEngines(RuleBasedStateMachine):
    """Two engines on one archive: each reads its own writes, and neither is lied to."""

    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp(prefix="machine-"))
        self.shared = Shared()
        self.written: dict[str, dict[int, bytes | None]] = {}
        self.acked: dict[tuple[str, str], int] = {}
        self.number = 0

    @initialize()
    def start(self) -> None:
        self.engines = {name: Driven(self.shared, self.dir / name) for name in "ab"}
        # One pair of engines in 1,024 has the same number: then only their clocks tell versions
        # apart, and here both have the same clock.
        while len({driven.number for driven in self.engines.values()}) == 1:
            self.engines["b"].crash()
            shutil.rmtree(self.dir / "b")
            self.engines["b"] = Driven(self.shared, self.dir / "b")

    def teardown(self) -> None:
        for driven in getattr(self, "engines", {}).values():
            with contextlib.suppress(Exception):
                driven.crash()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _note(self, name: str, id: str, version: int, content: bytes | None) -> None:
        self.written.setdefault(id, {})[version] = content
        self.acked[name, id] = max(version, self.acked.get((name, id), 0))

    @rule(name=st.sampled_from("ab"), id=IDS)
    def submit(self, name: str, id: str) -> None:
        self.number += 1
        content = b"%d" % self.number
        receipt = self.engines[name].engine.submit(id, content)
        self._note(name, id, receipt.version, content)

    @rule(name=st.sampled_from("ab"), id=IDS)
    def delete(self, name: str, id: str) -> None:
        house: Any = self.engines[name].engine._house
        there = self.engines[name].engine.delete(id)
        change = house.log.pending(id)  # one that is pending already is written once more
        if change is not None:
            assert change.content is None
            self._note(name, id, change.version, None)
        assert change is not None or not there

    @rule(name=st.sampled_from("ab"), job=JOBS)
    def step(self, name: str, job: str) -> None:
        self.engines[name].runtime.step(job)

    @rule(seconds=st.sampled_from([0.5, 4.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.shared.clock.advance(seconds)

    @rule(name=st.sampled_from("ab"))
    def crash_and_reopen(self, name: str) -> None:
        self.engines[name].crash()
        self.engines[name].open()

    @rule(name=st.sampled_from("ab"), id=IDS)
    def get(self, name: str, id: str) -> None:
        engine = self.engines[name].engine
        try:
            item = engine.get(id)
        except StoreUnavailable:
            return
        own = self.acked.get((name, id), 0)
        written = self.written.get(id, {})
        if item is not None:
            assert written[item.version] == item.content
            assert item.version >= own
            return
        if own and written[own] is None:
            return  # it deleted the item itself, and may not know yet who wrote it again
        deletes = [v for v, content in written.items() if content is None]
        if own:
            assert any(v > own for v in deletes), "an own write is hidden"
        stored = self.shared.archive.get_many([id]).get(id)
        if stored is not None and stored.content is not None:
            assert any(v > stored.version for v in deletes), "an archived item is denied"

    @invariant()
    def the_archive_only_moves_forward(self) -> None:
        for id, written in self.written.items():
            stored = self.shared.archive.get_many([id]).get(id)
            if stored is not None:
                assert written[stored.version] == stored.content


_SETTINGS = settings(
    max_examples=max(1, EXAMPLES),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = _SETTINGS
TestTwoEngines = TwoEngines.TestCase
TestTwoEngines.settings = settings(_SETTINGS, max_examples=max(1, EXAMPLES // 4))
