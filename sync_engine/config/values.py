"""Settings as people write them, turned into values: strict about what is meant."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "Kind",
    "Unusable",
    "boolean",
    "choice",
    "directory",
    "duration",
    "number",
    "size",
    "text",
    "whole",
]

N = TypeVar("N", int, float)

_AMOUNT = re.compile(r"\s*(\d+(?:_\d+)*(?:\.\d+)?)\s*([a-zA-Z]*)\s*", re.ASCII)
_WHOLE = re.compile(r"\s*\d+(?:_\d+)*\s*", re.ASCII)
_SIZES = {
    unit: base**power
    for base, infix in ((1000, ""), (1024, "i"))
    for power, letter in enumerate(("k", "m", "g", "t"), 1)
    for unit in [f"{letter}{infix}b"]
} | {"b": 1, "": 1}
_SECONDS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "min": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}


_DIGITS_MAX = 40


class Unusable(Exception):
    """What was written cannot be used; the message says why and is collected with others."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting takes.

    Attributes:
        name: In words, for messages and the reference.
        parse: Returns the value of what was written; raises `Unusable` saying what is
            wrong, without quoting it where it may be a secret.
        show: Returns a value as text.
        secret: Whether the value may hold a password.
    """

    name: str
    parse: Callable[[object], Any]
    show: Callable[[Any], str] = str
    secret: bool = False


def whole(low: int, high: int = 1 << 62) -> Kind:
    """Return the kind of whole numbers in a range."""

    def parse(raw: object) -> int:
        if isinstance(raw, str) and len(raw) < _DIGITS_MAX and _WHOLE.fullmatch(raw):
            raw = int(raw)
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise Unusable(f"must be a whole number, got {_quoted(raw)}")
        return _within(raw, low, high)

    return Kind("whole number", parse)


def number(low: float, high: float) -> Kind:
    """Return the kind of numbers in a range."""

    def parse(raw: object) -> float:
        if isinstance(raw, str) and (match := _amount(raw)) and not match[2]:
            raw = float(match[1])
        if isinstance(raw, bool) or not isinstance(raw, int | float):
            raise Unusable(f"must be a number, got {_quoted(raw)}")
        return _within(float(raw), low, high)

    return Kind("number", parse)


def size(low: int = 1) -> Kind:
    """Return the kind of sizes: bytes as a whole number, or text such as ``256MiB``, ``10 MB``."""

    def parse(raw: object) -> int:
        if isinstance(raw, str):
            match = _amount(raw)
            if not match or match[2].lower() not in _SIZES:
                raise Unusable(f"must be a size such as 256MiB or 10 MB, got {_quoted(raw)}")
            exact = Decimal(match[1]) * _SIZES[match[2].lower()]
            if exact != int(exact):
                raise Unusable(f"must be a whole number of bytes, got {_quoted(raw)}")
            raw = int(exact)
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise Unusable(f"must be a size such as 256MiB or 10 MB, got {_quoted(raw)}")
        return _within(raw, low, 1 << 60)

    return Kind("size in bytes", parse, _show_size)


def duration(unit: str, *, positive: bool = True) -> Kind:
    """Return the kind of durations: a number of the unit, or text such as ``100ms`` or ``2h``.

    Args:
        unit: ``s`` or ``ms``; the value is given in it, up to ten years.
        positive: Whether 0 is refused.
    """
    per_unit = _SECONDS[unit]

    def parse(raw: object) -> float:
        if isinstance(raw, str):
            match = _amount(raw)
            if not match or (match[2] and match[2] not in _SECONDS):
                raise Unusable(f"must be a duration such as 5s, 100ms or 2h, got {_quoted(raw)}")
            raw = float(Decimal(match[1]) * _SECONDS[match[2] or unit] / per_unit)
        if isinstance(raw, bool) or not isinstance(raw, int | float):
            raise Unusable(f"must be a duration such as 5s, 100ms or 2h, got {_quoted(raw)}")
        if positive and raw == 0:
            raise Unusable("must be above 0")
        return _within(float(raw), 0.0, float(315_360_000 / per_unit))

    return Kind(f"duration in {unit}", parse, lambda value: f"{value:g} {unit}")


def boolean() -> Kind:
    """Return the kind of switches: ``true`` or ``false``, nothing else."""

    def parse(raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and raw.strip().lower() in {"true", "false"}:
            return raw.strip().lower() == "true"
        raise Unusable(f"must be true or false, got {_quoted(raw)}")

    return Kind("true or false", parse, lambda value: str(value).lower())


def choice(options: type[StrEnum] | tuple[str, ...]) -> Kind:
    """Return the kind of one word out of several."""
    words = [str(option) for option in options]

    def parse(raw: object) -> str:
        if raw not in words:
            raise Unusable(f"must be one of {', '.join(words)}, got {_quoted(raw)}")
        return options(raw) if isinstance(options, type) else str(raw)

    return Kind(" | ".join(words), parse)


def text(pattern: str, meaning: str) -> Kind:
    """Return the kind of texts that match a pattern."""

    def parse(raw: object) -> str:
        if not isinstance(raw, str) or not re.fullmatch(pattern, raw):
            raise Unusable(f"must be {meaning}, got {_quoted(raw)}")
        return raw

    return Kind("text", parse)


def directory() -> Kind:
    """Return the kind of directories, which need not exist yet."""

    def parse(raw: object) -> Path:
        if not isinstance(raw, str | os.PathLike):
            raise Unusable(f"must be a directory, got {_quoted(raw)}")
        path = os.fspath(raw)
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise Unusable(f"must be a directory, got {_quoted(path)}")
        return Path(path).expanduser()

    return Kind("directory", parse)


def _amount(raw: str) -> re.Match[str] | None:
    return _AMOUNT.fullmatch(raw) if len(raw) < _DIGITS_MAX else None


def _within(value: N, low: float, high: float) -> N:
    if not low <= value <= high or math.isnan(value):
        raise Unusable(f"must be {_bounds(low, high)}, got {_quoted(value)}")
    return value


def _quoted(raw: object) -> str:
    try:
        shown = repr(raw)
    except ValueError:  # an int of thousands of digits
        return "a huge number"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _bounds(low: float, high: float) -> str:
    return f"{low:,} or more" if high >= 1 << 60 else f"between {low:,} and {high:,}"


def _show_size(value: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value and value % factor == 0:
            return f"{value // factor} {unit}"
    return f"{value} B"
