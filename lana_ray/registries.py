"""Registries: entries of one kind by name, from which settings, help and plots derive.

| kind | registry | entries |
|---|---|---|
| runtime | ``deploy.runtimes.RUNTIMES`` | a ``Runtime``, one module each |
| cost | ``costs.registry.METERS`` | a ``Meter``, one module each |
| cell space | ``spaces.cells.SPACES`` | a subclass of ``CellSpace`` |
| operation | ``ops.registry.FAMILIES`` | a ``Family``, added by ``ops.register`` |
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function

from lana_ray.errors import UserError


class Named(Protocol):
    """An entry of a registry."""

    @property
    def name(self) -> str:
        """The entry's name in settings."""


T = TypeVar("T", bound=Named)


class Registry(dict[str, T]):
    """Entries of one kind by name, in the order in which they are listed.

    Looking up an unknown name raises a UserError that lists the names there are.
    """

    def __init__(self, kind: str, entries: Iterable[T] = ()) -> None:
        super().__init__((entry.name, entry) for entry in entries)
        self.kind = kind

    def __missing__(self, name: str) -> T:
        raise UserError("unknown_name", f"unknown {self.kind} {name!r}; use one of {', '.join(self)}")


@dataclass(frozen=True)
class OneOf:
    """Marks a setting whose allowed values are the names of a registry's entries."""

    module: str
    registry: str

    def names(self) -> tuple[str, ...]:
        """Returns the entries' names; only this call imports the registry and its dependencies."""
        return tuple(getattr(importlib.import_module(self.module), self.registry))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        if name not in self.names():
            # Reported like pydantic's own errors for literals.
            raise PydanticCustomError("literal_error", "not the name of an entry", {"given": name})
        return name
