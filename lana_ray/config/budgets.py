"""Upper bounds on costs, and how they are written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lana_ray.config.section import Section, refusal, shown

_MS_PER_UNIT = {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}
_COUNT_PER_UNIT = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


class Budget(Section):
    """An upper bound on a cost: absolute, or a share of what the teacher costs on the same target."""

    value: float = Field(gt=0, examples=["12.5"])
    relative: bool = Field(examples=["false"])

    @classmethod
    def parse(cls, text: Any) -> Budget:
        """Reads ``50%``, ``12.5ms``, ``800us``, ``0.02s`` or a plain number of milliseconds."""
        return cls._read(text, {"": 1.0, **_MS_PER_UNIT}, "12.5ms")

    @classmethod
    def _read(cls, text: Any, units: Mapping[str, float], example: str) -> Self:
        match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(\D*?)\s*", str(text))
        try:
            number = float(match[1]) if match else float("nan")
        except ValueError:
            number = float("nan")
        if match is None or match[2] not in {"%", *units} or not 0 < number < float("inf"):
            raise ValueError(f"{shown(text)} is not a valid budget; use e.g. 50% or {example}")
        if match[2] == "%":
            return cls(value=number / 100, relative=True)
        return cls(value=number * units[match[2]], relative=False)

    def limit(self, of_teacher: float) -> float:
        """The bound where the teacher takes ``of_teacher``, in the same unit: milliseconds for latencies."""
        return self.value * of_teacher if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.value * 100:.12g}%" if self.relative else f"{self.value:.12g}ms"


class CountBudget(Budget):
    """An upper bound on what is counted: absolute, or a share of the teacher's."""

    @classmethod
    def parse(cls, text: Any) -> CountBudget:
        """Reads ``50%``, ``2.5M``, ``300k``, ``1.2G`` or a plain number."""
        budget = cls._read(text, _COUNT_PER_UNIT, "2.5M")
        if not budget.relative and budget.value < 1:
            raise ValueError(
                f"{shown(text)} is less than one; for a share of the teacher's write {100 * budget.value:g}%"
            )
        return budget

    def __str__(self) -> str:
        return f"{self.value * 100:.12g}%" if self.relative else f"{self.value:.12g}"


def _as_budget(value: Any) -> Any:
    return value if isinstance(value, Budget | dict) else Budget.parse(value)


def _as_count(value: Any) -> Any:
    return value if isinstance(value, CountBudget | dict | None) else CountBudget.parse(value)


class BudgetsConfig(Section):
    """Upper bounds that students keep."""

    latency_ms: tuple[Annotated[Budget, BeforeValidator(_as_budget)], ...] = Field(
        min_length=1, examples=["[70%, 50%]"]
    )
    """Latencies per call, each as a share of the teacher's on the same target (``50%``) or absolute
    (``12.5ms``). Every target gets one student per budget."""
    params: Annotated[CountBudget | None, BeforeValidator(_as_count)] = None
    """Maximum number of parameters of every student: ``2.5M``, or a share of the teacher's."""
    macs: Annotated[CountBudget | None, BeforeValidator(_as_count)] = None
    """Maximum number of multiply-accumulates of every student for one input: ``60M``, or a share of the
    teacher's."""

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
