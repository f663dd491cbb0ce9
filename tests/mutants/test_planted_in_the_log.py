"""The tests notice every bug planted in the core and in the log."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants.harness import check_is_noticed
from mutants.planted import MUTANTS, Mutant

HERE = [mutant for mutant in MUTANTS if mutant.deep]


@pytest.mark.parametrize("mutant", HERE, ids=[mutant.name for mutant in HERE])
def test_a_planted_bug_is_noticed(mutant: Mutant, tmp_path: Path) -> None:
    check_is_noticed(mutant, tmp_path)
