"""What is to be chosen, and how much of each budget is kept free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from lana_ray.config import Budget, SelectConfig
from lana_ray.config.messages import listed
from lana_ray.costs.timing import spread
from lana_ray.selection import InfeasibleBudget
from lana_ray.stages.choice import Choice, Limit
from lana_ray.stages.counts import CountedBudget
from lana_ray.stages.sample import TargetCosts
from lana_ray.workspace import Workspace

_OF_MEDIAN = 0.449
"""Variance of the median of three sessions in that of one, where they scatter normally."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """A choice as the program is given it."""

    costs: dict[str, Sequence[NDArray[np.float64]]]
    """By target or counted budget; per layer, shape [candidates]."""
    limits: dict[str, float]
    """The most that a sum of these costs may be."""
    rest: dict[str, float]
    """What a whole student costs beside them."""


def open_choices(workspace: Workspace, costs: Mapping[str, TargetCosts]) -> list[Choice]:
    """One choice for every target and budget, and with ``select.joint`` one for all targets together."""
    settings, budgets = workspace.config.select, workspace.config.budgets.latency_ms
    choices = [
        Choice(budget=budget, limits={name: _limit(settings, budget, measured)})
        for name, measured in costs.items()
        for budget in budgets
    ]
    if settings.joint and len(costs) > 1:
        choices += [
            Choice(budget=b, limits={name: _limit(settings, b, known) for name, known in costs.items()})
            for b in budgets
        ]
    return choices


def state(choice: Choice, costs: Mapping[str, TargetCosts], counted: Sequence[CountedBudget]) -> Stated:
    """The choice with the tables as they are now."""
    tables = {name: costs[name].table for name in choice.limits}
    # What every student pays comes off the budget: a regression may find it below zero, where no cost is.
    rest = {name: table.rest_ms for name, table in tables.items()}
    limits = {name: choice.aim * limit.limit_ms - rest[name] for name, limit in choice.limits.items()}
    per_layer: dict[str, Sequence[NDArray[np.float64]]] = {
        name: table.costs_ms for name, table in tables.items()
    }
    for budget in counted:
        name = budget.of_network
        per_layer[name], rest[name], limits[name] = budget.costs, budget.rest, budget.limit - budget.rest
    return Stated(costs=per_layer, limits=limits, rest=rest)


def _limit(settings: SelectConfig, budget: Budget, measured: TargetCosts) -> Limit:
    budget_ms = budget.limit(measured.teacher_ms)
    return Limit(budget_ms=budget_ms, limit_ms=budget_ms * (1 - free_share(settings, measured)))


def free_share(settings: SelectConfig, measured: TargetCosts) -> float:
    """Share of a budget that is kept free on a target.

    With ``select.confidence`` a further session of a network lies, with that probability, at most so far
    above the median of those it was judged by: Student's t with the degrees of freedom of the pooled
    deviation.
    """
    if settings.confidence is None or not measured.sessions_ms:
        return settings.margin
    deviation, freedom = spread(measured.sessions_ms.values())
    above = float(t.ppf(settings.confidence, freedom)) * deviation * math.sqrt(1 + _OF_MEDIAN)
    return max(settings.margin, above / (1 + above))


def layer_without_candidate(
    layers: Sequence[str], scores: Sequence[NDArray[np.float64]], stated: Stated
) -> str | None:
    """The first layer of which no candidate both may be chosen and runs on every target of the choice."""
    for i, layer in enumerate(layers):
        usable = np.isfinite(scores[i])
        for table in stated.costs.values():
            usable = usable & np.isfinite(table[i])
        if not usable.any():
            return layer
    return None


def unmet(
    choice: Choice,
    error: InfeasibleBudget,
    stated: Stated,
    counted: Sequence[CountedBudget],
    settings: SelectConfig,
) -> str:
    """Why no student keeps a budget: what it is, the least that can be had, and the fix."""
    names = {budget.of_network: f"budgets.{budget.name}" for budget in counted}
    others = [names.get(name, f"the budget on {name}") for name in error.others]
    few = error.most_operations is not None
    which = f" that keeps {' and '.join(others)}" if others else ""
    which += f" of at most {settings.max_ops} operations" if few else ""
    budget = f"budget {choice.name}"
    if error.name in choice.limits:
        budget += f" ({_ms(choice.limits[error.name].limit_ms)} with the margin)"
        place, least = repr(error.name), f"takes about {_ms(error.cheapest + stated.rest[error.name])}"
        least = f"the cheapest student{which} {least}"
        raised = ["the budget", *others]
    else:
        broken = next(known for known in counted if known.of_network == error.name)
        place = " and ".join(map(repr, choice.limits))
        budget += f" with budgets.{broken.name} {broken.limit:.6g}"
        least = f"the smallest student{which} has {error.cheapest + broken.rest:.6g} {broken.name}"
        raised = [f"budgets.{broken.name}", *others]
    raised += ["select.max_ops"] if few else []
    fixes = [f"raise {listed(raised)}"]
    fixes += ["loosen select.force and select.forbid"] if settings.force or settings.forbid else []
    fixes += ["add cheaper operations to the pool"]
    last = " or " if len(fixes) == 2 and len(raised) == 1 else ", or "
    return f"target {place}: {budget} cannot be met: {least}; {', '.join(fixes[:-1])}{last}{fixes[-1]}"


def _ms(value: float) -> str:
    return f"{value:.3f} ms" if abs(value) >= 0.01 else f"{value:.3g} ms"
