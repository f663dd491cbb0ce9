"""Runs tests on a copy of the package with one line wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from mutants.planted import Mutant

import sync_engine

PACKAGE = Path(sync_engine.__file__).parent
ROOT = Path(__file__).parent.parent.parent
PASSED, FAILED = 0, 1


def run(package_at: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run tests on a copy of the package, in a process of their own."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{package_at}{os.pathsep}{ROOT}",
        "PYTHONSAFEPATH": "1",  # or the working directory would come first, with the real package
        "PYTHONDONTWRITEBYTECODE": "1",
        "POWER_STATES": "16",
    }
    environment.pop("PYTEST_ADDOPTS", None)
    options = ["-c", str(Path(__file__).with_name("selection.ini")), "--rootdir", str(ROOT)]
    options += ["--confcutdir", str(ROOT)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def planted(mutant: Mutant, place: Path) -> Path:
    """Copy the package, with one line wrong; return the directory that it is in."""
    copied = place / "sync_engine"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    room = copied / mutant.room
    files = [room] if room.is_file() else sorted(room.rglob("*.py"))
    holders = [file for file in files if mutant.before in file.read_text()]
    assert len(holders) == 1, f"{mutant.room} holds the line to be changed in {len(holders)} files"
    text = holders[0].read_text()
    assert text.count(mutant.before) == 1, f"{holders[0].name} holds it more than once"
    holders[0].write_text(text.replace(mutant.before, mutant.after))
    return place


def skip_without_its_tools(mutant: Mutant) -> None:
    if mutant.server and shutil.which("redis-server") is None:
        pytest.skip("needs redis-server")
    if "power_cut" in mutant.tests[0] and not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("needs a C compiler")


def check_is_noticed(mutant: Mutant, place: Path) -> None:
    """Fail unless the tests of a mutant fail; skip where they cannot run."""
    skip_without_its_tools(mutant)
    ran = run(planted(mutant, place), mutant.tests)

    told = f"{mutant.name}, and {' '.join(mutant.tests)}"
    assert ran.returncode != PASSED, f"{told} passed"
    summary = ran.stdout.strip().splitlines()[-1]
    noticed = ran.returncode == FAILED and " failed" in summary and "error" not in summary
    assert noticed, f"{told} could not run:\n{ran.stdout}{ran.stderr}"
