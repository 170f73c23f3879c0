"""Settings of a differentiable search."""

from __future__ import annotations

from dataclasses import dataclass

from lana_ray.search.cost import Way
from lana_ray.search.mixture import Mixture

PARAMETER_FREE = frozenset({"skip_connect", "identity", "avg_pool_3x3", "max_pool_3x3"})
"""Operations that learn nothing."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Defaults are published values: of DARTS unless another is named.

    Adam moves a logit by about ``alpha_lr`` a step: searches of fewer steps than DARTS' 20,000 need more.
    """

    epochs: int = 50
    warmup_epochs: int = 15
    """In which the weights learn alone (PC-DARTS); none where a supernet has no weights to learn."""
    weight_lr: float = 0.025
    """Of SGD, falling to ``weight_lr_end`` by half a cosine."""
    weight_lr_end: float = 0.001
    weight_momentum: float = 0.9
    weight_decay: float = 3e-4
    weight_clip: float = 5.0
    """Largest norm of the weights' gradient."""
    alpha_lr: float = 3e-4
    """Of Adam."""
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    alpha_decay: float = 1e-3
    mixture: Mixture = "paired"
    temperature: tuple[float, float] = (1.0, 0.1)
    """Of the mixture ``sampled``, when α first moves and at the end, linear between. GDAS begins at 10, where
    the task's gradient is a tenth as steep and λ weighs ten times as much."""
    entropy_weight: float = 0.0
    """Of α's entropy, relative to the largest possible, in the loss at the end; it rises with the square of
    the progress. What is decided is what the discretisation keeps (arXiv 2007.03154)."""
    way: Way = "gumbel"
    samples: int = 8
    """Architectures drawn for LAT(α)."""
    multiplier: float = 0.0
    """λ; with a target, the one to begin with."""
    target: float | None = None
    """Cost that LAT(α) must not exceed, in the cost's unit; λ is then found by the search itself."""
    penalty: float = 15.0
    """How much λ rises at once for an excess as large as the reference cost."""
    collapse_share: float = 0.5
    """Share of parameter-free operations from which an architecture counts as collapsed."""
    parameter_free: frozenset[str] = PARAMETER_FREE
    """Names of operations."""
    seed: int = 0
