"""Selections of few different operations, since each deployed operation must be optimised and maintained."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lana_ray.selection.highs import solve_few
from lana_ray.selection.problem import (
    Floats,
    InfeasibleBudget,
    Ints,
    NoSelectionFound,
    Problem,
    TooFewOperations,
    total,
)
from lana_ray.selection.program import EXCLUSIONS, Program, build_program

_EXPLAINING_S = 1.0
"""Minimum seconds for the search for a budget that could be met, to explain budgets that clash."""


@dataclass(frozen=True, kw_only=True)
class FewOperations:
    """A limit on the operations of a selection."""

    ops: Sequence[Sequence[str]]
    """Per layer, the operation of each candidate, length M_i."""
    most: int
    free: Collection[str] = ()
    """Operations that do not count."""


def of_few_operations(
    scores: Sequence[Any],
    costs: Mapping[str, Sequence[Any]],
    budgets: Mapping[str, float],
    few: FewOperations,
    *,
    time_limit_s: float = 60.0,
) -> list[Floats]:
    """Returns the scores with ``inf`` for all operations but those of the best selection within ``few``.

    Solves the program of ``select`` with a binary y for every operation and z ≤ y for its candidates,
    Σ y ≤ most. With the returned scores ``select`` finds that selection first, then others of the same
    operations.

    Raises:
        InfeasibleBudget: no selection of ``most`` operations meets a budget, alone or together with others.
        TooFewOperations: some layers have no candidate among ``most`` operations, whatever the budgets.
        NoSelectionFound: none was found in time.
        ValueError: as ``select``, and for ``most < 0``.
    """
    if few.most < 0:
        raise ValueError(f"most must be zero or more, not {few.most}")
    problem = Problem.check(scores, costs)
    chosen = _best(problem, budgets, few, time.monotonic() + time_limit_s)
    used = {of_layer[j] for of_layer, j in zip(few.ops, chosen, strict=True)}.union(few.free)
    return [
        np.where(np.isin(of_layer, sorted(used)), values, np.inf)
        for of_layer, values in zip(few.ops, problem.scores, strict=True)
    ]


def fewest_operations(ops: Sequence[Sequence[str]], *, free: Collection[str] = ()) -> int:
    """Returns the least number of operations with which every layer can have one of its ``ops``.

    Args:
        ops: per layer, the operations it may become.
        free: operations that do not count.
    """
    bound = [of_layer for of_layer in ops if not set(of_layer) & set(free)]
    if not bound:
        return 0
    program = build_program(Problem.check([np.zeros(len(of_layer)) for of_layer in bound], {}), {})
    group, most = _groups(program, bound, ()), 1
    while solve_few(program, group, most, math.inf).columns is None:
        most += 1
    return most


def _best(problem: Problem, budgets: Mapping[str, float], few: FewOperations, deadline: float) -> list[int]:
    """Returns the candidate of each layer in the best selection; raises as ``of_few_operations``."""
    problem.check_each(budgets)
    program = build_program(problem, budgets)
    if program.has_empty_layer:
        raise _clash(problem, budgets, few, deadline)
    group, excluded = _groups(program, few.ops, few.free), 0
    while True:
        solution = solve_few(program, group, few.most, deadline - time.monotonic())
        if solution.columns is None and solution.proven:
            raise _clash(problem, budgets, few, deadline)
        if solution.columns is None:
            raise NoSelectionFound(
                f"no selection of at most {few.most} operations found in time; raise time_limit_s"
            )
        if not (exceeded := program.over(solution.columns)):
            return program.choices(solution.columns)
        excluded += 1
        if excluded <= EXCLUSIONS:
            program = program.unlike(solution.columns, program.layers - 1)
        else:
            program = program.tightened(exceeded, solution.columns)


def _groups(program: Program, ops: Sequence[Sequence[str]], free: Collection[str]) -> Ints:
    """Returns the number of each column's operation, -1 for those that do not count; shape [n]."""
    names = sorted({op for of_layer in ops for op in of_layer} - set(free))
    number = {name: position for position, name in enumerate(names)}
    of_columns = zip(program.layer, program.candidate, strict=True)
    return np.array([number.get(ops[layer][j], -1) for layer, j in of_columns])


def _clash(problem: Problem, budgets: Mapping[str, float], few: FewOperations, deadline: float) -> Exception:
    """Returns the error for budgets that ``few.most`` operations cannot meet.

    Raises the error itself if the budgets cannot be met even without the first.
    """
    if not budgets:
        left = [[of[j] for j in keep] for of, keep in zip(few.ops, problem.available, strict=True)]
        return TooFewOperations(few.most, fewest_operations(left, free=few.free))
    (name, budget), *others = budgets.items()
    by_cost = replace(problem, scores=problem.costs[name])
    cheapest = _best(by_cost, dict(others), few, max(deadline, time.monotonic() + _EXPLAINING_S))
    least, names = total(problem.costs[name], cheapest), tuple(other for other, _ in others)
    return InfeasibleBudget(name, budget, least, names, most_operations=few.most)
