"""Reads replicas of the simple layout: whole database files, and whole copies of the log.

    snapshots/{%Y%m%d_%H%M%S}.sqlite.zst    the database file as it was read, compressed
    wal/{sequence:020}.wal.zst              the whole -wal file of some moment, compressed
    metadata.json                           names the newest snapshot, among other things

The sequence is the number of frames, which falls whenever the log restarts: it orders nothing. What
does is inside: salts and checkpoint number of the log, and the chain of checksums. So every copy is
opened, what is valid in it is found, and copies of successive logs are applied in that order. The
layout cannot prove that nothing is missing between them; SQLite's own check decides in the end.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from sync_engine.errors import CorruptData
from sync_engine.ports import BlobInfo
from sync_engine.sinks.snapshot.checksums import FrameChecksums
from sync_engine.sinks.snapshot.errors import NoBackup, PositionLost
from sync_engine.sinks.snapshot.objects import Objects
from sync_engine.sinks.snapshot.place import quick_look
from sync_engine.sinks.snapshot.plan import Manifest, Plan
from sync_engine.sinks.snapshot.restore import in_place
from sync_engine.sinks.snapshot.wal_file import HEADER_SIZE, WalHeader, frames, header_of

__all__ = ["SimpleRestored", "restore_simple"]

_SNAPSHOT = re.compile(r"snapshots/(\d{8}_\d{6})\.sqlite\.zst")
_WAL = re.compile(r"wal/(\d{20})\.wal\.zst")
_METADATA = "metadata.json"
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class SimpleRestored:
    """What was restored.

    Attributes:
        path: The database file.
        snapshot: Key of the snapshot.
        logs: Keys of the logs that were applied, in order.
        ignored: Keys of logs that were not, with the reason.
        size: Bytes of the file.
        time_ms: When the newest object in use was stored.
    """

    path: Path
    snapshot: str
    logs: tuple[str, ...]
    ignored: tuple[str, ...]
    size: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class _Log:
    info: BlobInfo
    header: WalHeader
    end: int
    pages: int
    newest: dict[int, int]
    data: bytes


def restore_simple(
    objects: Objects,
    path: Path,
    *,
    check: str = "full",
    force: bool = False,
    discard_newer: bool = False,
) -> SimpleRestored:
    """Restore the newest state that a replica of the simple layout holds.

    Args:
        objects: The target.
        path: The file to make.
        check: As `restore`.
        force: As `restore`.
        discard_newer: As `restore`.

    Raises:
        NoBackup: There is no snapshot.
        CorruptData: No combination of a snapshot and logs passes SQLite's check.
        NewerLocal: The file in the way must not be replaced.

    Memory: the largest object, and the page numbers of one log.
    """
    snapshot = _choose_snapshot(objects)
    logs, ignored = _read_logs(objects, snapshot)
    newest_ms = max([snapshot.modified_ms, *(log.info.modified_ms for log in logs)])
    place = _as_plan(snapshot, newest_ms)
    with in_place(path, place, force=force, discard_newer=discard_newer) as aside:
        used = _build(objects, aside, snapshot, logs, check)
        size = aside.stat().st_size
    ignored += [f"{log.info.key}: the result did not pass" for log in logs if log not in used]
    time_ms = max([snapshot.modified_ms, *(log.info.modified_ms for log in used)])
    keys = tuple(log.info.key for log in used)
    return SimpleRestored(path, snapshot.key, keys, tuple(ignored), size, time_ms)


def _choose_snapshot(objects: Objects) -> BlobInfo:
    """Return the newest snapshot: by its name, checked against the one that metadata names."""
    found = {info.key: info for info in objects.list("snapshots/") if _SNAPSHOT.fullmatch(info.key)}
    if not found:
        raise NoBackup(f"{objects.url} holds no snapshot of the simple layout")
    named = _metadata(objects).get("latest_snapshot")
    newest = max(found.values(), key=lambda info: (info.modified_ms, info.key))
    if isinstance(named, str):  # a name, a key, or a key with the prefix in front
        for info in found.values():
            same = named.endswith((info.key, info.key.removeprefix("snapshots/")))
            if same and info.modified_ms >= newest.modified_ms:
                return info
    return newest


def _metadata(objects: Objects) -> dict[str, Any]:
    found = objects.get(_METADATA)
    try:
        document = json.loads(found.data) if found is not None else {}
    except ValueError:
        document = {}
    return document if isinstance(document, dict) else {}


def _read_logs(objects: Objects, snapshot: BlobInfo) -> tuple[list[_Log], list[str]]:
    """Return one copy of every log since the snapshot, the fullest of each, in their order."""
    best: dict[tuple[int, tuple[int, int]], _Log] = {}
    ignored = []
    for info in objects.list("wal/"):
        if not _WAL.fullmatch(info.key):
            continue
        if info.modified_ms < snapshot.modified_ms:
            ignored.append(f"{info.key}: older than the snapshot")
            continue
        log = _open_log(objects, info)
        if log is None:
            ignored.append(f"{info.key}: no valid transaction in it")
            continue
        name = (log.header.sequence, log.header.salts)
        other = best.get(name)
        if other is None or log.end > other.end:
            best[name] = log
    logs = sorted(best.values(), key=lambda log: (log.header.sequence, log.info.modified_ms))
    return _successive(logs, ignored), ignored


def _successive(logs: list[_Log], ignored: list[str]) -> list[_Log]:
    """Return the longest run at the end in which each log follows the one before."""
    for place in range(len(logs) - 1, 0, -1):
        before, after = logs[place - 1].header, logs[place].header
        follows = (
            after.sequence == before.sequence + 1
            and after.salts[0] == (before.salts[0] + 1) & 0xFFFFFFFF
        )
        if not follows:
            ignored += [f"{log.info.key}: a log after it is missing" for log in logs[:place]]
            return logs[place:]
    return logs


def _open_log(objects: Objects, info: BlobInfo) -> _Log | None:
    """Return a log cut behind its last valid commit; None where there is none."""
    found = objects.get(info.key)
    if found is None:
        return None
    try:
        data = b"".join(_unpacked(found.data))
    except zstandard.ZstdError:
        return None
    header = header_of(data)
    if header is None:
        return None
    checksums = FrameChecksums(header.page_size)
    size = checksums.frame_size
    newest: dict[int, int] = {}
    open_pages: dict[int, int] = {}
    end, pages, seed, at = HEADER_SIZE, 0, header.seed, HEADER_SIZE
    file = io.BufferedReader(io.BytesIO(data))
    while at + size <= len(data):
        try:
            block = next(frames(file, header, checksums, start=at, seed=seed, end=at + size), None)
        except PositionLost:
            break  # a torn or old end: what is before it counts
        if block is None:
            break
        open_pages[int(block.numbers[0])] = int(block.offsets[0])
        seed, at = block.chain[-1], at + size
        if block.commits[0]:
            newest |= open_pages
            open_pages = {}
            end, pages = at, int(block.commits[0])
            newest = {n: place for n, place in newest.items() if n <= pages}
    return _Log(info, header, end, pages, newest, data) if pages else None


def _unpacked(data: bytes) -> Iterator[bytes]:
    """Yield what compressed bytes hold; raises ZstdError where they are damaged or end early."""
    view = memoryview(data)
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    for at in range(0, len(view), _BLOCK):
        yield unpacker.decompress(view[at : at + _BLOCK])
    if not unpacker.eof:
        raise zstandard.ZstdError("it ends early")


def _build(
    objects: Objects, path: Path, snapshot: BlobInfo, logs: list[_Log], check: str
) -> list[_Log]:
    """Write snapshot and logs; where the result does not pass, try with fewer logs."""
    attempts = [logs, logs[-1:], []] if len(logs) > 1 else [logs, []] if logs else [[]]
    failure: CorruptData | None = None
    for used in attempts:
        found = objects.get(snapshot.key)
        if found is None:
            raise CorruptData(snapshot.key, "it was listed and is gone")
        with path.open("r+b") as file:
            file.truncate(0)
            try:
                for block in _unpacked(found.data):
                    file.write(block)
            except zstandard.ZstdError as exc:
                raise CorruptData(snapshot.key, "it is damaged") from exc
            for log in used:
                _apply(file.fileno(), log)
            file.flush()
            os.fsync(file.fileno())
        try:
            quick_look(path, check)
        except CorruptData as exc:
            failure = exc
        else:
            return list(used)
    raise failure or CorruptData(snapshot.key, "it cannot be restored")


def _apply(file: int, log: _Log) -> None:
    size = log.header.page_size
    view = memoryview(log.data)
    for number, place in log.newest.items():
        os.pwrite(file, view[place : place + size], (number - 1) * size)
    os.ftruncate(file, log.pages * size)


def _as_plan(snapshot: BlobInfo, time_ms: int) -> Plan:
    """Return what the place of a restore has to know: how new the result is."""
    manifest = Manifest(snapshot.key, 0, 0, snapshot.modified_ms, 0, 0, 0, 1, ())
    return Plan(manifest, (), 0, time_ms)
