"""Settings of a differentiable search."""

from __future__ import annotations

from dataclasses import dataclass

from lana_ray.search.cost import Way
from lana_ray.search.mixture import Mixture


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Settings of a search. Defaults are published values, DARTS' unless another paper is named.

    Adam changes a logit by about ``alpha_lr`` per step: a search of fewer steps than DARTS' 20,000 needs a
    larger one.
    """

    epochs: int = 50
    warmup_epochs: int = 15
    """Epochs in which only the weights are trained (PC-DARTS); ignored if a supernet trains no weights."""
    weight_lr: float = 0.025
    """Learning rate of SGD, falling to ``weight_lr_end`` by half a cosine."""
    weight_lr_end: float = 0.001
    weight_momentum: float = 0.9
    weight_decay: float = 3e-4
    weight_clip: float = 5.0
    """Largest norm of the weights' gradient."""
    alpha_lr: float = 3e-4
    """Learning rate of Adam."""
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    alpha_decay: float = 1e-3
    mixture: Mixture = "paired"
    temperature: tuple[float, float] = (1.0, 0.1)
    """Temperatures of the mixture ``sampled`` when α first moves and at the end, linear in between. GDAS
    begins at 10, which makes the task's gradient a tenth as steep and λ ten times as strong."""
    entropy_weight: float = 0.0
    """Weight in the loss, at the end, of α's entropy relative to the largest possible; it rises with the
    square of the progress. Decided choices survive the discretisation (arXiv 2007.03154)."""
    way: Way = "gumbel"
    samples: int = 8
    """Architectures drawn for LAT(α)."""
    multiplier: float = 0.0
    """λ; with a target, its initial value."""
    target: float | None = None
    """Cost that LAT(α) must not exceed, in the cost's unit; the search then adapts λ itself."""
    penalty: float = 15.0
    """Immediate rise of λ for an excess as large as the reference cost."""
    seed: int = 0
