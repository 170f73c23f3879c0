"""Keeps secrets in URLs and settings out of what is written and said."""

from __future__ import annotations

import re
from typing import Any

_USER = re.compile(
    r"([A-Za-z][\w+.-]*):"
    r"(?://?(?:[^/\s@:'\"]*:\S*@"  # a password may hold any character, slashes and blanks too
    r"|[^/\s@:'\"]*:(?!\d+\b)[^@\n'\"]*@)"
    r"|//[^/\s@'\"]*@)"
)
"""A scheme, and the user or the user and password; pathlib leaves one slash of two."""
_CONTAINERS = ("abfs", "abfss", "adl", "wasb", "wasbs")
"""Azure's schemes, where the name of a container is in the user's place; MLflow's ``models`` has an alias."""
_URL = re.compile(r"(?:[A-Za-z][\w+.-]*:/|[^\s'\"]*\?)[^\s'\"]*")
"""A URL, or the end of one with its parameters."""
_PARAMETER = re.compile(r"(?<=[?&#;])([^=&#;\s]+)=([^&#;\s]*)")
_HARMLESS = ("sslmode", "charset", "region", "version", "versionId")
_NAMED = re.compile(
    r"(?<!\w)((?:[\w.-]*(?:password|passwd|secret|token|credential|signature|api_?key|access_?key)[\w.-]*"
    r"|pwd|pass|accountkey|sharedaccesskey)\s*=\s*|\bbearer\s+)[^\s&;,'\")]+",
    re.IGNORECASE,
)
"""Secrets by their names, as in the settings of databases and in headers."""


def without_passwords(text: str, instead: str = "***@") -> str:
    """``text`` without the user and password of every URL in it, nor other secrets.

    Of the parameters of a URL the names are kept: their values may be signatures and tokens, whatever they
    are called.

    Args:
        instead: of ``user:password@``.
    """

    def user(match: re.Match[str]) -> str:
        if match[1].lower() == "models" or (match[1].lower() in _CONTAINERS and match[0].count(":") == 1):
            return match[0]
        return f"{match[1]}://{instead}"

    def parameter(match: re.Match[str]) -> str:
        return match[0] if match[1] in _HARMLESS else f"{match[1]}=***"

    text = _URL.sub(lambda url: _PARAMETER.sub(parameter, url[0]), _USER.sub(user, text))
    return _NAMED.sub(r"\1***", text)


def public(value: Any) -> Any:
    """Settings, nested as in YAML, with every text as ``without_passwords`` leaves it, users left out."""
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    return without_passwords(value, instead="") if isinstance(value, str) else value
