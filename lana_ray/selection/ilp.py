"""The integer linear program of LANA 3.2, and the sequence of dissimilar selections.

    min Σ a_i·z_i   with   Σ b_i·z_i ≤ B for every budget,   1·z_i = 1 for every layer,   z binary,

and for the k-th selection Σ z_i·z_i' ≤ max_overlap·N for every earlier one z' (the paper takes 0.7).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lana_ray.selection.highs import Relaxation, Solution, solve_binary
from lana_ray.selection.problem import InfeasibleBudget, NoSelectionFound, Problem, Selection
from lana_ray.selection.program import EXCLUSIONS, TOLERANCE, Program, build_program
from lana_ray.selection.tabu import search

# The relaxation's duals are exact to 1e-7.
_REDUCED_COST_MARGIN = 1e-6
# Share of the time limit for selections after the first that are not proven optimal in the end.
_UNPROVEN = 1 / 5
# Share of the remainder of that time for a single one.
_UNPROVEN_SHARE = 1 / 4


def select(
    scores: Sequence[Any],
    costs: Mapping[str, Sequence[Any]],
    budgets: Mapping[str, float],
    *,
    count: int = 1,
    max_overlap: float = 0.7,
    time_limit_s: float = 60.0,
) -> list[Selection]:
    """Returns the best selections within all budgets, one after another, each dissimilar to the earlier ones.

    Args:
        scores: per layer, shape [M_i]; lower is better, ``inf`` if a candidate is not available.
        costs: name -> per layer, shape [M_i]; ``inf`` if a candidate is not available.
        budgets: cost name -> upper bound of the sum, in the cost's own unit.
        count: number of selections.
        max_overlap: share of the layers (rounded down) on which two selections may agree. They always
            differ in one layer at least.
        time_limit_s: seconds for the whole call. The first selection gets up to half of them (all, if it is
            the only one), the others get shares, earlier ones larger ones; unused time passes to the next.
            When selections that could not be proven optimal have taken a fifth of the limit, the rest are
            searched for without trying a proof. Explaining budgets that clash may add a second.

    The selections are in the order they were found, the k-th the best of those dissimilar to the k - 1
    before. One that was not proven optimal in its time is the best found, with its proven gap: the bound
    is of its own problem, that of the best selection dissimilar to those returned before it. There are fewer
    than ``count`` if no further selection is dissimilar enough, or none was found in time. The order of a
    layer's candidates does not matter, and the same input gives the same result unless time runs out.

    No selection is over a budget by its exactly rounded sum. If the solver proposes one that is over, by
    less than its tolerance (1e-7 of what the budget leaves above the cheapest selection), that one is
    excluded; after a few of them the budget is lowered by twice that share instead. A better selection in
    this sliver may then be missed, which shows as a gap; if the only feasible ones are there, none is found.

    Raises:
        InfeasibleBudget: no selection is within the budgets.
        NoSelectionFound: not one was found in time.
        ValueError: for NaN, negative costs, ragged input, a layer without a candidate, a budget without
            a cost, ``count``, ``max_overlap`` or ``time_limit_s`` out of range.
    """
    _check_options(costs, budgets, count, max_overlap, time_limit_s)
    return _select(Problem.check(scores, costs), budgets, count, max_overlap, time_limit_s)


def _select(
    problem: Problem, budgets: Mapping[str, float], count: int, max_overlap: float, time_limit_s: float
) -> list[Selection]:
    deadline = time.monotonic() + time_limit_s
    problem.check_each(budgets)
    program = build_program(problem, budgets)
    if program.has_empty_layer:
        raise _clash(problem, budgets, time_limit_s)
    relaxation = Relaxation(program)
    may_agree = min(math.floor(max_overlap * program.layers + 1e-9), program.layers - 1)

    found: list[Selection] = []
    unproven_s = _UNPROVEN * time_limit_s
    # Whether the first attempt at this place of the sequence found none.
    missed = False
    while len(found) < count:
        left = count - len(found)
        share = 2 / (left + 1)
        if missed or not found:
            share = 1.0 if missed and not found else max(share, 1 / 2)
        now = time.monotonic()
        until = prove_until = now + share * (deadline - now)
        if found:
            prove_until = min(until, now + max(_UNPROVEN_SHARE, 1 / left) * max(unproven_s, 0))
        solution, program = _solve_within(program, relaxation, until, prove_until)
        if solution.columns is None:
            if solution.proven or missed:
                break
            missed = True
            continue
        bound = None if solution.proven else program.score(solution.bound)
        if found and not solution.proven:
            unproven_s -= time.monotonic() - now
        found.append(problem.selection(program.choices(solution.columns), bound))
        program = program.unlike(solution.columns, may_agree)
        missed = False
    if not found and solution.proven:
        raise _clash(problem, budgets, max(deadline - time.monotonic(), 1.0))
    if not found:
        raise NoSelectionFound(f"no selection found within {time_limit_s:g} s; raise time_limit_s")
    return found


def _check_options(
    costs: Mapping[str, Any],
    budgets: Mapping[str, float],
    count: int,
    max_overlap: float,
    time_limit_s: float,
) -> None:
    for name, budget in budgets.items():
        if name not in costs:
            raise ValueError(f"budget {name}: there is no such cost; costs are {', '.join(costs) or 'none'}")
        if np.isnan(budget).any():
            raise ValueError(f"budget {name}: {budget} is not a number")
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    if not 0 <= max_overlap <= 1:
        raise ValueError(f"max_overlap is a share between 0 and 1, not {max_overlap}")
    if not time_limit_s > 0:
        raise ValueError(f"time_limit_s must be positive, not {time_limit_s}")


def _solve_within(
    program: Program, relaxation: Relaxation, until: float, prove_until: float
) -> tuple[Solution, Program]:
    """Solves until the solution is within the budgets by its exactly rounded sums.

    Also returns the program with the selections it had to exclude, so that later calls exclude them too.
    """
    solution = _solve(program, relaxation, until, prove_until)
    for _ in range(EXCLUSIONS):
        if solution.columns is None or not program.over(solution.columns):
            return solution, program
        program = program.unlike(solution.columns, program.layers - 1)
        solution = _solve(program, relaxation, until, prove_until)
    bound, tight = solution.bound, program
    while solution.columns is not None:
        if not (exceeded := program.over(solution.columns)):
            return replace(solution, bound=min(bound, solution.objective)), program
        tight = tight.tightened(exceeded, solution.columns)
        solution = _solve(tight, relaxation, until, prove_until)
    return solution, program


def _solve(program: Program, relaxation: Relaxation, until: float, prove_until: float) -> Solution:
    """Returns the best solution found before ``until``, with a bound that holds for all.

    A search started from the relaxation finds a good solution, which proves most columns useless: their
    reduced cost is too large. The rest is solved exactly, until ``prove_until``, or until ``until`` if the
    search found none.
    """
    relaxed = relaxation.solve(program.rows, until - time.monotonic())
    if math.isinf(relaxed.value):
        return Solution(columns=None, objective=math.inf, bound=relaxed.value)
    columns = search(program, relaxed, until - time.monotonic())
    best = Solution(columns=None, objective=math.inf, bound=relaxed.value)
    if columns is not None:
        objective = math.fsum(program.objective[columns])
        proven = objective - relaxed.value <= TOLERANCE
        best = Solution(columns=columns, objective=objective, bound=objective if proven else relaxed.value)
    stop = until if columns is None else prove_until
    if best.proven or time.monotonic() > stop:
        return best
    useful = np.flatnonzero(relaxed.reduced <= best.objective - relaxed.value + _REDUCED_COST_MARGIN)
    exact = solve_binary(program, useful, columns, stop - time.monotonic())
    better = min(exact, best, key=lambda solution: solution.objective)
    # Excluded columns only lead to solutions above the best one.
    bound = max(relaxed.value, min(exact.bound, better.objective))
    return replace(better, bound=min(bound, better.objective))


def _clash(problem: Problem, budgets: Mapping[str, float], seconds: float) -> Exception:
    """Returns the error for budgets that can be met one by one but not together.

    Raises the error itself if the budgets cannot be met even without the first.
    """
    (name, budget), *others = budgets.items()
    by_cost = replace(problem, scores=problem.costs[name])
    cheapest = _select(by_cost, dict(others), 1, 1.0, seconds)[0].score
    return InfeasibleBudget(name, budget, cheapest, tuple(other for other, _ in others))
