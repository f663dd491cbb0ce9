"""Items as users see them, and changes as the log carries them."""

from __future__ import annotations

import enum
import hashlib
import json
from typing import Any

import msgspec

from sync_engine.errors import InvalidItem

__all__ = [
    "DEFAULT_STATE",
    "ID_BYTES_MAX",
    "STATE_BYTES_MAX",
    "VERSION_MAX",
    "Change",
    "ContentType",
    "Route",
    "SyncItem",
    "check_id",
    "check_part",
    "check_state",
]

ID_BYTES_MAX = 512
STATE_BYTES_MAX = 64
DEFAULT_STATE = "default"
VERSION_MAX = (1 << 63) - 1


class ContentType(enum.IntEnum):
    """What the bytes are said to be; the engine stores them untouched either way."""

    BINARY = 0
    JSON = 1


class Route(enum.IntFlag):
    """Tiers that keep the value of a change. A tier that is left out forgets older values."""

    L2 = 1
    L3 = 2
    ALL = 3


class SyncItem(msgspec.Struct, frozen=True, gc=False):
    """One item: an id and the exact bytes stored under it.

    Attributes:
        id: 1 to 512 bytes of UTF-8 without NUL, compared bytewise.
        content: The bytes, 0 B to ``max_payload_bytes``.
        content_type: A label that travels with the bytes.
        state: A label of 1 to 64 bytes that items can be listed by.
        version: Hybrid-logical-clock value given by the engine; 0 before it was submitted.
        expires_at_ms: Wall-clock milliseconds after which the item is gone; 0 is never.
        trace_parent: W3C ``traceparent`` of the writer, or empty.
        stale: Whether the deadline had passed when it was read; only where the caller allowed it.
    """

    id: str
    content: bytes
    content_type: ContentType = ContentType.BINARY
    state: str = DEFAULT_STATE
    version: int = 0
    expires_at_ms: int = 0
    trace_parent: str = ""
    stale: bool = False

    @classmethod
    def from_json(cls, id: str, value: Any, *, state: str = DEFAULT_STATE) -> SyncItem:
        """Encode a JSON value compactly, keys in the order given.

        Raises:
            InvalidItem: The value is not JSON (NaN and Infinity are not).
        """
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            content = text.encode()
        except (TypeError, ValueError, RecursionError) as exc:
            raise InvalidItem(f"item {id!r}: value is not JSON: {exc}") from exc
        return cls(id, content, ContentType.JSON, state)

    def json(self) -> Any:
        """Decode the content as JSON.

        Raises:
            InvalidItem: The content is not JSON.
        """
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError) as exc:
            raise InvalidItem(f"item {self.id!r}: content is not JSON: {exc}") from exc

    @property
    def content_hash(self) -> str:
        """SHA-256 of the content, in hex. Cost: one pass over the content at each call."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def updated_at_ms(self) -> int:
        """Wall-clock milliseconds at which the engine took this version; 0 before that."""
        return self.version >> 20


class Change(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One put or delete, as log, followers and stores carry it.

    Of two changes of one id, the larger version wins everywhere. A deleted item is a change whose
    content is None (a tombstone).
    """

    id: str
    version: int
    content: bytes | None
    content_type: int = 0
    state: str = DEFAULT_STATE
    expires_at_ms: int = 0
    routes: int = 3
    trace_parent: str = ""

    @property
    def is_tombstone(self) -> bool:
        """Whether the change deletes its id."""
        return self.content is None

    @property
    def size_bytes(self) -> int:
        """Payload plus a flat 128 B for everything else: what budgets are counted in."""
        content = self.content
        return 128 if content is None else len(content) + 128

    def expired(self, now_ms: int) -> bool:
        """Whether its deadline has passed at the given wall-clock time, in milliseconds."""
        return 0 < self.expires_at_ms <= now_ms

    def item(self, *, stale: bool = False) -> SyncItem | None:
        """Return the item as users see it, or None for a tombstone."""
        if self.content is None:
            return None
        return SyncItem(
            self.id,
            self.content,
            _CONTENT_TYPES.get(self.content_type, ContentType.BINARY),
            self.state,
            self.version,
            self.expires_at_ms,
            self.trace_parent,
            stale,
        )


_CONTENT_TYPES = {int(kind): kind for kind in ContentType}


def check_id(id: object) -> str:
    """Return the id if it can be stored exactly.

    Raises:
        InvalidItem: It is no ``str``, is empty, has a NUL or a lone surrogate, or is longer than
            512 bytes of UTF-8.
    """
    if type(id) is not str:
        raise InvalidItem(f"id must be str, not {type(id).__name__}")
    if id.isascii():
        size = len(id)
    else:
        try:
            size = len(id.encode())
        except UnicodeEncodeError:
            raise InvalidItem("id has a lone surrogate: it is not valid Unicode text") from None
    if not 0 < size <= ID_BYTES_MAX:
        raise InvalidItem(f"id must have 1 to {ID_BYTES_MAX} bytes of UTF-8, got {size}")
    if "\0" in id:
        raise InvalidItem("id must not contain NUL")
    return id


def check_part(part: object) -> str:
    """Return what ids may begin with, or be compared with, if it is text.

    Raises:
        InvalidItem: It is no ``str``, or has a lone surrogate.
    """
    if type(part) is not str:
        raise InvalidItem(f"a prefix or path must be str, not {type(part).__name__}")
    try:
        part.encode()
    except UnicodeEncodeError:
        raise InvalidItem("a prefix or path has a lone surrogate: it is not Unicode text") from None
    return part


def check_state(state: object) -> str:
    """Return the state label if it can be stored exactly.

    Raises:
        InvalidItem: It is no ``str``, is empty, has a NUL or a lone surrogate, or is longer than
            64 bytes of UTF-8.
    """
    if type(state) is not str:
        raise InvalidItem(f"state must be str, not {type(state).__name__}")
    try:
        size = len(state.encode())
    except UnicodeEncodeError:
        raise InvalidItem("state has a lone surrogate: it is not valid Unicode text") from None
    if not 0 < size <= STATE_BYTES_MAX:
        raise InvalidItem(f"state must have 1 to {STATE_BYTES_MAX} bytes of UTF-8, got {size}")
    if "\0" in state:
        raise InvalidItem("state must not contain NUL")
    return state
