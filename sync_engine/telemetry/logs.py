"""Log lines: a name and fields, through the standard library's logging."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from threading import Lock

from sync_engine.telemetry.redaction import redact

__all__ = ["REPEAT_S", "EventLogger", "JsonFormatter", "get_logger"]

REPEAT_S = 60.0
"""Seconds between two lines of one limited event."""

_LIMITED_MAX = 100
_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class _Event:
    """A record's message: shown as ``name key=value …`` by formatters that know nothing of us."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: Mapping[str, object]) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={_shown(v)}" for key, v in self.fields.items())])


class EventLogger:
    """Logs events under one name.

    Every record carries ``event`` (the name) and ``fields`` (a mapping) as attributes, for handlers
    and formatters. URLs in fields lose their passwords before any handler sees them.

    Thread-safety: any thread. Cost: about 0.1 µs where the level is off.
    """

    __slots__ = ("_lock", "_logger", "_seen")

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = Lock()
        self._seen: dict[str, list[float]] = {}

    def debug(self, event: str, /, **fields: object) -> None:
        """Log what helps to follow a run step by step."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self._handle(self._record(logging.DEBUG, event, fields))

    def info(self, event: str, /, **fields: object) -> None:
        """Log what happens rarely and is as it should be."""
        if self._logger.isEnabledFor(logging.INFO):
            self._handle(self._record(logging.INFO, event, fields))

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what works, but not as it should."""
        if self._logger.isEnabledFor(logging.WARNING):
            self._handle(self._record(logging.WARNING, event, fields))

    def error(self, event: str, /, **fields: object) -> None:
        """Log what somebody has to look at."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._handle(self._record(logging.ERROR, event, fields))

    def limited(self, event: str, /, *, level: int = logging.WARNING, **fields: object) -> None:
        """Log the first of an event, then at most one a minute (`REPEAT_S`).

        The next line that appears has a field ``suppressed``: how many did not.
        """
        if not self._logger.isEnabledFor(level):
            return
        record = self._record(level, event, fields)
        suppressed = self._admit(event, record.created)
        if suppressed is None:
            return
        if suppressed:
            record = self._record(level, event, {**fields, "suppressed": suppressed})
        self._handle(record)

    def _admit(self, event: str, now_s: float) -> int | None:
        """Return how many were held back since the last line, or None to hold this one back."""
        with self._lock:
            last = self._seen.get(event)
            if last is not None and 0 <= now_s - last[0] < REPEAT_S:
                last[1] += 1
                return None
            if len(self._seen) >= _LIMITED_MAX:
                self._seen.clear()
            self._seen[event] = [now_s, 0]
            return 0 if last is None else int(last[1])

    def _record(self, level: int, event: str, fields: Mapping[str, object]) -> logging.LogRecord:
        clean = {key: _clean(value) for key, value in fields.items()}
        path, line, function, _ = self._logger.findCaller(stacklevel=3)
        return self._logger.makeRecord(
            self._logger.name,
            level,
            path,
            line,
            _Event(event, clean),
            (),
            None,
            function,
            {"event": event, "fields": clean},
        )

    def _handle(self, record: logging.LogRecord) -> None:
        self._logger.handle(record)


def get_logger(name: str) -> EventLogger:
    """Return the logger of a part, such as ``flow.follower``; named ``sync_engine.<part>``."""
    return EventLogger(logging.getLogger(f"sync_engine.{name}"))


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, event, then the fields.

    Records of other libraries work too: their message is the event, their ``extra`` the fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end. Never raises for what a field holds."""
        fields = getattr(record, "fields", None)
        if not isinstance(fields, Mapping):
            extra = {key: v for key, v in vars(record).items() if key not in _RESERVED}
            fields = {key: _clean(value) for key, value in extra.items()}
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", None) or redact(record.getMessage()),
        }
        for key, value in fields.items():
            line[f"{key}_" if key in line else key] = value
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def _clean(value: object) -> object:
    """Return a value that JSON can hold and anyone may see."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, BaseException):
        return redact(f"{type(value).__name__}: {value}")
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"  # payloads are never logged
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    return redact(str(value))


def _shown(value: object) -> str:
    """Return a value for ``key=value``: on one line, quoted where it has spaces or quotes."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if isinstance(value, str) and (not text.isprintable() or not text or set(text) & set(' ="')):
        return json.dumps(text)
    return text
