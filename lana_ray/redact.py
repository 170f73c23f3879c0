"""Removes secrets in URLs and settings from everything that is written or printed."""

from __future__ import annotations

import re
from typing import Any

_USER = re.compile(
    r"([A-Za-z][\w+.-]*):"
    r"(?://?(?:[^/\s@:'\"]*:\S*@"  # a password may contain any character, even slashes and blanks
    r"|[^/\s@:'\"]*:(?!\d+\b)[^@\n'\"]*@)"
    r"|//[^/\s@'\"]*@)"
)
"""Matches a scheme followed by the user, or by user and password; pathlib reduces two slashes to one."""
_CONTAINERS = ("abfs", "abfss", "adl", "wasb", "wasbs")
"""Azure's schemes, which have a container's name in the user's place; ``models`` (MLflow) has an alias."""
_URL = re.compile(r"(?:[A-Za-z][\w+.-]*:/|[^\s'\"]*\?)[^\s'\"]*")
"""Matches a URL, or the end of one with its parameters."""
_PARAMETER = re.compile(r"(?<=[?&#;])([^=&#;\s]+)=([^&#;\s]*)")
_HARMLESS = ("sslmode", "charset", "region", "version", "versionId")
_NAMED = re.compile(
    r"(?<!\w)((?:[\w.-]*(?:password|passwd|secret|token|credential|signature|api_?key|access_?key)[\w.-]*"
    r"|pwd|pass|accountkey|sharedaccesskey)\s*=\s*|\bbearer\s+)[^\s&;,'\")]+",
    re.IGNORECASE,
)
"""Matches secrets by their names, as in database settings and in headers."""


def without_passwords(text: str, instead: str = "***@") -> str:
    """Returns ``text`` without users and passwords in URLs, and without other secrets.

    URL parameters keep their names only: a value may be a signature or a token under any name.

    Args:
        instead: replaces ``user:password@``.
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
    """Returns settings, nested as in YAML, with secrets and users removed from every text."""
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    return without_passwords(value, instead="") if isinstance(value, str) else value
