"""Stage 5: selects an architecture for every target and budget, confirmed by measurement."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lana_ray.costs.registry import COUNTED
from lana_ray.costs.work import network_work
from lana_ray.errors import UserError
from lana_ray.evaluation.networks import losses
from lana_ray.ids import Architecture, CostId
from lana_ray.measurement.latencies import sessions_of
from lana_ray.measurement.students import measure_students
from lana_ray.monitoring.progress import say
from lana_ray.preflight.planned import Planned
from lana_ray.preflight.settings import allowed_choices, check_smallest
from lana_ray.run_dir import layout
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.tables import SELECTIONS, SelectionRow
from lana_ray.selection.choice import Choice, Limit, State, limits_of
from lana_ray.selection.constraints import constrained
from lana_ray.selection.loop import Loop, Measurements, Tables, World, close_loop
from lana_ray.selection.margin import Noise, noise_of
from lana_ray.selection.problem import NoSelectionFound
from lana_ray.selection.propose import Pool, propose, reason_unmet
from lana_ray.stages import sample
from lana_ray.stages.sample import Sampling
from lana_ray.workspace import Workspace

Scores = Sequence[NDArray[np.float64]]


def run(workspace: Workspace, sampling: Sampling, world: World) -> Loop:
    """Closes the loop on measured costs (``selection.loop``) and writes its tables (``write``).

    ``unmet`` has the reason if no student keeps a budget; raises UserError if none keeps any budget.
    """
    choices = open_choices(workspace, sampling)
    loop = close_loop(Loop(choices=choices, tables=sampling.tables), world, workspace.config.select.rounds)
    if len(loop.where(State.UNMET)) == len(choices):
        raise UserError("infeasible", loop.choices[0].unmet)
    for choice in loop.choices:
        _say(choice)
    write(workspace, sampling, loop)
    return loop


def world_of(workspace: Workspace, sampling: Sampling, scores: Scores) -> World:
    """The callbacks that propose, measure and evaluate students in this run.

    Raises UserError as ``constrained`` does, and for a counted budget below the smallest student.
    """
    config, space = workspace.config, workspace.space
    settings = config.select
    pool = _pool(workspace, sampling, scores)

    def measure(asked: Mapping[str, Sequence[Architecture]], attempt: int) -> Measurements:
        work = {name: {a: network_work(space, a) for a in some} for name, some in asked.items()}
        title = "confirm" if attempt else "select"
        return measure_students(workspace, space, sampling.targets, work, sessions_of(attempt), title)

    return World(
        propose=functools.partial(propose, pool, settings, workspace.storage),
        measure=measure,
        evaluate=functools.partial(losses, workspace),
        noise=functools.partial(noise_of, settings),
        fix="raise the budget, select.count or select.rounds",
    )


def open_choices(workspace: Workspace, sampling: Sampling) -> tuple[Choice, ...]:
    """A choice for every target and budget, and with ``select.joint`` for all targets together."""
    places = [[target] for target in workspace.targets]
    if workspace.config.select.joint and len(places) > 1:
        places.append(list(workspace.targets))
    return tuple(
        Choice(budget=str(budget), limits=limits_of(workspace.config, sampling.tables, targets, budget))
        for targets in places
        for budget in workspace.config.budgets.latencies
    )


def check(workspace: Workspace, sampling: Sampling) -> None:
    """Says before any training which budgets no student can meet; raises UserError if none can be met."""
    layers = zip(workspace.space.ops, sampling.considered, strict=True)
    usable = [np.where(np.isin(range(len(ops)), some), 0.0, np.inf) for ops, some in layers]
    pool, settings = _pool(workspace, sampling, usable), workspace.config.select
    choices = []
    for choice in open_choices(workspace, sampling):
        # How much sessions vary is not known yet, so only the margin itself counts.
        floor = Noise(floor=settings.margin)
        choice = replace(choice, limits={of: replace(x, noise=floor) for of, x in choice.limits.items()})
        # The solver gets another chance with scores.
        with contextlib.suppress(NoSelectionFound):
            choice = replace(choice, unmet=reason_unmet(pool, settings, choice, sampling.tables))
        choices.append(choice)
    missed = [choice.unmet for choice in choices if choice.unmet]
    if len(missed) == len(choices):
        others = f" (nor can the other {len(missed) - 1} budgets)" if len(missed) > 1 else ""
        raise UserError("infeasible", missed[0] + others)
    for choice in choices:
        if choice.unmet:
            say(f"select: {choice.unmet}")
        elif len(choice.targets) == 1:
            _say_if_the_teacher_keeps(choice, sampling.tables)


def _pool(workspace: Workspace, sampling: Sampling, scores: Scores) -> Pool:
    """The candidates that ``select.force`` and ``select.forbid`` allow."""
    return Pool(
        layers=[layer.name for layer in workspace.space.layers],
        ops=[[op.name for op in ops] for ops in workspace.space.ops],
        scores=allowed_scores(workspace, scores),
        exact=_exact_limits(workspace, sampling, scores),
    )


def allowed_scores(workspace: Workspace, scores: Scores) -> list[NDArray[np.float64]]:
    """The scores, infinite for candidates that ``select.force`` and ``select.forbid`` exclude."""
    settings, space = workspace.config.select, workspace.space
    return constrained(
        scores,
        [layer.name for layer in space.layers],
        [[op.name for op in ops] for ops in space.ops],
        force=settings.force,
        forbid=settings.forbid,
    )


def _exact_limits(workspace: Workspace, sampling: Sampling, scores: Scores) -> dict[CostId, Limit]:
    limits = {}
    for cost, bound in workspace.config.budgets.bounds.items():
        if cost in COUNTED:
            costs = sampling.tables[CostId(cost)]
            limit = bound.limit(costs.teacher)
            smallest = (
                float(of_layer[np.isfinite(usable)].min())
                for of_layer, usable in zip(costs.table.costs, allowed_scores(workspace, scores), strict=True)
            )
            check_smallest(cost, limit, costs.table.rest + sum(smallest), costs.teacher)
            limits[costs.id] = Limit(budget=limit)
    return limits


def _say_if_the_teacher_keeps(choice: Choice, tables: Tables) -> None:
    """Says so if the teacher itself keeps a budget."""
    if all(limit.budget >= tables[of].teacher for of, limit in choice.limits.items()):
        teacher = ", ".join(of.written(tables[of].teacher) for of in choice.limits)
        say(f"select: {choice.targets[0]} {choice.name}: the teacher itself, at {teacher}, keeps this budget")


def _say(choice: Choice) -> None:
    if choice.chosen is None:
        say(f"select: {choice.unmet}")
        return
    costs, loss = choice.measured[choice.chosen], choice.loss[choice.chosen]
    for of, limit in choice.limits.items():
        used = 100 * costs[of].value / limit.budget
        say(
            f"select: {of.target} {choice.name}: {len(choice.measured)} students measured, "
            f"{len(choice.loss)} within {of.written(limit.value())}; the best takes "
            f"{of.written(costs[of].value)} ({used:.0f} % of the budget), loss {loss:.3f}"
        )


def write(workspace: Workspace, sampling: Sampling, loop: Loop) -> None:
    """Writes ``selections.parquet`` and, with all calibrated tables, ``costs/<target>.parquet``."""
    sample.write(workspace, sampling, loop.tables)
    rows = [
        SelectionRow(
            target=str(of.target),
            budget=choice.name,
            cost=of.cost,
            limit=limit.budget,
            round=proposal.round,
            calibration=proposal.calibrations[of],
            rank=rank,
            architecture=workspace.space.label(student),
            choices=student,
            score=proposal.selection.score if proposal.selection else float("nan"),
            gap=proposal.selection.gap if proposal.selection else float("nan"),
            predicted=proposal.predicted[of],
            measured=choice.measured[student][of].value if student in choice.measured else None,
            iqr=choice.measured[student][of].iqr if student in choice.measured else None,
            loss=choice.loss.get(student),
            chosen=student == choice.chosen,
        )
        for choice in loop.choices
        for of, limit in choice.limits.items()
        for rank, (student, proposal) in enumerate(choice.students.items())
    ]
    targets = [sampled.target_key for sampled in sampling.targets.values()]
    key = fingerprint(targets, workspace.config.select, [row.architecture for row in rows])
    SELECTIONS.write(workspace.storage, layout.SELECTIONS, rows, key)


def plan(planned: Planned) -> list[str]:
    """The budgets, and the numbers of students and architectures."""
    config, settings = planned.config, planned.config.select
    latencies = config.budgets.latencies
    on_all = " and on all" if planned.is_joint else ""
    left = math.prod(map(len, allowed_choices(config, planned.space)))
    wide = [str(budget) for budget in latencies if budget.relative and budget.limit_ms(1.0, 1) >= 1]
    few = "" if settings.max_ops is None else f" of at most {settings.max_ops} different operations"
    bounds = [
        f"; at most {bound}{' of the teacher’s' if bound.relative else ''} {cost}"
        for cost, bound in config.budgets.bounds.items()
    ]
    return [
        f"budgets {', '.join(map(str, latencies))} on {len(config.targets)} targets{on_all}, "
        f"{settings.count} students each measured and evaluated, in up to {settings.rounds} rounds; "
        f"{left:.2g} architectures{few} to choose from{''.join(bounds)}"
        + (f"; the teacher itself keeps {', '.join(wide)}" if wide else "")
    ]
