"""Which files are meant: patterns on names and relative paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sync_engine.errors import ConfigError

__all__ = ["ASIDE", "IGNORED", "Patterns"]

IGNORED: Final = ("*.tmp", "*.partial", "*.swp", "*~", ".*")
"""Names of files that nobody has finished, and of hidden ones: left out unless told otherwise."""
ASIDE: Final = b".sync-engine-leaving-"
"""Begins the names that files have for the moment of their removal: never looked at, by nobody."""


class Patterns:
    """Decides which files and directories are looked at.

    A pattern without ``/`` is compared with the last part of a path, one with it with the whole
    relative path. ``*`` and ``?`` do not match ``/``; ``**/`` is any number of directories;
    ``[a-z]`` and ``[!a-z]`` are classes. Names that begin with `ASIDE` are left out whatever the
    patterns say.

    Args:
        include: Only files that match one of these; empty is all.
        exclude: No files that match one of these, and nothing below directories that do.

    Raises:
        ConfigError: A pattern is empty.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = IGNORED) -> None:
        self.include = tuple(include)
        self.exclude = tuple(exclude)
        self._include_names, self._include_paths = _compiled(self.include)
        self._exclude_names, self._exclude_paths = _compiled(self.exclude)

    def takes(self, path: bytes) -> bool:
        """Tell whether a file is meant, none of whose directories is left out."""
        name = path.rpartition(b"/")[2]
        if name.startswith(ASIDE):
            return False
        if _matches(self._exclude_names, name) or _matches(self._exclude_paths, path):
            return False
        return not self.include or (
            _matches(self._include_names, name) or _matches(self._include_paths, path)
        )

    def enters(self, path: bytes) -> bool:
        """Tell whether a directory is looked into, if those above it are."""
        name = path.rpartition(b"/")[2]
        return not (_matches(self._exclude_names, name) or _matches(self._exclude_paths, path))

    def takes_below(self, path: bytes) -> bool:
        """Tell whether a file is meant, its directories looked at, too."""
        if not self.takes(path):
            return False
        at = path.find(b"/")
        while at >= 0:
            if not self.enters(path[:at]):
                return False
            at = path.find(b"/", at + 1)
        return True


def _matches(compiled: re.Pattern[bytes] | None, path: bytes) -> bool:
    return compiled is not None and compiled.fullmatch(path) is not None


def _compiled(
    patterns: Sequence[str],
) -> tuple[re.Pattern[bytes] | None, re.Pattern[bytes] | None]:
    names: list[bytes] = []
    paths: list[bytes] = []
    for pattern in patterns:
        if not pattern.strip("/"):
            raise ConfigError(f"pattern {pattern!r} is empty")
        expression = _expression(pattern.strip("/").encode("utf-8", "surrogateescape"))
        (paths if "/" in pattern.rstrip("/") else names).append(expression)
    return _joined(names), _joined(paths)


def _joined(expressions: list[bytes]) -> re.Pattern[bytes] | None:
    return re.compile(b"|".join(expressions), re.DOTALL) if expressions else None


_TOKEN: Final = re.compile(
    rb"\*\*/|\*\*|\*|\?|\[(?P<not>!?)(?P<class>\]?[^\]]*)\]|(?P<plain>.)", re.DOTALL
)
_WILD: Final = {
    b"**/": b"(?:[^/]+/)*",
    b"**": b".*",
    b"*": b"[^/]*",
    b"?": rb"[^/\x80-\xbf][\x80-\xbf]*|[\x80-\xbf]",
}


def _expression(pattern: bytes) -> bytes:
    made = []
    for token in _TOKEN.finditer(pattern):
        if token["plain"] is not None:
            made.append(re.escape(token["plain"]))
        elif token["class"] is not None:
            letters = token["class"].replace(b"\\", b"\\\\").replace(b"[", b"\\[")
            letters = letters.replace(b"]", b"\\]")
            made.append(b"[" + (b"^/" if token["not"] else b"") + letters + b"]")
        else:
            made.append(b"(?:" + _WILD[token[0]] + b")")
    return b"(?:" + b"".join(made) + b")"
