"""The input of a selection, checked, its result and its errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lana_ray.errors import UserError

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
_LOWEST = float(np.finfo(np.float64).min)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """One candidate per layer, with the predicted score and costs."""

    choices: tuple[int, ...]
    """Index of the candidate chosen at each layer."""
    score: float
    """Sum of the chosen candidates' scores; lower is better."""
    costs: dict[str, float]
    """Sum of the chosen candidates' costs, for every cost, in its own unit."""
    bound: float
    """Lower bound of the score of any selection under the same constraints: equal to ``score`` if proven
    optimal (to 1e-7 of the median by which candidates' scores differ from their layer's best)."""
    gap: float
    """``(score - bound) / max(|score|, |bound|)``: 0 if proven optimal."""


class InfeasibleBudget(UserError, ValueError):
    """No selection meets a budget: ``cheapest`` is the least possible cost ``name``.

    If ``others`` names further budgets, each of them and this one can be met alone, but not together;
    ``cheapest`` is then the least among the selections that meet the others. If ``most_operations`` is set,
    selections were limited to that many operations.
    """

    def __init__(
        self,
        name: str,
        budget: float,
        cheapest: float,
        others: tuple[str, ...] = (),
        most_operations: int | None = None,
    ) -> None:
        self.name, self.budget, self.cheapest = name, budget, cheapest
        self.others, self.most_operations = others, most_operations
        within = f" within the budgets of {', '.join(others)}" if others else ""
        within += f" of at most {most_operations} operations" if most_operations is not None else ""
        super().__init__(
            "infeasible",
            f"budget {name} = {budget:.9g} cannot be met: the cheapest selection{within} "
            f"costs {cheapest:.9g}; raise the budget or add cheaper candidates",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        known = (self.name, self.budget, self.cheapest, self.others, self.most_operations)
        return type(self), known


class TooFewOperations(UserError, ValueError):
    """Some layers have no candidate among the allowed number of operations, whatever the budgets."""

    def __init__(self, most: int, needed: int) -> None:
        self.most, self.needed = most, needed
        super().__init__(
            "infeasible",
            f"every selection has at least {needed} operations; allow more than {most}",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.most, self.needed)


class NoSelectionFound(RuntimeError):
    """The time limit ended before any selection was found or infeasibility was proven."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Checked scores and costs of N layers, and their available candidates."""

    scores: list[Floats]
    """Scores of each layer, shape [M_i]."""
    costs: dict[str, list[Floats]]
    """Costs of each layer by name, shape [M_i]."""
    available: list[Ints]
    """Sorted indices of each layer's candidates without an infinite score or cost."""

    @classmethod
    def check(cls, scores: Sequence[Any], costs: Mapping[str, Sequence[Any]]) -> Problem:
        """Raises ValueError naming what is empty, ragged, NaN, negative (costs) or has nothing available."""
        arrays = [_layer_values("scores", i, values, _LOWEST) for i, values in enumerate(scores)]
        if not arrays:
            raise ValueError("scores: there are no layers to select for")
        tables: dict[str, list[Floats]] = {}
        for name, table in costs.items():
            if len(table) != len(arrays):
                raise ValueError(f"costs of {name}: {len(table)} layers, but scores have {len(arrays)}")
            tables[name] = [
                _layer_values(f"costs of {name}", i, values, 0.0) for i, values in enumerate(table)
            ]
            for i, (values, wanted) in enumerate(zip(tables[name], arrays, strict=True)):
                if len(values) != len(wanted):
                    raise ValueError(
                        f"costs of {name}, layer {i}: {len(values)} candidates, but scores have {len(wanted)}"
                    )
        layers = zip(arrays, *tables.values(), strict=True)
        available = [np.flatnonzero(np.isfinite(values).all(axis=0)) for values in layers]
        for i, candidates in enumerate(available):
            if not len(candidates):
                raise ValueError(f"layer {i}: no candidate is available; each has an infinite score or cost")
        return cls(scores=arrays, costs=tables, available=available)

    def selection(self, choices: Sequence[int], bound: float | None = None) -> Selection:
        """Returns the selection of ``choices``, sums exactly rounded; optimal if there is no ``bound``."""
        score = total(self.scores, choices)
        bound = score if bound is None else min(bound, score)
        return Selection(
            choices=tuple(int(j) for j in choices),
            score=score,
            costs={name: total(table, choices) for name, table in self.costs.items()},
            bound=bound,
            gap=(score - bound) / max(abs(score), abs(bound)) if score > bound else 0.0,
        )

    def check_each(self, budgets: Mapping[str, float]) -> None:
        """Raises InfeasibleBudget if the cheapest selection is over a budget by itself."""
        for name, budget in budgets.items():
            cheapest = math.fsum(self.least(self.costs[name]))
            if cheapest > budget:
                raise InfeasibleBudget(name, budget, cheapest)

    def least(self, table: list[Floats]) -> Floats:
        """Returns the smallest value of each layer among its available candidates, shape [N]."""
        return np.array([values[keep].min() for values, keep in zip(table, self.available, strict=True)])

    def flat(self, table: list[Floats]) -> Floats:
        """Returns the available candidates' values of all layers in one array."""
        return np.concatenate([values[keep] for values, keep in zip(table, self.available, strict=True)])


def total(table: Sequence[Floats], choices: Sequence[int]) -> float:
    """Returns the exactly rounded sum of one value per layer, whatever the layers' order."""
    return math.fsum(values[j] for values, j in zip(table, choices, strict=True))


def _layer_values(what: str, layer: int, values: Any, least: float) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{what}, layer {layer}: expected one value per candidate, got shape {array.shape}")
    # NaN is not at least anything.
    if len(wrong := np.flatnonzero(~(array >= least))):
        allowed = "a score is a number or inf" if what == "scores" else "a cost is zero, positive or inf"
        j = wrong[0]
        raise ValueError(f"{what}, layer {layer}, candidate {j}: {array[j]} is not allowed; {allowed}")
    return array
