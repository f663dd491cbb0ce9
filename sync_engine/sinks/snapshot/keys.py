"""Names of objects: numbers are fixed-width and are compared as numbers, times are in no name.

v1/HEAD.json                                       who writes, and in which epoch
v1/{db}/e{epoch:08d}/START.json                    where the epoch left its parent
v1/{db}/e{epoch:08d}/L{0..3}/{min:016x}-{max:016x}[.{part:04d}-{parts:04d}].seg
v1/{db}/e{epoch:08d}/snap/{txid:016x}/manifest.json
v1/{db}/e{epoch:08d}/snap/{txid:016x}/{chunk:05d}-{sha:16}.zst
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HEAD", "ROOT", "SegmentKey", "chunk_key", "epoch_of", "manifest_key", "start_key"]

ROOT = "v1/"
HEAD = "v1/HEAD.json"
PARTS_MAX = 9999
_SEGMENT = re.compile(
    r"v1/([0-9a-f]{32})/e(\d{8})/L([0-3])/([0-9a-f]{16})-([0-9a-f]{16})(?:\.(\d{4})-(\d{4}))?\.seg"
)
_EPOCH = re.compile(r"v1/[0-9a-f]{32}/e(\d{8})/")
MANIFEST = re.compile(r"v1/([0-9a-f]{32})/e(\d{8})/snap/([0-9a-f]{16})/manifest\.json")
CHUNK = re.compile(r"v1/([0-9a-f]{32})/e(\d{8})/snap/([0-9a-f]{16})/(\d{5})-[0-9a-f]{16}\.zst")


@dataclass(frozen=True, slots=True)
class SegmentKey:
    """The name of one part of a segment, taken apart."""

    db_id: str
    epoch: int
    level: int
    txid_min: int
    txid_max: int
    part: int = 0
    parts: int = 1

    @classmethod
    def parse(cls, key: str) -> SegmentKey | None:
        """Return the parts of a name, or None where it names no segment."""
        found = _SEGMENT.fullmatch(key)
        if found is None:
            return None
        db_id, epoch, level, low, high, part, parts = found.groups()
        return cls(
            db_id,
            int(epoch),
            int(level),
            int(low, 16),
            int(high, 16),
            int(part or 0),
            int(parts or 1),
        )

    def __str__(self) -> str:
        tail = f".{self.part:04d}-{self.parts:04d}" if self.parts > 1 else ""
        return (
            f"{_epoch(self.db_id, self.epoch)}L{self.level}/"
            f"{self.txid_min:016x}-{self.txid_max:016x}{tail}.seg"
        )


def _epoch(db_id: str, epoch: int) -> str:
    return f"{ROOT}{db_id}/e{epoch:08d}/"


def start_key(db_id: str, epoch: int) -> str:
    """Return the name of an epoch's beginning."""
    return f"{_epoch(db_id, epoch)}START.json"


def manifest_key(db_id: str, epoch: int, txid: int) -> str:
    """Return the name of a snapshot's manifest."""
    return f"{_epoch(db_id, epoch)}snap/{txid:016x}/manifest.json"


def chunk_key(db_id: str, epoch: int, txid: int, chunk: int, sha256: str) -> str:
    """Return the name of a piece of a snapshot."""
    return f"{_epoch(db_id, epoch)}snap/{txid:016x}/{chunk:05d}-{sha256[:16]}.zst"


def epoch_of(key: str) -> int | None:
    """Return the epoch that an object belongs to; None for HEAD and what is not ours."""
    found = _EPOCH.match(key)
    return None if found is None else int(found[1])
