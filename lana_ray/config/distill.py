"""Defines the ``distill`` block: how candidates are distilled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lana_ray.config.section import Section


class DistillConfig(Section):
    """How each candidate is trained to reproduce the output of its layer."""

    steps: int = Field(default=200, ge=1)
    """Optimiser steps of each candidate."""
    batch_size: int = Field(default=64, ge=2)
    """Images per step."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of Adam."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the candidates' arithmetic (autocast). Weights and errors stay fp32."""
    memory_gb: float = Field(default=4.0, gt=0)
    """Memory in GiB for the candidates that a worker trains at once, without the teacher. A candidate that
    needs more is trained on parts of each batch. A changed value trains all candidates again, because
    batch-norms see one part at a time."""
    group_size: int = Field(default=128, ge=1)
    """Maximum number of candidates that a worker trains at once."""
