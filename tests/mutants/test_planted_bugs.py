"""The tests notice every planted bug; and nothing but the bug makes them fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mutants.harness import PACKAGE, PASSED, check_is_noticed, run
from mutants.planted import MUTANTS, Mutant

HERE = [mutant for mutant in MUTANTS if not mutant.deep]


@pytest.mark.parametrize("mutant", HERE, ids=[mutant.name for mutant in HERE])
def test_a_planted_bug_is_noticed(mutant: Mutant, tmp_path: Path) -> None:
    check_is_noticed(mutant, tmp_path)


def test_without_a_bug_the_same_tests_pass(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "sync_engine", ignore=shutil.ignore_patterns("__pycache__"))
    have_redis = shutil.which("redis-server") is not None
    tests = {name for m in MUTANTS if have_redis or not m.server for name in m.tests}

    ran = run(tmp_path, sorted(tests))

    assert ran.returncode == PASSED, f"{ran.stdout}{ran.stderr}"


def test_the_whole_spine_has_planted_bugs() -> None:
    rooms = {mutant.room.partition("/")[0].partition(".")[0] for mutant in MUTANTS}

    assert len(MUTANTS) >= 20
    assert {"core", "wal", "flow", "stores", "house"} <= rooms
