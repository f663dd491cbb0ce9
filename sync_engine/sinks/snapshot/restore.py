"""Brings a database back: into a file beside its place, verified, then renamed.

Until the rename nothing that is there is touched; after it everything is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sync_engine.errors import ConfigError, CorruptData
from sync_engine.ports import Runtime
from sync_engine.sinks.snapshot.checksums import combined, hashes_of, lock_page, page_hash
from sync_engine.sinks.snapshot.errors import NewerLocal
from sync_engine.sinks.snapshot.format import decompress, read_segment
from sync_engine.sinks.snapshot.inventory import Group, read_inventory
from sync_engine.sinks.snapshot.objects import Objects, sync_directory
from sync_engine.sinks.snapshot.place import check_place, clear_place, quick_look
from sync_engine.sinks.snapshot.plan import Manifest, Plan, make_plan

__all__ = ["CHECKS", "Gone", "Restored", "in_place", "restore", "restore_plan"]

CHECKS = ("none", "quick", "full")
_FETCHES = 4
_BLOCK_BYTES = 4 << 20


class Gone(CorruptData):
    """An object of the plan was deleted meanwhile: plan again."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back.

    Attributes:
        path: The database file.
        txid: The transaction.
        time_ms: Its wall-clock milliseconds.
        size: Bytes of the file.
        fetched: Bytes that were fetched.
        checksum: Of the database.
        plan: What was done.
    """

    path: Path
    txid: int
    time_ms: int
    size: int
    fetched: int
    checksum: int
    plan: Plan


def restore(
    objects: Objects,
    path: Path,
    runtime: Runtime,
    *,
    txid: int | None = None,
    time_ms: int | None = None,
    check: str = "quick",
    force: bool = False,
    discard_newer: bool = False,
    state_dir: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Restored:
    """Restore a point to a file.

    Args:
        objects: The target that was replicated to.
        path: The file to make. An existing one is refused without `force`.
        runtime: Threads that fetch, time.
        txid: The transaction to restore.
        time_ms: Or the time, in wall-clock milliseconds; neither is the newest point.
        check: ``none``, ``quick`` (PRAGMA quick_check) or ``full`` (integrity_check), beyond the
            checksum over all pages, which is always compared.
        force: Replace an existing file, if nobody has it open and it is not newer.
        discard_newer: Replace it even then.
        state_dir: Of the file's replicator, to tell how new it is.
        progress: Told of fetched bytes.

    Returns:
        What was restored, with the exact transaction and time.

    Raises:
        NoBackup: There is nothing to restore.
        NoSuchPoint: The point is not kept; the message names its neighbours.
        ChainGap: Segments on the way are missing.
        CorruptData: An object is damaged; the message names it. The file was not touched.
        NewerLocal: The file in the way is newer, or open.
        StoreUnavailable: The target cannot be reached.

    Blocking: for as long as it takes. Memory: about six chunks, whatever the size.
    """
    if check not in CHECKS:
        raise ConfigError(f"check must be one of {', '.join(CHECKS)}, got {check!r}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: there is no such directory")
    plan = make_plan(objects, read_inventory(objects), txid=txid, time_ms=time_ms)
    with in_place(
        path, plan, force=force, discard_newer=discard_newer, state_dir=state_dir
    ) as aside:
        try:
            checksum, fetched = restore_plan(objects, aside, runtime, plan, progress)
        except Gone:  # retention overtook us: once more, by a fresh listing
            plan = make_plan(objects, read_inventory(objects), txid=plan.txid)
            checksum, fetched = restore_plan(objects, aside, runtime, plan, progress)
        quick_look(aside, check)
        size = aside.stat().st_size
    return Restored(path, plan.txid, plan.time_ms, size, fetched, checksum, plan)


@contextmanager
def in_place(
    path: Path,
    plan: Plan,
    *,
    force: bool,
    discard_newer: bool,
    state_dir: Path | None = None,
) -> Iterator[Path]:
    """Give an empty file beside a place; at the end of the block it takes that place.

    Raises:
        NewerLocal: What is there must not be replaced. An error in the block changes nothing.
    """
    check_place(path, plan, force=force, discard_newer=discard_newer, state_dir=state_dir)
    with _aside(path) as aside:
        yield aside
        if path.exists() and not force:
            raise NewerLocal(f"{path} appeared meanwhile")
        clear_place(path)
        aside.rename(path)
        sync_directory(path.parent)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Give a file beside the wanted one; remove it if it was not renamed."""
    aside = path.with_name(f".{path.name}.restoring")
    lock = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NewerLocal(f"{path} is being restored by another process") from None
        if not _names(aside, lock):  # it was renamed meanwhile: what we hold is the database
            raise NewerLocal(f"{path} was restored by another process a moment ago")
        os.ftruncate(lock, 0)  # what a killed restore left
        try:
            yield aside
        except BaseException:
            for leftover in (aside, *(Path(f"{aside}{end}") for end in ("-wal", "-shm"))):
                with suppress(FileNotFoundError):
                    leftover.unlink()
            raise
    finally:
        os.close(lock)


def _names(path: Path, descriptor: int) -> bool:
    """Tell whether a path names an open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def restore_plan(
    objects: Objects,
    path: Path,
    runtime: Runtime,
    plan: Plan,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[int, int]:
    """Carry a plan out into an existing file; return the database's checksum and bytes fetched.

    Raises:
        CorruptData: An object, or the result, is not what was written.
    """
    fetcher = _Fetcher(objects, runtime, progress)
    size = plan.snapshot.page_size
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(file, plan.snapshot.pages * size)
        table = _lay_snapshot(fetcher, file, plan.snapshot)
        for group in plan.groups:
            table = _apply(fetcher, file, group, table, size)
        os.ftruncate(file, len(table) * size)
        os.fsync(file)
        checksum = combined(table)
        _compare(file, table, size, plan)
    finally:
        os.close(file)
    return checksum, fetcher.fetched


def _lay_snapshot(
    fetcher: _Fetcher, file: int, manifest: Manifest
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    size, skip = manifest.page_size, lock_page(manifest.page_size)
    table = np.zeros(manifest.pages, np.uint64)
    wanted = [(str(chunk["key"]), str(chunk["sha256"])) for chunk in manifest.chunks]
    for place, (key, data) in enumerate(fetcher.several(wanted)):
        first = place * manifest.chunk_pages + 1
        count = min(manifest.chunk_pages, manifest.pages + 1 - first)
        pages = decompress(key, data, count * size)
        table[first - 1 : first - 1 + count] = hashes_of(first, pages, size, skip)
        _write(file, pages, (first - 1) * size, skip, size)
    if combined(table) != manifest.checksum:
        raise CorruptData(manifest.key, "its chunks do not add up to its checksum")
    return table


def _write(file: int, pages: bytes, at: int, skip: int, size: int) -> None:
    """Write pages; the lock page stays a hole."""
    hole = (skip - 1) * size
    if at <= hole < at + len(pages):
        _write_all(file, memoryview(pages)[: hole - at], at)
        _write_all(file, memoryview(pages)[hole - at + size :], hole + size)
    else:
        _write_all(file, memoryview(pages), at)


def _write_all(file: int, view: memoryview, at: int) -> None:
    while view:
        done = os.pwrite(file, view, at)
        view, at = view[done:], at + done


def _apply(
    fetcher: _Fetcher,
    file: int,
    group: Group,
    table: np.ndarray[tuple[int], np.dtype[np.uint64]],
    size: int,
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Write the pages of a segment, and check what the database has become."""
    name, post, end = "", 0, 0
    for key in group.keys:
        name = str(key)
        header, pages = read_segment(name, fetcher.one(name))
        if (header.txid_min, header.txid_max) != (group.first, group.last):
            raise CorruptData(name, "it holds other transactions than its name says")
        if header.page_size != size or (header.part, header.parts) != (key.part, key.parts):
            raise CorruptData(name, "it is not the part that its name says")
        if len(table) < header.commit_pages:
            grown = np.zeros(header.commit_pages, np.uint64)
            grown[: len(table)] = table
            table = grown
        for number, page in pages:
            if number > header.commit_pages:
                raise CorruptData(name, "it holds a page beyond the end of the database")
            _write_all(file, page, (number - 1) * size)
            table[number - 1] = page_hash(number, page)
        post = header.post
        end = header.commit_pages
    table = table[:end].copy()
    os.ftruncate(file, end * size)
    if combined(table) != post:
        raise CorruptData(name, "the database does not become what this segment says")
    return table


def _compare(
    file: int, table: np.ndarray[tuple[int], np.dtype[np.uint64]], size: int, plan: Plan
) -> None:
    """Read the file back: disks and memory err, too."""
    step = max(1, _BLOCK_BYTES // size)
    skip = lock_page(size)
    for first in range(1, len(table) + 1, step):
        count = min(step, len(table) + 1 - first)
        data = os.pread(file, count * size, (first - 1) * size)
        if hashes_of(first, data, size, skip) != table[first - 1 : first - 1 + count].tolist():
            raise CorruptData(f"transaction {plan.txid}", "the file reads back differently")


class _Fetcher:
    """Fetches objects, several at a time and in order, each checked."""

    def __init__(self, objects: Objects, runtime: Runtime, progress: Callable[[int], None]) -> None:
        self._objects = objects
        self._runtime = runtime
        self._progress = progress
        self.fetched = 0

    def one(self, key: str, sha256: str = "") -> bytes:
        data = self._get(key, sha256)
        self._count(data)
        return data

    def several(self, wanted: list[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
        """Yield keys and bytes in order, fetching a few ahead."""
        if len(wanted) < 2:
            for key, sha256 in wanted:
                yield key, self.one(key, sha256)
            return
        executor = self._runtime.executor()
        waiting: list[tuple[str, Future[bytes]]] = []
        coming = iter(wanted)
        try:
            for key, sha256 in coming:
                waiting.append((key, executor.submit(self._get, key, sha256)))
                if len(waiting) >= _FETCHES:
                    first, future = waiting.pop(0)
                    data = future.result()
                    self._count(data)
                    yield first, data
            while waiting:
                first, future = waiting.pop(0)
                data = future.result()
                self._count(data)
                yield first, data
        finally:
            for _, future in waiting:
                future.cancel()

    def _count(self, data: bytes) -> None:
        self.fetched += len(data)
        self._progress(len(data))

    def _get(self, key: str, sha256: str) -> bytes:
        found = self._objects.get(key)
        if found is None:
            raise Gone(key, "it is not there any more")
        if sha256 and hashlib.sha256(found.data).hexdigest() != sha256:
            raise CorruptData(key, "its bytes are not those that were written")
        return found.data
