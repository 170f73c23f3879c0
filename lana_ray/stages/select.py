"""Stage 5: one architecture for every target and budget, chosen by the program and proven by measurement."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lana_ray.costs.samples import Sample
from lana_ray.costs.work import network_work
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import say
from lana_ray.ops.registry import TEACHER
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.selection import InfeasibleBudget, NoSelectionFound, Selection, TooFewOperations, select
from lana_ray.selection.constraints import constrained
from lana_ray.selection.few import of_few_operations
from lana_ray.spaces.space import Architecture
from lana_ray.stages import confirm, sample
from lana_ray.stages.budgets import (
    Stated,
    free_share,
    layer_without_candidate,
    open_choices,
    state,
    unmet,
)
from lana_ray.stages.choice import Choice, Proposal
from lana_ray.stages.counts import CountedBudget, counted_budgets
from lana_ray.stages.sample import SESSIONS, Judged, TargetCosts, considered, judge
from lana_ray.workspace import Workspace

FILE = "selections.parquet"
_STEP = 0.04
"""By how much lower the next round aims for a budget that no student has kept yet."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What was chosen, and the costs by which."""

    choices: list[Choice]
    costs: dict[str, TargetCosts]
    """By target, with every student measured so far."""


def run(
    workspace: Workspace, costs: Mapping[str, TargetCosts], scores: Sequence[NDArray[np.float64]]
) -> Selected:
    """Closes the loop on latency (DESIGN 2.7) and writes what ``write`` does.

    Each round solves the program for every open budget, measures the students it proposes whole, and
    calibrates the table with them. A budget is done when the program's best student keeps it and uses 95 %
    of it: one that runs faster than predicted left accuracy behind. After the last round any student within
    will do; the one with the lowest loss is chosen, once further sessions confirm it. A budget that has none
    goes on for as many rounds again, each aiming a little lower: the table's errors are scattered around it.

    A budget that still has none is left out, with its reason in ``unmet``. A student of a tighter budget that
    has a lower loss is taken for the wider one too.

    Raises:
        UserError: where none of the budgets can be kept, naming target, budget and the cheapest possible, and
            as ``selection.constraints.constrained``.
    """
    rounds, scores = workspace.config.select.rounds, constrained_scores(workspace, scores)
    counted = counted_budgets(workspace, scores)
    choices = open_choices(workspace, costs)
    for number in range(2 * rounds):
        unfinished = [choice for choice in choices if not choice.finished]
        costs, new = _round(workspace, unfinished, costs, counted, scores, number)
        for choice in unfinished:
            enough = choice.leader_fits() or number + 1 >= rounds or not new
            choice.finished = enough and bool(choice.within())
        if number + 1 >= rounds or all(choice.finished for choice in choices):
            choices = confirm.run(workspace, choices, costs, lambda choice: choice.finished)
        missed = [choice for choice in choices if not choice.finished]
        if not missed:
            break
        for choice in missed if number else ():  # the first table is not calibrated yet
            choice.aim *= 1.0 if choice.within() or not choice.students else 1 - _STEP
    for choice in missed:
        choice.unmet = choice.unmet or _unmet(choice)
    if len(missed) == len(choices):
        raise UserError(missed[0].unmet)
    _prefer_tighter([choice for choice in choices if not choice.unmet])
    for choice in choices:
        if choice.unmet:
            say(f"select: {choice.unmet}")
        else:
            _say(choice)
    selected = Selected(choices=choices, costs=dict(costs))
    write(workspace, selected)
    return selected


def _prefer_tighter(choices: Sequence[Choice]) -> None:
    """Scores, by which students are proposed to use a budget, need not rank whole students as losses do."""
    chosen = [(choice, choice.architecture) for choice in choices if choice.architecture]
    for choice in choices:
        for other, student in chosen:
            if other.is_tighter(choice) and other.loss[student] < choice.loss[choice.candidates()[0]]:
                choice.adopt(student, other)


def again(
    workspace: Workspace, scores: Sequence[NDArray[np.float64]], missed: Selected, time: int
) -> Selected:
    """Looks for students of budgets that turned out to be missed after all: one round more, aiming lower.

    Args:
        time: how often this was done before, counted from 1; see ``confirm.run``.

    Returns:
        The same choices with the students they have now, if any, and the costs with what was measured.
    """
    scores = constrained_scores(workspace, scores)
    choices = copy.deepcopy(missed.choices)
    for choice in choices:
        choice.aim *= 1 - _STEP
    number = 2 * workspace.config.select.rounds + time
    costs, _ = _round(workspace, choices, missed.costs, counted_budgets(workspace, scores), scores, number)
    for choice in choices:
        choice.architecture = None
    choices = confirm.run(workspace, choices, costs, lambda choice: choice.within(), time)
    return Selected(choices=choices, costs=costs)


def check(workspace: Workspace, costs: Mapping[str, TargetCosts]) -> None:
    """Says which budgets cannot be met by what was measured, and why, before anything is trained.

    Raises:
        UserError: where none can, and as ``constrained`` and ``counted_budgets``.
    """
    layers = zip(workspace.space.ops, considered(costs), strict=True)
    usable = [np.where(np.isin(range(len(ops)), some), 0.0, np.inf) for ops, some in layers]
    scores = constrained_scores(workspace, usable)
    counted = counted_budgets(workspace, scores)
    choices = open_choices(workspace, costs)
    for choice in choices:
        # A reason to try again is found out in time, when students are proposed.
        with contextlib.suppress(NoSelectionFound):
            choice.unmet = _solved(workspace, choice, state(choice, costs, counted), counted, scores, _any)[1]
    missed = [choice.unmet for choice in choices if choice.unmet]
    if len(missed) == len(choices):
        others = f" (nor can the other {len(missed) - 1} budgets)" if len(missed) > 1 else ""
        raise UserError(missed[0] + others)
    for choice in choices:
        if choice.unmet:
            say(f"select: {choice.unmet}")
        for name, limit in choice.limits.items():
            if len(choice.limits) == 1 and limit.budget_ms >= costs[name].teacher_ms:
                teacher = f"{costs[name].teacher_ms:.3f} ms"
                say(f"select: {name} {choice.name}: the teacher itself, at {teacher}, keeps this budget")


def constrained_scores(
    workspace: Workspace, scores: Sequence[NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """The scores of what ``select.force`` and ``select.forbid`` leave to choose from."""
    settings, space = workspace.config.select, workspace.space
    return constrained(
        scores,
        [layer.name for layer in space.layers],
        [[op.name for op in ops] for ops in space.ops],
        force=settings.force,
        forbid=settings.forbid,
    )


def _round(
    workspace: Workspace,
    choices: Sequence[Choice],
    costs: Mapping[str, TargetCosts],
    counted: Sequence[CountedBudget],
    scores: Sequence[NDArray[np.float64]],
    number: int,
) -> tuple[dict[str, TargetCosts], bool]:
    """Has students proposed for every choice and measures them.

    Returns:
        The costs with these students, and whether any of them was not measured before.
    """
    new = _propose(workspace, choices, costs, counted, scores, number)
    costs = _measured(workspace, new, costs)
    for choice in choices:
        for name, limit in choice.limits.items():
            limit.limit_ms = limit.budget_ms * (1 - free_share(workspace.config.select, costs[name]))
        choice.measured = {
            a: {name: costs[name].networks[a] for name in choice.limits}
            for a in choice.students
            if all(a in costs[name].networks for name in choice.limits)
        }
    return costs, bool(new)


def _propose(
    workspace: Workspace,
    choices: Sequence[Choice],
    costs: Mapping[str, TargetCosts],
    counted: Sequence[CountedBudget],
    scores: Sequence[NDArray[np.float64]],
    number: int,
) -> dict[str, list[Architecture]]:
    """Solves the program of every open budget; the architectures not measured yet, by target."""
    new: dict[str, list[Architecture]] = {}
    for choice in choices:
        stated = state(choice, costs, counted)
        try:
            found, reason = _solved(workspace, choice, stated, counted, scores, _solve)
        except NoSelectionFound as error:
            found, reason = [], f"target {choice.place!r}: budget {choice.name}: {error}"
        if reason:
            # Where an earlier table proposed students, those are what there is.
            choice.unmet = "" if choice.students else reason
            continue
        choice.unmet = ""
        found = [
            dataclasses.replace(
                one, costs={name: cost + stated.rest[name] for name, cost in one.costs.items()}
            )
            for one in found
        ]
        choice.leader = found[0].choices
        calibrations = {name: len(costs[name].tables) - 1 for name in choice.limits}
        for selection in found:
            proposal = Proposal(round=number, selection=selection, calibrations=calibrations)
            choice.students.setdefault(selection.choices, proposal)
            for name in choice.limits:
                asked = new.setdefault(name, [])
                if selection.choices not in costs[name].networks and selection.choices not in asked:
                    asked.append(selection.choices)
    return {name: asked for name, asked in new.items() if asked}


def _solved(
    workspace: Workspace,
    choice: Choice,
    stated: Stated,
    counted: Sequence[CountedBudget],
    scores: Sequence[NDArray[np.float64]],
    solve: Callable[..., list[Selection]],
) -> tuple[list[Selection], str]:
    """What ``solve`` finds for a choice, or why nothing can be found; raises NoSelectionFound."""
    layer = layer_without_candidate([layer.name for layer in workspace.space.layers], scores, stated)
    if layer is not None:
        why = f"none of the candidates that may be chosen for layer {layer} runs there"
        return [], f"target {choice.place!r}: budget {choice.name} cannot be met: {why}"
    try:
        return solve(workspace, scores, stated.costs, stated.limits), ""
    except InfeasibleBudget as error:
        return [], unmet(choice, error, stated, counted, workspace.config.select)
    except TooFewOperations as error:
        why = f"select.max_ops {error.most} is less than the {error.needed} operations that its layers need"
        return [], f"target {choice.place!r}: budget {choice.name} cannot be met: {why}; raise select.max_ops"


def _any(
    workspace: Workspace,
    scores: Sequence[NDArray[np.float64]],
    costs: Mapping[str, Sequence[NDArray[np.float64]]],
    aims_ms: Mapping[str, float],
) -> list[Selection]:
    """A selection within the limits, whatever it scores; raises as ``select``."""
    zero = [np.where(np.isfinite(of_layer), 0.0, np.inf) for of_layer in scores]
    left = _of_few(workspace, zero, costs, aims_ms)
    return select(left, costs, aims_ms, time_limit_s=workspace.config.select.time_limit_s)


def _of_few(
    workspace: Workspace,
    scores: Sequence[NDArray[np.float64]],
    costs: Mapping[str, Sequence[NDArray[np.float64]]],
    aims_ms: Mapping[str, float],
) -> Sequence[NDArray[np.float64]]:
    """The scores of the best ``select.max_ops`` operations."""
    settings = workspace.config.select
    if settings.max_ops is None:
        return scores
    return of_few_operations(
        scores,
        costs,
        aims_ms,
        [[op.name for op in of_layer] for of_layer in workspace.space.ops],
        settings.max_ops,
        free=[TEACHER],
        time_limit_s=settings.time_limit_s,
    )


def _solve(
    workspace: Workspace,
    scores: Sequence[NDArray[np.float64]],
    costs: Mapping[str, Sequence[NDArray[np.float64]]],
    aims_ms: Mapping[str, float],
) -> list[Selection]:
    """The program's solutions. They are kept: what a time limit ended would not come out the same again."""
    settings = workspace.config.select
    tables = {name: [c.tolist() for c in table] for name, table in costs.items()}
    problem = ([s.tolist() for s in scores], tables, aims_ms)
    key = fingerprint(problem, settings.count, settings.max_overlap, settings.time_limit_s, settings.max_ops)
    file = f"selections/{key}.json"
    kept = workspace.storage.kept(file, _selections)
    if kept is None:
        kept = select(
            _of_few(workspace, scores, costs, aims_ms),
            costs,
            aims_ms,
            count=settings.count,
            max_overlap=settings.max_overlap,
            time_limit_s=settings.time_limit_s,
        )
        workspace.storage.write_json(file, [dataclasses.asdict(selection) for selection in kept])
    return kept


def _selections(rows: Any) -> list[Selection]:
    return [Selection(**{**row, "choices": tuple(row["choices"])}) for row in rows]


def _measured(
    workspace: Workspace, new: Mapping[str, Sequence[Architecture]], costs: Mapping[str, TargetCosts]
) -> dict[str, TargetCosts]:
    """The costs with further students measured."""
    asked = {
        name: {a: network_work(workspace.space, a) for a in architectures}
        for name, architectures in new.items()
    }
    found = judge(workspace, asked, costs, SESSIONS, "select")

    def usable(name: str) -> dict[Architecture, Judged]:
        return {a: one for (where, a), one in found.items() if where == name and one.sample.error is None}

    return {name: known.with_networks(usable(name)) for name, known in costs.items()}


def _unmet(choice: Choice) -> str:
    limits = ", ".join(f"{limit.limit_ms:.3f}" for limit in choice.limits.values())
    nearest = min(choice.measured.values(), key=lambda samples: _used(choice, samples), default={})
    took = ", ".join(f"{sample.median_ms:.3f}" for sample in nearest.values()) or "nan"
    return (
        f"target {choice.place!r}: budget {choice.name} ({limits} ms with the margin): none "
        f"of {len(choice.measured)} students measured kept it ({len(choice.given_up)} did once, but not "
        f"again), the fastest took {took} ms; raise the budget, select.count or select.rounds"
    )


def _used(choice: Choice, samples: Mapping[str, Sample]) -> float:
    """The largest share of a limit that a student takes."""
    return max(samples[name].median_ms / limit.limit_ms for name, limit in choice.limits.items())


def _say(choice: Choice) -> None:
    assert choice.architecture is not None
    samples, loss = choice.measured[choice.architecture], choice.loss[choice.architecture]
    for name, limit in choice.limits.items():
        took = samples[name].median_ms
        say(
            f"select: {name} {choice.name}: {len(choice.measured)} students measured, "
            f"{len(choice.loss)} within {limit.limit_ms:.3f} ms; the best takes {took:.3f} ms "
            f"({100 * took / limit.budget_ms:.0f} % of the budget), loss {loss:.3f}"
        )


def write(workspace: Workspace, selected: Selected) -> None:
    """Writes ``selections.parquet`` and the tables of its predictions, ``costs/<target>.parquet``."""
    choices, costs = selected.choices, selected.costs
    sample.write(workspace, costs)
    rows = [
        {
            "target": name,
            "budget": choice.name,
            "budget_ms": limit.budget_ms,
            "round": proposal.round,
            "calibration": proposal.calibrations[name],
            "rank": rank,
            "architecture": workspace.space.label(architecture),
            "choices": list(architecture),
            "score": proposal.selection.score,
            "gap": proposal.selection.gap,
            "predicted_ms": proposal.selection.costs[name],
            "measured_ms": choice.measured[architecture][name].median_ms
            if architecture in choice.measured
            else None,
            "iqr_ms": choice.measured[architecture][name].iqr_ms if architecture in choice.measured else None,
            "loss": choice.loss.get(architecture),
            "within": architecture in choice.loss,
            "chosen": architecture == choice.architecture,
        }
        for choice in choices
        for name, limit in choice.limits.items()
        for rank, (architecture, proposal) in enumerate(choice.students.items())
    ]
    key = fingerprint(
        [c.target_key for c in costs.values()], workspace.config.select, [r["architecture"] for r in rows]
    )
    workspace.storage.write_table(FILE, pa.Table.from_pylist(rows), key)
