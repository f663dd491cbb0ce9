"""The write-ahead log keeps the contract of the port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sync_engine.ports import WritableLog
from sync_engine.testing import ManualRuntime
from sync_engine.testing.contracts.log import LogContract
from sync_engine.wal.log import WriteAheadLog
from sync_engine.wal.records import LogListener


class Logs:
    """Opens one file again and again."""

    def __init__(self, path: Path, memory_bytes_max: int) -> None:
        self._path = path
        self._memory_bytes_max = memory_bytes_max
        self.open: WriteAheadLog | None = None

    def again(self) -> WriteAheadLog:
        if self.open is not None:
            self.open._file.close()  # as a death does: nothing is saved on the way out
        log = WriteAheadLog(
            self._path, ManualRuntime(), LogListener(), memory_bytes_max=self._memory_bytes_max
        )
        log.follow("l3")
        self.open = log
        return log


@pytest.fixture
def logs(tmp_path: Path, memory_bytes_max: int) -> Iterator[Logs]:
    logs = Logs(tmp_path / "a.log.db", memory_bytes_max)
    yield logs
    if logs.open is not None:
        logs.open._file.close()


class TestWriteAheadLog(LogContract):
    @pytest.fixture
    def memory_bytes_max(self) -> int:
        return 1 << 20

    @pytest.fixture
    def log(self, logs: Logs) -> WritableLog:
        return logs.again()

    @pytest.fixture
    def reopen(self, logs: Logs) -> Callable[[], WritableLog]:
        return logs.again


class _Spilling(WriteAheadLog):
    """Leaves everything to the file at every commit."""

    def commit(self, position: int, count: int = 1) -> None:
        super().commit(position, count)
        self.spill()


class TestWriteAheadLogInItsFile(TestWriteAheadLog):
    """Everything is read back from the file."""

    @pytest.fixture
    def memory_bytes_max(self) -> int:
        return 1

    @pytest.fixture
    def log(self, logs: Logs, monkeypatch: pytest.MonkeyPatch) -> WritableLog:
        monkeypatch.setitem(globals(), "WriteAheadLog", _Spilling)
        return logs.again()
