"""Defines the ``finetune`` block: how the chosen students are trained."""

from __future__ import annotations

from pydantic import Field

from lana_ray.config.section import Share
from lana_ray.config.training import TrainConfig


class FinetuneConfig(TrainConfig):
    """How each chosen student is trained end to end, with the teacher's help."""

    kd_weight: Share = Field(default=0.7, ge=0, le=1)
    """Weight of the divergence from the teacher in the loss; the cross-entropy with the labels has weight
    1 - ``kd_weight``."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature of the divergence from the teacher."""
