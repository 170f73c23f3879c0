"""Defines the ``targets`` block: the hardware, and how it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lana_ray.config.budgets import CALLS, LatencyBudget
from lana_ray.config.command import CommandConfig
from lana_ray.config.section import Seconds, Section, Share, ValueDescription, refusal
from lana_ray.registries import OneOf

Label = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=63),
    ValueDescription("letters, digits, '.', '_' and '-', a letter or a digit at both ends"),
]
"""Text that may be the value of a node's label, and part of a file's name."""
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
"""Windows reserves these names for devices, with any suffix after a dot."""


class MeasureConfig(Section):
    """How costs are measured on a target."""

    architectures: int = Field(default=48, ge=8)
    """Number of entire networks measured to estimate what candidates cost inside a network. A higher number
    later measures only further ones."""
    active: int = Field(default=0, ge=0)
    """Number of further networks measured where the latency predictor is least certain."""
    rel_error: Share = Field(default=0.02, gt=0, lt=1)
    """Stop repeating a measurement once the 95 % confidence interval of its median is this narrow, relative
    to the median."""
    time_limit_s: Seconds = Field(default=0.5, gt=0)
    """Time limit in seconds for one measurement. It is marked if it ends wider than ``rel_error``."""
    calls: int = Field(default=0, ge=0)
    """Fewest timed calls of a measurement, whatever the time limit. A budget on p90 raises it to 40, one on
    p99 to 200."""
    soak_s: Seconds = Field(default=60.0, ge=0)
    """With an absolute budget: time limit in seconds to run the teacher before a session, until the device
    gets no slower. So budgets are kept at the speed that it sustains, even while it throttles."""


class Target(Section):
    """A named piece of hardware and how networks run on it."""

    name: Label = Field(examples=["edge"])
    """Name of the target in tables and in the registry."""
    runtime: Annotated[str, OneOf("lana_ray.deploy.runtimes", "RUNTIMES")] = "torch"
    """Runtime that executes the deployed network."""
    device: Annotated[
        str, Field(pattern=r"^(cpu|cuda(:\d+)?)$"), ValueDescription("cpu, cuda, or cuda:0 for a certain GPU")
    ] = "cpu"
    """Device that executes the deployed network."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of the runtime."""
    batch_size: int = Field(default=1, ge=1)
    """Inputs per call; latencies are per call."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Number format in which the deployed network computes."""
    input_shape: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(default=None, min_length=1)
    """Shape of one input without the batch dimension; defaults to (3, image_size, image_size) of the data."""
    label: Label | None = None
    """Value of the node label ``lana.target``; defaults to the target's name."""
    measure: MeasureConfig = MeasureConfig()
    command: CommandConfig | None = None
    """How to reach a device without Python, required by the runtime ``command`` alone."""

    @property
    def node_label(self) -> str:
        """The value of the node label ``lana.target``."""
        return self.label or self.name

    def judged_by(self, budgets: Sequence[LatencyBudget]) -> Target:
        """The same, measured as these budgets need it."""
        calls = max(self.measure.calls, *(CALLS[budget.quantile] for budget in budgets))
        soak_s = self.measure.soak_s if any(budget.is_absolute for budget in budgets) else 0.0
        measure = self.measure.model_copy(update={"calls": calls, "soak_s": soak_s})
        return self.model_copy(update={"measure": measure})

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name.lower().partition(".")[0] in _RESERVED:
            raise refusal(f"{name} is a reserved file name on Windows; choose another")
        return name

    @model_validator(mode="after")
    def _check_command(self) -> Target:
        if self.runtime == "command" and self.command is None:
            raise refusal("missing; the runtime command needs run and version", "command")
        if self.runtime != "command" and self.command is not None:
            raise refusal(
                f"the runtime {self.runtime} runs no command line; remove it, or set runtime: command",
                "command",
            )
        return self
