"""Keeps the passwords of URLs out of what is written and said."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)(?:[^/\s@:]*:\S*@|[^/\s@]*@)")
_QUERY = re.compile(r"(?<=[?&])(\w*(?:password|secret|token|key)\w*)=[^&\s'\"]+", re.IGNORECASE)


def without_passwords(text: str, instead: str = "***@") -> str:
    """``text`` with the user and password of every URL in it replaced, and secrets in queries left out.

    Args:
        instead: of ``user:password@``.
    """
    return _QUERY.sub(r"\1=***", _USER.sub(instead, text))
