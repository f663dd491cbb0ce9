"""What a replicator says of itself, in a file that other processes read without asking it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sync_engine.errors import StoreUnavailable
from sync_engine.ports import Clock

__all__ = ["StatusFile", "metrics_of", "read_status", "resident_bytes", "wait_for"]

_SILENT_MS = 5000
_POLL_S = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


class StatusFile:
    """Writes it; a reader sees the old or the new one, whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, status: Mapping[str, Any]) -> None:
        """Replace it. Raises OSError."""
        aside = self._path.with_suffix(".new")
        aside.write_text(json.dumps(status))
        aside.replace(self._path)


def read_status(state_dir: Path, clock: Clock) -> dict[str, Any]:
    """Return what the replicator said last, with its age.

    Raises:
        StoreUnavailable: There is none, or it was never started.
    """
    try:
        status: dict[str, Any] = json.loads((state_dir / "status.json").read_text())
    except (OSError, ValueError) as exc:
        raise StoreUnavailable(
            "snapshot", "status", f"no replicator has run with the state directory {state_dir}"
        ) from exc
    age_ms = clock.now_ms() - status["updated_ms"]
    status["alive"] = status["phase"] not in {"stopped", "fenced"} and age_ms < _SILENT_MS
    status["age_s"] = max(0.0, age_ms / 1000)
    return status


def wait_for(
    state_dir: Path,
    clock: Clock,
    *,
    txid: int | None,
    timeout_s: float,
    give_up: Callable[[], bool] = lambda: False,
) -> int:
    """Block until a transaction is in the target; it rides along with what is sent anyway.

    Args:
        state_dir: Of the replicator.
        clock: Time.
        txid: The transaction; None is everything that was committed before the call.
        timeout_s: Seconds to wait.
        give_up: Asked between looks.

    Returns:
        The last transaction that is in the target.

    Raises:
        StoreUnavailable: Not in time; or no replicator is alive.
    """
    asked_ms = clock.now_ms()
    until = clock.monotonic() + timeout_s
    while True:
        status = read_status(state_dir, clock)
        wanted = txid
        if wanted is None and status["seen_ms"] > asked_ms:
            wanted = txid = int(status["seen_txid"])
        if wanted is not None and 0 < status["durable_txid"] >= wanted:
            return int(status["durable_txid"])
        if status["phase"] == "fenced":
            raise StoreUnavailable("snapshot", "wait", status["error"])
        if clock.monotonic() >= until or give_up():
            why = status.get("stage_full") or status.get("upload", {}).get("error") or "not in time"
            if not status["alive"]:
                why = "the replicator does not run"
            raise StoreUnavailable(
                "snapshot", "wait", f"{why}; durable up to {status['durable_txid']}"
            )
        clock.sleep(_POLL_S)


def resident_bytes() -> int:
    """Return how much memory this process occupies; 0 where nobody tells."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    return 0


def metrics_of(status: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a status under names of metrics: ``snapshot_<group>_<name>``."""
    return dict(_flat("snapshot", status))


def _flat(before: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{before}_{name}", value)
        elif isinstance(value, bool | int | float):
            yield f"{before}_{name}", float(value)
