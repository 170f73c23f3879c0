"""Writes a YAML file of every setting with its meaning, its allowed values and its default."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lana_ray.config import reader
from lana_ray.config.budgets import Budget
from lana_ray.config.config import Config
from lana_ray.config.messages import allowed, sections
from lana_ray.config.section import Section

_WIDTH = 100
_INDENT = "  "


def documented() -> str:
    """Returns all settings as YAML that reads back; blocks that are off by default are commented out."""
    lines = [
        "# Only teacher, data, targets and budgets are required; their values here are examples.",
        *_section(Config, values={}),
    ]
    return "\n".join(lines) + "\n"


def _section(section: type[Section], values: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of a section, with ``values`` instead of the defaults."""
    for name, field in section.model_fields.items():
        inner = next(sections(field.annotation), None)
        if inner is not None and not issubclass(inner, Budget):  # budgets are written as text
            yield ""
            yield from _block(name, field, inner)
        else:
            yield from _setting(name, field, values)


def _block(name: str, field: FieldInfo, inner: type[Section]) -> Iterator[str]:
    """Yields the lines of a section inside another one, or of a list of sections."""
    example = reader.read(field.examples[0]) if field.examples else {}
    body = list(_section(inner, example[0] if isinstance(example, list) else example))
    body = body[1:] if body[0] == "" else body
    comment = field.description or (inner.__doc__ or "")
    yield from _comment(comment, "required" if field.is_required() else "")
    if field.default is None:  # off by default
        yield f"# {name}:"
        yield from (f"# {_INDENT}{line}".rstrip() for line in body)
        return
    yield f"{name}:"
    if isinstance(example, list):
        first = next(place for place, line in enumerate(body) if line and not line.startswith("#"))
        body = [f"{'- ' if place == first else _INDENT}{line}" for place, line in enumerate(body)]
    yield from (f"{_INDENT}{line}".rstrip() for line in body)


def _setting(name: str, field: FieldInfo, values: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of a setting: its comment and its value."""
    value = values.get(name, field.default)
    if value is PydanticUndefined:
        assert field.examples, f"a required setting without an example: {name}"
        value = reader.read(field.examples[0])
    yield from _comment(field.description or "", allowed(field))
    yield reader.write_flow({name: value})


def _comment(text: str, allowed: str) -> Iterator[str]:
    text = " ".join(text.replace("``", "").split())
    return (f"# {line}" for line in textwrap.wrap(f"{text} ({allowed})" if allowed else text, _WIDTH - 2))
