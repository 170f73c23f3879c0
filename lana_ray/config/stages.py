"""How candidates and students are made and chosen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lana_ray.config.networks import TrainConfig
from lana_ray.config.section import Fraction, Seconds, Section, Share


class DistillConfig(Section):
    steps: int = Field(default=200, ge=1)
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=2e-3, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the candidates' arithmetic (autocast); their weights and errors stay fp32."""
    memory_gb: float = Field(default=4.0, gt=0)
    """GiB that the candidates a worker trains at once may take beside the teacher. One that takes more alone
    trains on each batch in parts."""
    group_size: int = Field(default=128, ge=1)
    """Most candidates that a worker trains at once: what its death can lose."""
    stop_hopeless: bool = False
    """Stop candidates at a quarter and at half of their steps that others of their layer have left behind,
    costing no more and erring by much less. Saves time; what is left out had little chance to be chosen."""


class ScoreConfig(Section):
    by: Literal["kl", "loss"] = "kl"
    """What a candidate's score is: its divergence from the teacher's answers, or the change of the loss."""
    images: int = Field(default=512, ge=2)
    batch_size: int = Field(default=128, ge=2)
    students: int = Field(default=32, ge=0)
    """Random students evaluated as wholes, to tell how well sums of scores rank them."""


class SelectConfig(Section):
    count: int = Field(default=10, ge=1)
    """Diverse students per target and budget that are measured and evaluated (the paper: 100)."""
    max_overlap: Share = Field(default=0.7, gt=0, le=1)
    time_limit_s: Seconds = Field(default=10.0, gt=0)
    """For all students of one target and budget; what is not proven optimal by then says its gap."""
    joint: bool = False
    """Also choose, for every budget, one architecture that keeps it on all targets."""
    force: tuple[str, ...] = ()
    """``LAYER=OPERATION``, glob patterns both: at these layers only these operations."""
    forbid: tuple[str, ...] = ()
    """The same: at these layers none of these operations."""
    max_ops: int | None = Field(default=None, ge=0)
    """At most so many different operations in a student, the teacher's own layers not counted."""
    rounds: int = Field(default=4, ge=1)
    """How often the program is solved, each time with a table calibrated by the students measured before;
    twice as often for a budget that none of them kept."""
    margin: Fraction = 0.02
    """Share of the budget kept free against the spread of re-measurements, at least."""
    confidence: Share | None = Field(default=None, ge=0.5, lt=1)
    """Share of re-measurements that shall keep the budget: as much of it is kept free as the spread of the
    students' sessions on the target asks for."""


class FinetuneConfig(TrainConfig):
    kd_weight: Share = Field(default=0.7, ge=0, le=1)
    """Share of the loss that is the divergence from the teacher, the rest is the labels' cross-entropy."""
    temperature: float = Field(default=2.0, gt=0)
