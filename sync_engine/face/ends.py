"""Sources, sinks and the feed of changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sync_engine.core.batcher import BatchConfig
from sync_engine.face.life import Face
from sync_engine.flow.feed import ArchivedChange
from sync_engine.flow.outlet import OnFull
from sync_engine.ports import AdapterContext, Sink, Source

__all__ = ["Ends"]


class Ends(Face):
    """Hangs sources, sinks and consumers of the feed on the engine."""

    def add_sink(
        self,
        name: str,
        sink: Sink,
        *,
        prefix: str | Sequence[str] = "",
        batch: BatchConfig | None = None,
        on_full: OnFull = "block",
    ) -> None:
        """Deliver what the archive keeps to a sink: a copy first, then every change, in order.

        The sink's place is kept in the log under its name, over restarts: added again, it goes on
        where it was. Until it has taken a change, the log keeps it. Sinks that keep positions of
        their own (`ports.PositionedSink`) are asked where they stand.

        Args:
            name: 1 to 64 letters, digits, or any of . _ -; unique among sinks.
            sink: Attached by the engine, in a job of its own; closed with the engine.
            prefix: Deliver ids that begin so, or with one of these. A wider prefix than last time
                begins a new copy.
            batch: When to deliver; None is up to 1000 changes or 4 MiB, after at most 50 ms.
            on_full: When this sink is what fills the log: ``block`` slows writers down until it
                takes something; ``cut`` gives up its place and copies everything again once it can,
                deletions included as long as the archive remembers them.

        Raises:
            ConfigError: The name is taken or cannot be used, or the engine is passive.
            StoreUnavailable: The log could not be written.

        Blocking: the log's file only; the sink is attached in the background.
        """
        self._active().doors.add_sink(name, sink, prefix=prefix, batch=batch, on_full=on_full)

    def remove_sink(self, name: str, *, forget: bool = False) -> bool:
        """Stop delivering to a sink and close it; return whether there was one.

        Args:
            name: As for `add_sink`; with `forget` it may also be one that was not added again.
            forget: Give its place in the log up. Otherwise the log keeps all it has not taken.

        Raises:
            StoreUnavailable: It did not end what it was doing within 30 s. It ends with that; call
                again then.
        """
        return self._active().doors.remove_sink(name, forget=forget)

    def add_source(self, name: str, source: Source, *, items_max: int = 1000) -> None:
        """Take changes from a source: poll, write, wait for the disk, acknowledge, again and again.

        A crash anywhere repeats changes and never loses one. Under back-pressure it waits.

        Args:
            name: 1 to 64 letters, digits, or any of . _ -; unique among sources.
            source: Attached by the engine, in a job of its own; closed with the engine.
            items_max: Changes to ask for at a time (at least 1).

        Raises:
            ConfigError: The name is taken or cannot be used, or the engine is passive.
        """
        self._active().doors.add_source(name, source, items_max=items_max)

    def remove_source(self, name: str) -> bool:
        """Stop taking changes from a source and close it; return whether there was one.

        Raises:
            StoreUnavailable: It did not end what it was doing within 30 s. It ends with that; call
                again then.
        """
        return self._active().doors.remove_source(name)

    def changes(
        self, after: str | None = None, *, name: str = "", timeout: float | None = None
    ) -> Iterator[ArchivedChange]:
        """Yield what this engine has archived, in the order of its log, and wait for more.

        Every acknowledged write and delete of this engine comes once the archive has it; what the
        archive refused for good is left out. Changes of other engines are in their own feeds.

        Args:
            after: `ArchivedChange.token` of the last one taken; None begins with what is archived
                from now on, or where the named consumer was.
            name: Of a consumer for whom the log keeps what it has not taken, over restarts: 1 to 64
                letters, digits, or any of . _ -. A new one begins with the oldest change kept. A
                change counts as taken when the next one is asked for. Empty: the log is held while
                the iterator lives, and by ``feed_items_kept`` beyond that.
            timeout: End once nothing has come for so many seconds; 0 ends with what is archived
                now; None waits until the engine is closed.

        Raises:
            FeedGap: The log no longer reaches back to `after`, or is another one: scan first.
            InvalidItem: `after` is no token.
            ConfigError: The name cannot be used.
            EngineClosed: The engine was closed meanwhile.

        Thread-safety: one iterator belongs to one thread. Blocking: as `timeout` says.
        """
        return self._open().feeds.iterate(after, name, timeout, self._open)

    def forget_consumer(self, name: str) -> bool:
        """Let go of what a named consumer of `changes` has not taken; tell if there was one.

        Raises:
            ConfigError: The name cannot be used.
        """
        return self._open().feeds.forget(name)

    def adapter_context(self, kind: str, name: str) -> AdapterContext:
        """Return what the factory of a ``source`` or ``sink`` of this name is given."""
        return self._active().doors.context(kind, name)
