"""What bytes have to look like at the server, whichever way it tells."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sync_engine.errors import CorruptData, StoreRejected, StoreUnavailable
from sync_engine.s3 import NoSuchKey, S3Client, S3Info

__all__ = ["Digests", "holds", "multipart_etag", "read_back"]

_IN_PARTS: Final = re.compile(r"[0-9a-f]{32}-\d+")


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of one content, in hex.

    Attributes:
        size: Bytes.
        md5: Of all bytes.
        sha256: Of all bytes.
        parts: ETag of an upload in parts: MD5 of the parts' MD5s, and their number; empty where it
            went whole.
    """

    size: int
    md5: str
    sha256: str
    parts: str = ""

    @classmethod
    def of(cls, data: bytes) -> Digests:
        """Return the digests of bytes."""
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return cls(len(data), md5, hashlib.sha256(data).hexdigest())

    def text(self) -> str:
        """Return them as one line, for the ledger."""
        return f"{self.size} {self.md5} {self.sha256} {self.parts}"

    @classmethod
    def parse(cls, text: str) -> Digests:
        """Return what `text` wrote."""
        size, md5, sha256, parts = text.split(" ")
        return cls(int(size), md5, sha256, parts)


def multipart_etag(md5s: Sequence[str]) -> str:
    """Return the ETag that S3 gives to an object put together from parts.

    Args:
        md5s: MD5 of each part, in hex, in order; at least one.
    """
    joined = b"".join(bytes.fromhex(md5) for md5 in md5s)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(md5s)}"


def holds(info: S3Info, digests: Digests) -> bool | None:
    """Tell whether an object has a content; None where only reading it can tell.

    A plain ETag is the MD5 of the bytes, unless the server encrypts with a key of its own; one with
    ``-N`` is that of our parts, if it was us who uploaded them; else the SHA-256 that we stored in
    the metadata counts.
    """
    if info.size != digests.size:
        return False
    if info.etag_is_md5:
        return info.etag == digests.md5
    if _IN_PARTS.fullmatch(info.etag) and not info.sse.startswith(("aws:kms", "customer")):
        if digests.parts and info.etag == digests.parts:
            return True
        if digests.parts and info.etag.endswith(digests.parts[32:]):
            return False
    stored = info.metadata.get("sha256", "").lower()
    return stored == digests.sha256 if stored else None


def read_back(s3: S3Client, bucket: str, info: S3Info, digests: Digests) -> bool:
    """Read an object whole and tell whether it has a content.

    Raises:
        StoreUnavailable: It could not be read to its end.
    """
    sha256 = hashlib.sha256()
    size = 0
    try:
        with s3.get(bucket, info.key) as body:
            for data in body:
                sha256.update(data)
                size += len(data)
    except (CorruptData, NoSuchKey):
        return False
    except StoreRejected as exc:
        raise StoreUnavailable("s3", "verify", str(exc)) from exc
    return size == digests.size and sha256.hexdigest() == digests.sha256
