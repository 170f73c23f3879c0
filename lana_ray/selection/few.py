"""Selections of few different operations: what is deployed has to be optimised and maintained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lana_ray.selection import ranges
from lana_ray.selection.problem import Floats, InfeasibleBudget, NoSelectionFound, Problem
from lana_ray.selection.program import build_program
from lana_ray.selection.solver import solve_few


def of_few_operations(
    scores: Sequence[Any],
    costs: Mapping[str, Sequence[Any]],
    budgets: Mapping[str, ranges.Budget],
    ops: Sequence[Sequence[str]],
    most: int,
    *,
    free: Sequence[str] = (),
    time_limit_s: float = 60.0,
) -> list[Floats]:
    """The scores with ``inf`` for all operations but those of the best selection of at most ``most``.

    The program of ``select`` with a binary y for every operation and z ≤ y for its candidates, Σ y ≤ most.
    Given to ``select``, the scores lead to that selection first and to others of the same operations next.

    Args:
        ops: per layer, the operation of each candidate, length M_i.
        free: operations that do not count.

    Raises:
        InfeasibleBudget: a budget below the cheapest selection of any number of operations.
        NoSelectionFound: so few cannot keep the budgets, or none was found in time.
        ValueError: as ``select``, and for ``most < 0``.
    """
    if most < 0:
        raise ValueError(f"most must be zero or more, not {most}")
    all_costs, upper = ranges.stated(costs, budgets)
    problem = Problem.check(scores, all_costs)
    for name, budget in upper.items():
        cheapest = math.fsum(problem.least(problem.costs[name]))
        if cheapest > budget:
            raise ranges.explained(InfeasibleBudget(name, budget, cheapest), costs, budgets)
    program = build_program(problem, upper)
    names = sorted({op for of_layer in ops for op in of_layer} - set(free))
    number = {name: position for position, name in enumerate(names)}
    group = np.array(
        [number.get(ops[layer][j], -1) for layer, j in zip(program.layer, program.candidate, strict=True)]
    )
    solution = None if program.has_empty_layer else solve_few(program, group, most, time_limit_s)
    if solution is None or (solution.columns is None and solution.proven):
        within = f" with {most} operations" + (f" beside {', '.join(free)}" if free else "")
        raise NoSelectionFound(f"no selection keeps the budgets{within}; allow more of them")
    if solution.columns is None:
        raise NoSelectionFound(f"no selection found within {time_limit_s:g} s; raise time_limit_s")
    used = {names[g] for g in group[solution.columns] if g >= 0} | set(free)
    return [
        np.where(np.isin(of_layer, sorted(used)), values, np.inf)
        for of_layer, values in zip(ops, problem.scores, strict=True)
    ]
