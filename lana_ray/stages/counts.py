"""What students cost that no clock is needed for: counted once, exact, and the same on every target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lana_ray.costs.registry import COUNTED, METERS
from lana_ray.deploy.inputs import example_input, layer_input
from lana_ray.monitoring.progress import progress
from lana_ray.preflight.settings import check_smallest
from lana_ray.workspace import Workspace

_FILE = "counts/{}.json"


@dataclass(frozen=True, kw_only=True)
class CountedBudget:
    """A budget of something counted, with what every candidate takes of it."""

    name: str
    limit: float
    rest: float
    """What the network takes outside of its layers."""
    costs: tuple[NDArray[np.float64], ...]
    """Per layer, shape [candidates]; infinite where a candidate has no score."""

    @property
    def of_network(self) -> str:
        """Its name among costs that are named by target: no target can be called so."""
        return f"{self.name} of the network"


def counted_budgets(workspace: Workspace, scores: Sequence[NDArray[np.float64]]) -> list[CountedBudget]:
    """The counted budgets of the configuration, for the candidates that have a score.

    Raises:
        UserError: for a budget below the smallest student.
    """
    asked = workspace.config.budgets.model_dump(include=set(COUNTED), exclude_none=True)
    found = []
    for name in asked:
        costs, teacher = _costs(workspace, name, scores), _count(workspace, name, workspace.teacher)
        rest = teacher - sum(float(of_layer[0]) for of_layer in costs)
        limit = getattr(workspace.config.budgets, name).limit(teacher)
        least = rest + sum(float(of_layer.min()) for of_layer in costs)
        check_smallest(name, limit, least, teacher)
        found.append(CountedBudget(name=name, limit=limit, rest=rest, costs=tuple(costs)))
    return found


def count_network(workspace: Workspace, network: nn.Module) -> dict[str, float]:
    """Everything counted of one network."""
    return {name: _count(workspace, name, network) for name in COUNTED}


def _count(workspace: Workspace, name: str, network: nn.Module) -> float:
    target = workspace.targets[0]
    return METERS[name].read(network, example_input(target), target)


def _counts(kept: Any) -> dict[str, float]:
    return {str(structure): float(value) for structure, value in kept.items()}


def _costs(
    workspace: Workspace, name: str, scores: Sequence[NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """Per layer, shape [candidates]. What was counted is kept, by the candidate's structure."""
    space, target, file = workspace.space, workspace.targets[0], _FILE.format(name)
    known = workspace.storage.kept(file, _counts) or {}
    usable = [(i, int(j)) for i, of_layer in enumerate(scores) for j in np.flatnonzero(np.isfinite(of_layer))]
    usable += [(i, 0) for i in range(len(scores))]  # for what is outside of the layers
    missing = {space.structure(i, j): (i, j) for i, j in usable if space.structure(i, j) not in known}
    if missing:
        with progress(f"count {name}", len(missing)) as show:
            for number, (structure, (i, j)) in enumerate(missing.items(), 1):
                example = layer_input(space, i, target)
                known[structure] = METERS[name].read(space.candidate(i, j), example, target)
                show(number)
        workspace.storage.write_json(file, known)
    costs = [np.full(len(of_layer), np.inf) for of_layer in scores]
    for i, j in usable:
        costs[i][j] = known[space.structure(i, j)]
    return costs
