"""The students that the integer program proposes for a choice, or why there are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lana_ray.config import SelectConfig
from lana_ray.config.messages import listed
from lana_ray.ids import CostId
from lana_ray.ops.registry import TEACHER
from lana_ray.run_dir import layout
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import Storage
from lana_ray.selection.choice import Choice, Limit, Proposal
from lana_ray.selection.ilp import select
from lana_ray.selection.loop import Proposed, Tables
from lana_ray.selection.max_ops import FewOperations, of_few_operations
from lana_ray.selection.problem import (
    Floats,
    InfeasibleBudget,
    NoSelectionFound,
    Selection,
    TooFewOperations,
)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What there is to choose from."""

    layers: Sequence[str]
    """Names of the layers."""
    ops: Sequence[Sequence[str]]
    """Per layer, the names of its candidates."""
    scores: Sequence[Floats]
    """Per layer, shape [candidates]; infinite for a candidate that may not be chosen."""
    exact: Mapping[CostId, Limit]
    """Limits on costs that need not be measured."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Costs and limits of one choice as the program is given them, by ``str(CostId)``."""

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


def state(choice: Choice, tables: Tables, exact: Mapping[CostId, Limit]) -> Statement:
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


def propose(pool: Pool, settings: SelectConfig, storage: Storage, choice: Choice, tables: Tables) -> Proposed:
    """The best diverse students of a choice by scores and tables, or why there are none.

    Solutions are kept in the run directory: one that a time limit ended would not come out the same again.
    """
    statement = state(choice, tables, pool.exact)
    if reason := _without_candidate(pool, choice, statement):
        return Proposed(unmet=reason)
    try:
        selections = _kept(pool, settings, storage, statement)
    except NoSelectionFound as error:
        return Proposed(unmet=f"target {choice.place}: budget {choice.name}: {error}")
    except (InfeasibleBudget, TooFewOperations) as error:
        return Proposed(unmet=_explained(choice, error, statement, settings))
    calibrations = {of: len(tables[of].tables) - 1 for of in choice.limits}
    students = {
        selection.choices: Proposal(
            selection=selection,
            predicted={of: tables[of].table.predict(selection.choices) for of in choice.limits},
            calibrations=calibrations,
        )
        for selection in selections
    }
    return Proposed(students=students)


def reason_unmet(pool: Pool, settings: SelectConfig, choice: Choice, tables: Tables) -> str:
    """Why no student can keep the limits, whatever the scores; empty if one can.

    Raises:
        NoSelectionFound: the solver found no answer in time.
    """
    statement = state(choice, tables, pool.exact)
    if reason := _without_candidate(pool, choice, statement):
        return reason
    zero = [np.where(np.isfinite(of_layer), 0.0, np.inf) for of_layer in pool.scores]
    try:
        left = _of_few(dataclasses.replace(pool, scores=zero), settings, statement)
        select(left, statement.costs, statement.limits, time_limit_s=settings.time_limit_s)
    except (InfeasibleBudget, TooFewOperations) as error:
        return _explained(choice, error, statement, settings)
    return ""


def _without_candidate(pool: Pool, choice: Choice, statement: Statement) -> str:
    """Names a layer of which no candidate both may be chosen and runs on every target; empty if none is."""
    for i, layer in enumerate(pool.layers):
        tables = (pool.scores, *statement.costs.values())
        if not np.all([np.isfinite(table[i]) for table in tables], axis=0).any():
            why = f"none of the candidates that may be chosen for layer {layer} runs there"
            return f"target {choice.place}: budget {choice.name} cannot be met: {why}"
    return ""


def _explained(
    choice: Choice, error: InfeasibleBudget | TooFewOperations, statement: Statement, settings: SelectConfig
) -> str:
    """Why no student keeps a budget: what it is, the least that can be had, and the fix."""
    if isinstance(error, TooFewOperations):
        why = f"select.max_ops {error.most} is less than the {error.needed} operations that its layers need"
        return f"target {choice.place}: budget {choice.name} cannot be met: {why}; raise select.max_ops"
    broken = statement.id_of(error.name)
    limit = statement.limit_of[broken]
    setting, others = _setting(broken), [_setting(statement.id_of(name)) for name in error.others]
    which = f" that keeps {' and '.join(others)}" if others else ""
    bound = broken.written(limit.value()) + (" with the margin" if limit.value() < limit.budget else "")
    is_latency = broken.is_latency
    budget = f"budget {choice.name}" if is_latency else f"budget {choice.name} with {setting}"
    raised = ["the budget" if is_latency else setting, *others]
    if error.most_operations is not None:
        which += f" of at most {settings.max_ops} operations"
        raised.append("select.max_ops")
    least = broken.written(error.cheapest + statement.rest[broken])
    fixes = [f"raise {listed(raised)}"]
    fixes += ["loosen select.force and select.forbid"] if settings.force or settings.forbid else []
    last = " or " if len(fixes) == 1 and len(raised) == 1 else ", or "
    place = repr(broken.target) if broken.target else choice.place
    return (
        f"target {place}: {budget} ({bound}) cannot be met: the cheapest student{which} takes about {least}; "
        f"{', '.join(fixes)}{last}add cheaper operations to the pool"
    )


def _setting(of: CostId) -> str:
    return f"budgets.{of}" if not of.is_latency else f"the budget on {of.target}"


def _kept(pool: Pool, settings: SelectConfig, storage: Storage, statement: Statement) -> list[Selection]:
    tables = {name: [costs.tolist() for costs in table] for name, table in statement.costs.items()}
    problem = ([scores.tolist() for scores in pool.scores], tables, statement.limits)
    key = fingerprint(problem, settings.count, settings.max_overlap, settings.time_limit_s, settings.max_ops)
    file = layout.solutions(key)
    solutions = storage.kept(file, _selections)
    if solutions is None:
        solutions = select(
            _of_few(pool, settings, statement),
            statement.costs,
            statement.limits,
            count=settings.count,
            max_overlap=settings.max_overlap,
            time_limit_s=settings.time_limit_s,
        )
        storage.write_json(file, [dataclasses.asdict(selection) for selection in solutions])
    return solutions


def _selections(rows: Any) -> list[Selection]:
    return [Selection(**{**row, "choices": tuple(row["choices"])}) for row in rows]


def _of_few(pool: Pool, settings: SelectConfig, statement: Statement) -> Sequence[Floats]:
    """The scores of the best ``select.max_ops`` operations."""
    if settings.max_ops is None:
        return pool.scores
    few = FewOperations(ops=pool.ops, most=settings.max_ops, free=[TEACHER])
    limits = statement.costs, statement.limits, few
    return of_few_operations(pool.scores, *limits, time_limit_s=settings.time_limit_s)
