"""Scores, costs and budgets as the rows and columns of an integer program, in scale-free units."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lana_ray.selection.problem import Floats, Ints, Problem, total

# Tolerance of rows and objective, in the units of Program; near 1e-9 HiGHS contradicts itself.
TOLERANCE = 1e-7
# Number of selections over a budget by less than TOLERANCE that are excluded one by one.
EXCLUSIONS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The constraint ``Σ value·z[index] ≤ upper``."""

    index: Ints
    """Columns, shape [m]."""
    value: Floats
    """Their coefficients, shape [m]."""
    upper: float
    budget: str | None = None
    """The budget this row states; None for the overlap with an earlier selection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """An integer program with one binary column per candidate of a selection within each single budget.

    Scores and costs are relative to the least one in the layer, costs in units of what the budget leaves
    above the cheapest selection, scores in units of their median. Absolute tolerances then mean the same
    whether costs are in seconds or microseconds.
    """

    problem: Problem
    budgets: Mapping[str, float]
    layer: Ints
    """Layer of each column, ascending, shape [n]."""
    candidate: Ints
    """Candidate of each column within its layer, shape [n]; a layer's columns are sorted by score, then by
    costs, so that the order of candidates does not matter."""
    objective: Floats
    """Score of each column above its layer's least, in units of ``scale``, shape [n]."""
    scale: float
    offset: float
    """Sum of the layers' least scores."""
    rows: tuple[Row, ...]

    @property
    def layers(self) -> int:
        """Number of layers, N."""
        return len(self.problem.scores)

    @property
    def has_empty_layer(self) -> bool:
        """Whether some layer has no candidate that fits each budget by itself."""
        return len(np.unique(self.layer)) < self.layers

    def choices(self, columns: Ints) -> list[int]:
        """Returns the candidate of each layer from its chosen column."""
        return [int(j) for j in self.candidate[np.sort(columns)]]

    def unlike(self, columns: Ints, may_agree: int) -> Program:
        """Returns the program with at most ``may_agree`` of ``columns`` chosen again."""
        overlap = Row(index=columns, value=np.ones(len(columns)), upper=float(may_agree))
        return replace(self, rows=(*self.rows, overlap))

    def tightened(self, budgets: Collection[str | None], columns: Ints) -> Program:
        """Returns the program with some budgets' rows lowered until they exclude the solution ``columns``."""
        rows = list(self.rows)
        for r, row in enumerate(rows):
            if row.budget in budgets:
                used = math.fsum(row.value[np.isin(row.index, columns)])
                rows[r] = replace(row, upper=max(min(row.upper, used) - 2 * TOLERANCE, 0.0))
        return replace(self, rows=tuple(rows))

    def over(self, columns: Ints) -> set[str]:
        """Returns the budgets that a selection exceeds by its exactly rounded sums."""
        costs, choices = self.problem.costs, self.choices(columns)
        return {name for name, budget in self.budgets.items() if total(costs[name], choices) > budget}

    def score(self, objective: float) -> float:
        """Converts a value of the objective to a score in the user's unit."""
        return self.offset + self.scale * objective


def build_program(problem: Problem, budgets: Mapping[str, float]) -> Program:
    """Builds the program of ``problem`` within ``budgets``; each must be at least the cheapest selection."""
    least = problem.least(problem.scores)
    layer = np.repeat(np.arange(len(least)), [len(keep) for keep in problem.available])
    scores, costs = problem.flat(problem.scores), {n: problem.flat(t) for n, t in problem.costs.items()}
    order = np.lexsort((*costs.values(), scores, layer))
    candidate = np.concatenate(problem.available)[order]
    objective = scores[order] - least[layer]
    stated: dict[str, tuple[Floats, float]] = {}
    fits = np.ones(len(layer), dtype=bool)
    for name, budget in budgets.items():
        if budget == math.inf:
            continue
        cheapest = problem.least(problem.costs[name])
        rounding = 4 * len(least) * float(np.finfo(np.float64).eps) * budget
        slack = budget - math.fsum(cheapest) + rounding
        extra = costs[name][order] - cheapest[layer]
        fits &= extra <= slack
        stated[name] = extra, slack
    objective = objective[fits]
    scale = float(np.median(objective[objective > 0])) if (objective > 0).any() else 1.0
    rows = []
    for name, (extra, slack) in stated.items():
        index = np.flatnonzero(extra[fits])
        # Without slack no column is left, so that nothing is divided by zero.
        value = extra[fits][index] / slack
        rows.append(Row(index=index, value=value, upper=1.0, budget=name))
    return Program(
        problem=problem,
        budgets=budgets,
        layer=layer[fits],
        candidate=candidate[fits],
        objective=objective / scale,
        scale=scale,
        offset=math.fsum(least),
        rows=tuple(rows),
    )
