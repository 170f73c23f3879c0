"""Costs that must not be too low: a lower bound on a cost is an upper bound on what it falls short of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lana_ray.selection.problem import Floats, InfeasibleBudget

_ROUNDING = 1e-12  # of the largest sum: by so much it may be less than asked for

Budget = float | tuple[float, float]
"""The most a cost may sum up to, or the least and the most."""


def shortfall(name: str) -> str:
    """The name of the cost that says how far a selection stays below the most of another."""
    return f"{name} below its most"


def stated(
    costs: Mapping[str, Sequence[Any]], budgets: Mapping[str, Budget]
) -> tuple[dict[str, Sequence[Any]], dict[str, float]]:
    """The same problem with upper bounds only.

    For a range of a cost ``c`` there is a further cost, ``max_j c_ij - c_ij`` of each candidate: it is zero
    or positive, adds up over layers, and is at most ``Σ max_j c_ij - least`` where ``c`` is at least
    ``least``.

    Raises:
        ValueError: for a range whose least is above its most, or not a number.
    """
    all_costs, upper = dict(costs), dict[str, float]()
    for name, budget in budgets.items():
        if not isinstance(budget, tuple):
            upper[name] = budget
            continue
        least, upper[name] = budget
        if not least <= upper[name]:
            raise ValueError(f"budget {name}: the range from {least} to {upper[name]} is empty")
        table = [np.asarray(values, dtype=np.float64) for values in costs.get(name, ())]
        tops = [_most(values) for values in table]
        all_costs[shortfall(name)] = [
            np.where(np.isfinite(values), top - values, values)
            for values, top in zip(table, tops, strict=True)
        ]
        upper[shortfall(name)] = float(sum(tops)) * (1 + _ROUNDING) - least
    return all_costs, upper


def explained(
    error: InfeasibleBudget, costs: Mapping[str, Sequence[Any]], budgets: Mapping[str, Budget]
) -> InfeasibleBudget:
    """The error in terms of what was asked for."""
    known = {shortfall(name): name for name in budgets}
    others = tuple(dict.fromkeys(known.get(other, other) for other in error.others))
    if error.name not in known:
        return InfeasibleBudget(
            error.name, error.budget, error.cheapest, others, most_operations=error.most_operations
        )
    name = known[error.name]
    budget = budgets[name]
    assert isinstance(budget, tuple)
    most = sum(_most(np.asarray(values, dtype=np.float64)) for values in costs[name])
    return InfeasibleBudget(
        name, budget[0], most - error.cheapest, others, True, most_operations=error.most_operations
    )


def _most(values: Floats) -> float:
    return float(values[np.isfinite(values)].max(initial=0.0))
