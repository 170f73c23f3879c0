"""Defines the ``finetune`` block: how the chosen students, and a teacher, are trained."""

from __future__ import annotations

from pydantic import Field

from lana_ray.config.section import Fraction, Section, Share


class TrainConfig(Section):
    """End-to-end training of a network: the teacher's adaptation and the students' fine-tuning."""

    epochs: float = Field(default=2, gt=0)
    """Passes over the training split; a fraction is allowed."""
    batch_size: int = Field(default=64, ge=2)
    """Images per step over all workers together."""
    micro_batch_size: int = Field(default=32, ge=2)
    """Least number of images in a micro-batch. Each step splits its batch into as many equal micro-batches as
    this allows, and sums their gradients. Workers share the micro-batches; there are never more workers than
    micro-batches. A batch-norm uses the statistics of one micro-batch, so the result does not depend on the
    number of workers."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW's one-cycle schedule."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of AdamW; biases and scales are not decayed."""
    label_smoothing: Fraction = 0.0
    """Share of each label that is spread over all classes."""


class FinetuneConfig(TrainConfig):
    """How each chosen student is trained end to end, with the teacher's help."""

    kd_weight: Share = Field(default=0.7, ge=0, le=1)
    """Weight of the divergence from the teacher in the loss; the cross-entropy with the labels has weight
    1 - ``kd_weight``."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature of the divergence from the teacher."""
