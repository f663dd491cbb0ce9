"""What a Redis URL says, checked by ourselves: redis-py turns a misspelt database into number 0."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from sync_engine.errors import ConfigError
from sync_engine.telemetry import redact_url

__all__ = ["Address", "Kind", "parse_address"]

_ESCAPE = "percent-encode @ : / ? # % in user and password"
_HOST = re.compile(r"[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+(%25[A-Za-z0-9._\-]+)?\]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TLS_OPTIONS = frozenset(
    {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs"}
)
_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Kind(enum.Enum):
    """How servers are found."""

    SERVER = "one server"
    SOCKET = "one server on a Unix socket"
    CLUSTER = "a cluster"
    SENTINEL = "the master that sentinels name"


_SCHEMES: Mapping[str, tuple[Kind, bool]] = {
    "redis": (Kind.SERVER, False),
    "rediss": (Kind.SERVER, True),
    "redis+cluster": (Kind.CLUSTER, False),
    "rediss+cluster": (Kind.CLUSTER, True),
    "redis+sentinel": (Kind.SENTINEL, False),
    "unix": (Kind.SOCKET, False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A checked URL.

    Attributes:
        kind: How servers are found.
        hosts: Host and port of a server, of cluster nodes to ask first, or of sentinels.
        path: Of the Unix socket.
        service: Name of the master that sentinels know.
        database: Number of the database; 0 on a cluster.
        username: None is the default user.
        password: None is none.
        tls: Options of TLS as redis-py names them, or None for plain text.
        sentinel: User and password of the sentinels themselves, as redis-py names them.
        shown: The URL without its secrets.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, str | bool] | None = None
    sentinel: Mapping[str, str] = field(default_factory=dict, repr=False)
    shown: str = ""


def parse_address(url: str) -> Address:
    """Return what a URL says.

    Args:
        url: ``redis://[user:password@]host[:port][/db]`` (``rediss://`` with TLS),
            ``redis+cluster://host[:port],…`` (``rediss+cluster://`` with TLS),
            ``redis+sentinel://host[:port],…/service[/db]``, or ``unix:///path[?db=n]``.
            Options of TLS: ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` (files),
            ``ssl_check_hostname`` (true or false), ``ssl_cert_reqs`` (required or none). Of
            sentinels: ``sentinel_username``, ``sentinel_password``.

    Raises:
        ConfigError: The URL cannot be used; the message never shows a password.
    """
    parts = _split(url)
    kind, secure = _SCHEMES[parts.scheme]
    options = _options(url, parts.query, kind, secure=secure)
    database = options.pop("db", "")
    service = ""
    if kind is not Kind.SOCKET:
        path = parts.path.removeprefix("/")
        if kind is Kind.SENTINEL:
            service, _, path = path.partition("/")
            if not service:
                _refuse(url, "names no master, as in redis+sentinel://host:26379/mymaster")
        if path and database:
            _refuse(url, "names its database twice")
        database = database or path
    elif not parts.path.startswith("/") or parts.netloc.rpartition("@")[2]:
        _refuse(url, "needs the path of a socket, as in unix:///run/redis.sock")
    username, password = _credentials(url, parts.netloc)
    return Address(
        kind=kind,
        hosts=() if kind is Kind.SOCKET else _hosts(url, parts.netloc, kind),
        path=unquote(parts.path) if kind is Kind.SOCKET else "",
        service=unquote(service),
        database=_database(url, database, kind),
        username=username,
        password=password,
        tls=_tls(url, options) if secure else None,
        sentinel={
            name.removeprefix("sentinel_"): options[name]
            for name in sorted(_SENTINEL_OPTIONS & options.keys())
        },
        shown=redact_url(url),
    )


def _refuse(url: str, why: str) -> NoReturn:
    raise ConfigError(f"redis_url: {redact_url(url)} {why}") from None


def _split(url: str) -> SplitResult:
    if any(ord(letter) < 33 or ord(letter) == 127 for letter in url):
        _refuse(url, "has blanks or control characters")
    try:
        parts = urlsplit(url)
    except ValueError:
        _refuse(url, f"is malformed: {_ESCAPE}")
    if parts.scheme not in _SCHEMES or "://" not in url:
        _refuse(url, f"must start with one of {', '.join(f'{s}://' for s in _SCHEMES)}")
    if "#" in url:
        _refuse(url, f"has a #: {_ESCAPE}")
    if parts.netloc.count("@") > 1 or "@" in parts.path or "@" in parts.query:
        _refuse(url, f"has an @ too many: {_ESCAPE}")
    if parts.netloc.rpartition("@")[0].count(":") > 1:
        _refuse(url, f"has a : too many: {_ESCAPE}")
    if _BAD_ESCAPE.search(url):
        _refuse(url, f"has a % that encodes nothing: {_ESCAPE}")
    return parts


def _credentials(url: str, netloc: str) -> tuple[str | None, str | None]:
    user, _, secret = netloc.rpartition("@")[0].partition(":")
    try:
        username, password = unquote(user, errors="strict"), unquote(secret, errors="strict")
    except UnicodeDecodeError:
        _refuse(url, "has a user or password that is not UTF-8")
    if username and not password:
        _refuse(url, "has a user and no password")
    return username or None, password or None


def _hosts(url: str, netloc: str, kind: Kind) -> tuple[tuple[str, int], ...]:
    found = []
    listed = netloc.rpartition("@")[2].split(",")
    if len(listed) > 1 and kind is Kind.SERVER:
        _refuse(url, "names several hosts: use redis+cluster:// or redis+sentinel://")
    for host in listed:
        name, port = host, "26379" if kind is Kind.SENTINEL else "6379"
        if ":" in host and not host.endswith("]"):
            name, _, port = host.rpartition(":")
        if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
            _refuse(url, f"has a port that is no number from 1 to 65535 (or {_ESCAPE})")
        if not name:
            _refuse(url, "names no host")
        if not _HOST.fullmatch(name):
            _refuse(url, f"has a malformed host: {_ESCAPE}")
        found.append((unquote(name.strip("[]")), int(port)))
    return tuple(found)


def _database(url: str, text: str, kind: Kind) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        _refuse(url, "has a database that is no number")
    if kind is Kind.CLUSTER and int(text):
        _refuse(url, "has a database, but a cluster has number 0 only")
    return int(text)


def _options(url: str, query: str, kind: Kind, *, secure: bool) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        known = {"db"} if kind in (Kind.SERVER, Kind.SOCKET) else set()
        known |= _TLS_OPTIONS if secure else set()
        known |= _SENTINEL_OPTIONS if kind is Kind.SENTINEL else set()
        if name in _TLS_OPTIONS and not secure:
            _refuse(url, f"has the option {name!r} of TLS: use rediss:// or rediss+cluster://")
        if name not in known:
            allowed = ", ".join(sorted(known)) or "none"
            _refuse(url, f"has the unknown option {name!r}; known here: {allowed}")
        if name in options or not value:
            _refuse(url, f"has the option {name!r} {'twice' if value else 'without a value'}")
        options[name] = value
    return options


def _tls(url: str, options: Mapping[str, str]) -> Mapping[str, str | bool]:
    """Certificates and host names are verified unless the URL says otherwise."""
    tls: dict[str, str | bool] = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    tls.update({name: options[name] for name in sorted(_TLS_OPTIONS & options.keys())})
    if tls["ssl_cert_reqs"] not in ("required", "none"):
        _refuse(url, "has an ssl_cert_reqs that is neither 'required' nor 'none'")
    if "ssl_check_hostname" in options:
        chosen = _BOOLEANS.get(options["ssl_check_hostname"].lower())
        if chosen is None:
            _refuse(url, "has an ssl_check_hostname that is neither 'true' nor 'false'")
        tls["ssl_check_hostname"] = chosen
    elif tls["ssl_cert_reqs"] == "none":
        tls["ssl_check_hostname"] = False  # the driver refuses to check names alone
    return tls
