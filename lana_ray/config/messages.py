"""Explains a mistake in a configuration in one line: the key, its value, what is allowed."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lana_ray.config.budgets import Budget
from lana_ray.config.section import Section, ValueDescription, format_value, kinds
from lana_ray.errors import Code
from lana_ray.registries import OneOf

Location = tuple[int | str, ...]
_UNKNOWN = ("extra_forbidden", "invalid_key")
_BOUNDS = {
    Ge: "at least {0.ge}",
    Gt: "above {0.gt}",
    Le: "at most {0.le}",
    Lt: "below {0.lt}",
    MaxLen: "at most {0.max_length} characters",
}


@dataclass(frozen=True)
class Mistake:
    """A mistake in a configuration."""

    at: Location
    """The path of the setting."""
    text: str
    """A line that names the setting, its value and the fix."""
    code: Code = "invalid_setting"


def explain(root: type[Section], data: Any, errors: Sequence[ErrorDetails]) -> Mistake:
    """Returns the mistake that the user should fix first.

    Args:
        root: the section that was validated.
        data: the data that was validated.
        errors: pydantic's errors.
    """
    # A misspelt key is the cause of the key that is missing.
    first = min(errors, key=lambda error: error["type"] not in _UNKNOWN)
    context = first.get("ctx", {})
    at: Location = (*first["loc"], *context.get("at", ()))
    key = place(at, data)
    if first["type"] in _UNKNOWN:
        owner = place(at[:-1], data)
        text = f"unknown key {owner}{'.' if owner else ''}{at[-1]}; {_hint_for_key(root, at)}"
        return Mistake(at, text, "unknown_name")
    if first["type"] == "missing" and isinstance(at[-1], int):  # the list is too short
        at, key = at[:-1], place(at[:-1], data)
        expected = _expected(_field_at(root, at), None)
        return Mistake(at, f"{key}: {format_value(first['input'])} is not valid; {expected}")
    if first["type"] == "missing":
        field = _section_of(root, at).model_fields.get(str(at[-1]))
        hint = f", e.g. {at[-1]}: {field.examples[0]}" if field and field.examples else ""
        return Mistake(at, f"{key}: missing; every {_owner(at)} needs it{hint}")
    if first["type"] == "refusal":
        return Mistake(at, f"{key}: {context['text']}" if key else context["text"])
    if first["type"] == "value_error":
        return Mistake(at, f"{key}: {context['error']}")
    value = context["value"] if "value" in context else _value_at(at, data, first["input"])
    expected = "expected text, not blank and without control characters"
    if first["type"] != "unprintable":
        expected = _expected(_field_at(root, at), value)
    return Mistake(at, f"{key}: {format_value(value)} is not valid; {expected}")


def sections(annotation: Any) -> Iterator[type[Section]]:
    """Returns the sections in an annotation such as ``tuple[Annotated[Budget, ...], ...]``."""
    return (kind for kind in kinds(annotation) if isinstance(kind, type) and issubclass(kind, Section))


def place(at: Location, data: Any) -> str:
    """Returns a setting's path, with the names of items of lists: ``targets[0] (edge).threads``."""
    text = ""
    for part in at:
        data = _below(data, part)
        if isinstance(part, int):
            text += f"[{part}]"
            name = data.get("name") if isinstance(data, Mapping) else getattr(data, "name", None)
            text += f" ({name})" if isinstance(name, str) and name.isprintable() and len(name) < 64 else ""
        else:
            text += f".{part}" if text else part
    return text


def nearest(name: str, among: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Returns the most similar name, if one is similar enough to be what the user meant."""
    options = {option.lower(): option for option in among}
    name = name.lower()
    near = difflib.get_close_matches(name, options, n=1, cutoff=cutoff)
    near = near or [option for option in options if len(name) >= 3 and (name in option or option in name)]
    return options[near[0]] if len(near) == 1 else None


def listed(words: Sequence[str], last: str = "or") -> str:
    """Returns a list in words: ``a, b or c``."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _value_at(at: Location, data: Any, otherwise: Any) -> Any:
    """Returns the value at a path, from before validators converted it; ``otherwise`` if there is none."""
    for part in at:
        if not isinstance(data, dict | list) or (isinstance(data, dict) and part not in data):
            return otherwise
        data = data[part]  # type: ignore[index]
    return data


def _below(data: Any, part: int | str) -> Any:
    try:
        return data[part]
    except (TypeError, KeyError, IndexError):
        return getattr(data, str(part), None)


def _owner(at: Location) -> str:
    """Returns what a key belongs to: ``run``, ``target``, ``budget``, or the section's name."""
    owner = next((part for part in reversed(at[:-1]) if isinstance(part, str)), "run")
    return {"targets": "target", "budgets": "run", "latency_ms": "budget"}.get(owner, owner)


def _section_of(root: type[Section], at: Location) -> type[Section]:
    """Returns the section that a key is in."""
    return next(sections(_field_at(root, at[:-1]).annotation), root)


def _hint_for_key(root: type[Section], at: Location) -> str:
    """Returns the keys that an unknown key may be meant to be, in words."""
    name, keys = str(at[-1]), sorted(_section_of(root, at).model_fields)
    elsewhere = [path for path in _paths(root) if path.split(".")[-1] == name]
    if near := nearest(name, keys, cutoff=0.75 if elsewhere else 0.6):
        return f"did you mean {near}?"
    if elsewhere:
        return f"did you mean {listed(elsewhere)}?"
    return f"known keys: {', '.join(keys)}"


def _paths(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yields the path of every setting in a section, except those of items of lists."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        inner = _without_null(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _paths(inner, f"{prefix}{name}.")


def _field_at(root: type[Section], at: Location) -> FieldInfo:
    """Returns the type, constraints and descriptions of the value at a path."""
    field = FieldInfo(annotation=root)
    for part in at:
        inner = _without_null(field.annotation)
        if isinstance(part, str):
            section = next(sections(inner), None)
            if section is None or part not in section.model_fields:
                return field
            field = section.model_fields[part]
        elif get_origin(inner) is tuple:
            items = [item for item in get_args(inner) if item is not Ellipsis]
            field = FieldInfo.from_annotation(items[min(part, len(items) - 1)])
    return field


def _without_null(annotation: Any) -> Any:
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    others = [option for option in get_args(annotation) if option is not types.NoneType]
    return others[0] if len(others) == 1 else annotation


def _not_null(field: FieldInfo) -> FieldInfo:
    """Returns a field's type without null, with the constraints of both."""
    inner = FieldInfo.from_annotation(_without_null(field.annotation))
    inner.metadata = [*field.metadata, *inner.metadata]
    return inner


def _expected(field: FieldInfo, value: Any) -> str:
    """Returns what to write instead of a value: the nearest of the allowed words, and all that is allowed."""
    words = _words(field)
    near = nearest(value, words) if isinstance(value, str) else None
    hint = f"did you mean {near}? " if near else ""
    quotes = (
        "; put it in quotes" if _not_null(field).annotation is str and isinstance(value, int | float) else ""
    )
    return f"{hint}expected {allowed(field)}{quotes}"


def _words(field: FieldInfo) -> list[str]:
    """Returns the allowed words of a type that only allows some."""
    inner = _not_null(field)
    if get_origin(inner.annotation) is Literal:
        return [str(option) for option in get_args(inner.annotation)]
    return [name for mark in inner.metadata if isinstance(mark, OneOf) for name in mark.names()]


def allowed(field: FieldInfo) -> str:
    """Returns the allowed values of a setting in words: ``a whole number, at least 1``."""
    inner: Any = field.annotation
    if _without_null(inner) is not inner:
        return f"{allowed(_not_null(field))}, or null"
    for mark in field.metadata:
        if isinstance(mark, ValueDescription):
            return mark.text + _bounds(field.metadata)
    if names := _words(field):
        return listed(names)
    if get_origin(inner) is tuple:
        return _allowed_list(get_args(inner), field.metadata)
    if isinstance(inner, type) and issubclass(inner, Section):
        if issubclass(inner, Budget):
            return f"a budget, e.g. 50% or {inner.example}"
        return f"a block with keys among {', '.join(sorted(inner.model_fields))}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words.get(inner, str(inner)) + _bounds(field.metadata)


def _allowed_list(items: tuple[Any, ...], metadata: Sequence[Any]) -> str:
    each = allowed(FieldInfo.from_annotation(items[0]))
    if Ellipsis not in items:
        return f"a list of {len(items)}, each {each}"
    least = next((mark.min_length for mark in metadata if isinstance(mark, MinLen)), 0)
    return f"a list{f' of at least {least}' if least else ''}, each {each}"


def _bounds(metadata: Sequence[Any]) -> str:
    words = [_BOUNDS[type(mark)].format(mark) for mark in metadata if type(mark) in _BOUNDS]
    return f", {listed(words, 'and')}" if words else ""
