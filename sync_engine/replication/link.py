"""What the two paths to one peer share: what is known of it, and who asks for a comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from sync_engine.ports import Runtime
from sync_engine.replication.peer import Peer
from sync_engine.replication.standing import Standing, StandingFile

__all__ = ["PeerLink"]


class PeerLink:
    """One peer, as both paths see it.

    Thread-safety: every method. The lock is held while a small file is replaced: two jobs use it,
    once a comparison and once a gap.

    Args:
        peer: The peer.
        runtime: Locks and time.
        path: File of what is known.

    Raises:
        CorruptData: The file is damaged.
    """

    def __init__(self, peer: Peer, runtime: Runtime, path: Path) -> None:
        self.peer = peer
        self._clock = runtime.clock
        self._lock = runtime.lock()
        self._file = StandingFile(path)
        self._gaps = 0
        self.compare_wanted = False
        self.wake_comparison: Callable[[], object] = lambda: None

    @property
    def standing(self) -> Standing:
        """What is known now."""
        return self._file.now

    @property
    def gaps(self) -> int:
        """Gaps of the feed since the start."""
        return self._gaps

    def missed(self, why: str) -> None:
        """Note, durably, that the feed has told too little, and ask for a comparison now.

        Raises:
            StoreUnavailable: It cannot be noted: the feed must not be read on.
        """
        with self._lock:
            self._gaps += 1
            self._file.save(msgspec.structs.replace(self._file.now, gap=why))
        self.compare_wanted = True
        self.wake_comparison()

    def compared(self, *, began_at_ms: int, gaps_before: int) -> None:
        """Note that everything the peer had is here.

        Args:
            began_at_ms: When the comparison began.
            gaps_before: `gaps` as it was then: later ones are not made good by it.

        Raises:
            StoreUnavailable: It cannot be noted.
        """
        with self._lock:
            gap = "" if gaps_before == self._gaps else self._file.now.gap
            self._file.save(Standing(joined=True, gap=gap, compared_at_ms=began_at_ms))

    def told_all(self) -> None:
        """Note that a feed without an archive beside it was read to its end once."""
        with self._lock:
            if not self._file.now.joined:
                self._file.save(msgspec.structs.replace(self._file.now, joined=True))
