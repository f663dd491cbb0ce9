"""What a replicator remembers is the newest record that is whole, or nothing."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sync_engine.sinks.snapshot import segments as segments_module
from sync_engine.sinks.snapshot import state as state_module
from sync_engine.sinks.snapshot.checksums import combined
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.stage import Stage
from sync_engine.sinks.snapshot.state import State, StateFile, WalPosition
from sync_engine.testing import ManualRuntime

BASE = State(
    db_id="0" * 32,
    epoch=1,
    txid=1,
    time_ms=1,
    page_size=4096,
    pages=3,
    checksum=1 ^ 2 ^ 3,
    wal=WalPosition((1, 2), 32, (3, 4)),
)


def first_and_second(directory: Path) -> tuple[StateFile, State]:
    """Write a table of three pages, then one that grows to four and changes the second."""
    file = StateFile(directory)
    file.replace(BASE, np.array([1, 2, 3], np.uint64))
    numbers, hashes = np.array([2, 4], np.uint32), np.array([7, 9], np.uint64)
    after = State(
        **{name: getattr(BASE, name) for name in ("db_id", "epoch", "time_ms", "page_size")},
        txid=2,
        pages=4,
        checksum=file.after(numbers, hashes, 4),
        wal=WalPosition((1, 2), 4152, (5, 6)),
    )
    file.advance(after, numbers, hashes)
    return file, after


def test_position_and_table_come_back_together(tmp_path: Path) -> None:
    file, after = first_and_second(tmp_path)
    file.close()

    again = StateFile(tmp_path)

    assert again.load() == after
    assert again.table.tolist() == [1, 7, 3, 9]
    assert combined(again.table) == after.checksum
    again.close()


def test_a_torn_end_at_any_byte_gives_the_record_before(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.replace(BASE, np.array([1, 2, 3], np.uint64))
    path = next(tmp_path.glob("state.*"))
    whole = path.stat().st_size
    file.close()
    file, after = first_and_second(tmp_path)
    file.close()
    path = next(tmp_path.glob("state.*"))
    data = path.read_bytes()

    for size in range(whole, len(data)):
        path.write_bytes(data[:size])
        again = StateFile(tmp_path)
        assert again.load() == BASE, size
        assert again.table.tolist() == [1, 2, 3]
        again.close()
    path.write_bytes(data)
    again = StateFile(tmp_path)
    assert again.load() == after
    again.close()


def test_a_shrinking_database_forgets_the_pages_beyond_its_end(tmp_path: Path) -> None:
    file, after = first_and_second(tmp_path)
    none, nothing = np.zeros(0, np.uint32), np.zeros(0, np.uint64)
    smaller = State(
        **{name: getattr(after, name) for name in ("db_id", "epoch", "time_ms", "page_size")},
        txid=3,
        pages=1,
        checksum=file.after(none, nothing, 1),
        wal=after.wal,
    )
    file.advance(smaller, none, nothing)
    file.close()

    again = StateFile(tmp_path)
    assert again.load() == smaller
    assert again.table.tolist() == [1]
    again.close()


def test_a_file_whose_name_may_not_last_does_not_count_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the failed one says was never staged."""
    file, after = first_and_second(tmp_path)

    def fails(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(state_module, "sync_directory", fails)
        with pytest.raises(OSError, match="Input"):
            file.replace(replace(after, txid=3), file.table.copy())
    file.close()

    again = StateFile(tmp_path)
    assert again.load() == after
    again.close()


def test_a_segment_never_has_more_parts_than_its_name_can_tell(
    tmp_path: Path, runtime: ManualRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_module, "PARTS_MAX", 3)
    file = StateFile(tmp_path)
    file.replace(replace(BASE, pages=0, checksum=0, page_size=65536), np.zeros(0, np.uint64))
    stage = Stage(tmp_path / "stage", 1 << 24, runtime)
    settings = ReplicationSettings(part_bytes=65536)  # one page
    segments = segments_module.Segments(file, stage, runtime.clock, settings)
    numbers = np.arange(1, 11, dtype=np.uint32)
    pending = segments_module.Pending({}, 10, BASE.wal, 1, 32)

    segments.emit(numbers, lambda number: bytes([number]) * 65536, pending)

    assert stage.counts()[0] == 3
    file.close()


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    file, _ = first_and_second(tmp_path)
    file.close()
    path = next(tmp_path.glob("state.*"))
    broken = bytearray(path.read_bytes())
    broken[40] ^= 1
    path.write_bytes(broken)

    again = StateFile(tmp_path)

    assert again.load() is None
    assert again.state is None
