"""Where an S3 is and how to speak to it: plain values that connect to nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from sync_engine.errors import ConfigError

__all__ = ["S3Address", "S3Settings"]

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/\-]{1,254}")
_STYLES = ("auto", "path", "virtual")
_KEY_BYTES_MAX = 1024
_SECONDS = ("connect_timeout_s", "read_timeout_s", "deadline_s")
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_OPTIONS = {
    "region": str,
    "profile": str,
    "endpoint": str,
    "endpoint_url": str,
    "addressing": str,
    "connect_timeout_s": float,
    "read_timeout_s": float,
    "deadline_s": float,
    "page_size": int,
    "connections_max": int,
    "use_proxies": bool,
    "verify_tls": bool,
}


@dataclass(frozen=True, slots=True)
class S3Address:
    """A bucket and the beginning of keys in it.

    Attributes:
        bucket: Name of the bucket.
        prefix: What the keys begin with, literally; empty is the whole bucket.
    """

    bucket: str
    prefix: str = ""

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise ConfigError(
                f"bucket {self.bucket!r} is no bucket name: 3 to 255 of a-z A-Z 0-9 . _ : / -"
            )
        if len(self.prefix.encode("utf-8", "surrogatepass")) > _KEY_BYTES_MAX:
            raise ConfigError(f"the prefix is longer than {_KEY_BYTES_MAX} bytes of UTF-8")

    @classmethod
    def parse(cls, url: str) -> S3Address:
        """Read ``s3://bucket/prefix``; the prefix is taken as it stands, nothing is unescaped.

        Raises:
            ConfigError: It is no such address.
        """
        scheme, separator, rest = url.partition("://")
        if scheme != "s3" or not separator:
            raise ConfigError(f"{url!r} is no S3 address: write s3://bucket/prefix")
        bucket, _, prefix = rest.partition("/")
        if "@" in bucket:
            raise ConfigError("an S3 address holds no credentials: pass them as settings")
        return cls(bucket, prefix)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """How to reach an S3, and for how long to try. Secrets never show in its repr or pickle.

    Attributes:
        region: Name of the region; None asks the usual chain, or is ``us-east-1`` at an endpoint of
            one's own.
        access_key_id: None asks the usual chain: environment, profile, container, instance.
        secret_access_key: Given together with the id.
        session_token: Of temporary credentials.
        profile: A profile of the AWS configuration files; not together with keys.
        endpoint_url: ``http://`` or ``https://`` address of another S3; None is AWS.
        addressing: ``path`` (``host/bucket/key``), ``virtual`` (``bucket.host/key``) or ``auto``:
            path at an endpoint of one's own, else what AWS prefers.
        connect_timeout_s: Seconds for a connection (above 0).
        read_timeout_s: Seconds without a byte after which an answer counts as lost (above 0).
        deadline_s: Seconds that an operation may take with all its retries (above 0); the attempt
            under way at that moment may take up to `read_timeout_s` longer.
        page_size: Keys a page of a listing, 1 to 1,000; servers give no more than 1,000.
        connections_max: Connections kept open (at least 1): how many threads may work at a time.
        use_proxies: Whether ``HTTP_PROXY`` and the like are followed.
        verify_tls: False trusts any certificate; a path names a bundle of authorities.

    Raises:
        ConfigError: A setting is out of range, or two do not go together.
    """

    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None
    endpoint_url: str | None = None
    addressing: str = "auto"
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0
    deadline_s: float = 120.0
    page_size: int = 1000
    connections_max: int = 16
    use_proxies: bool = False
    verify_tls: bool | str = True

    def __post_init__(self) -> None:
        for name in _SECONDS:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0 seconds, got {getattr(self, name)!r}")
        if not 1 <= self.page_size <= 1000:
            raise ConfigError(f"page_size must be 1 to 1000 keys, got {self.page_size!r}")
        if self.connections_max < 1:
            raise ConfigError(f"connections_max must be at least 1, got {self.connections_max!r}")
        if self.addressing not in _STYLES:
            raise ConfigError(f"addressing must be one of {', '.join(_STYLES)}")
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ConfigError("access_key_id and secret_access_key come together, or not at all")
        if self.session_token is not None and self.access_key_id is None:
            raise ConfigError("session_token needs access_key_id and secret_access_key")
        if self.profile is not None and self.access_key_id is not None:
            raise ConfigError("give either a profile or keys, not both")
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url)

    def __reduce__(self) -> Any:
        raise TypeError("S3Settings may hold secrets: make them anew where they are needed")

    @property
    def path_style(self) -> bool:
        """Whether the bucket stands in the path."""
        return self.addressing == "path" or (
            self.addressing == "auto" and self.endpoint_url is not None
        )

    @property
    def endpoint(self) -> str:
        """Name of the server, for messages and state files: an address or ``aws``."""
        return "aws" if self.endpoint_url is None else self.endpoint_url.rstrip("/").lower()

    @classmethod
    def from_url(cls, url: str, **others: Any) -> tuple[S3Address, Self]:
        """Read ``s3://bucket/prefix?region=…&endpoint=…``: an address and settings.

        Args:
            url: Options follow a ``?``: region, profile, endpoint, addressing, connect_timeout_s,
                read_timeout_s, deadline_s, page_size, connections_max, use_proxies, verify_tls.
                A prefix that holds ``?`` itself is written ``%3F``; only with options is the prefix
                unescaped. Credentials are not taken from a URL.
            others: Settings that the URL leaves open.

        Raises:
            ConfigError: It is no such address, or has an unknown option.
        """
        place, question, query = url.partition("?")
        if not question:
            return S3Address.parse(url), cls(**others)
        address = S3Address.parse(unquote(place))
        given: dict[str, Any] = {}
        for name, text in parse_qsl(query, keep_blank_values=True):
            if name not in _OPTIONS:
                raise ConfigError(f"an S3 address has no option {name!r}: {', '.join(_OPTIONS)}")
            given["endpoint_url" if name == "endpoint" else name] = _option(name, text)
        return address, cls(**others | given)

    def with_(self, **changes: Any) -> Self:
        """Return a copy in which some settings are others."""
        return replace(self, **changes)

    @classmethod
    def names(cls) -> frozenset[str]:
        """Return the names of all settings."""
        return frozenset(each.name for each in fields(cls))

    @classmethod
    def taken_from(cls, given: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Make settings of what belongs to them; return the rest beside them.

        Raises:
            ConfigError: A setting is out of range.
        """
        names = cls.names()
        own = {name: value for name, value in given.items() if name in names}
        return cls(**own), {name: value for name, value in given.items() if name not in names}


def _option(name: str, text: str) -> Any:
    kind = _OPTIONS[name]
    try:
        if kind is bool:
            return _TRUTHS[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"option {name} of an S3 address cannot be {text!r}") from None


def _check_endpoint(url: str) -> None:
    try:
        parts: SplitResult = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        raise ConfigError("endpoint_url is malformed: write https://host:port") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_fine:
        raise ConfigError("endpoint_url must be http://host:port or https://host:port")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("endpoint_url holds no credentials: pass them as settings")
    if parts.query or parts.fragment:
        raise ConfigError("endpoint_url ends with its host, port or path: no ? and no #")
