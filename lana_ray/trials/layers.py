"""LANA's space in a trial: the distilled candidates are the supernet, whose weights are frozen."""

from __future__ import annotations

from typing import Any

import numpy as np

from lana_ray.evaluation.networks import validated
from lana_ray.ids import Architecture
from lana_ray.search.bilevel import Loss
from lana_ray.search.layerwise import LayerwiseSupernet, divergence
from lana_ray.search.supernet import Supernet
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.trials.problem import Problem

_DECISIVE = 0.1
"""Weight of α's entropy at the end, so that the discretisation keeps what is decided."""


class LayerwiseProblem(Problem):
    """Students are not trained: their accuracy is that of their distilled weights, with batch statistics."""

    @property
    def space(self) -> LayerwiseSpace:
        return self.workspace.space

    def supernet(self) -> Supernet:
        ids = self.space.ids
        choices = tuple(tuple(int(j) for j in np.flatnonzero(np.isfinite(s))) for s in self.setup.scores)
        candidate = self.workspace.candidate
        return LayerwiseSupernet(self.space, lambda i, j: candidate(ids[i][j]), choices).to(self.device)

    def search_settings(self) -> dict[str, Any]:
        return {"warmup_epochs": 0, "alpha_decay": 0.0, "entropy_weight": _DECISIVE}

    def loss(self) -> Loss:
        return divergence(self.teacher())

    def worth(self, architecture: Architecture, file: str) -> tuple[float | None, float]:
        return validated(self.workspace, architecture)
