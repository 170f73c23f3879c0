"""All budgeted costs of students, measured on their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lana_ray.costs.registry import COUNTED
from lana_ray.costs.table import MeasuredCost
from lana_ray.costs.work import Work
from lana_ray.ids import Architecture, CostId, latency_cost
from lana_ray.measurement.latencies import Sampled, in_many_sessions, measured, quantiles_of
from lana_ray.measurement.readings import readings
from lana_ray.monitoring.progress import say
from lana_ray.spaces.space import StudentSpace
from lana_ray.workspace import Workspace

_SLOWER = 1.1
"""How much slower than at its baseline a target may be before that is said."""


def measure_students(
    workspace: Workspace,
    space: StudentSpace,
    sampled: Mapping[str, Sampled],
    students: Mapping[str, Mapping[Architecture, Work]],
    sessions: range,
    title: str,
) -> dict[CostId, dict[Architecture, MeasuredCost]]:
    """Measures latency in several sessions, and once every metered cost that has a budget."""
    costs: dict[CostId, dict[Architecture, MeasuredCost]] = {}
    samples = in_many_sessions(workspace, students, sampled, sessions, title)
    for (name, architecture), taken in samples.items():
        for quantile in quantiles_of(workspace):
            of = CostId(latency_cost(quantile), name)
            costs.setdefault(of, {})[architecture] = measured(taken, quantile)
    if any(budget.is_absolute for budget in workspace.config.budgets.latencies):
        for name in students:
            _say_if_slower(name, list(costs.get(sampled[name].latency, {}).values()))
    for cost in (cost for cost in workspace.config.budgets.bounds if cost not in COUNTED):
        architectures = {name: list(work) for name, work in students.items()}
        read = readings(workspace, space, cost, sampled, architectures, title)
        for name, some in architectures.items():
            values = {a: MeasuredCost(value=read[name][a]) for a in some if a in read[name]}
            failed = {a: _failed(cost) for a in some if a not in read[name]}
            costs[CostId(cost, name)] = values | failed
    return costs


def _say_if_slower(target: str, costs: Sequence[MeasuredCost]) -> None:
    """Says by how much a target became slower, since absolute budgets must be kept at that speed."""
    drift = float(np.median([cost.drift for cost in costs if cost.error is None] or [1.0]))
    if drift > _SLOWER:
        say(
            f"target {target}: runs {drift:.2f} times slower than when it was first measured; absolute "
            "budgets are judged at this speed: see whether it overheats, or what else runs on it"
        )


def _failed(cost: str) -> MeasuredCost:
    return MeasuredCost(value=float("nan"), error=f"{cost} could not be read")
