"""Defines the ``budgets`` block: upper bounds on costs, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, field_validator, model_validator

from lana_ray.config.section import Section, format_value, quantity, refusal
from lana_ray.ids import QUANTILES, latency_cost

CALLS = {"p50": 0, "p90": 40, "p99": 200}
"""Fewest calls of a session that is judged by this quantile."""


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
    """An upper bound in milliseconds per call: ``12.5ms``, ``800us``, ``p99:0.02s``; or a throughput."""

    units: ClassVar = {"": 1.0, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}
    example = "12.5ms"

    quantile: Literal["p50", "p90", "p99"] = "p50"
    """The share of calls that must keep the bound."""
    per_second: bool = False
    """Whether ``value`` is a lower bound on the inputs per second: ``1000ips``, ``150%ips``."""

    @classmethod
    def parse(cls, text: Any) -> Self:
        """As ``Budget.parse``, with a quantile in front (``p99:``) or the unit ``ips`` behind."""
        quantile, colon, bound = str(text).partition(":")
        quantile, bound = (quantile.strip(), bound.strip()) if colon else (QUANTILES[0], str(text).strip())
        per_second = bound.endswith("ips")
        if quantile not in QUANTILES or (per_second and colon):
            raise ValueError(
                f"{format_value(text)} is not a valid budget; use e.g. 50%, {cls.example}, p99:{cls.example} "
                "or 1000ips"
            )
        budget = super().parse(bound.removesuffix("ips"))
        return budget.model_copy(update={"quantile": quantile, "per_second": per_second})

    @property
    def is_absolute(self) -> bool:
        return not self.relative

    @property
    def cost(self) -> str:
        """Name of the cost that it bounds."""
        return latency_cost(self.quantile)

    def limit_ms(self, teacher_ms: float, batch_size: int) -> float:
        """The bound in milliseconds per call, given the teacher's latency at the same quantile."""
        if not self.per_second:
            return self.limit(teacher_ms)
        return teacher_ms / self.value if self.relative else 1e3 * batch_size / self.value

    def __str__(self) -> str:
        if self.per_second:
            return f"{100 * self.value:.12g}%ips" if self.relative else f"{self.value:.12g}ips"
        bound = super().__str__()
        return bound if self.quantile == QUANTILES[0] else f"{self.quantile}:{bound}"


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


def _throughput(value: Any) -> Any:
    if isinstance(value, LatencyBudget | dict):
        return value
    return LatencyBudget.parse(f"{str(value).strip().removesuffix('ips')}ips")


class BudgetsConfig(Section):
    """Upper bounds on the costs of students."""

    latency_ms: tuple[LatencyBudget, ...] = Field(default=(), examples=["[70%, 50%]"])
    """Latencies per call, each as a share of the teacher's on the same target (``50%``) or absolute
    (``12.5ms``). Every target gets one student per budget. They bound the median, or a quantile of the calls:
    ``{p50: 70%, p99: [12ms, 8ms]}``, also written ``p99:12ms``. An absolute budget is kept at the speed that
    the target sustains (``measure.soak_s``)."""
    throughput_ips: tuple[Annotated[LatencyBudget, BeforeValidator(_throughput)], ...] = Field(
        default=(), examples=["[1000]"]
    )
    """Inputs per second at the target's batch size: at least so many (``1000``), or a share of the teacher's
    (``150%``). Every target gets one student for each of these, too."""
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
    def latencies(self) -> tuple[LatencyBudget, ...]:
        """The budgets that get a student each."""
        return (*self.latency_ms, *self.throughput_ips)

    @property
    def bounds(self) -> dict[str, Budget]:
        """The budgets beyond latency, by cost; every student keeps all of them."""
        return {
            name: budget
            for name in type(self).model_fields
            if isinstance(budget := getattr(self, name), Budget)
        }

    @field_validator("latency_ms", "throughput_ips", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple | None) else [value]

    @field_validator("latency_ms", mode="before")
    @classmethod
    def _by_quantile(cls, value: Any) -> Any:
        if isinstance(value, dict):
            if unknown := [str(name) for name in value if name not in QUANTILES]:
                raise ValueError(f"{format_value(unknown[0])} is none of {', '.join(QUANTILES)}")
            pairs = (
                (name, some if isinstance(some, list | tuple) else [some]) for name, some in value.items()
            )
            return [f"{name}:{bound}" for name, some in pairs for bound in some]
        return value

    @model_validator(mode="after")
    def _each_once(self) -> BudgetsConfig:
        if not self.latencies:
            raise refusal("give at least one, such as 50%, or throughput_ips", "latency_ms")
        for name, budgets in (("latency_ms", self.latency_ms), ("throughput_ips", self.throughput_ips)):
            for place, budget in enumerate(budgets):
                if any(_is_same(budget, other) for other in budgets[:place]):
                    raise refusal(f"{budget} is given twice; keep one", name, place)
        return self


def _is_same(one: LatencyBudget, other: LatencyBudget) -> bool:
    same_kind = (one.relative, one.quantile) == (other.relative, other.quantile)
    return same_kind and math.isclose(one.value, other.value)
