"""What all sections have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
LOCATION = "location"
"""Marks fields that hold a path, or several, made absolute against the file that names them."""


class Section(BaseModel):
    """A block of the configuration; keys it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def location(**extra: Any) -> Any:
    return Field(json_schema_extra={LOCATION: True}, **extra)
