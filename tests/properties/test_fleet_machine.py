"""Three engines on one archive, cut off from feed and L2 in any way: nobody stays behind for long.

Short in the suite; ``MACHINE_EXAMPLES=50000 pytest tests/properties`` runs it at length.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from support.sites import Fleet

from sync_engine.config import SyncEngineConfig
from sync_engine.errors import SyncEngineError

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "2000"))
NAMES = ("a", "b", "c")
NAME = st.sampled_from(NAMES)
ID = "x"
CUTS = st.sets(st.tuples(NAME, st.sampled_from(["tell", "hear", "l2"])), max_size=6)
SEEN_WITHIN_S = 2 * SyncEngineConfig().lease_ttl_s + 1.0


class FleetMachine(RuleBasedStateMachine):
    """All reach the archive, always; feed and L2 come and go for each."""

    @initialize()
    def start(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="fleet-"))
        self.fleet = Fleet(self.dir, *NAMES)
        self.cuts: set[tuple[str, str]] = set()
        self.number = 0
        self.submit("a")
        self.everybody_sees_what_the_archive_has()

    def teardown(self) -> None:
        with contextlib.suppress(Exception):
            for name in list(self.fleet.engines):
                self.fleet.kill(name)
        shutil.rmtree(self.dir, ignore_errors=True)

    def _apply_cuts(self) -> None:
        for name in NAMES:
            self.fleet.feeds[name].down_for_telling = (name, "tell") in self.cuts
            self.fleet.feeds[name].down = (name, "hear") in self.cuts
            self.fleet.l2[name].down = (name, "l2") in self.cuts

    @rule(name=NAME)
    def submit(self, name: str) -> None:
        self.number += 1
        self.fleet[name].submit(ID, b"%d" % self.number)

    @rule(name=NAME)
    def delete(self, name: str) -> None:
        with contextlib.suppress(SyncEngineError):
            self.fleet[name].delete(ID)

    @rule(name=NAME)
    def read(self, name: str) -> None:
        with contextlib.suppress(SyncEngineError):
            self.fleet.content(name, ID)

    @rule(cuts=CUTS)
    def weather(self, cuts: set[tuple[str, str]]) -> None:
        self.cuts = cuts
        self._apply_cuts()

    @rule(name=NAME)
    def kill_and_reopen(self, name: str) -> None:
        self.fleet.kill(name)
        self.fleet.open(name)
        self._apply_cuts()

    @rule(name=NAME)
    def close_and_reopen(self, name: str) -> None:
        self.fleet.engines.pop(name).close(1)
        self.fleet.open(name)
        self._apply_cuts()

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.5, 4.0]))
    def settle(self, seconds: float) -> None:
        self.fleet.settle(seconds)

    @rule()
    def everybody_sees_what_the_archive_has(self) -> None:
        self.fleet.settle(SEEN_WITHIN_S)
        row = self.fleet.archive.get_many([ID]).get(ID)
        archived = None if row is None else row.content
        assert {name: self.fleet.content(name, ID) for name in NAMES} == dict.fromkeys(
            NAMES, archived
        )


TestFleetMachine = FleetMachine.TestCase
TestFleetMachine.settings = settings(
    max_examples=max(1, EXAMPLES // 20),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
