"""The selections that a choice's program has, under the settings of ``select``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lana_ray.config import SelectConfig
from lana_ray.ids import CostId
from lana_ray.ops.registry import TEACHER
from lana_ray.run_dir import layout
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import Storage
from lana_ray.selection.choice import Choice, Limit, Proposal
from lana_ray.selection.ilp import select
from lana_ray.selection.loop import Proposed, Tables
from lana_ray.selection.max_ops import of_few_operations
from lana_ray.selection.problem import InfeasibleBudget, NoSelectionFound, Selection, TooFewOperations
from lana_ray.selection.statement import Statement, layer_without_candidate, state, unmet

Scores = Sequence[NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What there is to choose from."""

    layers: Sequence[str]
    """Names of the layers."""
    ops: Sequence[Sequence[str]]
    """Per layer, the names of its candidates."""
    scores: Scores
    """Per layer, shape [candidates]; infinite for a candidate that may not be chosen."""
    exact: Mapping[CostId, Limit]
    """Limits on costs that need not be measured."""


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
    layer = layer_without_candidate(pool.layers, pool.scores, statement)
    if layer is None:
        return ""
    why = f"none of the candidates that may be chosen for layer {layer} runs there"
    return f"target {choice.place}: budget {choice.name} cannot be met: {why}"


def _explained(
    choice: Choice, error: InfeasibleBudget | TooFewOperations, statement: Statement, settings: SelectConfig
) -> str:
    if isinstance(error, InfeasibleBudget):
        return unmet(choice, error, statement, settings)
    why = f"select.max_ops {error.most} is less than the {error.needed} operations that its layers need"
    return f"target {choice.place}: budget {choice.name} cannot be met: {why}; raise select.max_ops"


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


def _of_few(pool: Pool, settings: SelectConfig, statement: Statement) -> Scores:
    """The scores of the best ``select.max_ops`` operations."""
    if settings.max_ops is None:
        return pool.scores
    return of_few_operations(
        pool.scores,
        statement.costs,
        statement.limits,
        pool.ops,
        settings.max_ops,
        free=[TEACHER],
        time_limit_s=settings.time_limit_s,
    )
