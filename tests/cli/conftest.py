"""Runs commands in this process, on a data_dir of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sync_engine.cli import main


@dataclass
class Ran:
    """What a command left behind."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.raw.splitlines()]


Cli = Callable[..., Ran]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def cli(
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Cli:
    for name in os.environ:
        if name.startswith("SYNC_ENGINE_") or name == "COLUMNS":
            monkeypatch.delenv(name)

    def run(*args: str) -> Ran:
        capsysbinary.readouterr()
        code = main(["--data-dir", str(data_dir), *args])
        out, err = capsysbinary.readouterr()
        return Ran(code, out, err.decode())

    return run


@pytest.fixture
def start(data_dir: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Start a command in a process of its own."""

    def begin(*args: str) -> subprocess.Popen[bytes]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SYNC_ENGINE_")
        }
        return subprocess.Popen(
            [sys.executable, "-m", "sync_engine", "--data-dir", str(data_dir), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )

    return begin


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a few files that need care."""
    root = tmp_path / "tree"
    (root / "sub" / ".git").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"alpha")
    (root / "empty").write_bytes(b"")
    (root / "sub" / "b.bin").write_bytes(bytes(range(256)))
    (root / "sub" / ".git" / "config").write_bytes(b"not for quickstart")
    (root / "sub" / "grün é.txt").write_text("Grüße", "utf-8")
    (root / "link").symlink_to("a.txt")
    return root
