"""The power fails: of every file, only what was synced is sure to be there.

A process is recorded while it writes, by a library loaded before all others. Then the disk is
made anew as it may look after a power cut at any moment: with nothing that was not synced, or with
any of its sectors. Names of files are taken as safe at once, as journalling file systems order
them; what the disk itself promises is believed.

Source: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014).
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.engine import SyncEngine
from tests.faults.power_child import KEYS, WRITES, payload

STATES = int(os.environ.get("POWER_STATES", "40"))
HERE = Path(__file__).parent
SECTOR = 512
_HEAD = struct.Struct("<cHqI")


@dataclass(frozen=True)
class Step:
    operation: str
    path: str
    offset: int
    data: bytes


def read_record(path: Path) -> Iterator[Step]:
    record = path.read_bytes()
    at = 0
    while at < len(record):
        operation, name_size, offset, size = _HEAD.unpack_from(record, at)
        at += _HEAD.size
        name = record[at : at + name_size].decode()
        at += name_size
        yield Step(operation.decode(), name, offset, record[at : at + size])
        at += size


class Disk:
    """Files as they surely are, and what was done to them since their last sync."""

    def __init__(self) -> None:
        self._sure: dict[str, bytearray] = {}
        self._doubtful: dict[str, list[Step]] = {}

    def do(self, step: Step) -> None:
        path = step.path
        if step.operation == "S":
            for done in self._doubtful.pop(path, []):
                _change(self._sure, done)
        elif step.operation == "R":
            target = step.data.decode()
            self._sure[target] = self._sure.pop(path, bytearray())
            self._doubtful[target] = self._doubtful.pop(path, [])
        elif step.operation == "U":
            self._sure.pop(path, None)
            self._doubtful.pop(path, None)
        elif step.operation == "C":
            self._sure.setdefault(path, bytearray())
        else:
            self._doubtful.setdefault(path, []).append(step)

    def after_the_cut(self, rng: random.Random, kept: float) -> Mapping[str, bytearray]:
        """Return a state the disk may be found in."""
        files = {path: bytearray(content) for path, content in self._sure.items()}
        for steps in self._doubtful.values() if kept else ():
            for step in steps:
                if step.operation == "T":
                    if rng.random() < kept:
                        _change(files, step)
                    continue
                for start in range(0, len(step.data), SECTOR):
                    if rng.random() < kept:
                        part = step.data[start : start + SECTOR]
                        _change(files, Step("W", step.path, step.offset + start, part))
        return files


def _change(files: dict[str, bytearray], step: Step) -> None:
    content = files.setdefault(step.path, bytearray())
    content.extend(bytes(max(0, step.offset - len(content))))
    if step.operation == "T":
        del content[step.offset :]
    else:
        content[step.offset : step.offset + len(step.data)] = step.data


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("recorder") / "recorder.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "recorder.c", "-ldl"]
    subprocess.run(command, check=True)
    return library


def recorded(recorder: Path, place: Path, durability: str, fsync_interval_ms: int) -> list[Step]:
    (place / "files").mkdir(parents=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(recorder),
        "RECORD_DIR": str(place / "files"),
        "RECORD_TO": str(place / "record"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, HERE / "power_child.py", place / "files", durability]
    subprocess.run([*command, str(fsync_interval_ms)], env=environment, check=True, timeout=120)
    return list(read_record(place / "record"))


def lost(place: Path, files: Mapping[str, bytearray], acked: int) -> list[str]:
    """Open an engine on a state, and return what it has forgotten of the first writes."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "data").mkdir(parents=True, mode=0o700)
    for path, content in files.items():
        if "/data/" in path and not path.endswith("-shm"):  # that is memory, made anew
            (place / "data" / Path(path).name).write_bytes(content)
    with SyncEngine(SyncEngineConfig(data_dir=place / "data", passive=True)) as engine:
        found = []
        for key in range(KEYS):
            written = [n for n in range(1, WRITES + 1) if n % KEYS == key]
            item = engine.get(f"key.{key}")
            seen = None if item is None else item.content
            least = max((n for n in written if n <= acked), default=0)
            allowed = [_value(n) for n in written if n >= least]
            if seen not in (allowed if least else [None, *allowed]):
                found.append(f"key.{key}: write {least} was acknowledged")
        assert engine.health().pending_items >= 0
        engine.close(timeout=0)
    return found


def _value(n: int) -> bytes | None:
    return None if n % 10 == 0 else payload(n)


def states(steps: list[Step], count: int) -> Iterator[tuple[Mapping[str, bytearray], int]]:
    """Yield states of the disk, and how many writes were acknowledged before the cut."""
    rng = random.Random(7)
    moments = [n for n, step in enumerate(steps) if step.operation == "S" or "/acks" in step.path]
    chosen = set(moments[:: max(1, len(moments) // (count // 2))])
    disk, acked = Disk(), 0
    for n, step in enumerate(steps):
        if step.path.endswith("/acks"):
            acked = int(step.data) if step.operation == "W" else acked
        else:
            disk.do(step)
        if n in chosen:
            for kept in (0.0, 0.5):
                yield disk.after_the_cut(rng, kept), acked


# With a short interval the log is saved, released and checkpointed meanwhile; with a long one
# nothing is synced but what an acknowledgement asks for.
@pytest.mark.parametrize(
    ("durability", "fsync_interval_ms"),
    [("fsync", 20), ("archive", 20), ("fsync", 60_000), ("archive", 60_000)],
)
def test_what_was_acknowledged_is_there_after_a_power_cut_at_any_moment(
    recorder: Path, tmp_path: Path, durability: str, fsync_interval_ms: int
) -> None:
    steps = recorded(recorder, tmp_path / "run", durability, fsync_interval_ms)
    names = {Path(step.path).name for step in steps if step.operation == "S"}
    assert {"engine.log.db-wal", "archive.db-wal"} <= names, "the record shows its syncs"

    looked = 0
    for files, acked in states(steps, STATES):
        assert lost(tmp_path / "cut", files, acked) == []
        looked += 1

    assert looked >= STATES // 2


def test_the_same_finds_what_a_weaker_durability_gives_up(recorder: Path, tmp_path: Path) -> None:
    """Writes acknowledged as `log` may go with the power: else the test above would see nothing."""
    steps = recorded(recorder, tmp_path / "run", "log", fsync_interval_ms=60_000)

    found = [lost(tmp_path / "cut", files, acked) for files, acked in states(steps, 20)]

    assert any(found)
