"""Defines the base class of all sections, values with units, and the errors of rules between settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from lana_ray.redact import without_passwords

LOCATION = "location"
"""Marks fields with one or more paths, which are relative to the file that names them."""

_LONGEST = 80
"""Most characters of a value that a message repeats."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class ValueDescription:
    """The allowed values of a field in words, if its type does not suffice."""

    text: str


def quantity(text: str, units: Container[str]) -> tuple[float, str] | None:
    """Splits ``12.5 ms`` into its number and its unit; None if it is not a number with one of the units."""
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(\D*?)\s*", text)
    try:
        return (float(match[1]), match[2]) if match and match[2] in units else None
    except ValueError:
        return None


def _scaled_by(units: Mapping[str, float]) -> BeforeValidator:
    """Converts text with one of the units, each with its size; leaves other values to the field."""

    def convert(value: Any) -> Any:
        read = quantity(value, units) if isinstance(value, str) else None
        return read[0] * units[read[1]] if read else value

    return BeforeValidator(convert)


Share = Annotated[float, _scaled_by({"%": 0.01}), ValueDescription("a share, e.g. 0.02 or 2%")]
"""A share that may be written as a percentage."""
Fraction = Annotated[Share, Field(ge=0, lt=1)]
Seconds = Annotated[
    float,
    _scaled_by({"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}),
    ValueDescription("a time in seconds, e.g. 10, 500ms or 2min"),
]
"""A time in seconds that may be written with a unit: ms, s, min or h."""


def refusal(text: str, *at: str | int) -> PydanticCustomError:
    """The error for a rule that a section breaks; ``at`` is the setting's path from that section."""
    return PydanticCustomError("refusal", "{text}", {"text": text, "at": at})


def format_value(value: Any) -> str:
    """Returns a value as a user would write it, on one line of limited length, without passwords."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, float) and not math.isfinite(value):
        text = ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, default=repr)
        except (TypeError, ValueError, RecursionError):  # a key is not text, or a list contains itself
            text = repr(value)
    text = " ".join(without_passwords(text).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


class Section(BaseModel):
    """A block of the configuration, which refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_conversions(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses values that pydantic would convert unexpectedly; makes an empty block one of defaults."""
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        if value is None and isinstance(annotation, type) and issubclass(annotation, Section):
            return {}
        expected = set(kinds(annotation))
        for place, item in enumerate(value) if isinstance(value, list | tuple) else [((), value)]:
            at = (place,) if isinstance(place, int) else place
            if isinstance(item, bool) and bool not in expected:
                raise PydanticCustomError("flag", "not a flag", {"at": at, "value": item})
            if isinstance(item, str) and str in expected and (not item.strip() or _CONTROL.search(item)):
                raise PydanticCustomError("unprintable", "no text", {"at": at, "value": item})
        return value


def kinds(annotation: Any) -> Iterator[Any]:
    """Yields the types in an annotation such as ``tuple[Annotated[float, ...], ...] | None``."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from kinds(argument)


def location(**extra: Any) -> Any:
    """Returns a field with one or more paths, which are relative to the file that names them."""
    return Field(json_schema_extra={LOCATION: True}, **extra)
