"""Defines the ``budgets`` block: upper bounds on costs, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator

from lana_ray.config.section import Section, format_value, quantity, refusal


class Budget(Section):
    """An upper bound on a cost: absolute, or a share of the teacher's cost on the same target."""

    units: ClassVar[Mapping[str, float]]
    """Size of each unit that the bound may be written in."""
    example: ClassVar[str]

    value: float = Field(gt=0, examples=["12.5"])
    relative: bool = Field(examples=["false"])

    @classmethod
    def parse(cls, text: Any) -> Self:
        """Reads a share of the teacher's, ``50%``, or a number with or without a unit: ``12.5ms``."""
        read = quantity(str(text), {"%", *cls.units})
        if read is None or not 0 < read[0] < math.inf:
            raise ValueError(f"{format_value(text)} is not a valid budget; use e.g. 50% or {cls.example}")
        number, unit = read
        if unit == "%":
            return cls(value=number / 100, relative=True)
        return cls(value=number * cls.units[unit], relative=False)

    @model_validator(mode="wrap")
    @classmethod
    def _from_text(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        return validate(value) if isinstance(value, cls | dict | None) else cls.parse(value)

    def limit(self, teacher: float) -> float:
        """Returns the bound given the teacher's cost, in the cost's unit."""
        return self.value * teacher if self.relative else self.value

    def __str__(self) -> str:
        if self.relative:
            return f"{self.value * 100:.12g}%"
        unit = next((unit for unit, size in self.units.items() if unit and size == 1.0), "")
        return f"{self.value:.12g}{unit}"


class LatencyBudget(Budget):
    """An upper bound in milliseconds: ``12.5ms``, ``800us``, ``0.02s``."""

    units: ClassVar = {"": 1.0, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}
    example = "12.5ms"


class MemoryBudget(Budget):
    """An upper bound in megabytes (10⁶ bytes): ``40MB``, ``1.2GB``."""

    units: ClassVar = {"": 1.0, "MB": 1.0, "kB": 1e-3, "GB": 1e3}
    example = "40MB"


class EnergyBudget(Budget):
    """An upper bound in millijoules: ``80mJ``, ``0.2J``."""

    units: ClassVar = {"": 1.0, "mJ": 1.0, "uJ": 1e-3, "µJ": 1e-3, "J": 1e3}
    example = "80mJ"


class CountBudget(Budget):
    """An upper bound on a number: ``2.5M``, ``300k``, ``1.2G``."""

    units: ClassVar = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
    example = "2.5M"

    @classmethod
    def parse(cls, text: Any) -> Self:
        """As ``Budget.parse``; an absolute bound is at least 1."""
        budget = super().parse(text)
        if not budget.relative and budget.value < 1:
            raise ValueError(
                f"{format_value(text)} is less than one; "
                f"write {100 * budget.value:g}% for a share of the teacher's"
            )
        return budget


class BudgetsConfig(Section):
    """Upper bounds on the costs of students."""

    latency_ms: tuple[LatencyBudget, ...] = Field(min_length=1, examples=["[70%, 50%]"])
    """Latencies per call, each as a share of the teacher's on the same target (``50%``) or absolute
    (``12.5ms``). Every target gets one student per budget."""
    peak_memory_mb: MemoryBudget | None = None
    """Maximum peak memory of every student on every target: ``40MB``, or a share of the teacher's. A few
    seconds a network are spent on reading it."""
    energy_mj: EnergyBudget | None = None
    """Maximum energy per batch of every student on every target: ``80mJ``, or a share of the teacher's. Needs
    a node that counts energy, see ``lana-ray doctor``."""
    params: CountBudget | None = None
    """Maximum number of parameters of every student: ``2.5M``, or a share of the teacher's."""
    macs: CountBudget | None = None
    """Maximum number of multiply-accumulates of every student for one input: ``60M``, or a share of the
    teacher's."""

    @property
    def bounds(self) -> dict[str, Budget]:
        """The budgets beyond latency, by cost; every student keeps all of them."""
        others = {name: getattr(self, name) for name in type(self).model_fields if name != "latency_ms"}
        return {name: budget for name, budget in others.items() if budget is not None}

    @field_validator("latency_ms", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple | None) else [value]

    @model_validator(mode="after")
    def _each_once(self) -> BudgetsConfig:
        for place, budget in enumerate(self.latency_ms):
            for other in self.latency_ms[:place]:
                if budget.relative == other.relative and math.isclose(budget.value, other.value):
                    raise refusal(f"{budget} is given twice; keep one", "latency_ms", place)
        return self
