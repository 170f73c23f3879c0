"""How candidates and students are made and chosen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lana_ray.config.networks import TrainConfig
from lana_ray.config.section import Fraction, Seconds, Section, Share


class DistillConfig(Section):
    """How each candidate learns to answer as its layer does."""

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
    needs more is trained on parts of each batch. Another value trains all candidates again, as batch-norms
    see one part at a time."""
    group_size: int = Field(default=128, ge=1)
    """Maximum number of candidates that a worker trains at once."""


class ScoreConfig(Section):
    """How much each candidate alone changes the network's answers."""

    by: Literal["kl", "loss"] = "kl"
    """Score of a candidate: ``kl`` is the divergence from the teacher's answers, ``loss`` the change of the
    loss."""
    images: int = Field(default=512, ge=2)
    """Number of images to score on."""
    batch_size: int = Field(default=128, ge=2)
    """Images per forward pass."""
    students: int = Field(default=32, ge=0)
    """Number of random students evaluated whole, to report how well summed scores rank them (Kendall's
    tau)."""


class SelectConfig(Section):
    """How one student per target and budget is chosen."""

    count: int = Field(default=10, ge=1)
    """Number of diverse students measured and evaluated per target and budget (LANA: 100)."""
    max_overlap: Share = Field(default=0.7, gt=0, le=1)
    """Largest share of layers on which two of these students may agree."""
    time_limit_s: Seconds = Field(default=10.0, gt=0)
    """Time limit in seconds of the solver for all students of one target and budget. A student that is not
    proven optimal in time comes with its gap."""
    joint: bool = False
    """Also choose one architecture per budget that keeps it on all targets."""
    force: tuple[str, ...] = ()
    """Glob patterns ``LAYER=OPERATION``: these layers may only become these operations."""
    forbid: tuple[str, ...] = ()
    """Glob patterns ``LAYER=OPERATION``: these layers may not become these operations."""
    max_ops: int | None = Field(default=None, ge=0)
    """Maximum number of different operations in a student; the teacher's own layers do not count."""
    rounds: int = Field(default=4, ge=1)
    """How often the program is solved. Each round calibrates the cost table with the students measured
    before. A budget that no student keeps gets twice as many rounds."""
    margin: Fraction = 0.02
    """Smallest share of the budget that is kept free, since measurements of one network vary."""
    confidence: Share | None = Field(default=None, ge=0.5, lt=1)
    """Probability that a re-measurement stays within the budget. The share kept free then follows from the
    spread between the sessions of a target."""


class FinetuneConfig(TrainConfig):
    """How each chosen student is trained as a whole network, with the teacher's help."""

    kd_weight: Share = Field(default=0.7, ge=0, le=1)
    """Weight of the divergence from the teacher in the loss; the cross-entropy with the labels has the
    rest."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature of the divergence from the teacher."""
