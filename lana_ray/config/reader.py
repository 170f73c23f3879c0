"""Reads YAML by the rules of version 1.2, in which ``no`` is a word and 1e-3 a number, as users expect.

PyYAML follows version 1.1, in which ``no`` and ``off`` are false, 010 is eight, 1:30 is ninety, and 1e-3 is
a word. Here the type of the setting determines the meaning of a word: ``off`` is false for a flag and a name
for a target.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

_NUMBER = (
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_RESOLVED = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    ("float", _NUMBER, list("-+0123456789.")),
    ("merge", r"^<<$", ["<"]),
)
"""Types of words without quotes: name, pattern, first characters."""


class NotYaml(Exception):
    """The text is not valid YAML; the message gives the line and the reason."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - add_implicit_resolver copies it

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Hashable, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise NotYaml(
                    f"key {key.value} is given twice, on lines {lines[key.value]} and {line}; keep one"
                )
            lines[key.value] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version would read as another type."""


for _name, _pattern, _first in _RESOLVED:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), _first)


def read(text: str | bytes) -> Any:
    """The only document in ``text`` (bytes: UTF-8, or UTF-16 with a mark); raises NotYaml if invalid."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise NotYaml("is nested too deeply") from None
    except yaml.reader.ReaderError as error:
        raise NotYaml(_unreadable(error, text)) from None
    except yaml.MarkedYAMLError as error:
        raise NotYaml(_explained(error)) from None
    except (ValueError, yaml.YAMLError) as error:
        raise NotYaml(f"not valid YAML: {' '.join(str(error).split())}") from None


def write(data: Any) -> str:
    """Returns ``data`` as YAML that reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def write_flow(data: dict[str, Any]) -> str:
    """Returns ``data`` as one line of YAML that reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, default_flow_style=True, width=10**6).strip()[1:-1]


def _unreadable(error: yaml.reader.ReaderError, text: str | bytes) -> str:
    line_end = "\n" if isinstance(text, str) else b"\n"
    line = text[: error.position].count(line_end) + 1  # type: ignore[arg-type]
    code = ord(error.character) if isinstance(error.character, str | bytes) else error.character
    if error.encoding == "unicode":
        return f"cannot be read: line {line} contains the character U+{code:04X}, which YAML forbids"
    return f"cannot be read as {error.encoding.upper()}: byte 0x{code:02x} in line {line}; save it as UTF-8"


def _explained(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    if "single document" in (error.context or ""):
        return f"contains several documents, the second from line {mark.line + 1 if mark else '?'}; keep one"
    if r"'\t'" in (error.problem or ""):
        return f"not valid YAML: {where}a tab; indent with spaces"
    words = " ".join(f"{error.context or ''} {error.problem or ''}".split())
    return f"not valid YAML: {where}{words}"
