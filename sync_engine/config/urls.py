"""URLs of servers: what drivers would silently misread is refused here.

A password with an unescaped ``@``, ``/``, ``?`` or ``#`` makes another host out of its tail, and a
database that is no number becomes database 0. Messages never quote the URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from sync_engine.config.gather import nearest
from sync_engine.config.values import Kind, Unusable
from sync_engine.telemetry import redact_url

__all__ = ["redis_url", "sql_url", "sqlite_file"]

_ESCAPE = "percent-encode @ : / ? # in user and password"
_REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "unix")
_TLS = ("rediss", "rediss+cluster")
_REDIS_OPTIONS = {
    "db": ("redis", "rediss", "unix"),
    **dict.fromkeys(
        ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs"), _TLS
    ),
    **dict.fromkeys(("sentinel_username", "sentinel_password"), ("redis+sentinel",)),
}
_CHOICES = {
    "ssl_cert_reqs": ("required", "none"),
    "ssl_check_hostname": ("true", "false", "1", "0", "yes", "no"),
}
_OPTION = re.compile(r"[a-z][a-z_]{0,31}")
_SQL_DIALECTS = ("sqlite", "mysql", "mariadb", "postgresql", "postgres")
_HOST = re.compile(r"[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.%A-Za-z]+\]")


def redis_url() -> Kind:
    """Return the kind of Redis URLs; empty text is None."""
    return _kind("Redis URL", _redis_faults)


def sql_url() -> Kind:
    """Return the kind of SQLAlchemy URLs; empty text is None."""
    return _kind("SQLAlchemy URL", _sql_faults)


def sqlite_file(url: str) -> str | None:
    """Return the file that a SQLite URL names; empty for memory, None for other databases."""
    if not url.startswith(("sqlite:", "sqlite+")):
        return None
    path = unquote(url.partition("://")[2].partition("?")[0]).removeprefix("/")
    query = dict(parse_qsl(url.partition("?")[2]))
    if path in {"", ":memory:", "file::memory:"} or query.get("mode") == "memory":
        return ""
    return path.removeprefix("file:")


def _kind(name: str, faults: Callable[[str], Iterator[str]]) -> Kind:
    def parse(raw: object) -> str | None:
        if raw is None or raw == "":
            return None
        if not isinstance(raw, str):
            raise Unusable(f"must be a {name}, not {type(raw).__name__}")
        found = list(faults(raw))
        if found:
            raise Unusable("; ".join(found))
        return raw

    def show(value: str | None) -> str:
        return "none" if value is None else redact_url(value)

    return Kind(name, parse, show, secret=True)


def _redis_faults(url: str) -> Iterator[str]:
    parts, faults = _split(url)
    yield from faults
    if parts is None:
        return
    if parts.scheme not in _REDIS_SCHEMES:
        yield f"must start with one of {', '.join(f'{s}://' for s in _REDIS_SCHEMES)}"
        return
    yield from _redis_option_faults(parts)
    if parts.scheme == "unix":
        if not parts.path:
            yield "needs the path of a socket, as in unix:///run/redis.sock"
        return
    yield from _host_faults(parts)
    database = parts.path.strip("/")
    if parts.scheme == "redis+sentinel":
        master, _, database = database.partition("/")
        if not master:
            yield "names no master, as in redis+sentinel://host:26379/mymaster"
    if database and not (database.isascii() and database.isdigit()):
        yield "has a database that is no number"


def _redis_option_faults(parts: SplitResult) -> Iterator[str]:
    """Tell what the store would refuse at its start, or the driver would misread."""
    known = [option for option, schemes in _REDIS_OPTIONS.items() if parts.scheme in schemes]
    seen: set[str] = set()
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _REDIS_OPTIONS and name not in known:
            yield f"has the option {name}, which goes with {_or(_REDIS_OPTIONS[name])}"
        elif name not in known:
            listed = ", ".join(known) or "none"
            guess = nearest(name, known) or f"; known here: {listed}"
            shown = f" {name}" if _OPTION.fullmatch(name) else ""  # else it may be anything
            yield f"has an unknown option{shown}{guess}"
        elif name in seen or not value:
            yield f"has the option {name} {'twice' if name in seen else 'without a value'}"
        elif name == "db" and not (value.isascii() and value.isdigit()):
            yield "has a database that is no number"
        elif name in _CHOICES and value.lower() not in _CHOICES[name]:
            yield f"has an option {name} that is none of {', '.join(_CHOICES[name])}"
        seen.add(name)
    if "db" in seen and parts.scheme in ("redis", "rediss") and parts.path.strip("/"):
        yield "names its database twice"


def _or(schemes: Sequence[str]) -> str:
    return " or ".join(f"{scheme}://" for scheme in schemes)


def _sql_faults(url: str) -> Iterator[str]:
    dialect = url.partition("://")[0].partition("+")[0]
    if "://" not in url or dialect not in _SQL_DIALECTS:
        yield f"must start with one of {', '.join(f'{d}://' for d in _SQL_DIALECTS)}"
        return
    if dialect == "sqlite":
        if sqlite_file(url) == "":
            yield "names a database in memory, which would not survive what the log gives up"
        return
    parts, faults = _split(url)
    yield from faults
    if parts is not None:
        yield from _host_faults(parts)
        if not parts.path.strip("/"):
            yield "names no database"


def _split(url: str) -> tuple[SplitResult | None, list[str]]:
    """Take a URL apart; tell where a secret leaked into another part."""
    if any(ord(letter) < 33 or ord(letter) == 127 for letter in url):
        return None, ["has blanks or control characters"]
    try:
        parts = urlsplit(url)
    except ValueError:
        return None, [f"is malformed: {_ESCAPE}"]
    if parts.fragment or "#" in url:
        return None, [f"has a #: {_ESCAPE}"]
    if parts.netloc.count("@") > 1 or "@" in parts.path or "@" in parts.query:
        return None, [f"has an @ too many: {_ESCAPE}"]
    if parts.netloc.rpartition("@")[0].count(":") > 1:
        return None, [f"has a : too many: {_ESCAPE}"]
    return parts, []


def _host_faults(parts: SplitResult) -> Iterator[str]:
    for host in parts.netloc.rpartition("@")[2].split(","):
        name, port = host, ""
        if not host.endswith("]") and ":" in host:
            name, _, port = host.rpartition(":")
            if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
                yield f"has a port that is no number from 1 to 65535 (or {_ESCAPE})"
                return
        if not name:
            yield "names no host"
        elif not _HOST.fullmatch(name):
            yield f"has a malformed host: {_ESCAPE}"
