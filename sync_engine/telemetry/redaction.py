"""Passwords out of everything that is shown."""

from __future__ import annotations

import re

__all__ = ["redact", "redact_url"]

_MASK = "***"
# Up to the last "@": a password that should have been percent-encoded may hold "@" and "/" itself.
_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)([^\s:@/\"'<>]*):\S*@")
_URL_CREDENTIALS = re.compile(r"^([^:/]*://)([^:@/]*):.*@", re.DOTALL)
_NAMES = r"pass(?:word|wd|phrase)?|pwd|secret|token|api_?key|access_?key|auth|credentials?"
_PARAMETER = re.compile(rf"([?&;][\w.\-]*(?:{_NAMES})[\w.\-]*=)[^&;#\s\"']*", re.IGNORECASE)


def redact_url(url: str) -> str:
    """Return a URL that can be shown: password and secret parameters are replaced by ``***``.

    Malformed URLs are masked generously, never less than their password.
    """
    return _PARAMETER.sub(rf"\1{_MASK}", _URL_CREDENTIALS.sub(rf"\1\2:{_MASK}@", url))


def redact(text: str) -> str:
    """Return a text that can be shown: every URL in it is redacted.

    Cost: one scan; texts without ``://`` are returned as they are.
    """
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{_MASK}", _CREDENTIALS.sub(rf"\1\2:{_MASK}@", text))
