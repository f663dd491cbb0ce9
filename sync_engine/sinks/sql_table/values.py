"""From an item to the values of columns: the id's template, JSON paths, and types."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from sync_engine.core.item import Change
from sync_engine.core.version import ms_of_version
from sync_engine.errors import ConfigError

__all__ = [
    "SOURCES",
    "TYPES",
    "BadRow",
    "KeyTemplate",
    "alike",
    "canonical",
    "converter",
    "extractor",
]

TYPES = ("text", "bytes", "integer", "float", "decimal", "boolean", "timestamp", "json")
"""What a column may hold; ``text`` may be bounded: ``text(64)``."""
SOURCES = ("id", "key", "content", "text", "json", "state", "version", "updated_at", "expires_at")
"""What a column may be taken from; ``json.a.b`` is a path, ``key.name`` a field of the template."""

_FIELD = re.compile(r"\{([a-zA-Z_][a-zA-Z0-9_]*)\}")
_INTEGER_MAX = (1 << 63) - 1
Extract = Callable[[Change, Mapping[str, str], Any], Any]


class BadRow(ValueError):
    """An item cannot become a row of its table."""


class KeyTemplate:
    """The key of a row inside an id, such as ``order.{customer}.{number}``.

    A field matches as little as it can and never crosses the text that follows it; the last field
    takes the rest. An id that the fields do not spell exactly is refused, so that no two ids ever
    share a row.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self.fields = tuple(_FIELD.findall(template))
        pieces = _FIELD.split(template)
        if not self.fields or len(set(self.fields)) != len(self.fields):
            raise ConfigError(f"key {template!r} needs at least one {{field}}, each name once")
        if any(not piece for piece in pieces[2:-1:2]):
            raise ConfigError(f"key {template!r}: two fields need text between them")
        pattern = "".join(
            re.escape(piece) if place % 2 == 0 else f"(?P<{piece}>.+?)"
            for place, piece in enumerate(pieces)
        )
        self._match = re.compile(pattern, re.DOTALL).fullmatch
        # One field behind a fixed text needs no pattern.
        self._plain = self.fields[0] if len(self.fields) == 1 and not pieces[-1] else ""
        self._begins = pieces[0]
        self._format = template

    def parse(self, id: str) -> dict[str, str]:
        """Return the fields of an id.

        Raises:
            BadRow: The id does not have this form.
        """
        if self._plain and id.startswith(self._begins) and len(id) > len(self._begins):
            return {self._plain: id[len(self._begins) :]}
        found = self._match(id)
        if found is None:
            raise BadRow(f"the id does not have the form {self.template!r}")
        return found.groupdict()

    def render(self, fields: Mapping[str, Any]) -> str:
        """Return the id that has these fields."""
        return _FIELD.sub(lambda found: str(fields[found.group(1)]), self._format)


def extractor(source: str, fields: tuple[str, ...]) -> Extract:
    """Return the function that takes a column's value out of an item.

    Raises:
        ConfigError: There is no such source.
    """
    head, _, path = source.partition(".")
    if head == "key":
        name = path or (fields[0] if len(fields) == 1 else "")
        if name not in fields:
            raise ConfigError(f"source {source!r}: the key has the fields {', '.join(fields)}")
        return lambda _change, key, _document: key[name]
    if head == "json":
        return _walker(tuple(path.split("."))) if path else lambda _change, _key, document: document
    simple: dict[str, Extract] = {
        "id": lambda change, _key, _document: change.id,
        "content": lambda change, _key, _document: change.content,
        "text": lambda change, _key, _document: _text(change.content or b""),
        "state": lambda change, _key, _document: change.state,
        "version": lambda change, _key, _document: change.version,
        "updated_at": lambda change, _key, _document: _moment(ms_of_version(change.version)),
        "expires_at": lambda change, _key, _document: _moment(change.expires_at_ms),
    }
    if source not in simple:
        raise ConfigError(f"there is no source {source!r}: there is {', '.join(SOURCES)}")
    return simple[source]


def _walker(path: tuple[str, ...]) -> Extract:
    if len(path) == 1 and not path[0].isdigit():
        name = path[0]
        return lambda _change, _key, document: (
            document.get(name) if document.__class__ is dict else None
        )

    def walk(_change: Change, _key: Mapping[str, str], document: Any) -> Any:
        for step in path:
            if isinstance(document, dict):
                document = document.get(step)
            elif isinstance(document, list) and step.isdigit() and int(step) < len(document):
                document = document[int(step)]
            else:
                return None
        return document

    return walk


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        raise BadRow("the content is not UTF-8") from exc


def _moment(ms: int) -> datetime | None:
    return datetime.fromtimestamp(ms / 1000, UTC) if ms else None


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, dict | list | bool):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return str(value)


def _to_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else _to_text(value).encode()


def _to_integer(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise BadRow("a number with a fraction in a column of type integer")
    number = int(value)
    if not -_INTEGER_MAX - 1 <= number <= _INTEGER_MAX:
        raise BadRow("an integer of more than 64 bits")
    return number


def _to_decimal(value: Any) -> Decimal:
    number = value if isinstance(value, Decimal) else Decimal(str(value))
    if not number.is_finite():
        raise BadRow("a number that is not finite")
    return number


def _to_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    raise BadRow("neither true nor false in a column of type boolean")


def _to_timestamp(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    moment = datetime.fromisoformat(str(value))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "text": _to_text,
    "bytes": _to_bytes,
    "integer": _to_integer,
    "float": float,
    "decimal": _to_decimal,
    "boolean": _to_boolean,
    "timestamp": _to_timestamp,
    "json": _to_json,
}


def converter(kind: str, name: str) -> Callable[[Any], Any]:
    """Return the function that makes a value fit a type; it raises `BadRow` with the column."""
    inner = _CONVERT[kind]

    def convert(value: Any) -> Any:
        try:
            return inner(value)
        except BadRow as exc:
            raise BadRow(f"column {name!r}: {exc}") from None
        except (ValueError, TypeError, OverflowError, OSError, InvalidOperation):
            raise BadRow(f"column {name!r}: the value is no {kind}") from None

    return convert


def canonical(kind: str, value: Any) -> bytes:
    """Return a value as bytes that do not depend on the database that held it."""
    if value is None:
        return b"\0n"
    if kind == "boolean":
        return b"1" if value else b"0"
    if kind in ("integer", "float"):
        return repr(int(value) if kind == "integer" else float(value)).encode()
    if kind == "decimal":
        return format(Decimal(str(value)).normalize(), "f").encode()
    if kind == "timestamp":
        return _to_timestamp(value).astimezone(UTC).isoformat().encode()
    if kind == "bytes":
        return bytes(value)
    return str(value).encode()


def alike(value: Any) -> bytes:
    """Return a value of no declared type as bytes; equal numbers are equal, whatever their type."""
    if value is None:
        return b"\0n"
    if isinstance(value, bool | int | float | Decimal):
        return canonical("decimal", int(value) if isinstance(value, bool) else value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, datetime):
        return canonical("timestamp", value)
    return str(value).encode()
