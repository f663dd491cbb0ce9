"""What an existence filter can do, whatever it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["ExistenceFilter", "FilterFormatError"]


class FilterFormatError(ValueError):
    """Bytes are no filter of the expected kind, or were altered."""


class ExistenceFilter(Protocol):
    """A set of ids that may say *maybe* too often, and *absent* only when it is so.

    Thread-safety: one writer at a time. `might_contain` may run beside a writer; its True is then
    good, its False has to be asked again while nobody writes.
    """

    @property
    def count(self) -> int:
        """Ids in it; repeated adds count as the kind of filter says."""

    @property
    def capacity(self) -> int:
        """Ids it has room for before it grows."""

    @property
    def size_bytes(self) -> int:
        """Bytes of its tables."""

    def add(self, id: str) -> None:
        """Add an id. It is in the filter from then on, whatever the filter has to do for it."""

    def add_new(self, id: str) -> None:
        """Add an id unless it looks known: for a filter that nothing is ever taken out of."""

    def add_many(self, ids: Sequence[str]) -> None:
        """Add ids; much cheaper than one by one."""

    def might_contain(self, id: str) -> bool:
        """Tell whether an id may have been added; False is certain."""

    def might_contain_many(self, ids: Sequence[str]) -> list[bool]:
        """Answer for several ids, in their order."""

    def to_bytes(self) -> bytes:
        """Return everything that is needed to make it again, seed included."""
