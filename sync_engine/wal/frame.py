"""Frames: neighbouring records of the log as one blob.

A frame is a MessagePack array of records (`core.codec`), each sealed with its own position, so a
record that is altered, lost or moved cannot pass for another. An empty record is a void: a position
that was given out and then failed, and is never delivered.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sync_engine.core import codec
from sync_engine.core.item import Change
from sync_engine.errors import CorruptData

__all__ = ["pack", "unpack", "unpack_one"]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode


def pack(first: int, changes: Sequence[Change | None]) -> bytes:
    """Return the frame of changes at positions `first`, `first` + 1, and so on."""
    seal = codec.encode
    return _encode(
        [
            b"" if change is None else seal(change, position)
            for position, change in enumerate(changes, first)
        ]
    )


def _records(body: bytes, count: int, where: str) -> list[bytes]:
    try:
        records = _decode(body)
    except msgspec.DecodeError as exc:
        raise CorruptData(where, f"a frame cannot be read: {exc}") from exc
    if len(records) != count:
        raise CorruptData(where, f"a frame holds {len(records)} records, not {count}")
    return records


def unpack(first: int, count: int, body: bytes, where: str) -> list[Change | None]:
    """Return the changes of a frame; None is a void.

    Raises:
        CorruptData: The frame or a record in it is altered, lost or moved.
    """
    return [
        codec.decode(record, position, where=f"{where} at position {position}") if record else None
        for position, record in enumerate(_records(body, count, where), first)
    ]


def unpack_one(first: int, count: int, body: bytes, position: int, where: str) -> Change | None:
    """Return one change of a frame.

    Raises:
        CorruptData: It is altered, lost or moved.
    """
    record = _records(body, count, where)[position - first]
    return codec.decode(record, position, where=where) if record else None
