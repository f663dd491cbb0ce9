"""What the objects of a target look like: segments, chunks and sealed documents.

Every object carries what it takes to find a single flipped bit in it: a segment a CRC over its
header and a SHA-256 over its body; a document a SHA-256 over itself; a chunk is named with size and
SHA-256 by its manifest.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from sync_engine.errors import CorruptData

__all__ = [
    "SEGMENT_HEADER_SIZE",
    "SegmentHeader",
    "compress",
    "decompress",
    "make_segment",
    "read_segment",
    "read_segment_header",
    "seal",
    "unseal",
]

_MAGIC = b"SESEG\x00\x01\n"
_HEADER = struct.Struct(">8s16sIIIIHHQQQQQQIIQQI32s")
_CRC = struct.Struct(">I")
SEGMENT_HEADER_SIZE = _HEADER.size + _CRC.size
_HINT = "the object is damaged: restore a point before it, or from another replica"


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """What a segment says of itself.

    Attributes:
        db_id: Identity of the replicated database, 32 hexadecimal digits.
        epoch: Epoch of the writer.
        page_size: Bytes of a page.
        commit_pages: Size of the database after it, in pages.
        page_count: Pages in this part.
        part: Number of this part, from 0.
        parts: Parts of the whole.
        txid_min: First transaction in it.
        txid_max: Last transaction in it.
        first_ms: Wall-clock milliseconds of the first.
        last_ms: Of the last.
        pre: Checksum of the database before it.
        post: Checksum of the database after it.
        salts: Of the write-ahead log that it was read from; zeros after a page comparison.
        wal_start: Offset in that log.
        wal_end: Offset behind it.
        body_size: Bytes of the compressed body.
        body_sha256: Of the compressed body.
    """

    db_id: str
    epoch: int
    page_size: int
    commit_pages: int
    page_count: int
    part: int
    parts: int
    txid_min: int
    txid_max: int
    first_ms: int
    last_ms: int
    pre: int
    post: int
    salts: tuple[int, int]
    wal_start: int
    wal_end: int
    body_size: int = 0
    body_sha256: bytes = bytes(32)

    def pack(self) -> bytes:
        """Return the bytes of the header, its CRC included."""
        data = _HEADER.pack(
            _MAGIC,
            bytes.fromhex(self.db_id),
            self.epoch,
            self.page_size,
            self.commit_pages,
            self.page_count,
            self.part,
            self.parts,
            self.txid_min,
            self.txid_max,
            self.first_ms,
            self.last_ms,
            self.pre,
            self.post,
            *self.salts,
            self.wal_start,
            self.wal_end,
            self.body_size,
            self.body_sha256,
        )
        return data + _CRC.pack(zlib.crc32(data))


def read_segment_header(key: str, data: bytes) -> SegmentHeader:
    """Return the header of a segment.

    Args:
        key: Name of the object, for the error.
        data: Its first bytes, at least `SEGMENT_HEADER_SIZE`.

    Raises:
        CorruptData: They are no such header.
    """
    if len(data) < SEGMENT_HEADER_SIZE:
        raise CorruptData(key, _HINT)
    (crc,) = _CRC.unpack_from(data, _HEADER.size)
    found = _HEADER.unpack_from(data)
    if found[0] != _MAGIC or zlib.crc32(data[: _HEADER.size]) != crc:
        raise CorruptData(key, _HINT)
    return SegmentHeader(
        db_id=found[1].hex(),
        epoch=found[2],
        page_size=found[3],
        commit_pages=found[4],
        page_count=found[5],
        part=found[6],
        parts=found[7],
        txid_min=found[8],
        txid_max=found[9],
        first_ms=found[10],
        last_ms=found[11],
        pre=found[12],
        post=found[13],
        salts=(found[14], found[15]),
        wal_start=found[16],
        wal_end=found[17],
        body_size=found[18],
        body_sha256=found[19],
    )


def make_segment(header: SegmentHeader, pages: Mapping[int, bytes], level: int) -> bytes:
    """Return a segment of pages, in the order of their numbers; the header's sizes are set here."""
    numbers = sorted(pages)
    body = compress(
        b"".join([np.array(numbers, ">u4").tobytes(), *(pages[number] for number in numbers)]),
        level,
    )
    filled = {name: getattr(header, name) for name in header.__slots__} | {
        "page_count": len(numbers),
        "body_size": len(body),
        "body_sha256": hashlib.sha256(body).digest(),
    }
    return SegmentHeader(**filled).pack() + body


def read_segment(key: str, data: bytes) -> tuple[SegmentHeader, Iterator[tuple[int, memoryview]]]:
    """Return the header of a segment, and its pages with their numbers, ascending.

    Raises:
        CorruptData: A byte of it is not what was written; names the key.
    """
    header = read_segment_header(key, data)
    body = memoryview(data)[SEGMENT_HEADER_SIZE:]
    if len(body) != header.body_size or hashlib.sha256(body).digest() != header.body_sha256:
        raise CorruptData(key, _HINT)
    size, count = header.page_size, header.page_count
    raw = memoryview(decompress(key, body, (4 + size) * count))
    numbers = np.frombuffer(raw[: 4 * count], ">u4").tolist()
    places = range(4 * count, len(raw), size)
    return header, zip(numbers, (raw[at : at + size] for at in places), strict=True)


def compress(data: bytes | memoryview, level: int) -> bytes:
    """Return a zstd frame with size and content checksum."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True).compress(data)


def decompress(key: str, data: bytes | memoryview, size: int) -> bytes:
    """Return the content of a zstd frame of known size.

    Raises:
        CorruptData: It is another one.
    """
    try:
        found = zstandard.ZstdDecompressor().decompress(data, max_output_size=max(1, size))
    except zstandard.ZstdError as exc:
        raise CorruptData(key, _HINT) from exc
    if len(found) != size:
        raise CorruptData(key, _HINT)
    return found


def seal(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON that carries its own SHA-256."""
    body = _canonical(document)
    digest = hashlib.sha256(body).hexdigest()
    return b'{"document":' + body + b',"sha256":"' + digest.encode() + b'"}\n'


def unseal(key: str, data: bytes) -> dict[str, Any]:
    """Return the document in sealed JSON.

    Raises:
        CorruptData: It is not, byte for byte, what was sealed.
    """
    try:
        found = json.loads(data)["document"]
    except (ValueError, KeyError, TypeError) as exc:
        raise CorruptData(key, _HINT) from exc
    if not isinstance(found, dict) or seal(found) != data:
        raise CorruptData(key, _HINT)
    return found


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
