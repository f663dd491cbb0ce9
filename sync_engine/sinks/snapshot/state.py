"""What a replicator remembers: how far it read, and the hash of every page it delivered.

One file holds both, as a journal: a first record with the whole table of hashes, then one record a
segment with what changed. The last record whose CRC is right counts, so the position and the table
can never disagree, and a segment costs one short append instead of the table.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sync_engine.sinks.snapshot.checksums import U64, combined
from sync_engine.sinks.snapshot.objects import sync_directory

__all__ = ["NOWHERE", "State", "StateFile", "WalPosition"]

_RECORD = struct.Struct(">II")  # length of the payload, its CRC
_PARTS = struct.Struct(">II")  # length of the JSON, number of pages
_MAGIC = b"SESTATE1"
_REWRITE_BYTES_MIN = 1 << 20
U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class WalPosition:
    """A place in a write-ahead log.

    Attributes:
        salts: Of the log.
        offset: Behind the last frame that was read; 0 where no log was read.
        seed: Chain checksum of that frame.
    """

    salts: tuple[int, int]
    offset: int
    seed: tuple[int, int]


NOWHERE = WalPosition((0, 0), 0, (0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What was staged last.

    Attributes:
        db_id: Identity of the replicated database.
        epoch: Epoch that we write in.
        txid: Number of the last segment or first snapshot.
        time_ms: Wall-clock milliseconds of it; never goes back.
        page_size: Bytes of a page.
        pages: Size of the database in pages.
        checksum: Of the database.
        wal: Where reading goes on.
        fork: Transaction that this epoch began behind.
    """

    db_id: str
    epoch: int
    txid: int
    time_ms: int
    page_size: int
    pages: int
    checksum: int
    wal: WalPosition
    fork: int = 0


class StateFile:
    """The state of one replicator, on disk.

    Thread-safety: one thread writes; `state` may be read by any.

    Args:
        directory: Where it is; must exist.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = -1
        self._size = 0
        self._first_size = 0
        self._generation = 0
        self.state: State | None = None
        self.table: U64 = np.zeros(0, np.uint64)

    def load(self) -> State | None:
        """Read the newest usable file; None where there is none, or where it does not add up."""
        for path in sorted(self._directory.glob("state.[0-9]*"), reverse=True):
            with suppress(OSError, ValueError, KeyError, struct.error):
                self._load(path)
            if self.state is not None:
                self._generation = int(path.suffix[1:])
                self._remove_others(path)
                return self.state
        return None

    def _load(self, path: Path) -> None:
        data = path.read_bytes()
        if not data.startswith(_MAGIC):
            return
        at = len(_MAGIC)
        state: State | None = None
        table: U64 = np.zeros(0, np.uint64)
        while at + _RECORD.size <= len(data):
            length, crc = _RECORD.unpack_from(data, at)
            payload = data[at + _RECORD.size : at + _RECORD.size + length]
            if len(payload) < length or zlib.crc32(payload) != crc:
                break  # a torn end: the record was never relied on
            state, numbers, hashes = _unpack(payload)
            table = _resized(table, state.pages)
            table[numbers.astype(np.int64) - 1] = hashes
            at += _RECORD.size + length
            self._first_size = self._first_size or at
        if state is None or combined(table) != state.checksum:
            return
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(self._file, at)
        self._size = at
        self.state, self.table = state, table

    def after(self, numbers: U32, hashes: U64, pages: int) -> int:
        """Return what the database's checksum would be after a change, changing nothing.

        Args:
            numbers: Pages that change, unique, none above `pages`.
            hashes: Their new hashes.
            pages: New size of the database.
        """
        old = self.table
        known = numbers[numbers <= len(old)].astype(np.int64) - 1
        checksum = self.state.checksum if self.state is not None else 0
        return checksum ^ combined(old[pages:]) ^ combined(old[known]) ^ combined(hashes)

    def advance(self, state: State, numbers: U32, hashes: U64) -> None:
        """Remember a change, durably.

        Raises:
            OSError: It could not be written; nothing has changed then.
        """
        if self._file < 0 or self._size > max(_REWRITE_BYTES_MIN, 3 * self._first_size):
            table = _resized(self.table, state.pages)
            table[numbers.astype(np.int64) - 1] = hashes
            self.replace(state, table)
            return
        record = _pack(state, numbers, hashes)
        try:
            _write(self._file, record, self._size)
            os.fdatasync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(record)
        self.table = _resized(self.table, state.pages)
        self.table[numbers.astype(np.int64) - 1] = hashes
        self.state = state

    def replace(self, state: State, table: U64) -> None:
        """Begin a new file with a whole table.

        Raises:
            OSError: It could not be written; the old file counts.
        """
        numbers = np.arange(1, len(table) + 1, dtype=np.uint32)
        record = _MAGIC + _pack(state, numbers, table)
        path = self._directory / f"state.{self._generation + 1:08d}"
        aside = self._directory / "state-new"
        file = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(file, record, 0)
            os.fsync(file)
            aside.rename(path)
            sync_directory(self._directory)
        except OSError:
            os.close(file)
            with suppress(OSError):  # renamed, perhaps, and then it would count at the next start
                path.unlink()
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size, self._first_size = file, len(record), len(record)
        self._generation += 1
        self.state, self.table = state, table
        self._remove_others(path)

    def moved(self, wal: WalPosition) -> None:
        """Remember a new place in the log for an unchanged database. Raises as `advance`."""
        if self.state is not None and self.state.wal != wal:
            state = replace(self.state, wal=wal)
            self.advance(state, np.zeros(0, np.uint32), np.zeros(0, np.uint64))

    def forget(self) -> None:
        """Begin anew: whatever is on disk counts no more."""
        self.close()
        self.state, self.table = None, np.zeros(0, np.uint64)
        for path in self._directory.glob("state.[0-9]*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; safe twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _remove_others(self, path: Path) -> None:
        for other in self._directory.glob("state.[0-9]*"):
            if other != path:
                other.unlink(missing_ok=True)


def _write(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, at)
        view, at = view[done:], at + done


def _resized(table: U64, pages: int) -> U64:
    if len(table) >= pages:
        return table[:pages].copy() if len(table) > pages else table
    grown = np.zeros(pages, np.uint64)
    grown[: len(table)] = table
    return grown


def _pack(state: State, numbers: U32, hashes: U64) -> bytes:
    text = json.dumps(asdict(state)).encode()
    payload = b"".join(
        (
            _PARTS.pack(len(text), len(numbers)),
            text,
            numbers.astype("<u4").tobytes(),
            hashes.astype("<u8").tobytes(),
        )
    )
    return _RECORD.pack(len(payload), zlib.crc32(payload)) + payload


def _unpack(payload: bytes) -> tuple[State, U32, U64]:
    length, count = _PARTS.unpack_from(payload)
    at = _PARTS.size
    fields: dict[str, Any] = json.loads(payload[at : at + length])
    at += length
    wal = fields.pop("wal")
    position = WalPosition(tuple(wal["salts"]), wal["offset"], tuple(wal["seed"]))
    numbers = np.frombuffer(payload, "<u4", count, at).astype(np.uint32)
    hashes = np.frombuffer(payload, "<u8", count, at + 4 * count).astype(np.uint64)
    return State(**fields, wal=position), numbers, hashes
