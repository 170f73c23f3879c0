"""What all sections have in common: how values are read, and how a rule between settings refuses them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from lana_ray.redact import without_passwords

LOCATION = "location"
"""Marks fields that hold a path, or several, made absolute against the file that names them."""

_SECONDS_PER_UNIT = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_LONGEST = 80
"""Characters of a value that a message repeats."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Says:
    """What a field takes, in words, where its type alone does not tell."""

    text: str


def _per_cent(value: Any) -> Any:
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*%\s*", value) if isinstance(value, str) else None
    return _scaled(match[1], 0.01, value) if match else value


def _seconds(value: Any) -> Any:
    match = (
        re.fullmatch(r"\s*([0-9.eE+-]*[0-9.])\s*(ms|s|min|h)\s*", value) if isinstance(value, str) else None
    )
    return _scaled(match[1], _SECONDS_PER_UNIT[match[2]], value) if match else value


def _scaled(number: str, by: float, otherwise: Any) -> Any:
    """``number * by``; ``otherwise``, which the field refuses, where it is not a number."""
    try:
        return float(number) * by
    except ValueError:
        return otherwise


Share = Annotated[float, BeforeValidator(_per_cent), Says("a share, e.g. 0.02 or 2%")]
"""Also written as a percentage."""
Fraction = Annotated[Share, Field(ge=0, lt=1)]
Seconds = Annotated[float, BeforeValidator(_seconds), Says("a time in seconds, e.g. 10, 500ms or 2min")]
"""Also written with a unit: ms, s, min or h."""


def refusal(text: str, *at: str | int) -> PydanticCustomError:
    """The error of a rule that a section breaks.

    Args:
        text: what is wrong, with the value, and the fix.
        at: the setting in question, as a path from the section that raises this.
    """
    return PydanticCustomError("refusal", "{text}", {"text": text, "at": at})


def shown(value: Any) -> str:
    """A value as one would write it, short and on one line."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, float) and not math.isfinite(value):
        text = ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, default=repr)
        except (TypeError, ValueError, RecursionError):  # keys that are no text, a list that holds itself
            text = repr(value)
    text = " ".join(without_passwords(text).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


class Section(BaseModel):
    """A block of the configuration; keys it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses what pydantic would convert to what nobody meant; an empty block is one of defaults."""
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        if value is None and isinstance(annotation, type) and issubclass(annotation, Section):
            return {}
        kinds = set(_kinds(annotation))
        for place, item in enumerate(value) if isinstance(value, list | tuple) else [((), value)]:
            at = (place,) if isinstance(place, int) else place
            if isinstance(item, bool) and bool not in kinds:
                raise PydanticCustomError("flag", "not a flag", {"at": at, "given": item})
            if isinstance(item, str) and str in kinds and (not item.strip() or _CONTROL.search(item)):
                raise PydanticCustomError("unprintable", "no text", {"at": at, "given": item})
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types in an annotation such as ``tuple[Annotated[float, ...], ...] | None``."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _kinds(argument)


def location(**extra: Any) -> Any:
    return Field(json_schema_extra={LOCATION: True}, **extra)
