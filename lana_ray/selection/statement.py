"""A choice as the integer program is given it, and why it has no solution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lana_ray.config import SelectConfig
from lana_ray.config.messages import listed
from lana_ray.costs.table import CostTables
from lana_ray.ids import CostId
from lana_ray.selection.choice import Choice, Limit
from lana_ray.selection.problem import InfeasibleBudget

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Costs and limits of one choice; costs go by ``str(CostId)``."""

    costs: dict[str, Sequence[Floats]]
    """Per layer, shape [candidates]."""
    limits: dict[str, float]
    """The most that a sum of these costs may be."""
    limit_of: Mapping[CostId, Limit]
    """Every limit of the choice, of exact costs too."""
    rest: Mapping[CostId, float]
    """What every student costs outside of its layers. A regression may find it below zero, where no cost
    is, so it comes off the limit."""

    def id_of(self, name: str) -> CostId:
        """The cost of this name."""
        return next(of for of in self.limit_of if str(of) == name)


def state(choice: Choice, tables: Mapping[CostId, CostTables], exact: Mapping[CostId, Limit]) -> Statement:
    """The choice with the tables as they are now.

    Args:
        exact: limits on costs that need not be measured.
    """
    aims = {of: choice.aim * limit.value() for of, limit in choice.limits.items()}
    aims |= {of: limit.value() for of, limit in exact.items()}
    rest = {of: tables[of].table.rest for of in aims}
    return Statement(
        costs={str(of): tables[of].table.costs for of in aims},
        limits={str(of): aim - rest[of] for of, aim in aims.items()},
        limit_of={**choice.limits, **exact},
        rest=rest,
    )


def layer_without_candidate(
    layers: Sequence[str], scores: Sequence[Floats], statement: Statement
) -> str | None:
    """The first layer of which no candidate both may be chosen and runs on every target of the choice."""
    for i, layer in enumerate(layers):
        usable = np.isfinite(scores[i])
        for table in statement.costs.values():
            usable = usable & np.isfinite(table[i])
        if not usable.any():
            return layer
    return None


def unmet(choice: Choice, error: InfeasibleBudget, statement: Statement, settings: SelectConfig) -> str:
    """Why no student keeps a budget: what it is, the least that can be had, and the fix."""
    broken = statement.id_of(error.name)
    limit = statement.limit_of[broken]
    others = [_setting(statement.id_of(name)) for name in error.others]
    few = error.most_operations is not None
    which = f" that keeps {' and '.join(others)}" if others else ""
    which += f" of at most {settings.max_ops} operations" if few else ""
    bound = broken.written(limit.value()) + (" with the margin" if limit.value() < limit.budget else "")
    setting = _setting(broken)
    budget = (
        f"budget {choice.name}" if broken.cost == "latency_ms" else f"budget {choice.name} with {setting}"
    )
    least = broken.written(error.cheapest + statement.rest[broken])
    raised = ["the budget" if broken.cost == "latency_ms" else setting, *others]
    raised += ["select.max_ops"] if few else []
    fixes = [f"raise {listed(raised)}"]
    fixes += ["loosen select.force and select.forbid"] if settings.force or settings.forbid else []
    fixes += ["add cheaper operations to the pool"]
    last = " or " if len(fixes) == 2 and len(raised) == 1 else ", or "
    place = repr(broken.target) if broken.target else choice.place
    return (
        f"target {place}: {budget} ({bound}) cannot be met: the cheapest student{which} takes about {least}; "
        f"{', '.join(fixes[:-1])}{last}{fixes[-1]}"
    )


def _setting(of: CostId) -> str:
    return f"budgets.{of}" if of.cost != "latency_ms" else f"the budget on {of.target}"
