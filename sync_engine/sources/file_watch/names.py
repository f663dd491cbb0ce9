"""File names are bytes, ids and keys are text: a translation that loses nothing."""

from __future__ import annotations

import re
from typing import Final

from sync_engine.errors import InvalidItem

__all__ = ["path_of", "text_of"]

_MARK: Final = "\N{SYMBOL FOR ESCAPE}"
_ESCAPED: Final = re.compile(f"{_MARK}({_MARK}|[0-9A-F]{{2}})")


def text_of(path: bytes) -> str:
    """Return a path as text: its UTF-8 where it is that, else with every other byte escaped.

    A byte that is no UTF-8 becomes the sign U+241B and two hex digits; the sign itself is doubled.
    Two paths never give the same text; `path_of` goes back.
    """
    text = path.decode("utf-8", "surrogateescape")
    if _MARK in text:
        text = text.replace(_MARK, _MARK + _MARK)
    if text.isascii():
        return text
    return "".join(
        f"{_MARK}{ord(letter) - 0xDC00:02X}" if 0xDC80 <= ord(letter) <= 0xDCFF else letter
        for letter in text
    )


def path_of(text: str) -> bytes:
    """Return the path that `text_of` made a text of.

    Raises:
        InvalidItem: No path gives this text.
    """

    def unescaped(found: re.Match[str]) -> str:
        return _MARK if found[1] == _MARK else chr(0xDC00 + int(found[1], 16))

    try:
        path = _ESCAPED.sub(unescaped, text).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        path = b""
    if not path or text_of(path) != text:
        raise InvalidItem(f"{text!r} is no escaped path")
    return path
