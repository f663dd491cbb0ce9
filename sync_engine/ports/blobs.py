"""Objects by key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BlobInfo", "BlobStore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobInfo:
    """One object of a blob store.

    Attributes:
        key: Its name.
        size: Bytes.
        etag: The store's tag of this content; opaque.
        modified_ms: Wall-clock milliseconds of the last change.
    """

    key: str
    size: int
    etag: str
    modified_ms: int


class BlobStore(Protocol):
    """Objects by key: S3 or a directory."""

    @property
    def atomic_if_absent(self) -> bool:
        """Whether of several writers with `if_absent` exactly one wins; may ask the server."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> BlobInfo:
        """Store an object whole; with `if_absent`, raise `Conflict` if there is one."""

    def get(self, key: str) -> bytes | None:
        """Return an object's bytes, or None where there is none."""

    def list(self, prefix: str) -> Iterable[BlobInfo]:
        """Yield objects in bytewise key order."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; absent ones are fine."""
