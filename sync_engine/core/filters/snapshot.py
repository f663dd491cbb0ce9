"""Bytes of a filter outside the process, bound to the archive and the moment they are good for.

Layout, little endian: 4 B magic, 2 B format, then three texts with a length byte each (kind of
filter, name of its hash, archive), 8 B archive generation, 8 B log position, 8 B count, 8 B length
of the body, the body (which has the hash's seed), and a 32-byte BLAKE2b over all before it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from sync_engine.core.filters.base import FilterFormatError
from sync_engine.core.filters.hashing import HASH_NAME

__all__ = ["FilterSnapshot"]

_MAGIC = b"SEXF"
_FORMAT = 1
_HEAD = struct.Struct("<4sH")
_TAIL = struct.Struct("<QQQQ")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSnapshot:
    """A filter's bytes, and what they are a filter of.

    Attributes:
        kind: What made the body: ``cuckoo`` or ``bloom``.
        archive_uuid: The archive whose ids are in it.
        generation: The archive's generation when it was taken; another one means other ids.
        log_position: Last log position when it was taken.
        count: Ids in it.
        body: The filter.
    """

    kind: str
    archive_uuid: str
    generation: int
    log_position: int
    count: int
    body: bytes

    def to_bytes(self) -> bytes:
        """Return the checksummed form."""
        texts = b"".join(_text(text) for text in (self.kind, HASH_NAME, self.archive_uuid))
        tail = _TAIL.pack(self.generation, self.log_position, self.count, len(self.body))
        data = _HEAD.pack(_MAGIC, _FORMAT) + texts + tail + self.body
        return data + _digest(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> FilterSnapshot:
        """Read the checksummed form; nothing is believed before the checksum holds.

        Raises:
            FilterFormatError: Truncated, altered, foreign, or of another format or hash.
        """
        if len(data) < _HEAD.size + _DIGEST_BYTES or data[:4] != _MAGIC:
            raise FilterFormatError("not a filter snapshot")
        view = memoryview(data)[:-_DIGEST_BYTES]
        if _digest(view) != data[-_DIGEST_BYTES:]:
            raise FilterFormatError("checksum mismatch")
        try:
            _, version = _HEAD.unpack_from(view)
            if version != _FORMAT:
                raise FilterFormatError(f"snapshot format {version} is not known to this version")
            kind, at = _read_text(view, _HEAD.size)
            hash_name, at = _read_text(view, at)
            archive_uuid, at = _read_text(view, at)
            generation, log_position, count, length = _TAIL.unpack_from(view, at)
        except (struct.error, UnicodeDecodeError, IndexError) as exc:
            raise FilterFormatError("malformed head") from exc
        at += _TAIL.size
        if hash_name != HASH_NAME:
            raise FilterFormatError(f"hashed with {hash_name!r}, not {HASH_NAME!r}")
        if length != len(view) - at:
            raise FilterFormatError("length does not match")
        return cls(
            kind=kind,
            archive_uuid=archive_uuid,
            generation=generation,
            log_position=log_position,
            count=count,
            body=bytes(view[at:]),
        )


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, person=b"filter-snapshot").digest()


def _text(text: str) -> bytes:
    raw = text.encode()
    return bytes([len(raw)]) + raw


def _read_text(view: memoryview, at: int) -> tuple[str, int]:
    end = at + 1 + view[at]
    return str(view[at + 1 : end], "utf-8"), end
