"""What a factory that hands its settings on to a class takes: told once, by the class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["settings_of"]


def settings_of(made: Callable[..., Any], *without: str) -> inspect.Signature:
    """Return the signature of a factory ``(context, **settings)``, for who checks names.

    Args:
        made: The class that the settings are for.
        without: Arguments of it that the factory gives itself.
    """
    told = inspect.signature(made)
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    settings = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in told.parameters.items()
        if name not in without
    ]
    return told.replace(parameters=[context, *settings])
