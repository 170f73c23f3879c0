"""What all trials of a sweep have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lana_ray.config import Config
from lana_ray.costs.table import CostTable
from lana_ray.ids import Architecture, CostId
from lana_ray.measurement.latencies import Sampled
from lana_ray.predictors.latency import LatencyPredictor
from lana_ray.search.cost import AdditiveCost
from lana_ray.spaces.space import Space


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Sent to the process of every trial."""

    config: Config
    sampled: Sampled
    method: str
    """Name of the search method, see ``trials.methods``."""
    of: CostId
    """The cost that is searched for."""
    model: CostTable | LatencyPredictor
    """Predicts the cost of an architecture."""
    reference: float
    """Cost that λ is relative to: the teacher's, or the mean of random cells."""
    scores: Sequence[NDArray[np.float64]] = ()
    """Per layer, shape [candidates]: the summed score is what the program minimises. Infinite for candidates
    that may not be chosen. Empty for a space of cells."""

    def predict(self, space: Space, architecture: Architecture) -> float:
        """The predicted cost of an architecture, in the cost's unit."""
        if isinstance(self.model, CostTable):
            return self.model.predict(architecture)
        return float(self.model.predict(space.encode(architecture)[None])[0])

    def differentiable(self) -> nn.Module:
        """The cost as a differentiable function of encodings."""
        return AdditiveCost(self.model) if isinstance(self.model, CostTable) else self.model.as_module()
