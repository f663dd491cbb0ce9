"""Bytes of a change outside the process: compact, versioned and checked.

A record is an 8-byte little-endian XXH3-64 of what follows, seeded by the caller, and then a
MessagePack array (one format byte first). The seed binds a record to its place: the log uses the
position, so that a record that turns up elsewhere fails its check.
"""

from __future__ import annotations

import msgspec
from xxhash import xxh3_64_intdigest

from sync_engine.core.item import Change
from sync_engine.errors import CorruptData

__all__ = ["decode", "encode"]

_FORMAT = b"\x01"
_encode_body = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(Change).decode


def encode(change: Change, seed: int = 0) -> bytes:
    """Return the record of a change."""
    body = _FORMAT + _encode_body(change)
    return xxh3_64_intdigest(body, seed).to_bytes(8, "little") + body


def decode(record: bytes, seed: int = 0, *, where: str = "record") -> Change:
    """Return the change of a record.

    Raises:
        CorruptData: The record is truncated, altered, foreign, or of another format.
    """
    body = memoryview(record)[8:]
    if len(body) < 2 or xxh3_64_intdigest(body, seed) != int.from_bytes(record[:8], "little"):
        raise CorruptData(where, "checksum mismatch")
    if body[:1] != _FORMAT:
        raise CorruptData(where, f"record format {body[0]} is not known to this version")
    try:
        return _decode_body(body[1:])
    except msgspec.DecodeError as exc:
        raise CorruptData(where, f"not a change: {exc}") from exc
