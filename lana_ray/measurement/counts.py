"""Costs that are counted rather than measured: exact, and the same on every target."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from lana_ray.costs.registry import COUNTED, METERS
from lana_ray.costs.table import CostTable, CostTables
from lana_ray.deploy.inputs import example_input, layer_input
from lana_ray.ids import Choices, CostId
from lana_ray.monitoring.progress import progress
from lana_ray.run_dir import layout
from lana_ray.workspace import Workspace


def exact_costs(workspace: Workspace, cost: str, choices: Choices) -> CostTables:
    """The tables of a counted cost; infinite for candidates outside ``choices``."""
    space, counts = workspace.space, _counts(workspace, cost, choices)
    costs = tuple(np.full(len(ops), np.inf) for ops in space.ops)
    for i, of_layer in enumerate(choices):
        for j in of_layer:
            costs[i][j] = counts[space.structure(i, j)]
    teacher = _count(workspace, cost, workspace.teacher)
    rest = teacher - sum(counts[space.structure(i, 0)] for i in range(len(space.layers)))
    table = CostTable(rest=rest, costs=costs)
    return CostTables(id=CostId(cost), teacher=teacher, isolated=costs, tables=(table,))


def count_network(workspace: Workspace, network: nn.Module) -> dict[str, float]:
    """Every counted cost of one network."""
    return {name: _count(workspace, name, network) for name in COUNTED}


def _count(workspace: Workspace, cost: str, network: nn.Module) -> float:
    target = workspace.targets[0]
    return METERS[cost].read(network, example_input(target), target)


def _counts(workspace: Workspace, cost: str, choices: Choices) -> dict[str, float]:
    """A counted cost of candidates and of the teacher's own layers by structure, each counted once."""
    space, target, file = workspace.space, workspace.targets[0], layout.counts(cost)
    counts = workspace.storage.kept(file, _read) or {}
    wanted = [(i, j) for i, of_layer in enumerate(choices) for j in {0, *of_layer}]
    missing = {key: (i, j) for i, j in wanted if (key := space.structure(i, j)) not in counts}
    if missing:
        with progress(f"count {cost}", len(missing)) as show:
            for number, (structure, (i, j)) in enumerate(missing.items(), 1):
                example = layer_input(space, i, target)
                counts[structure] = METERS[cost].read(space.candidate(i, j), example, target)
                show(number)
        workspace.storage.write_json(file, counts)
    return counts


def _read(kept: Any) -> dict[str, float]:
    return {str(structure): float(value) for structure, value in kept.items()}
