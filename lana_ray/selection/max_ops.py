"""Selections of few different operations, since each deployed operation must be optimised and maintained."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
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
from lana_ray.selection.program import EXCLUSIONS, Program, build_program, over

_EXPLAINING_S = 1.0
"""Minimum seconds for the search for a budget that could be met, to explain budgets that clash."""


def of_few_operations(
    scores: Sequence[Any],
    costs: Mapping[str, Sequence[Any]],
    budgets: Mapping[str, float],
    ops: Sequence[Sequence[str]],
    most: int,
    *,
    free: Sequence[str] = (),
    time_limit_s: float = 60.0,
) -> list[Floats]:
    """Returns the scores with ``inf`` for all operations but those of the best selection of at most ``most``.

    Solves the program of ``select`` with a binary y for every operation and z ≤ y for its candidates,
    Σ y ≤ most. With the returned scores ``select`` finds that selection first, then others of the same
    operations.

    Args:
        ops: per layer, the operation of each candidate, length M_i.
        free: operations that do not count.

    Raises:
        InfeasibleBudget: no selection of ``most`` operations meets a budget, alone or together with others.
        TooFewOperations: some layers have no candidate among ``most`` operations, whatever the budgets.
        NoSelectionFound: none was found in time.
        ValueError: as ``select``, and for ``most < 0``.
    """
    if most < 0:
        raise ValueError(f"most must be zero or more, not {most}")
    problem = Problem.check(scores, costs)
    few = _Few(ops=ops, most=most, free=frozenset(free), deadline=time.monotonic() + time_limit_s)
    chosen = _best(problem, budgets, few)
    used = {of_layer[j] for of_layer, j in zip(ops, chosen, strict=True)} | few.free
    return [
        np.where(np.isin(of_layer, sorted(used)), values, np.inf)
        for of_layer, values in zip(ops, problem.scores, strict=True)
    ]


def fewest_operations(ops: Sequence[Sequence[str]], *, free: Sequence[str] = ()) -> int:
    """Returns the least number of operations with which every layer can have one of its ``ops``.

    Args:
        ops: per layer, the operations it may become.
        free: operations that do not count.
    """
    bound = [of_layer for of_layer in ops if not set(of_layer) & set(free)]
    if not bound:
        return 0
    program = build_program(Problem.check([np.zeros(len(of_layer)) for of_layer in bound], {}), {})
    group, most = _groups(program, bound, frozenset()), 1
    while solve_few(program, group, most, math.inf).columns is None:
        most += 1
    return most


@dataclass(frozen=True, kw_only=True)
class _Few:
    """Limits of a selection's operations, and the deadline for finding it."""

    ops: Sequence[Sequence[str]]
    most: int
    free: frozenset[str]
    deadline: float


def _best(problem: Problem, budgets: Mapping[str, float], few: _Few) -> list[int]:
    """Returns the candidate of each layer in the best selection; raises as ``of_few_operations``."""
    problem.check_each(budgets)
    program = build_program(problem, budgets)
    if program.has_empty_layer:
        raise _clash(problem, budgets, few)
    group, excluded = _groups(program, few.ops, few.free), 0
    while True:
        solution = solve_few(program, group, few.most, few.deadline - time.monotonic())
        if solution.columns is None and solution.proven:
            raise _clash(problem, budgets, few)
        if solution.columns is None:
            raise NoSelectionFound(
                f"no selection of at most {few.most} operations found in time; raise time_limit_s"
            )
        exceeded = over(problem, budgets, program, solution.columns)
        if not exceeded:
            return program.choices(solution.columns)
        excluded += 1
        if excluded <= EXCLUSIONS:
            program = program.unlike(solution.columns, program.layers - 1)
        else:
            program = program.tightened(exceeded, solution.columns)


def _groups(program: Program, ops: Sequence[Sequence[str]], free: frozenset[str]) -> Ints:
    """Returns the number of each column's operation, -1 for those that do not count; shape [n]."""
    names = sorted({op for of_layer in ops for op in of_layer} - free)
    number = {name: position for position, name in enumerate(names)}
    of_columns = zip(program.layer, program.candidate, strict=True)
    return np.array([number.get(ops[layer][j], -1) for layer, j in of_columns])


def _clash(problem: Problem, budgets: Mapping[str, float], few: _Few) -> Exception:
    """Returns the error for budgets that ``few.most`` operations cannot meet.

    Raises the error itself if the budgets cannot be met even without the first.
    """
    if not budgets:
        left = [[of[j] for j in keep] for of, keep in zip(few.ops, problem.available, strict=True)]
        return TooFewOperations(few.most, fewest_operations(left, free=sorted(few.free)))
    (name, budget), *others = budgets.items()
    values = [
        np.where(np.isfinite(scores), costs, np.inf)
        for scores, costs in zip(problem.scores, problem.costs[name], strict=True)
    ]
    later = replace(few, deadline=max(few.deadline, time.monotonic() + _EXPLAINING_S))
    cheapest = _best(Problem.check(values, problem.costs), dict(others), later)
    least, names = total(problem.costs[name], cheapest), tuple(other for other, _ in others)
    return InfeasibleBudget(name, budget, least, names, most_operations=few.most)
