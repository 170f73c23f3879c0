"""What is to be chosen, and how much of each budget is kept free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy.stats import t

from lana_ray.config import Budget, SelectConfig
from lana_ray.errors import UserError
from lana_ray.latency.timing import spread
from lana_ray.stages.choice import Choice, Limit
from lana_ray.stages.sample import TargetCosts
from lana_ray.workspace import Workspace

_OF_MEDIAN = 0.449
"""Variance of the median of three sessions in that of one, where they scatter normally."""


def open_choices(workspace: Workspace, costs: Mapping[str, TargetCosts]) -> list[Choice]:
    """What is to be chosen: for every target and budget one, and with ``select.joint`` one for all targets.

    A budget below the cheapest student of the table is ``unmet`` from the start and costs the others nothing.

    Raises:
        UserError: where all of them do; known before anything is trained.
    """
    settings, budgets = workspace.config.select, workspace.config.budgets.latency_ms
    choices = [
        Choice(budget=budget, limits={name: _limit(settings, budget, measured)})
        for name, measured in costs.items()
        for budget in budgets
    ]
    for choice in choices:
        ((name, limit),) = choice.limits.items()
        table = costs[name].table
        cheapest = table.rest_ms + sum(float(of_layer.min()) for of_layer in table.costs_ms)
        if cheapest > limit.limit_ms:
            choice.unmet = too_low(choice, name, cheapest)
    if all(choice.unmet for choice in choices):
        raise UserError(choices[0].unmet)
    if settings.joint and len(costs) > 1:
        choices += [
            Choice(budget=b, limits={name: _limit(settings, b, known) for name, known in costs.items()})
            for b in budgets
        ]
    return choices


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


def too_low(choice: Choice, target: str, cheapest_ms: float, counted: Sequence[str] = ()) -> str:
    """The message for a budget below the cheapest student.

    Args:
        counted: names of the counted budgets that students keep as well.
    """
    others = [f"it on {name}" for name in choice.limits if name != target]
    others += [f"budgets.{name}" for name in counted]
    which = f"student that keeps {' and '.join(others)}" if others else "student"
    return (
        f"target {target!r}: budget {choice.name} ({choice.limits[target].limit_ms:.3f} ms with the margin) "
        f"cannot be met: the cheapest {which} takes about {cheapest_ms:.3f} ms; raise the budget or add "
        f"cheaper operations to the pool"
    )
