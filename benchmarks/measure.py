"""Timing, interleaving and printing: what every subject shares."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sync_engine import SyncItem

__all__ = ["SIZES", "Plan", "Row", "contents", "ids_of", "interleaved", "items_of", "show", "timed"]

SIZES = (100, 1024, 16 * 1024)
_HEAD = ("case", "size", "engine", "floor", "unit", "ratio", "spread", "aim")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to do.

    Attributes:
        quick: Fewer rounds and items.
        minutes: Length of the outage.
        directory: Where logs and files go; its disk is part of what is measured.
        servers: Which servers to start, of ``redis``, ``mariadb`` and ``postgres``.
    """

    quick: bool
    minutes: float
    directory: Path
    servers: frozenset[str]

    @property
    def rounds(self) -> int:
        """How often engine and floor take turns."""
        return 3 if self.quick else 5

    def items(self, size: int, full: int) -> int:
        """Return how many items of a size one round moves: fewer of the large ones."""
        count = full if size <= 1024 else full // 8
        return max(100, count // 4) if self.quick else count


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of the engine beside its floor.

    Attributes:
        subject: Group of figures.
        case: What was done.
        size: Bytes of one item; 0 where it does not matter.
        engine: Median of the engine.
        floor: Median of the hand-written loop.
        unit: ``us`` (microseconds a call: less is better) or ``items/s`` (more is better).
        ratio: Median over the rounds of engine/floor, each of one round.
        low: Smallest of those ratios.
        high: Largest of those ratios.
        aim: What is aimed at, in words; empty where nothing is.
        reached: Whether it was.
    """

    subject: str
    case: str
    size: int
    engine: float
    floor: float
    unit: str
    ratio: float
    low: float
    high: float
    aim: str = ""
    reached: bool | None = None

    @classmethod
    def of(
        cls,
        subject: str,
        case: str,
        size: int,
        pairs: Sequence[tuple[float, float]],
        unit: str,
        *,
        ratio_min: float | None = None,
        ratio_max: float | None = None,
        value_max: float | None = None,
    ) -> Row:
        """Make a row of what each round measured: pairs of engine and floor."""
        ratios = [engine / floor for engine, floor in pairs]
        ratio = statistics.median(ratios)
        value = statistics.median(engine for engine, _ in pairs)
        aim, reached = "", None
        if ratio_min is not None:
            aim, reached = f">= {ratio_min:g} x floor", ratio >= ratio_min
        elif ratio_max is not None:
            aim, reached = f"<= {ratio_max:g} x floor", ratio <= ratio_max
        elif value_max is not None:
            aim, reached = f"<= {value_max:g} {unit}", value <= value_max
        return cls(
            subject=subject,
            case=case,
            size=size,
            engine=value,
            floor=statistics.median(floor for _, floor in pairs),
            unit=unit,
            ratio=ratio,
            low=min(ratios),
            high=max(ratios),
            aim=aim,
            reached=reached,
        )


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def interleaved(
    rounds: int,
    sides: Mapping[str, Callable[[int], float]],
    settle: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Let all sides take turns, forwards and backwards, after one round that is not counted.

    Args:
        rounds: Rounds that count.
        sides: Name and measurement; it is given the number of the round (from 0) and returns a
            figure.
        settle: Called before every measurement, so that no side pays for what another left behind.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        names = list(sides) if number % 2 else list(sides)[::-1]
        for name in names:
            settle()
            gc.collect()
            figure = sides[name](number)
            if number:
                figures[name].append(figure)
    return figures


def ids_of(prefix: str, count: int) -> list[str]:
    """Return ids as users have them: dotted, growing."""
    return [f"{prefix}.{number:08d}" for number in range(count)]


def contents(size: int) -> list[bytes]:
    """Return 64 different contents of a size, incompressible."""
    import random

    source = random.Random(size)
    return [source.randbytes(size) for _ in range(64)]


def items_of(ids: Sequence[str], size: int) -> list[SyncItem]:
    """Return items of a size for ids."""
    bodies = contents(size)
    return [SyncItem(id, bodies[number & 63]) for number, id in enumerate(ids)]


@contextmanager
def quiet_gc() -> Iterator[None]:
    """Keep the collector out of very short loops."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _size(size: int) -> str:
    if not size:
        return ""
    return f"{size} B" if size < 1024 else f"{size // 1024} KiB"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cells(row: Row) -> tuple[str, ...]:
    aim = row.aim and f"{row.aim}: {'reached' if row.reached else 'MISSED'}"
    return (
        row.case,
        _size(row.size),
        _figure(row.engine),
        _figure(row.floor),
        row.unit,
        f"{row.ratio:.2f}",
        f"{row.low:.2f}-{row.high:.2f}",
        aim,
    )


def show(rows: Sequence[Row], *, as_json: bool) -> str:
    """Return rows as Markdown tables, one a subject, or as JSON."""
    if as_json:
        return json.dumps([asdict(row) for row in rows], indent=1)
    lines: list[str] = []
    subject = ""
    for row in rows:
        if row.subject != subject:
            subject = row.subject
            lines += ["", f"### {subject}", "", f"| {' | '.join(_HEAD)} |"]
            lines.append("|---|---:|---:|---:|---|---:|---:|---|")
        lines.append(f"| {' | '.join(_cells(row))} |")
    return "\n".join(lines)


def as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as plain values."""
    return [asdict(row) for row in rows]
