"""Every non-dominated trade-off between one cost and the score, by dynamic programming over layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lana_ray.selection.problem import Floats, Ints, Problem, Selection, total


def pareto(scores: Sequence[Any], costs: Sequence[Any], *, max_points: int | None = None) -> list[Selection]:
    """Returns all selections that no other one beats in cost and score, cheapest first.

    Args:
        scores: per layer, shape [M_i]; lower is better, ``inf`` if a candidate is not available.
        costs: per layer, shape [M_i], in one unit; ``inf`` if a candidate is not available.
        max_points: maximum number of points to keep of the front, evenly by rank, both ends included.

    The costs of a selection have the single key ``cost``. Among selections equal in both, one is kept.

    After each layer only the non-dominated partial sums stay, since a dominated one is never part of a
    better selection. Nothing is rounded or thinned out, so the front is exact up to the rounding of float
    sums. Its length depends on the data. Measured at N = 46, M = 197 on one core: independent uniform scores
    and costs give 2,800 points in 0.2 s; if no candidate of any layer is dominated by another, 230,000
    points in 150 s and 2.5 GB.

    Raises:
        ValueError: for NaN, negative costs, ragged input, a layer without a candidate, ``max_points < 1``.
    """
    if max_points is not None and max_points < 1:
        raise ValueError(f"max_points must be at least 1, not {max_points}")
    problem = Problem.check(scores, {"cost": costs})
    choices = _front(problem)
    table = problem.costs["cost"]
    exact_costs = np.array([total(table, row) for row in choices])
    exact_scores = np.array([total(problem.scores, row) for row in choices])
    choices = choices[_non_dominated(exact_costs, exact_scores)]
    if max_points is not None and len(choices) > max_points:
        choices = choices[np.linspace(0, len(choices) - 1, max_points).round().astype(int)]
    return [problem.selection(row) for row in choices.tolist()]


def _front(problem: Problem) -> Ints:
    """Returns the choices on the front, shape [points, N]."""
    cost, score = np.zeros(1), np.zeros(1)
    # Per layer: the parent and the candidate of each partial sum.
    steps: list[tuple[Ints, Ints]] = []
    for scores, costs, available in zip(
        problem.scores, problem.costs["cost"], problem.available, strict=True
    ):
        candidates = available[_non_dominated(costs[available], scores[available])]
        # Each row is sorted already, so that sorting all of them is cheap.
        new_cost = (costs[candidates][:, None] + cost).ravel()
        new_score = (scores[candidates][:, None] + score).ravel()
        keep = _non_dominated(new_cost, new_score)
        candidate, parent = np.divmod(keep, len(cost))
        cost, score = new_cost[keep], new_score[keep]
        steps.append((parent.astype(np.int32), candidates[candidate].astype(np.int32)))
    choices = np.empty((len(cost), len(steps)), dtype=np.int64)
    points = np.arange(len(cost))
    for layer in reversed(range(len(steps))):
        parent, candidate = steps[layer]
        choices[:, layer] = candidate[points]
        points = parent[points]
    return choices


def _non_dominated(cost: Floats, score: Floats) -> Ints:
    """Returns the indices of the non-dominated points, cheapest first; one of equal points."""
    order = np.argsort(cost, kind="stable")
    cost, score = cost[order], score[order]
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], score[:-1])))
    better = np.flatnonzero(score < best_before)
    # The best among points of equal cost.
    last_of_its_cost = np.append(np.diff(cost[better]) > 0, True)
    return order[better[last_of_its_cost]]
