"""The hardware, and how it is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lana_ray.config.section import Section


class MeasureConfig(Section):
    """How a target is sampled."""

    architectures: int = Field(default=48, ge=8)
    """Whole networks measured to turn candidate costs into what they cost in place."""
    active: int = Field(default=0, ge=0)
    """Further networks measured for a predictor of them, chosen where it is least certain."""
    rel_error: float = Field(default=0.02, gt=0, lt=1)
    """Stop repeating once the median's 95 % confidence interval is this narrow."""
    time_limit_s: float = Field(default=0.5, gt=0)
    """Stop repeating one network after so long, and mark it if it has not settled."""


class Target(Section):
    """A named piece of hardware and how networks run on it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    runtime: Literal["torch", "torch-compile", "onnxruntime", "openvino", "tensorrt"] = "torch"
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int = Field(default=1, ge=1)
    batch_size: int = Field(default=1, ge=1)
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """What the network computes in there; which a runtime knows on which device is checked before a run."""
    input_shape: tuple[int, ...] | None = None
    """One input without the batch dimension; the data's (3, image_size, image_size) by default."""
    label: str | None = None
    """Value of the node label ``lana.target``; the target's name by default."""
    measure: MeasureConfig = MeasureConfig()

    @property
    def node_label(self) -> str:
        return self.label or self.name
