"""Entries of a change feed: what a change looks like outside, and the proof that none is missing.

Every entry names its *origin* (the log it comes from) and its place in that origin's own chain:
batches of one origin follow each other, each says at which log position it ends and at which the
one before it ended, and its entries are counted. A reader that knows how far it is with an origin
so tells a repetition from what is new, and what is new from what follows a hole.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import zstandard
from xxhash import xxh3_64_hexdigest

from sync_engine.core.item import VERSION_MAX, Change, check_id, check_state
from sync_engine.core.version import ENGINE_NUMBER_MAX
from sync_engine.errors import InvalidItem

__all__ = [
    "FIELDS",
    "BadEntry",
    "Chain",
    "Content",
    "FeedCursor",
    "FeedEntry",
    "Link",
    "Place",
    "engine_number",
    "entry_fields",
    "packed_fields",
    "read_entry",
]

FIELDS = (
    b"format", b"op", b"id", b"version", b"hash", b"content_type", b"state", b"expires_at_ms",
    b"routes", b"trace_parent", b"log", b"engine", b"after", b"position", b"n", b"of",
    b"encoding", b"size", b"data", b"check",
)  # fmt: skip
_FORMAT = b"1"
_LEVEL = 3
_NUMBERS = (b"version", b"content_type", b"expires_at_ms", b"routes", b"engine", b"after",
            b"position", b"n", b"of", b"size")  # fmt: skip
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[tuple[str, int, bool]]).decode


class BadEntry(Exception):
    """An entry that is not what an engine wrote; it says why. Never shown to users."""


class Content(enum.StrEnum):
    """How the content of an entry is told; nothing is guessed from the bytes."""

    RAW = "raw"
    ZSTD = "zstd"
    NONE = "none"  # a deletion, or left out on purpose


@dataclass(frozen=True, slots=True)
class Link:
    """Where an entry stands in the chain of its origin.

    Attributes:
        origin: Identity of the log.
        after: Log position at which the origin's batch before this one ended; 0 is none.
        position: Log position at which this batch ends; the archive has everything up to there.
        n: Which of the batch's entries it is, from 1.
        of: How many entries the batch has.
    """

    origin: str
    after: int
    position: int
    n: int = 1
    of: int = 1


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """One entry of a feed.

    Attributes:
        changes: One change; several, without their contents, in a packed entry.
        link: Its place.
        has_content: Whether the contents of puts came along.
        content_hash: SHA-256 of the content, in hex; empty for deletions and packed entries.
        size: Bytes of the content, also where it was left out.
    """

    changes: Sequence[Change]
    link: Link
    has_content: bool
    content_hash: str = ""
    size: int = 0


def engine_number(log_uuid: str) -> int:
    """Return the number that a log's own versions end with."""
    return int(log_uuid[:8], 16) & ENGINE_NUMBER_MAX


# -- writing --------------------------------------------------------------------------------------


def entry_fields(
    change: Change, link: Link, *, payload: bool = True, compress_bytes_min: int = 1024
) -> list[bytes]:
    """Return the values of `FIELDS` for one change.

    Args:
        change: The change.
        link: Its place.
        payload: Whether its content comes along.
        compress_bytes_min: Contents of at least this size are compressed, if that makes them
            smaller.
    """
    content = change.content
    encoding, data, digest = Content.NONE, b"", b""
    if content is not None:
        digest = hashlib.sha256(content).hexdigest().encode()
        if payload:
            encoding, data = Content.RAW, content
            if len(content) >= compress_bytes_min:
                smaller = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
                if len(smaller) < len(content):
                    encoding, data = Content.ZSTD, smaller
    return _fields(
        b"DEL" if content is None else b"PUT",
        change,
        link,
        digest=digest,
        encoding=encoding,
        size=0 if content is None else len(content),
        data=data,
    )


def packed_fields(changes: Sequence[Change], link: Link) -> list[bytes]:
    """Return the values of `FIELDS` for ids and versions of a whole batch in one entry."""
    data = _pack([(change.id, change.version, change.content is not None) for change in changes])
    nothing = Change("-", 0, None)
    return _fields(
        b"IDS", nothing, link, digest=b"", encoding=Content.RAW, size=len(data), data=data
    )


def _fields(
    op: bytes,
    change: Change,
    link: Link,
    *,
    digest: bytes,
    encoding: Content,
    size: int,
    data: bytes,
) -> list[bytes]:
    values = [
        _FORMAT,
        op,
        change.id.encode(),
        b"%d" % change.version,
        digest,
        b"%d" % change.content_type,
        change.state.encode(),
        b"%d" % change.expires_at_ms,
        b"%d" % change.routes,
        change.trace_parent.encode(),
        link.origin.encode(),
        b"%d" % engine_number(link.origin),
        b"%d" % link.after,
        b"%d" % link.position,
        b"%d" % link.n,
        b"%d" % link.of,
        encoding.encode(),
        b"%d" % size,
        data,
    ]
    return [*values, _check(values)]


def _check(values: Sequence[bytes]) -> bytes:
    """Return a checksum over values and their lengths."""
    lengths = ",".join([str(len(value)) for value in values]).encode()
    return xxh3_64_hexdigest(lengths + b";" + b"".join(values)).encode()


# -- reading --------------------------------------------------------------------------------------


def read_entry(fields: Mapping[bytes, bytes], *, bytes_max: int = 64 << 20) -> FeedEntry:
    """Return what fields tell; unknown ones are ignored.

    Args:
        fields: Names and values, in any order.
        bytes_max: Largest content that is decompressed.

    Raises:
        BadEntry: They are not what an engine wrote: foreign, truncated, altered, of another format,
            or too large.
    """
    try:
        values = [fields[name] for name in FIELDS[:-1]]
        told = fields[b"check"]
    except KeyError as exc:
        raise BadEntry(f"has no field {exc.args[0]!r}") from None
    if values[0] != _FORMAT:
        raise BadEntry(f"format {values[0][:20]!r} is not known to this version")
    if _check(values) != told:
        raise BadEntry("checksum mismatch")
    try:
        number = {name: int(fields[name]) for name in _NUMBERS}
        link = Link(
            fields[b"log"].decode(),
            number[b"after"],
            number[b"position"],
            number[b"n"],
            number[b"of"],
        )
        encoding = Content(fields[b"encoding"].decode())
        data = _content(encoding, fields[b"data"], number[b"size"], bytes_max)
        if fields[b"op"] == b"IDS":
            ids = _unpack(data or b"")
            return FeedEntry([_bare(*one) for one in ids], link, has_content=False)
        change = Change(
            check_id(fields[b"id"].decode()),
            _check_version(number[b"version"]),
            _content_of(fields[b"op"], data),
            number[b"content_type"],
            check_state(fields[b"state"].decode()),
            number[b"expires_at_ms"],
            number[b"routes"],
            fields[b"trace_parent"].decode(),
        )
    except (ValueError, InvalidItem, msgspec.DecodeError) as exc:
        raise BadEntry(str(exc)) from None
    digest = fields[b"hash"].decode()
    if data is not None and hashlib.sha256(data).hexdigest() != digest:
        raise BadEntry("the content's SHA-256 is another one")
    return FeedEntry(
        (change,), link, data is not None or change.content is None, digest, number[b"size"]
    )


def _bare(change_id: str, version: int, put: bool) -> Change:
    return Change(check_id(change_id), _check_version(version), b"" if put else None)


def _check_version(version: int) -> int:
    if not 0 <= version <= VERSION_MAX:
        raise BadEntry(f"version {version} is outside 63 bits")
    return version


def _content_of(op: bytes, data: bytes | None) -> bytes | None:
    if op == b"DEL":
        return None
    if op == b"PUT":
        return b"" if data is None else data
    raise BadEntry(f"op {op[:20]!r} is not known")


def _content(encoding: Content, data: bytes, size: int, bytes_max: int) -> bytes | None:
    """Return the content, never larger than what was told and allowed."""
    if encoding is Content.NONE:
        return None
    if size > bytes_max:
        raise BadEntry(f"a content of {size} bytes is larger than {bytes_max}")
    if encoding is Content.ZSTD:
        try:
            if zstandard.get_frame_parameters(data).content_size != size:
                raise BadEntry("the compressed content is of another size")
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
        except zstandard.ZstdError as exc:
            raise BadEntry(f"the content cannot be decompressed: {exc}") from None
    if len(data) != size:
        raise BadEntry(f"the content has {len(data)} bytes, not {size}")
    return data


# -- proof ----------------------------------------------------------------------------------------


class Place(msgspec.Struct, frozen=True, array_like=True):
    """How far a reader is with one origin.

    Attributes:
        position: Log position at which the last batch ends that was read of.
        n: Entries of that batch that were read.
        of: Entries that it has.
    """

    position: int
    n: int = 1
    of: int = 1


@dataclass(slots=True)
class Chain:
    """What a reader has seen, by origin.

    Attributes:
        places: How far it is, by origin. An origin that is not in here has to begin with its first
            entry ever.
        excused: Origins whose next entry may follow a hole: the hole was told already.
    """

    places: dict[str, Place] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)

    def look(self, link: Link) -> str:
        """Return ``next``, ``repeat``, or why something is missing before an entry."""
        known = self.places.get(link.origin)
        if known is None:
            if (link.after == 0 and link.n == 1) or link.origin in self.excused:
                return "next"
            return f"the beginning of origin {link.origin} is missing"
        if (link.position, link.n) <= (known.position, known.n):
            return "repeat"
        if link.position == known.position:
            follows = link.n == known.n + 1
        else:
            follows = known.n >= known.of and link.after <= known.position and link.n == 1
        if follows or link.origin in self.excused:
            return "next"
        return (
            f"origin {link.origin}: read up to position {known.position} ({known.n} of {known.of}),"
            f" and what follows begins after {link.after} ({link.n} of {link.of})"
        )

    def missing_min(self, link: Link) -> int:
        """Return how many entries are missing before an entry, at least."""
        known = self.places.get(link.origin)
        if known is None:
            return max(1, link.n - 1)
        if link.position == known.position:
            return link.n - known.n - 1
        whole_batch = 1 if link.after > known.position else 0
        return known.of - known.n + link.n - 1 + whole_batch

    def take(self, link: Link) -> None:
        """Note that an entry was read."""
        self.places[link.origin] = Place(link.position, link.n, link.of)
        self.excused.discard(link.origin)

    def at_end(self, last: Mapping[str, int]) -> str:
        """Return what is missing once everything was read that there is; empty if nothing is.

        Origins that the stream no longer tells of are forgotten.

        Args:
            last: Position at which the last batch of each origin ends, as the stream tells.
        """
        missing = ""
        for origin, position in last.items():
            known = self.places.get(origin)
            if not position or (known is not None and known.position > position):
                continue
            if known is None or known.position < position or known.n < known.of:
                if origin in self.excused:
                    self.places[origin] = Place(position)
                    continue
                at = 0 if known is None else known.position
                missing = f"origin {origin}: read up to position {at}, it wrote up to {position}"
        self.excused.clear()
        for origin in [origin for origin in self.places if origin not in last]:
            del self.places[origin]
        return missing


class FeedCursor(msgspec.Struct, frozen=True):
    """Where a reader of a stream is; `encoded` is what a consumer stores.

    Attributes:
        stream: Identity of the stream; empty before it was known.
        id: Last stream id read.
        places: How far the reader is, by origin.
    """

    stream: str = ""
    id: str = "0-0"
    places: dict[str, Place] = {}

    def encoded(self) -> bytes:
        """Return it as bytes."""
        return msgspec.json.encode(self)

    @classmethod
    def decoded(cls, data: bytes) -> FeedCursor:
        """Return what `encoded` made.

        Raises:
            InvalidItem: It is none.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as exc:
            raise InvalidItem(f"not a feed cursor: {exc}") from None
