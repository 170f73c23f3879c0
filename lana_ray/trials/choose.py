"""The best students that a sweep found: its Pareto front, and one for every target and budget."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from lana_ray.costs.registry import COUNTED
from lana_ray.costs.table import CostTables
from lana_ray.costs.work import network_work
from lana_ray.ids import Architecture, CostId
from lana_ray.measurement.counts import count_network
from lana_ray.measurement.latencies import Sampled, sessions_of
from lana_ray.measurement.readings import teacher_cost
from lana_ray.measurement.students import measure_students
from lana_ray.run_dir.tables import TrialRow
from lana_ray.selection.choice import Choice, Proposal, limits_of
from lana_ray.selection.loop import Loop, Measurements, Proposed, Tables, World
from lana_ray.selection.margin import noise_of
from lana_ray.spaces.space import StudentSpace
from lana_ray.workspace import Workspace

Point = tuple[float, float]
"""Cost (lower is better) and accuracy (higher is better)."""


def front(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other point beats in both, cheapest first and without duplicates."""
    best: list[Point] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def hypervolume(points: Sequence[Point], *, most: float) -> float:
    """Returns the share of the area of costs up to ``most`` and accuracies up to 1 that the points dominate.

    It is the best accuracy within a budget, averaged over all budgets up to ``most`` (Zitzler & Thiele 1999).
    """
    steps = [point for point in front(points) if point[0] < most]
    ends = [*(cost for cost, _ in steps), most][1:]
    return sum((end - cost) * accuracy for (cost, accuracy), end in zip(steps, ends, strict=True)) / most


def choices_among(workspace: Workspace, sampled: Mapping[str, Sampled]) -> Loop:
    """The loop as it begins: one choice for every target and budget."""
    budgets = workspace.config.budgets
    bounds = [cost for cost in budgets.bounds if cost not in COUNTED]
    tables = {
        of: CostTables(id=of, teacher=teacher_cost(workspace, of.cost, target))
        for name, target in sampled.items()
        for of in (CostId(cost, name) for cost in (*(budget.cost for budget in budgets.latencies), *bounds))
    }
    choices = tuple(
        Choice(budget=str(budget), limits=limits_of(workspace.config, tables, [target.target], budget))
        for target in sampled.values()
        for budget in budgets.latencies
    )
    return Loop(choices=choices, tables=tables)


def world_of_trials(
    workspace: Workspace, space: StudentSpace, sampled: Mapping[str, Sampled], rows: Sequence[TrialRow]
) -> World:
    """Trials as proposals, the most accurate first; their accuracy on the validation split ranks them."""
    ranked = sorted(rows, key=lambda row: (-row.accuracy, row.key))
    best = {row.choices: row.accuracy for row in reversed(ranked)}
    allowed = {a for a in best if _keeps_counts(workspace, space, a)}

    def propose(choice: Choice, tables: Tables) -> Proposed:
        (target,) = choice.targets
        students: dict[Architecture, Proposal] = {}
        for row in ranked:
            if row.target == target and row.choices in allowed:
                predicted = {} if row.predicted_ms is None else {sampled[target].latency: row.predicted_ms}
                students.setdefault(row.choices, Proposal(predicted=predicted))
        too_large = (
            f"target {choice.place}: budget {choice.name}: no trial keeps budgets.params and budgets.macs; "
            "raise them, or make search.cells narrower"
        )
        return Proposed(students=students, unmet="" if students else too_large)

    def measure(asked: Mapping[str, Sequence[Architecture]], attempt: int) -> Measurements:
        work = {name: {a: network_work(space, a) for a in some} for name, some in asked.items()}
        title = "confirm" if attempt else "search"
        return measure_students(workspace, space, sampled, work, sessions_of(attempt), title)

    return World(
        propose=propose,
        measure=measure,
        evaluate=lambda architectures: {a: -best[a] for a in architectures},
        noise=functools.partial(noise_of, workspace.config.select),
        fix="raise the budget or search.lambdas, or make search.cells narrower",
    )


def _keeps_counts(workspace: Workspace, space: StudentSpace, architecture: Architecture) -> bool:
    bounds = {c: bound for c, bound in workspace.config.budgets.bounds.items() if c in COUNTED}
    if not bounds:
        return True
    counts = count_network(workspace, space.build(architecture))
    teacher = count_network(workspace, workspace.teacher)
    return all(counts[cost] <= bound.limit(teacher[cost]) for cost, bound in bounds.items())
