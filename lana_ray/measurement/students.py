"""All budgeted costs of students, measured on their targets."""

from __future__ import annotations

from collections.abc import Mapping

from lana_ray.costs.registry import COUNTED
from lana_ray.costs.table import MeasuredCost
from lana_ray.costs.work import Work
from lana_ray.ids import Architecture, CostId
from lana_ray.measurement.latencies import Sampled, in_many_sessions, judged, measured
from lana_ray.measurement.readings import readings
from lana_ray.spaces.space import StudentSpace
from lana_ray.workspace import Workspace


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
        of = sampled[name].latency
        costs.setdefault(of, {})[architecture] = measured(judged(taken), taken)
    for cost in (cost for cost in workspace.config.budgets.bounds if cost not in COUNTED):
        architectures = {name: list(work) for name, work in students.items()}
        read = readings(workspace, space, cost, sampled, architectures, title)
        for name, some in architectures.items():
            values = {a: MeasuredCost(value=read[name][a]) for a in some if a in read[name]}
            failed = {a: _failed(cost) for a in some if a not in read[name]}
            costs[CostId(cost, name)] = values | failed
    return costs


def _failed(cost: str) -> MeasuredCost:
    return MeasuredCost(value=float("nan"), error=f"{cost} could not be read")
