"""Filling a new filter while the old one still answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from sync_engine.core.filters.base import ExistenceFilter

__all__ = ["Warmup", "add_unknown", "chunks"]

_CHUNK = 1024


class Warmup:
    """A new filter that is being filled while the old one, if any, still answers.

    Made by `FilterManager.begin_warmup`. It is fed with every id that is pending or archived,
    listed *after* it began; ids added to the manager meanwhile go to it as well. Any thread may use
    it.
    """

    def __init__(
        self,
        filter: ExistenceFilter,
        *,
        warm: Callable[[Warmup, Sequence[str]], bool],
        complete: Callable[[Warmup], bool],
        abort: Callable[[Warmup], None],
    ) -> None:
        self.filter = filter
        self._warm = warm
        self._complete = complete
        self._abort = abort

    def add_many(self, ids: Iterable[str]) -> bool:
        """Add listed ids, in short turns under the manager's lock.

        Returns:
            False where the warm-up was aborted, or overtaken by a distrust or by another one:
            what is added has no effect any more.
        """
        return all(self._warm(self, chunk) for chunk in chunks(ids))

    def complete(self) -> bool:
        """Put the new filter in place of the old one and trust it.

        Returns:
            False where it was aborted or overtaken: nothing changed, begin again.
        """
        return self._complete(self)

    def abort(self) -> None:
        """Drop the new filter; the old one stays as it was. Safe at any time."""
        self._abort(self)


def add_unknown(filter: ExistenceFilter, ids: Sequence[str]) -> None:
    """Add the ids that look unknown: only for a filter that nothing is ever taken out of."""
    known = filter.might_contain_many(ids)
    unknown = dict.fromkeys(id for id, is_known in zip(ids, known, strict=True) if not is_known)
    if unknown:
        filter.add_many(list(unknown))


def chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield ids in lists of at most 1,024."""
    iterator = iter(ids)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk
