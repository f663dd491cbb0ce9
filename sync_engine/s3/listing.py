"""One page of a listing, read without the driver's parser, which costs twenty times as much.

The fast way is one regular expression over the bytes; it is believed only when it found exactly as
many objects as there are ``<Contents>`` and the page counts. Otherwise a real XML parser decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

from sync_engine.errors import StoreUnavailable
from sync_engine.ports import BlobInfo

__all__ = ["ListPage", "Row", "cut", "modified_ms", "normal_etag", "parse_rows", "plain"]

Row = tuple[str, str, int, str]
"""Key, ETag without quotes, size in bytes, and last-modified as the server writes it."""

_QUOTE: Final = r'(?:&quot;|&#34;|")?'
_ROW: Final = re.compile(
    r"<Contents>\s*<Key>([^<]*)</Key>\s*<LastModified>([^<]*)</LastModified>\s*"
    rf"<ETag>{_QUOTE}([^<&\"]*){_QUOTE}</ETag>\s*"
    r"(?:<Checksum(?:Algorithm|Type)>[^<]*</Checksum(?:Algorithm|Type)>\s*)*<Size>(\d+)</Size>"
)
_OPEN: Final = b"<Contents>"
_CLOSE: Final = b"</Contents>"
_URL_KIND: Final = re.compile(rb"<EncodingType>\s*url\s*</EncodingType>")
_ENTITY: Final = re.compile(r"&(#x[0-9A-Fa-f]+|#\d+|\w+);")
_NAMED: Final = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """One page of a listing.

    Attributes:
        rows: Objects as plain tuples, in the order of the server.
        prefixes: Common prefixes, where a delimiter was given.
        token: Asks for the next page; None where this is the last one.
        truncated: Whether there are more pages.
    """

    rows: Sequence[Row]
    prefixes: Sequence[str] = field(default=())
    token: str | None = None
    truncated: bool = False

    @property
    def objects(self) -> list[BlobInfo]:
        """The rows as objects. Cost: one pass at each call."""
        return [
            BlobInfo(key=key, size=size, etag=etag, modified_ms=modified_ms(modified))
            for key, etag, size, modified in self.rows
        ]


def normal_etag(etag: str) -> str:
    """Return an ETag without quotes and weakness; the ``-N`` of multipart uploads stays."""
    return etag.removeprefix("W/").strip('"')


def plain(text: str) -> str:
    """Return a key that a server percent-encoded; bytes that are no UTF-8 become surrogates."""
    return unquote_plus(text, errors="surrogateescape")


def modified_ms(text: str) -> int:
    """Return wall-clock milliseconds of a last-modified as listings have it; 0 where unreadable."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return 0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1000)


def cut(body: bytes) -> tuple[bytes, bytes]:
    """Split a page into its objects and what surrounds them."""
    first = body.find(_OPEN)
    if first < 0:
        return b"", body
    last = body.rfind(_CLOSE)
    if last < first:
        raise StoreUnavailable("s3", "list", "the answer was cut off")
    last += len(_CLOSE)
    return body[first:last], body[:first] + body[last:]


def parse_rows(objects: bytes, around: bytes) -> list[Row]:
    """Return the objects of a page, byte-exact keys included.

    Args:
        objects: From the first ``<Contents>`` to the last ``</Contents>``.
        around: The rest of the page; it says whether keys are percent-encoded.

    Raises:
        StoreUnavailable: This is no whole listing.

    Cost: about 3 µs an object; 8 µs on servers whose form is not the usual one.
    """
    if not objects:
        return []
    encoded = _URL_KIND.search(around) is not None
    try:
        text = objects.decode("utf-8")
        # Some servers encode the slash, too: undone for a page at once, as it stands in every key.
        found = _ROW.findall(text.replace("%2F", "/") if encoded else text)
    except UnicodeDecodeError:
        found = []
    if len(found) != objects.count(_OPEN):
        return _parse_slowly(objects, encoded=encoded)
    if encoded:
        return [
            (_decoded(key) if "%" in key or "+" in key or "&" in key else key, etag, int(size), at)
            for key, at, etag, size in found
        ]
    return [
        (_unescaped(key) if "&" in key else key, etag, int(size), at)
        for key, at, etag, size in found
    ]


def _decoded(key: str) -> str:
    return plain(_unescaped(key) if "&" in key else key)


def _unescaped(text: str) -> str:
    return _ENTITY.sub(_entity, text)


def _entity(found: re.Match[str]) -> str:
    name = found[1]
    if name.startswith("#"):
        return chr(int(name.lstrip("#xX"), 16 if name[1] in "xX" else 10))
    return _NAMED.get(name, found[0])


def _parse_slowly(objects: bytes, *, encoded: bool) -> list[Row]:
    try:
        root = ET.fromstring(b"<R>" + objects + b"</R>")  # noqa: S314 - expat bounds entities
    except ET.ParseError as exc:
        raise StoreUnavailable("s3", "list", "the answer was cut off or is no listing") from exc
    rows: list[Row] = []
    for entry in root:
        fields = {child.tag.rpartition("}")[2]: child.text or "" for child in entry}
        if "Key" not in fields or not fields.get("Size", "").strip().isdigit():
            raise StoreUnavailable("s3", "list", "the listing has an object without key or size")
        key = fields["Key"]
        rows.append(
            (
                plain(key) if encoded else key,
                normal_etag(fields.get("ETag", "").strip()),
                int(fields["Size"]),
                fields.get("LastModified", "").strip(),
            )
        )
    return rows
