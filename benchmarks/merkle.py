"""The Merkle tree: what it costs a batch, how fast it is built, and how fast it finds what differs.

The floor of a batch is the same archive with the tree off. Folds are part of the engine's figure:
they happen within the batches that are timed. The floor of a comparison is to read the key, version
and checksum of every row of both archives.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.measure import Plan, Row
from benchmarks.servers import Servers
from sync_engine.core.item import Change
from sync_engine.core.merkle import MerkleNode, MerklePage, MerkleTree, diff
from sync_engine.runtime import SystemRuntime
from sync_engine.stores.sql import SqlArchive, open_archive

__all__ = ["Metered", "compare", "run"]

_BATCH = 1000
_BODY = random.Random(1).randbytes(1024)
_FAN_OUTS = (10, 10_000, 1_000_000)


class Metered:
    """A tree that counts the bytes of its answers, as they would go over a wire."""

    def __init__(self, tree: MerkleTree) -> None:
        self._tree = tree
        self.bytes = 0

    def _counted(self, answer: Any) -> Any:
        self.bytes += len(msgspec.msgpack.encode(answer))
        return answer

    def merkle_root(self) -> MerkleNode:
        node: MerkleNode = self._counted(self._tree.merkle_root())
        return node

    def merkle_node(self, path: str) -> MerkleNode:
        node: MerkleNode = self._counted(self._tree.merkle_node(path))
        return node

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        page: MerklePage = self._counted(
            self._tree.merkle_children(path, after, limit, grouped=grouped)
        )
        return page


def _ids(shape: int, count: int, start: int = 0) -> list[str]:
    """Return ids of which so many stand side by side, in no order."""
    mixed = [(n * 2_654_435_761) % (1 << 32) for n in range(start, start + count)]
    return [f"g.{n // shape}.{n % shape:010d}" if shape < 1_000_000 else f"{n:010d}" for n in mixed]


def _batches(ids: Sequence[str], version: int, body: bytes = _BODY) -> Iterator[list[Change]]:
    for start in range(0, len(ids), _BATCH):
        part = ids[start : start + _BATCH]
        yield [Change(id, version + start + n, body) for n, id in enumerate(part)]


@contextmanager
def _archives(
    url: Callable[[str], str], **settings: Any
) -> Iterator[tuple[SqlArchive, SqlArchive]]:
    clock = SystemRuntime("merkle").clock
    kept = open_archive(url("kept"), clock=clock, table="kept", timeout_s=60, **settings)
    bare = open_archive(url("bare"), clock=clock, table="bare", merkle=False, timeout_s=60)
    try:
        yield kept, bare
    finally:
        kept.close()
        bare.close()


def _cost(url: Callable[[str], str], kind: str, plan: Plan) -> list[Row]:
    rows: list[Row] = []
    count = 16 if plan.quick else 64
    for fan_out in _FAN_OUTS:
        with _archives(lambda name, n=fan_out: url(f"{name}{n}")) as (kept, bare):  # type: ignore[misc]
            ids = _ids(fan_out, count * _BATCH, start=fan_out)
            for what, version in (("insert", 1), ("update", 1 << 40)):
                pairs = [
                    (_timed(kept, batch), _timed(bare, batch)) for batch in _batches(ids, version)
                ]
                total = (sum(a for a, _ in pairs), sum(b for _, b in pairs))
                case = f"{kind}: {what} {_BATCH} of 1 KiB, fan-out {fan_out:,}"
                rows.append(_row(case, total, count))
    return rows


def _row(case: str, total: tuple[float, float], count: int) -> Row:
    kept, bare = (seconds / count * 1e6 / _BATCH for seconds in total)
    share = 1 - bare / kept
    return Row(
        subject="Merkle tree: cost", case=case, size=1024, engine=kept, floor=bare, unit="us",
        ratio=kept / bare, low=kept / bare, high=kept / bare,
        aim="tree <= 15 % of archive time", reached=share <= 0.15,
    )  # fmt: skip


def _timed(archive: SqlArchive, batch: Sequence[Change]) -> float:
    began = time.perf_counter()
    archive.apply(batch)
    return time.perf_counter() - began


def compare(url: Callable[[str], str], count: int, *, different: int = 10) -> dict[str, float]:
    """Make two archives of `count` items that differ in a few; find them both ways.

    Returns:
        ``seconds``, ``bytes``, ``calls`` and ``found`` of the comparison of trees,
        ``full_seconds`` and ``full_bytes`` of one of all keys, and ``build_items_per_s``.
    """
    clock = SystemRuntime("merkle").clock
    one = open_archive(url("one"), clock=clock, table="one", timeout_s=120)
    other = open_archive(url("other"), clock=clock, table="other", timeout_s=120)
    ids = [f"user.{n:09d}" for n in range(count)]
    rng = random.Random(7)
    lost = set(rng.sample(ids, different))
    try:
        for batch in _batches(ids, 1, b"v" * 64):
            one.apply(batch)
            other.apply([change for change in batch if change.id not in lost])
        other.apply([Change(id, 1 << 50, b"other") for id in sorted(lost)[: different // 2]])
        one.merkle.merkle_root()
        other.merkle.merkle_root()
        metered = Metered(other.merkle)
        began = time.perf_counter()
        found = diff(one.merkle, metered)
        seconds = time.perf_counter() - began
        if set(found.ids) != lost:
            raise AssertionError(f"found {found.ids}, expected {sorted(lost)}")
        began = time.perf_counter()
        size = _full_compare(one, other, lost)
        full = time.perf_counter() - began
        began = time.perf_counter()
        one.merkle.begin_build()
        while one.merkle.build_step(50_000):
            pass
        built = time.perf_counter() - began
    finally:
        one.close()
        other.close()
    return {
        "seconds": seconds, "bytes": metered.bytes, "calls": found.calls, "found": len(found.ids),
        "full_seconds": full, "full_bytes": size, "build_items_per_s": count / built,
    }  # fmt: skip


def _full_compare(one: SqlArchive, other: SqlArchive, lost: set[str]) -> int:
    def keys(archive: SqlArchive) -> Iterator[tuple[str, int, bool]]:
        after: str | None = None
        while True:
            page = archive.scan(after=after, limit=5000, keys_only=True, tombstones=True)
            for change in page:
                yield change.id, change.version, change.is_tombstone
            if len(page) < 5000:
                return
            after = page[-1].id

    mine, theirs = set(keys(one)), set(keys(other))
    if {key[0] for key in mine ^ theirs} != lost:
        raise AssertionError("the full comparison found something else")
    return sum(len(msgspec.msgpack.encode(key)) for key in theirs)


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Measure every database there is."""
    rows: list[Row] = []
    for kind in ("sqlite", "mariadb", "postgres"):
        with (
            tempfile.TemporaryDirectory(dir=plan.directory) as place,
            servers.database(kind) as database,
        ):
            if database is None:
                continue

            def url(
                name: str, place: str = place, kind: str = kind, database: str = database
            ) -> str:
                return f"sqlite:///{Path(place) / name}.db" if kind == "sqlite" else database

            rows += _cost(url, kind, plan)
            found = compare(url, 50_000 if plan.quick else 1_000_000)
            rows += _compared(kind, found, 50_000 if plan.quick else 1_000_000)
    return rows


def _compared(kind: str, found: dict[str, float], count: int) -> list[Row]:
    def row(case: str, unit: str, engine: float, floor: float) -> Row:
        ratio = engine / floor if floor else 1.0
        return Row(
            subject="Merkle tree: comparison", case=f"{kind}: {case}", size=0, engine=engine,
            floor=floor, unit=unit, ratio=ratio, low=ratio, high=ratio,
        )  # fmt: skip

    case = f"find {found['found']:.0f} of {count:,}"
    speed = statistics.fmean([found["build_items_per_s"]])
    return [
        row(case, "us", found["seconds"] * 1e6, found["full_seconds"] * 1e6),
        row(f"{case}, bytes", "bytes", found["bytes"], found["full_bytes"]),
        row("build from rows", "items/s", speed, speed),
    ]
